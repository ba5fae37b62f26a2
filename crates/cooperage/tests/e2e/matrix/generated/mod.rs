//! Graphs made from seeds, solved by our server and by stock.
//!
//! A seed gives one graph of sources, file operations, processes, merges and differences over each
//! other, the same on every machine. Ways are made up mostly, but not only, of paths that exist, so
//! about half of the graphs fail somewhere; a graph in which several branches fail may fail with
//! either. So where the outcomes of a graph differ its vertices are built one by one, inputs before
//! what uses them, and the first that differs though its inputs do not is the finding: that is also
//! the smallest part of the graph that shows it.
//!
//! Known differences of the ledger are excused in [`excused`]; differences between the Engine's
//! BuildKit and newer ones are not generated.

mod bases;
mod excused;
mod files;
mod grammar;
mod model;
mod process;

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use llb::{Edge, Graph};

use super::{Built, Case, Export, Matrix, alike, is_gone, told};
use bases::World;
use grammar::{Generated, generate};

/// How many graphs are built and from which seed on, unless these say otherwise.
const COUNT: (&str, u64) = ("COOPERAGE_LLB_SEEDS", 24);
const FROM: (&str, u64) = ("COOPERAGE_LLB_FROM", 0);
/// How many are built side by side.
const WORKERS: usize = 3;

fn wanted((name, default): (&str, u64)) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |given| given.parse().expect("a number of seeds"))
}

#[test]
fn matrix_generated_graphs_build_alike() {
    let matrix = Matrix::start(super::exec::ALLOW);
    let world = World::new(&matrix);
    let (count, from) = (wanted(COUNT), wanted(FROM));
    let judge = Judge {
        matrix: &matrix,
        world: &world,
        built: AtomicUsize::new(0),
    };
    let next = AtomicU64::new(from);
    let worker = || {
        let mut findings = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count {
                return findings;
            }
            if let Some(finding) = judge.seed(seed) {
                tell(&finding);
                findings.push(finding);
            }
            if (seed - from) % 100 == 99 {
                let built = judge.built.load(Ordering::Relaxed);
                tell(&format!("up to seed {seed}: {built} built"));
            }
        }
    };
    let findings: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        let ends = workers.into_iter().map(|worker| worker.join().unwrap());
        ends.flatten().collect()
    });
    let built = judge.built.load(Ordering::Relaxed) as u64;
    tell(&format!("{count} graphs, {built} of them built"));
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    assert!(built * 4 >= count, "only {built} of {count} were built");
}

/// A run of many seeds shows what it finds as it goes.
fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

struct Judge<'m> {
    matrix: &'m Matrix,
    world: &'m World,
    /// How many graphs stock has built.
    built: AtomicUsize,
}

impl Judge<'_> {
    /// The difference a seed shows, if there is one.
    fn seed(&self, seed: u64) -> Option<String> {
        let generated = generate(seed, self.world);
        let root = *generated.edges.last()?;
        let (ours, stock) = self.both(&generated, root, generated.export, &[]);
        if stock.is_ok() {
            self.built.fetch_add(1, Ordering::Relaxed);
        }
        if is_same(&ours, &stock) {
            return None;
        }
        self.first_difference(seed, &generated)
    }

    /// Builds every part of the graph from its beginning on.
    fn first_difference(&self, seed: u64, generated: &Generated) -> Option<String> {
        let root = *generated.edges.last()?;
        let graph = generated.graph(root);
        let mut failed = HashSet::new();
        for digest in &graph.order {
            let vertex = &graph.vertices[digest];
            if vertex
                .inputs
                .iter()
                .any(|input| failed.contains(&input.vertex))
            {
                failed.insert(*digest);
                continue;
            }
            let edges = generated.edges.iter().filter(|edge| edge.vertex == *digest);
            for edge in edges {
                let mut exports = vec![Export::Tar];
                if *edge == root && generated.export != Export::Tar {
                    exports.push(generated.export);
                }
                for export in exports {
                    let (ours, stock) = self.both(generated, *edge, export, &[]);
                    if !is_same(&ours, &stock) {
                        let again = self.both(generated, *edge, export, &["--no-cache"]);
                        return Some(finding(
                            self.world,
                            seed,
                            generated,
                            *edge,
                            export,
                            (ours, stock),
                            again,
                        ));
                    }
                    if stock.is_err() {
                        failed.insert(*digest);
                    }
                }
            }
        }
        None
    }

    fn both(
        &self,
        generated: &Generated,
        root: Edge,
        export: Export,
        more: &[&str],
    ) -> (Built, Built) {
        let mut flags: Vec<&str> = self.world.flags.iter().map(String::as_str).collect();
        flags.extend_from_slice(more);
        let case = Case::new("generated", generated.graph(root))
            .flags(&flags)
            .exported_as(export);
        let stock = self
            .matrix
            .stock
            .as_ref()
            .expect("a server to compare with");
        let theirs = stock.tree(&case, self.matrix);
        if is_gone(&theirs) {
            let graph = shown(&generated.graph(root), self.world);
            panic!("stock is gone\n{}\n{graph}", self.matrix.stock_log());
        }
        (self.matrix.ours.tree(&case, self.matrix), theirs)
    }
}

fn is_same(ours: &Built, stock: &Built) -> bool {
    alike(ours, stock) || excused::is_known(ours, stock)
}

fn finding(
    world: &World,
    seed: u64,
    generated: &Generated,
    edge: Edge,
    export: Export,
    (ours, stock): (Built, Built),
    again: (Built, Built),
) -> String {
    let cached = match is_same(&again.0, &again.1) {
        true => ", not without the cache",
        false => "",
    };
    let name = format!("seed {seed} as {export:?}{cached}");
    told(&name, &ours, &stock) + &shown(&generated.graph(edge), world)
}

/// The graph, a line for each vertex, without what is not set.
fn shown(graph: &Graph, world: &World) -> String {
    let noise = r#"\b[a-z_]+: (None|false|""|\[\]|\{\}|Unset|Sandbox|Default|Bind)(, )?"#;
    let noise = regex::Regex::new(noise).unwrap();
    let number = |edge: &Edge| {
        let at = graph.order.iter().position(|digest| *digest == edge.vertex);
        format!("v{}.{}", at.unwrap_or_default(), edge.output)
    };
    let mut text = String::new();
    for (at, digest) in graph.order.iter().enumerate() {
        let vertex = &graph.vertices[digest];
        let op = format!("{:?}", vertex.op);
        let op = noise.replace_all(&op, "");
        let inputs: Vec<String> = vertex.inputs.iter().map(number).collect();
        let _ = writeln!(
            text,
            "    v{at}({}) = {}",
            inputs.join(", "),
            op.replace("\\n", "\n        ")
        );
        if let llb::Op::Source(source) = &vertex.op {
            text += world.shown(&source.identifier);
        }
    }
    text + &format!(
        "    wanted: {}\n",
        graph.root.as_ref().map_or_else(String::new, number)
    )
}
