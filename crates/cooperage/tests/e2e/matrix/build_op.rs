//! Builds of what another step has written: an LLB definition in a file.

use std::collections::BTreeMap;

use llb::{BuildOp, Edge, FileActionKind, MkFileAction, Op};
use proto::prost::Message;

use super::graph::{Llb, TIME};
use super::{Case, Matrix};

const DEFINITION: &str = "buildkit.llb.definition";
const LLB: i64 = -1;

/// A graph as it is written to a file.
fn written(matrix: &Matrix, make: impl FnOnce(&mut Llb) -> Edge) -> Vec<u8> {
    let mut llb = Llb::new(&matrix.base);
    let root = make(&mut llb);
    llb::to_proto(&llb.finish(root)).encode_to_vec()
}

fn file(llb: &mut Llb, input: Option<Edge>, path: &str, data: &[u8]) -> Edge {
    let action = MkFileAction {
        path: path.into(),
        mode: 0o644,
        data: data.into(),
        timestamp: Some(TIME),
        ..MkFileAction::default()
    };
    llb.file(input, None, FileActionKind::MkFile(action))
}

/// Solves the definition in a file of an input.
fn build(llb: &mut Llb, input: Edge, filename: &str) -> Edge {
    let attrs = match filename {
        DEFINITION => BTreeMap::new(),
        other => BTreeMap::from([("llbbuild.filename".to_owned(), other.to_owned())]),
    };
    let op = BuildOp {
        builder: LLB,
        inputs: BTreeMap::from([(DEFINITION.to_owned(), 0)]),
        attrs,
    };
    llb.add(Op::Build(op), vec![input])
}

/// A case whose definition is at the usual place.
fn of(matrix: &Matrix, name: &str, make: impl FnOnce(&mut Llb) -> Edge) -> Case {
    let data = written(matrix, make);
    Case::of(name, matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &data);
        build(llb, definition, DEFINITION)
    })
}

#[test]
fn matrix_builds_of_written_definitions() {
    let matrix = Matrix::start(&[]);
    let context = matrix.shop.context("inner", &[("f", "of the client")]);
    let local = format!("--local=inner={context}");
    let mut cases = vec![
        of(&matrix, "files", |llb| llb.mkfile(None, "/x", "inner")),
        of(&matrix, "a step", |llb| {
            llb.sh("id >/out/id; touch -d '2015-01-02 00:00:00' /out/id")
        }),
        of(&matrix, "a whole root", |llb| {
            let step = llb.step("echo x >/etc/new");
            llb.run_for_root(step)
        }),
        of(&matrix, "an image", Llb::base),
        of(&matrix, "a folder of the client", |llb| {
            llb.source("local://inner", &[])
        })
        .flags(&[&local]),
        of(&matrix, "a step that fails", |llb| llb.sh("exit 3")),
        of(&matrix, "a source that is not there", |llb| {
            llb.source("local://nonesuch", &[])
        }),
    ];
    let inner = written(&matrix, |llb| llb.mkfile(None, "/x", "innermost"));
    cases.push(of(&matrix, "a build of a build", |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        build(llb, definition, DEFINITION)
    }));
    cases.push(Case::of("used by others", &matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        let built = build(llb, definition, DEFINITION);
        let copied = llb.copy(built, None, super::file::dockerfile("/", "/copied/"));
        let mut step = llb.step("cp /in/x /out/of-the-step; ls /in >/out/seen");
        step.inputs.push(copied);
        step.exec.mounts[1].input = Some(1);
        let mount = llb::Mount {
            dest: "/in".into(),
            readonly: true,
            ..llb::Mount::default()
        };
        llb.run(step.bind(built, mount))
    }));
    cases.push(Case::of("one definition twice", &matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        let other = file(llb, Some(definition), "/else", &inner);
        let (one, two) = (
            build(llb, definition, DEFINITION),
            build(llb, other, "else"),
        );
        let inputs = vec![Some(0), Some(1)];
        llb.add(Op::Merge(llb::MergeOp { inputs }), vec![one, two])
    }));
    cases.push(Case::of("made by a step", &matrix, |llb| {
        let definition = file(llb, None, "/kept", &inner);
        let mount = llb::Mount {
            dest: "/in".into(),
            ..llb::Mount::default()
        };
        let step = llb.step(&format!("cp /in/kept /out/{DEFINITION}"));
        let made = llb.run(step.bind(definition, mount));
        build(llb, made, DEFINITION)
    }));
    matrix.compare(&cases);
}

#[test]
fn matrix_builds_of_files_at_odd_places() {
    let matrix = Matrix::start(&[]);
    let inner = written(&matrix, |llb| llb.mkfile(None, "/x", "inner"));
    let mut cases = Vec::new();
    for filename in [
        "deep/er/f",
        "/deep/er/f",
        "deep/../deep/er/f",
        "../../deep/er/f",
        "link",
        "absolute",
        "way/f",
        "nonesuch",
        "deep",
        "out",
        "out-of-all",
        "dangling",
        "round",
        "",
        "/",
        "deep/er/f/x",
        "empty",
        "garbage",
        "cut",
    ] {
        let case = Case::of(&format!("{filename:?}"), &matrix, |llb| {
            let with = file(llb, None, "/f", &inner);
            let mount = llb::Mount {
                dest: "/in".into(),
                ..llb::Mount::default()
            };
            let step = llb.step(
                "cd /out; mkdir -p deep/er; cp /in/f deep/er/f; ln -s deep/er/f link; ln -s /deep/er/f absolute; \
                 ln -s /deep/er way; mkfifo pipe; ln -s ../../../../../../etc/passwd out; ln -s /etc/passwd out-of-all; \
                 ln -s nowhere dangling; ln -s round round; : >empty; echo hello >garbage; head -c 40 /in/f >cut",
            );
            let made = llb.run(step.bind(with, mount));
            build(llb, made, filename)
        });
        // Whether it fails, not in which call.
        cases.push(case.in_own_words());
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_build_operations_that_are_wrong() {
    let matrix = Matrix::start(&[]);
    let inner = written(&matrix, |llb| llb.mkfile(None, "/x", "inner"));
    let wrong = |name: &str, builder: i64, inputs: &[(&str, usize)]| {
        Case::of(name, &matrix, |llb| {
            let definition = file(llb, None, DEFINITION, &inner);
            let op = BuildOp {
                builder,
                inputs: inputs
                    .iter()
                    .map(|(name, at)| ((*name).to_owned(), *at))
                    .collect(),
                attrs: BTreeMap::new(),
            };
            llb.add(Op::Build(op), vec![definition])
        })
    };
    matrix.compare(&[
        wrong("another builder", 0, &[(DEFINITION, 0)]),
        wrong("no definition", LLB, &[]),
        wrong("another input", LLB, &[("context", 0)]),
        wrong("an input more", LLB, &[(DEFINITION, 0), ("context", 0)]),
        wrong("an input that is not there", LLB, &[(DEFINITION, 7)]).in_own_words(),
    ]);
}
