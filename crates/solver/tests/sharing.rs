//! What builds share, and what they keep from each other: work that waits until the test lets it go.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use diag::{Error, Result};
use oci::Digest;
use parking_lot::Mutex;
use solver::{
    Context, Identity, InputKey, KeyPart, KeyStore, Miss, Outcome, RecordNote, RunContext, Solver,
    SqliteKeyStore, Work,
};
use tokio::sync::Semaphore;

/// What the works of a test share.
struct Stage {
    runs: Mutex<HashMap<&'static str, usize>>,
    running: AtomicUsize,
    running_most: AtomicUsize,
    /// A work that waits takes one to go on.
    go: Semaphore,
    evicted: Mutex<Vec<String>>,
}

#[derive(Clone)]
struct Client {
    stage: Arc<Stage>,
    gone: Arc<AtomicBool>,
    ended: Arc<Mutex<HashMap<Digest, String>>>,
}

impl Context for Client {
    type Event = ();

    fn started(&self, _: &Digest) {}
    fn event(&self, _: &Digest, (): &()) {}
    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>) {
        let outcome = match outcome {
            Outcome::Cached => "cached".to_owned(),
            Outcome::Done => "done".to_owned(),
            Outcome::Failed(error) => error.to_string(),
        };
        self.ended.lock().insert(*vertex, outcome);
    }
    fn reused(&self, vertex: &Digest) {
        let before = self.ended.lock().insert(*vertex, "reused".to_owned());
        assert_eq!(before.as_deref(), Some("done"));
    }
}

#[derive(Clone, Default)]
struct Step {
    name: &'static str,
    argument: String,
    /// Waits for the stage's word.
    waits: bool,
    /// Asks the client of the build that it runs for.
    asks: bool,
    ignore_cache: bool,
    content: bool,
    /// Says something when it is pinned.
    pins: bool,
}

fn step(name: &'static str) -> Step {
    Step {
        name,
        ..Step::default()
    }
}

struct Running<'s>(&'s Stage);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Work for Step {
    type Output = String;
    type Context = Client;

    fn vertex(&self) -> Digest {
        Digest::of(self.name)
    }

    async fn identity(&self, context: &RunContext<Client>) -> Result<Identity> {
        if self.pins {
            context.emit(());
        }
        Ok(Identity::of(vec![
            KeyPart::new("name", self.name),
            KeyPart::new("argument", self.argument.clone()),
        ]))
    }

    fn input_key(&self, _: usize) -> InputKey {
        match self.content {
            true => InputKey::Content,
            false => InputKey::Definition,
        }
    }

    async fn content_digest(&self, _: &RunContext<Client>, _: usize, _: &String) -> Result<Digest> {
        Ok(Digest::of("always the same"))
    }

    async fn run(&self, context: &RunContext<Client>, _: Vec<String>) -> Result<Vec<String>> {
        let client = context.first()?;
        let stage = client.stage.clone();
        *stage.runs.lock().entry(self.name).or_insert(0) += 1;
        let now = stage.running.fetch_add(1, Ordering::SeqCst) + 1;
        stage.running_most.fetch_max(now, Ordering::SeqCst);
        let _running = Running(&stage);
        if self.waits {
            tokio::select! {
                permit = stage.go.acquire() => permit.unwrap().forget(),
                () = context.cancel.cancelled() => return Err(Error::canceled()),
            }
        }
        if self.asks && client.gone.load(Ordering::SeqCst) {
            return Err(Error::new(diag::Code::Unavailable, "the client is gone"));
        }
        Ok(vec![format!("{}{}", self.name, self.argument)])
    }

    fn ignore_cache(&self) -> bool {
        self.ignore_cache
    }

    fn description(&self) -> String {
        self.name.to_owned()
    }
}

struct Theatre {
    _dir: tempfile::TempDir,
    stage: Arc<Stage>,
    store: Arc<SqliteKeyStore<String>>,
    solver: Solver<Step>,
}

fn theatre(parallelism: usize) -> Theatre {
    let dir = tempfile::tempdir().unwrap();
    let stage = Arc::new(Stage {
        runs: Mutex::default(),
        running: AtomicUsize::new(0),
        running_most: AtomicUsize::new(0),
        go: Semaphore::new(0),
        evicted: Mutex::default(),
    });
    let files = stage.clone();
    let there =
        move |output: &String| (!files.evicted.lock().contains(output)).then(|| output.clone());
    let store = Arc::new(SqliteKeyStore::open(&dir.path().join("keys.db"), there).unwrap());
    let solver = Solver::new(store.clone(), parallelism);
    Theatre {
        _dir: dir,
        stage,
        store,
        solver,
    }
}

impl Theatre {
    fn client(&self) -> Client {
        Client {
            stage: self.stage.clone(),
            gone: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// A build of these steps, each on the one before it.
    fn build(
        &self,
        client: &Client,
        steps: &[Step],
    ) -> (solver::Build<Step>, solver::NodeRef<Step>) {
        let build = self.solver.build(client.clone());
        let mut last = Vec::new();
        let mut node = None;
        for step in steps {
            let added = build.add(step.clone(), &last).unwrap();
            last = vec![(added.vertex(), 0)];
            node = Some(added);
        }
        (build, node.unwrap())
    }

    async fn done(&self, steps: &[Step]) -> Client {
        let client = self.client();
        let (build, node) = self.build(&client, steps);
        build.outputs(&node).await.unwrap();
        client
    }

    fn runs(&self, name: &str) -> usize {
        self.stage.runs.lock().get(name).copied().unwrap_or(0)
    }

    async fn until_running(&self, count: usize) {
        while self.stage.running.load(Ordering::SeqCst) != count {
            tokio::task::yield_now().await;
        }
    }

    fn missed(&self, description: &str) -> Vec<Miss> {
        let records = self.store.list().unwrap();
        let notes = records.into_iter().map(|record| record.note);
        notes
            .filter(|note| note.description == description)
            .filter_map(|note| note.missed)
            .collect()
    }
}

#[tokio::test]
async fn equal_work_of_many_builds_runs_once_and_outlives_those_that_leave() {
    let t = theatre(0);
    let waiting = Step {
        waits: true,
        ..step("shared")
    };
    let builds: Vec<_> = (0..64)
        .map(|_| t.build(&t.client(), std::slice::from_ref(&waiting)))
        .collect();
    let mut tasks = Vec::new();
    for (build, node) in builds {
        tasks.push(tokio::spawn(async move { build.outputs(&node).await }));
    }
    t.until_running(1).await;
    // The first half goes away, the one that began it among them.
    for task in tasks.drain(..32) {
        task.abort();
        let _ = task.await;
    }
    t.stage.go.add_permits(1);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), ["shared"]);
    }
    assert_eq!(t.runs("shared"), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_take_others_down() {
    let t = theatre(0);
    let asking = Step {
        waits: true,
        asks: true,
        ..step("asking")
    };
    let (leaving, staying) = (t.client(), t.client());
    let (first, node) = t.build(&leaving, std::slice::from_ref(&asking));
    let first = tokio::spawn(async move { first.outputs(&node).await });
    t.until_running(1).await;
    let (second, node) = t.build(&staying, std::slice::from_ref(&asking));
    let second = tokio::spawn(async move { second.outputs(&node).await });
    // The second has joined when it has a share in the work.
    while t.solver.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    leaving.gone.store(true, Ordering::SeqCst);
    first.abort();
    let _ = first.await;
    t.stage.go.add_permits(2);
    assert_eq!(second.await.unwrap().unwrap(), ["asking"]);
    assert!(t.runs("asking") <= 2);
}

#[tokio::test]
async fn what_began_is_not_called_cached_when_another_build_has_made_it_meanwhile() {
    let t = theatre(0);
    let asking = Step {
        waits: true,
        asks: true,
        ..step("asking")
    };
    let (leaving, staying) = (t.client(), t.client());
    let (first, node) = t.build(&leaving, std::slice::from_ref(&asking));
    let first = tokio::spawn(async move { first.outputs(&node).await });
    t.until_running(1).await;
    let (second, node) = t.build(&staying, std::slice::from_ref(&asking));
    let key = second.key(&node).await.unwrap();
    let second = tokio::spawn(async move { second.outputs(&node).await });
    // It takes up the work, which has begun, when it is polled first.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let made = ["made".to_owned()];
    t.store
        .save(&key, &[key], &made, &RecordNote::default())
        .unwrap();
    leaving.gone.store(true, Ordering::SeqCst);
    first.abort();
    let _ = first.await;
    t.stage.go.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap(), made);
    assert_eq!(t.runs("asking"), 1);
    assert_eq!(staying.ended.lock()[&Digest::of("asking")], "done");
}

#[tokio::test]
async fn at_most_so_many_works_run_at_once() {
    let t = theatre(3);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let tasks: Vec<_> = names
        .map(|name| Step {
            waits: true,
            ..step(name)
        })
        .map(|step| {
            let (build, node) = t.build(&t.client(), &[step]);
            tokio::spawn(async move { build.outputs(&node).await })
        })
        .into_iter()
        .collect();
    t.until_running(3).await;
    t.stage.go.add_permits(names.len());
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(t.stage.running_most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_build_that_is_stopped_has_nothing_running_afterwards() {
    let t = theatre(0);
    let waiting = Step {
        waits: true,
        ..step("long")
    };
    let (build, node) = t.build(&t.client(), &[waiting]);
    let build = Arc::new(build);
    let waiter = tokio::spawn({
        let build = build.clone();
        async move { build.outputs(&node).await }
    });
    t.until_running(1).await;
    waiter.abort();
    let _ = waiter.await;
    build.stop().await;
    assert_eq!(t.stage.running.load(Ordering::SeqCst), 0);
    assert_eq!(t.solver.in_flight(), 0);
}

#[tokio::test]
async fn what_lies_below_a_known_outcome_is_not_looked_for() {
    let t = theatre(0);
    let steps = [step("base"), step("middle"), step("top")];
    t.done(&steps).await;
    t.stage
        .evicted
        .lock()
        .extend(["base".into(), "middle".into()]);
    let client = t.done(&steps).await;
    assert_eq!((t.runs("base"), t.runs("middle"), t.runs("top")), (1, 1, 1));
    let ended = client.ended.lock().clone();
    assert_eq!(
        ended.get(&Digest::of("top")).map(String::as_str),
        Some("cached")
    );
    // Only what is needed is made again.
    t.stage.evicted.lock().push("top".into());
    t.done(&steps).await;
    assert_eq!((t.runs("base"), t.runs("middle"), t.runs("top")), (2, 2, 2));
    assert_eq!(t.missed("top"), [Miss::Evicted]);
}

#[tokio::test]
async fn ignoring_the_cache_is_shared_with_its_like_only() {
    let t = theatre(0);
    let steps = [step("base")];
    t.done(&steps).await;
    let fresh = [Step {
        ignore_cache: true,
        ..step("base")
    }];
    t.done(&fresh).await;
    assert_eq!(t.runs("base"), 2);
    assert_eq!(t.missed("base"), [Miss::Ignored]);
    t.done(&steps).await;
    assert_eq!(
        t.runs("base"),
        2,
        "its outcome is used by those that do not"
    );
}

#[tokio::test]
async fn a_miss_is_explained_by_the_names_of_what_changed() {
    let t = theatre(0);
    let with = |argument: &str| Step {
        argument: argument.into(),
        ..step("base")
    };
    let reading = Step {
        content: true,
        ..step("reading")
    };
    t.done(&[with("1"), step("top"), reading.clone()]).await;
    t.done(&[with("2"), step("top"), reading]).await;
    let changed = |miss: &Miss| match miss {
        Miss::Changed { parts, .. } => parts.iter().map(|part| part.name.clone()).collect(),
        other => vec![format!("{other:?}")],
    };
    let names = |description| {
        t.missed(description)
            .iter()
            .map(changed)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("base"), [vec!["Unknown"], vec!["argument"]]);
    assert_eq!(names("top"), [vec!["Unknown"], vec!["input 0"]]);
    // It reads the same of another input: found.
    assert_eq!(names("reading"), [vec!["Unknown"]]);
}

#[test]
fn a_graph_of_thousands_of_steps_on_one_another_fits_in_a_servers_stack() {
    let run = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(thousands_on_one_another());
    };
    let thread = std::thread::Builder::new().stack_size(8 << 20);
    thread.spawn(run).unwrap().join().unwrap();
}

async fn thousands_on_one_another() {
    const DEPTH: usize = 4000;
    for content in [false, true] {
        let t = theatre(0);
        // Only the top is read by content, so all below it is made at once.
        let steps: Vec<Step> = (0..DEPTH)
            .map(|at| Step {
                content: content && at + 1 == DEPTH,
                ..step(format!("step {at}").leak())
            })
            .collect();
        let first = t.done(&steps).await;
        assert_eq!(first.ended.lock().len(), DEPTH);
        let again = t.done(&steps).await;
        assert!(again.ended.lock().values().all(|end| end == "cached"));
        assert_eq!((t.runs("step 0"), t.runs("step 3999")), (1, 1));
    }
}

#[tokio::test]
async fn what_was_pinned_is_told_as_reused_when_something_is_made_of_it() {
    let t = theatre(0);
    let source = Step {
        pins: true,
        ..step("source")
    };
    let ended = |client: &Client, name: &str| client.ended.lock()[&Digest::of(name)].clone();
    let first = t.done(&[source.clone(), step("one")]).await;
    assert_eq!(ended(&first, "source"), "done");
    // All is known: nobody needs what the source gives.
    let second = t.done(&[source.clone(), step("one")]).await;
    assert_eq!(ended(&second, "source"), "done");
    assert_eq!(ended(&second, "one"), "cached");
    let third = t.done(&[source, step("two")]).await;
    assert_eq!(ended(&third, "source"), "reused");
    assert_eq!(ended(&third, "two"), "done");
    assert_eq!(t.runs("source"), 1);
}
