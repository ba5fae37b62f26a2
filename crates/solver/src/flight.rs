//! Running work shared by several builds.
//!
//! States of a flight: waiting for a slot → running → ended; or cancelled from either of the first
//! two when its last subscriber leaves. An ended or cancelled flight is no longer in the map, so
//! nobody joins it.

use std::sync::Arc;

use diag::{Error, Result};
use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Inner;
use crate::miss::{Miss, explain};
use crate::store::RecordNote;
use crate::work::{Context, Work};

/// The most events kept for subscribers that come late.
const REPLAY_EVENTS_MAX: usize = 16 * 1024;

/// What running work gets: whom to tell, and when to stop.
pub struct RunContext<C: Context> {
    audience: Arc<Audience<C>>,
    /// Fires when nobody wants the work any more.
    pub cancel: CancellationToken,
}

impl<C: Context> Clone for RunContext<C> {
    fn clone(&self) -> Self {
        RunContext {
            audience: self.audience.clone(),
            cancel: self.cancel.clone(),
        }
    }
}

impl<C: Context> RunContext<C> {
    /// A context with one subscriber that stays.
    pub fn single(vertex: Digest, context: C, cancel: CancellationToken) -> Self {
        let audience = Arc::new(Audience::default());
        audience.join(vertex, context);
        RunContext { audience, cancel }
    }

    /// Tells every subscriber that something happened; the vertex counts as started.
    pub fn emit(&self, event: C::Event) {
        self.audience.start();
        self.audience.emit(event);
    }

    /// The contexts of the builds that want this work now, the first comer first.
    pub fn contexts(&self) -> Vec<C> {
        self.audience
            .state
            .lock()
            .members
            .iter()
            .map(|member| member.context.clone())
            .collect()
    }

    /// The context of the build that has wanted this work for longest.
    ///
    /// # Errors
    /// Cancelled, when none is left.
    pub fn first(&self) -> Result<C> {
        let state = self.audience.state.lock();
        state
            .members
            .first()
            .map(|m| m.context.clone())
            .ok_or_else(Error::canceled)
    }

    pub(crate) fn has_started(&self) -> bool {
        self.audience.state.lock().started
    }
}

/// Those who watch a flight.
struct Audience<C: Context> {
    state: Mutex<AudienceState<C>>,
}

struct AudienceState<C: Context> {
    members: Vec<Member<C>>,
    next_id: u64,
    /// Whether somebody left while others stayed.
    left: bool,
    started: bool,
    replay: Vec<C::Event>,
}

struct Member<C> {
    id: u64,
    vertex: Digest,
    context: C,
}

impl<C: Context> Default for Audience<C> {
    fn default() -> Self {
        Audience {
            state: Mutex::new(AudienceState {
                members: Vec::new(),
                next_id: 0,
                left: false,
                started: false,
                replay: Vec::new(),
            }),
        }
    }
}

impl<C: Context> Audience<C> {
    fn join(&self, vertex: Digest, context: C) -> u64 {
        let mut state = self.state.lock();
        if state.started {
            context.started(&vertex);
            for event in &state.replay {
                context.event(&vertex, event);
            }
        }
        let id = state.next_id;
        state.next_id += 1;
        state.members.push(Member {
            id,
            vertex,
            context,
        });
        id
    }

    /// True when nobody is left.
    fn leave(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        state.members.retain(|member| member.id != id);
        state.left = true;
        state.members.is_empty()
    }

    fn start(&self) {
        let mut state = self.state.lock();
        if !state.started {
            state.started = true;
            for member in &state.members {
                member.context.started(&member.vertex);
            }
        }
    }

    fn emit(&self, event: C::Event) {
        let mut state = self.state.lock();
        for member in &state.members {
            member.context.event(&member.vertex, &event);
        }
        if state.replay.len() < REPLAY_EVENTS_MAX {
            state.replay.push(event);
        }
    }
}

/// How a flight ended: the outputs, and whether another build had left them in the store.
#[derive(Clone)]
pub(crate) struct Landed<O> {
    pub(crate) outputs: Vec<O>,
    pub(crate) found: bool,
}

/// Work in flight.
pub(crate) struct Flight<W: Work> {
    audience: Arc<Audience<W::Context>>,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Result<Landed<W::Output>>>>,
}

/// A build's interest in a flight; dropping it withdraws.
pub(crate) struct Subscription<W: Work> {
    flight: Arc<Flight<W>>,
    solver: Arc<Inner<W>>,
    key: Digest,
    id: u64,
}

impl<W: Work> Subscription<W> {
    /// Whether the work may have failed only because a build that it was asking things of had gone.
    pub(crate) fn lost_somebody(&self) -> bool {
        self.flight.audience.state.lock().left
    }

    /// Gives the interest up. What is returned waits for the end of the work if nobody else wants it.
    pub(crate) fn withdraw(self: Arc<Self>) -> impl Future<Output = ()> + Send + use<W> {
        let cancel = self.flight.cancel.clone();
        let mut outcome = self.flight.outcome.clone();
        drop(self);
        async move {
            if cancel.is_cancelled() {
                // A task that went without an outcome has ended too.
                let _ = outcome.wait_for(|outcome| outcome.is_some()).await;
            }
        }
    }

    /// Waits for the outcome.
    pub(crate) async fn wait(&self) -> Result<Landed<W::Output>> {
        let mut outcome = self.flight.outcome.clone();
        let landed = outcome
            .wait_for(|outcome| outcome.is_some())
            .await
            .map_err(|_| Error::internal("the task of a step ended without an outcome"))?;
        landed.clone().unwrap_or_else(|| Err(Error::canceled()))
    }

    /// Whether the work ever began to run.
    pub(crate) fn has_started(&self) -> bool {
        self.flight.audience.state.lock().started
    }
}

impl<W: Work> Drop for Subscription<W> {
    fn drop(&mut self) {
        // The map is locked around leaving, so that nobody joins a flight that is given up.
        let mut flights = self.solver.flights.lock();
        if self.flight.audience.leave(self.id) {
            self.flight.cancel.cancel();
            let own = flights
                .get(&self.key)
                .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
            if own {
                flights.remove(&self.key);
            }
        }
    }
}

/// What a flight is started with.
pub(crate) struct Departure<W: Work> {
    pub(crate) work: Arc<W>,
    pub(crate) inputs: Vec<W::Output>,
    pub(crate) canonical: Digest,
    pub(crate) keys: Vec<Digest>,
    /// Whether an outcome that is there already will do.
    pub(crate) reuse: bool,
    /// Whether it is known, but what it gave is gone.
    pub(crate) evicted: bool,
    pub(crate) note: RecordNote,
}

impl<W: Work> Departure<W> {
    /// Work that ignores its cache is shared with its like only.
    fn key(&self) -> Digest {
        match self.reuse {
            true => self.canonical,
            false => {
                let mut hasher = oci::DigestHasher::new();
                hasher.field(b"ignoring the cache");
                hasher.field(self.canonical.as_bytes());
                hasher.finish()
            }
        }
    }
}

/// Joins the flight of that key, or starts it.
pub(crate) fn board<W: Work>(
    solver: &Arc<Inner<W>>,
    departure: Departure<W>,
    context: W::Context,
) -> Subscription<W> {
    let vertex = departure.work.vertex();
    let key = departure.key();
    let mut flights = solver.flights.lock();
    if let Some(flight) = flights.get(&key).cloned() {
        let id = flight.audience.join(vertex, context);
        return Subscription {
            flight,
            solver: solver.clone(),
            key,
            id,
        };
    }
    let (sender, outcome) = watch::channel(None);
    let flight = Arc::new(Flight {
        audience: Arc::new(Audience::default()),
        cancel: CancellationToken::new(),
        outcome,
    });
    // The first subscriber is there before the work can look for one.
    let id = flight.audience.join(vertex, context);
    flights.insert(key, flight.clone());
    drop(flights);
    tokio::spawn(fly(solver.clone(), flight.clone(), departure, sender));
    Subscription {
        flight,
        solver: solver.clone(),
        key,
        id,
    }
}

/// Runs the work in a task of its own, so that a panic in it is one step's failure.
async fn fly<W: Work>(
    solver: Arc<Inner<W>>,
    flight: Arc<Flight<W>>,
    departure: Departure<W>,
    sender: watch::Sender<Option<Result<Landed<W::Output>>>>,
) {
    let key = departure.key();
    let run = tokio::spawn(run(solver.clone(), flight.clone(), departure));
    let outcome = match run.await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::internal(format!("a step crashed: {error}"))),
    };
    {
        let mut flights = solver.flights.lock();
        if flights
            .get(&key)
            .is_some_and(|current| Arc::ptr_eq(current, &flight))
        {
            flights.remove(&key);
        }
    }
    // Nobody joins any more.
    flight.audience.state.lock().replay = Vec::new();
    sender.send_replace(Some(outcome));
}

async fn run<W: Work>(
    solver: Arc<Inner<W>>,
    flight: Arc<Flight<W>>,
    departure: Departure<W>,
) -> Result<Landed<W::Output>> {
    let Departure {
        work,
        inputs,
        canonical,
        keys,
        reuse,
        evicted,
        mut note,
    } = departure;
    let slot = async {
        match work.limited() {
            true => solver.slots.clone().acquire_owned().await.ok(),
            false => None,
        }
    };
    let _slot = tokio::select! {
        slot = slot => slot,
        () = flight.cancel.cancelled() => return Err(Error::canceled()),
    };
    // Another build may have finished the same work between our lookup and now.
    if reuse
        && let Some(record) = solver.store.lookup(&canonical)?
        && let Some(outputs) = record.outputs
    {
        return Ok(Landed {
            outputs,
            found: true,
        });
    }
    flight.audience.start();
    let context = RunContext {
        audience: flight.audience.clone(),
        cancel: flight.cancel.clone(),
    };
    let outputs = work.run(&context, inputs).await?;
    if work.keep() {
        note.missed = Some(match (reuse, evicted) {
            (false, _) => Miss::Ignored,
            (true, true) => Miss::Evicted,
            (true, false) => explain(&note.parts, &solver.store.similar(&note.description)?),
        });
        solver.store.save(&canonical, &keys, &outputs, &note)?;
    }
    Ok(Landed {
        outputs,
        found: false,
    })
}
