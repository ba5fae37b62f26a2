//! Making graphs in few words.

use std::collections::BTreeMap;

use llb::{
    CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileOp, Graph, GraphBuilder, MkDirAction,
    MkFileAction, Mount, MountKind, Op, SourceOp, VertexMeta,
};
use oci::Platform;

/// A graph being made.
pub struct Llb {
    builder: GraphBuilder,
    base: String,
}

/// A process with the base image as `/` and an empty `/out`, its outputs 0 and 1.
pub struct Step {
    pub exec: ExecOp,
    pub inputs: Vec<Edge>,
}

impl Step {
    pub fn mount(mut self, mount: Mount) -> Step {
        self.exec.mounts.push(mount);
        self
    }

    /// A mount without input.
    pub fn with(self, dest: &str, kind: MountKind) -> Step {
        self.mount(Mount {
            dest: dest.into(),
            kind,
            ..Mount::default()
        })
    }

    /// A mount of an input.
    pub fn bind(mut self, input: Edge, mount: Mount) -> Step {
        self.inputs.push(input);
        let input = Some(self.inputs.len() - 1);
        self.mount(Mount { input, ..mount })
    }

    pub fn change(mut self, change: impl FnOnce(&mut ExecOp)) -> Step {
        change(&mut self.exec);
        self
    }
}

impl Llb {
    pub fn new(base: &str) -> Llb {
        Llb {
            builder: GraphBuilder::new(),
            base: format!("docker-image://{base}"),
        }
    }

    pub fn finish(&self, root: Edge) -> Graph {
        self.builder.finish(Some(root))
    }

    pub fn add(&mut self, op: Op, inputs: Vec<Edge>) -> Edge {
        let meta = VertexMeta::default();
        self.builder.add(op, inputs, None, meta, Vec::new())
    }

    pub fn source(&mut self, identifier: &str, attrs: &[(&str, &str)]) -> Edge {
        self.add(Op::Source(source_op(identifier, attrs)), Vec::new())
    }

    /// The same for a platform.
    pub fn source_for(
        &mut self,
        platform: Platform,
        identifier: &str,
        attrs: &[(&str, &str)],
    ) -> Edge {
        let op = Op::Source(source_op(identifier, attrs));
        let meta = VertexMeta::default();
        self.builder
            .add(op, Vec::new(), Some(platform), meta, Vec::new())
    }

    pub fn base(&mut self) -> Edge {
        let base = self.base.clone();
        self.source(&base, &[])
    }

    /// A script on the base image; what it puts into `/out` is the result.
    pub fn step(&mut self, script: &str) -> Step {
        let base = self.base();
        let root = Mount {
            input: Some(0),
            dest: "/".into(),
            output: Some(0),
            ..Mount::default()
        };
        let out = Mount {
            dest: "/out".into(),
            output: Some(1),
            ..Mount::default()
        };
        Step {
            exec: ExecOp {
                args: vec!["/bin/sh".into(), "-ec".into(), script.into()],
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                mounts: vec![root, out],
                ..ExecOp::default()
            },
            inputs: vec![base],
        }
    }

    /// Runs a step; what is in its `/out` afterwards.
    pub fn run(&mut self, step: Step) -> Edge {
        Edge {
            output: 1,
            ..self.run_for_root(step)
        }
    }

    /// Runs a step; its root file system afterwards.
    pub fn run_for_root(&mut self, step: Step) -> Edge {
        self.add(Op::Exec(Box::new(step.exec)), step.inputs)
    }

    /// A script without anything special about it.
    pub fn sh(&mut self, script: &str) -> Edge {
        let step = self.step(script);
        self.run(step)
    }

    /// One change of files, from nothing or an input, with or without something to copy from.
    pub fn file(
        &mut self,
        input: Option<Edge>,
        second: Option<Edge>,
        kind: FileActionKind,
    ) -> Edge {
        let mut inputs: Vec<Edge> = input.into_iter().collect();
        let secondary_input = second.map(|edge| {
            inputs.push(edge);
            inputs.len() - 1
        });
        let action = FileAction {
            input: input.map(|_| 0),
            secondary_input,
            output: Some(0),
            kind,
        };
        let op = Op::File(FileOp {
            actions: vec![action],
        });
        self.add(op, inputs)
    }

    pub fn copy(&mut self, from: Edge, to: Option<Edge>, action: CopyAction) -> Edge {
        self.file(to, Some(from), FileActionKind::Copy(Box::new(action)))
    }

    pub fn mkdir(&mut self, input: Option<Edge>, path: &str) -> Edge {
        let action = MkDirAction {
            path: path.into(),
            mode: 0o755,
            make_parents: true,
            timestamp: Some(TIME),
            ..MkDirAction::default()
        };
        self.file(input, None, FileActionKind::MkDir(action))
    }

    pub fn mkfile(&mut self, input: Option<Edge>, path: &str, data: &str) -> Edge {
        let action = MkFileAction {
            path: path.into(),
            mode: 0o644,
            data: data.into(),
            timestamp: Some(TIME),
            ..MkFileAction::default()
        };
        self.file(input, None, FileActionKind::MkFile(action))
    }
}

fn source_op(identifier: &str, attrs: &[(&str, &str)]) -> SourceOp {
    let attrs: BTreeMap<String, String> = attrs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    SourceOp {
        identifier: identifier.to_owned(),
        attrs,
    }
}

/// A time long past, in nanoseconds.
pub const TIME: i64 = 1_500_000_000 * 1_000_000_000;
