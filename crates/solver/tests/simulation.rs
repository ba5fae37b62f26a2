//! Random graphs, faults, evictions and cancellations against naive evaluation, from a seed.
//!
//! Seeds that failed are written to `simulation.seeds` beside this file and replayed before all others.
//! `COOPERAGE_SIM_SEEDS=N` runs more (`cargo xtask simulate`), `COOPERAGE_SIM_SEED=S` a single one. Even
//! seeds run on one thread, where little but the seed decides; odd ones on several.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use diag::{Error, Result};
use oci::Digest;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use solver::{
    Context, Identity, InputKey, KeyPart, KeyStore, Outcome, RunContext, Solver, SqliteKeyStore,
    Work,
};

const SAVED_SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation.seeds");

/// What lies outside the graph: the values of sources, which work fails, and what was counted.
#[derive(Default)]
struct World {
    sources: Mutex<HashMap<usize, u64>>,
    fail_one_in: AtomicUsize,
    faults: Mutex<Option<StdRng>>,
    /// Outputs whose files were removed.
    evicted: Mutex<HashSet<u64>>,
    runs: AtomicUsize,
}

impl World {
    /// Whether work goes wrong now, as the seed has it.
    fn fails(&self) -> bool {
        let one_in = self.fail_one_in.load(Ordering::Relaxed);
        let mut faults = self.faults.lock();
        let random = faults.as_mut().filter(|_| one_in > 0);
        random.is_some_and(|random| random.random_range(0..one_in) == 0)
    }
}

#[derive(Clone)]
struct Watcher {
    world: Arc<World>,
    open: Arc<Mutex<HashMap<Digest, &'static str>>>,
}

impl Watcher {
    fn new(world: &Arc<World>) -> Self {
        Watcher {
            world: world.clone(),
            open: Arc::default(),
        }
    }
}

impl Context for Watcher {
    type Event = u64;

    fn started(&self, vertex: &Digest) {
        let before = self.open.lock().insert(*vertex, "started");
        assert_ne!(
            before,
            Some("completed"),
            "a vertex starts after it has ended"
        );
    }

    fn event(&self, vertex: &Digest, _: &u64) {
        assert_eq!(
            self.open.lock().get(vertex),
            Some(&"started"),
            "event of what did not start"
        );
    }

    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>) {
        let before = self.open.lock().insert(*vertex, "completed");
        assert_ne!(before, Some("completed"), "a vertex ends twice");
        if let Outcome::Cached = outcome {
            assert_eq!(before, None, "a cached vertex did something");
        }
    }
}

/// One vertex of a plan: op number, inputs (node, output), and which inputs it reads in part.
#[derive(Clone)]
struct Plan {
    op: usize,
    inputs: Vec<(usize, usize)>,
    partial: Vec<bool>,
    ignore_cache: bool,
}

struct Step {
    plan: Plan,
    name: Digest,
    /// What its source was when it was pinned: it may be another by the time the work runs.
    pinned: Mutex<Option<u64>>,
}

/// What a vertex reads of an input keyed by content.
fn part_of(value: u64) -> u64 {
    value & 3
}

fn compute(op: usize, read: &[u64]) -> Vec<u64> {
    let mut hasher = oci::DigestHasher::new();
    hasher.field(&op.to_le_bytes());
    for value in read {
        hasher.field(&value.to_le_bytes());
    }
    let digest = hasher.finish();
    digest.as_bytes()[..16]
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

#[async_trait]
impl Work for Step {
    type Output = u64;
    type Context = Watcher;

    fn vertex(&self) -> Digest {
        self.name
    }

    async fn identity(&self, context: &RunContext<Watcher>) -> Result<Identity> {
        let mut parts = vec![
            KeyPart::new("op", self.plan.op.to_string()),
            KeyPart::new("partial", format!("{:?}", self.plan.partial)),
        ];
        if self.plan.inputs.is_empty() {
            tokio::task::yield_now().await;
            let world = &context.first()?.world;
            if world.fails() {
                return Err(Error::new(diag::Code::Unknown, "fault"));
            }
            let value = world.sources.lock()[&self.plan.op];
            if value.is_multiple_of(3) {
                context.emit(value);
            }
            *self.pinned.lock() = Some(value);
            parts.push(KeyPart::new("pinned", value.to_string()));
        }
        Ok(Identity::of(parts))
    }

    fn input_key(&self, input: usize) -> InputKey {
        if self.plan.partial[input] {
            InputKey::Content
        } else {
            InputKey::Definition
        }
    }

    async fn content_digest(
        &self,
        _: &RunContext<Watcher>,
        _: usize,
        output: &u64,
    ) -> Result<Digest> {
        Ok(Digest::of(part_of(*output).to_le_bytes()))
    }

    async fn run(&self, context: &RunContext<Watcher>, inputs: Vec<u64>) -> Result<Vec<u64>> {
        let world = context.first()?.world.clone();
        world.runs.fetch_add(1, Ordering::Relaxed);
        for step in 0..3 {
            context.emit(step);
            tokio::select! {
                () = tokio::task::yield_now() => {}
                () = context.cancel.cancelled() => return Err(Error::canceled()),
            }
        }
        if world.fails() {
            return Err(Error::new(diag::Code::Unknown, "fault"));
        }
        let read: Vec<u64> = match self.plan.inputs.is_empty() {
            true => vec![self.pinned.lock().unwrap()],
            false => inputs
                .iter()
                .zip(&self.plan.partial)
                .map(|(value, partial)| if *partial { part_of(*value) } else { *value })
                .collect(),
        };
        let outputs = compute(self.plan.op, &read);
        let mut evicted = world.evicted.lock();
        for output in &outputs {
            evicted.remove(output);
        }
        Ok(outputs)
    }

    fn ignore_cache(&self) -> bool {
        self.plan.ignore_cache
    }

    fn description(&self) -> String {
        format!("op {}", self.plan.op)
    }
}

fn random_plan(rng: &mut StdRng) -> Vec<Plan> {
    let count = rng.random_range(2..14);
    let ops = rng.random_range(2..9);
    (0..count)
        .map(|at| {
            let inputs: Vec<(usize, usize)> = match at {
                0 => Vec::new(),
                _ => (0..rng.random_range(0..4))
                    .map(|_| (rng.random_range(0..at), rng.random_range(0..2)))
                    .collect(),
            };
            let partial = inputs.iter().map(|_| rng.random_bool(0.4)).collect();
            Plan {
                op: rng.random_range(0..ops),
                inputs,
                partial,
                ignore_cache: rng.random_bool(0.05),
            }
        })
        .collect()
}

/// The right answer, by doing everything.
fn naive(plan: &[Plan], sources: &HashMap<usize, u64>) -> Vec<Vec<u64>> {
    let mut outputs: Vec<Vec<u64>> = Vec::new();
    for step in plan {
        let read: Vec<u64> = match step.inputs.is_empty() {
            true => vec![sources[&step.op]],
            false => step
                .inputs
                .iter()
                .zip(&step.partial)
                .map(|((node, output), partial)| {
                    let value = outputs[*node][*output];
                    if *partial { part_of(value) } else { value }
                })
                .collect(),
        };
        outputs.push(compute(step.op, &read));
    }
    outputs
}

fn add(build: &solver::Build<Step>, plan: &[Plan]) -> Vec<solver::NodeRef<Step>> {
    let mut nodes: Vec<solver::NodeRef<Step>> = Vec::new();
    for (at, step) in plan.iter().enumerate() {
        let name = Digest::of(format!("vertex {at}"));
        let inputs: Vec<_> = step
            .inputs
            .iter()
            .map(|(node, output)| (nodes[*node].vertex(), *output))
            .collect();
        nodes.push(
            build
                .add(
                    Step {
                        plan: step.clone(),
                        name,
                        pinned: Mutex::default(),
                    },
                    &inputs,
                )
                .unwrap(),
        );
    }
    nodes
}

async fn simulate(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    *world.faults.lock() = Some(StdRng::seed_from_u64(!seed));
    let files = world.clone();
    let there = move |output: &u64| (!files.evicted.lock().contains(output)).then_some(*output);
    let store =
        Arc::new(SqliteKeyStore::<u64>::open(&directory.path().join("keys.db"), there).unwrap());
    let solver: Solver<Step> = Solver::new(store.clone(), rng.random_range(0..4));
    let plans: Vec<Vec<Plan>> = (0..3).map(|_| random_plan(&mut rng)).collect();
    for round in 0..12 {
        for op in 0..9 {
            if round == 0 || rng.random_bool(0.2) {
                world.sources.lock().insert(op, rng.random_range(0..8));
            }
        }
        world
            .fail_one_in
            .store(if rng.random_bool(0.3) { 6 } else { 0 }, Ordering::Relaxed);
        if rng.random_bool(0.3) {
            for record in store.list().unwrap() {
                match rng.random_range(0..4) {
                    0 => store.remove(&record.canonical).unwrap(),
                    1 => world.evicted.lock().extend(record.outputs.iter().flatten()),
                    _ => {}
                }
            }
        }
        let builds = (0..rng.random_range(1..5)).map(|_| {
            let plan = plans[rng.random_range(0..plans.len())].clone();
            let patience = rng.random_bool(0.25).then(|| rng.random_range(0..40));
            let build = solver.build(Watcher::new(&world));
            let (world, wanted) = (world.clone(), rng.random_range(0..plan.len()));
            tokio::spawn(async move {
                let nodes = add(&build, &plan);
                let expected = naive(&plan, &world.sources.lock().clone());
                let outputs = build.outputs(&nodes[wanted]);
                let outcome = match patience {
                    None => Some(outputs.await),
                    Some(patience) => tokio::select! {
                        biased;
                        outcome = outputs => Some(outcome),
                        () = async { for _ in 0..patience { tokio::task::yield_now().await } } => None,
                    },
                };
                match outcome {
                    Some(Ok(outputs)) => assert_eq!(outputs, expected[wanted], "seed {seed}"),
                    Some(Err(error)) => assert_eq!(error.to_string(), "fault", "seed {seed}"),
                    None if patience.is_some_and(|patience| patience % 2 == 0) => build.cancel(),
                    None => build.stop().await,
                }
            })
        });
        for build in builds.collect::<Vec<_>>() {
            let ended = tokio::time::timeout(Duration::from_secs(180), build).await;
            ended
                .unwrap_or_else(|_| panic!("seed {seed} is stuck"))
                .unwrap();
        }
    }
    world.fail_one_in.store(0, Ordering::Relaxed);
    check_second_build_runs_nothing(&solver, &world, &plans[0], seed).await;
    tokio::time::timeout(Duration::from_secs(180), async {
        while solver.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("seed {seed} leaves work in flight"));
}

async fn check_second_build_runs_nothing(
    solver: &Solver<Step>,
    world: &Arc<World>,
    plan: &[Plan],
    seed: u64,
) {
    let plan: Vec<Plan> = plan
        .iter()
        .cloned()
        .map(|step| Plan {
            ignore_cache: false,
            ..step
        })
        .collect();
    for again in [false, true] {
        let before = world.runs.load(Ordering::Relaxed);
        let build = solver.build(Watcher::new(world));
        for node in add(&build, &plan) {
            build.outputs(&node).await.unwrap();
        }
        let ran = world.runs.load(Ordering::Relaxed) - before;
        assert!(!again || ran == 0, "seed {seed}: {ran} steps ran again");
    }
}

fn run(seed: u64) {
    let mut runtime = match seed.is_multiple_of(2) {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(simulate(seed));
}

fn saved_seeds() -> Vec<u64> {
    let text = std::fs::read_to_string(SAVED_SEEDS).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.trim().parse().ok()).collect()
}

fn save_seed(seed: u64) {
    use std::io::Write;
    if saved_seeds().contains(&seed) {
        return;
    }
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(SAVED_SEEDS);
    let written = file.and_then(|mut file| writeln!(file, "{seed}"));
    if let Err(error) = written {
        panic!("seed {seed} failed and cannot be saved: {error}");
    }
}

#[test]
fn evaluation_with_a_cache_is_evaluation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    if let Some(seed) = number("COOPERAGE_SIM_SEED") {
        return run(seed);
    }
    let fresh = 0..number("COOPERAGE_SIM_SEEDS").unwrap_or(60);
    for seed in saved_seeds().into_iter().chain(fresh) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            save_seed(seed);
            std::panic::resume_unwind(panic);
        }
    }
}
