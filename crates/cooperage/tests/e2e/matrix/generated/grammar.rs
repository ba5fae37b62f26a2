//! The graph of a seed.

use llb::{DiffOp, Edge, Graph, MergeOp, Op};
use testkit::Dice;

use super::super::Export;
use super::super::graph::Llb;
use super::bases::{Base, World};
use super::model::Model;

/// What a seed makes.
pub struct Generated {
    pub llb: Llb,
    /// What is wanted, last; before it all others, inputs before what uses them.
    pub edges: Vec<Edge>,
    pub export: Export,
}

impl Generated {
    pub fn graph(&self, root: Edge) -> Graph {
        self.llb.finish(root)
    }
}

/// A file system of the graph.
#[derive(Clone)]
pub struct State {
    pub edge: Edge,
    pub model: Model,
    pub shell: bool,
    /// Which state it was made of.
    pub parent: Option<usize>,
    /// Whether it may be nothing at all.
    pub empty: bool,
}

impl State {
    pub fn new(edge: Edge, model: Model, shell: bool, parent: Option<usize>) -> State {
        State {
            edge,
            model,
            shell,
            parent,
            empty: false,
        }
    }
}

/// A graph being made.
pub struct Maker<'w> {
    pub dice: Dice,
    pub llb: Llb,
    pub world: &'w World,
    pub states: Vec<State>,
    seed: u64,
    count: u32,
}

pub fn generate(seed: u64, world: &World) -> Generated {
    let mut maker = Maker {
        dice: Dice::new(seed),
        llb: Llb::new(""),
        world,
        states: Vec::new(),
        seed,
        count: 0,
    };
    for _ in 0..1 + maker.dice.below(2) {
        maker.source();
    }
    for _ in 0..1 + maker.dice.below(6) {
        match maker.dice.below(20) {
            0..=8 => maker.file(),
            9..=13 => maker.process(),
            14 | 15 => maker.merge(),
            16..=18 => maker.difference(),
            _ => maker.source(),
        }
    }
    let export = match maker.dice.below(10) {
        0..=4 => Export::Tar,
        5 => Export::Folder,
        _ => Export::Layers,
    };
    Generated {
        edges: maker.states.iter().map(|state| state.edge).collect(),
        llb: maker.llb,
        export,
    }
}

impl Maker<'_> {
    /// A number that no other place of any seed gets, so that equal content is the same thing.
    pub fn new_number(&mut self) -> String {
        self.count += 1;
        format!("{}-{}", self.seed, self.count)
    }

    /// A time long past that no other place of the seed gets, in seconds.
    pub fn new_time(&mut self) -> i64 {
        self.count += 1;
        1_400_000_000 + i64::from(self.count) * 1000
    }

    fn source(&mut self) {
        let index = self.dice.below(self.world.bases.len());
        let base = self.world.bases[index].clone();
        self.begin(&base);
    }

    /// The state of something to begin with.
    fn begin(&mut self, base: &Base) -> usize {
        let (identifier, attrs) = &base.sources[self.dice.below(base.sources.len())];
        let attrs: Vec<(&str, &str)> = attrs.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let edge = self.llb.source(identifier, &attrs);
        self.add(State::new(edge, base.model.clone(), base.shell, None))
    }

    pub fn add(&mut self, state: State) -> usize {
        self.states.push(state);
        self.states.len() - 1
    }

    /// Any state, later ones more often.
    pub fn any(&mut self) -> usize {
        let count = self.states.len();
        let (one, other) = (self.dice.below(count), self.dice.below(count));
        one.max(other)
    }

    /// One that is not nothing: a file operation that fails on such an input is the end of stock.
    pub fn any_with_files(&mut self) -> usize {
        let some = self.any();
        match self.states[some].empty {
            true => 0,
            false => some,
        }
    }

    /// The base image, or something made of it.
    pub fn with_shell(&mut self) -> usize {
        let shells = self.states.iter().enumerate();
        let shells: Vec<usize> = shells
            .filter(|(_, state)| state.shell)
            .map(|(index, _)| index)
            .collect();
        if shells.is_empty() || self.dice.one_in(3) {
            let busybox = self.world.busybox.clone();
            return self.begin(&busybox);
        }
        self.dice.pick(&shells)
    }

    fn merge(&mut self) {
        let count = 2 + self.dice.below(3);
        let inputs: Vec<usize> = (0..count).map(|_| self.any()).collect();
        let mut model = Model::default();
        for input in &inputs {
            model.graft(&self.states[*input].model, "");
        }
        let edges = inputs.iter().map(|input| self.states[*input].edge);
        let op = Op::Merge(MergeOp {
            inputs: (0..count).map(Some).collect(),
        });
        let edge = self.llb.add(op, edges.collect());
        let shell = inputs.iter().any(|input| self.states[*input].shell);
        let empty = inputs.iter().all(|input| self.states[*input].empty);
        let state = State::new(edge, model, shell, Some(inputs[0]));
        self.add(State { empty, ..state });
    }

    fn difference(&mut self) {
        let upper = self.any();
        let mut lower = self.any();
        if !self.dice.one_in(4) {
            // One of those it was made of.
            let mut at = upper;
            while let Some(parent) = self.states[at].parent {
                at = parent;
                if self.dice.one_in(2) {
                    break;
                }
            }
            lower = at;
        }
        let lower_edge = (!self.dice.one_in(8)).then(|| self.states[lower].edge);
        let upper_edge = (!self.dice.one_in(16)).then(|| self.states[upper].edge);
        let inputs: Vec<Edge> = lower_edge.into_iter().chain(upper_edge).collect();
        if inputs.is_empty() {
            return;
        }
        let op = Op::Diff(DiffOp {
            lower: lower_edge.map(|_| 0),
            upper: upper_edge.map(|_| inputs.len() - 1),
        });
        let edge = self.llb.add(op, inputs);
        let model = self.states[upper].model.clone();
        // Equal ones may have come from another vertex, too.
        let empty = upper_edge.is_none() || self.states[upper].empty || lower == upper;
        let state = State::new(edge, model, false, Some(upper));
        self.add(State { empty, ..state });
    }
}
