//! Builds of what another step has written: an LLB definition in a file.

use std::collections::BTreeMap;

use llb::{BuildOp, Edge, FileActionKind, MkFileAction, Mount, Op};
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

/// A build operation as it is sent, with one input.
fn operation(llb: &mut Llb, builder: i64, inputs: &[(&str, usize)], input: Edge) -> Edge {
    let inputs = inputs.iter().map(|(name, at)| ((*name).to_owned(), *at));
    let op = BuildOp {
        builder,
        inputs: inputs.collect(),
        attrs: BTreeMap::new(),
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
    let one_file = of(&matrix, "files", |llb| llb.mkfile(None, "/x", "inner"));
    matrix.compare_to(&one_file, Ok(&["/x 644 0:0 @1500000000 \"inner\""]));
    let step = of(&matrix, "a step", |llb| {
        llb.sh("id -u >/out/id; touch -d '2015-01-02 00:00:00' /out/id")
    });
    matrix.compare_to(&step, Ok(&["/id 644 0:0 @1420156800 \"0\\n\""]));
    let image = of(&matrix, "an image", |llb| {
        let base = llb.base();
        llb.copy(base, None, super::file::dockerfile("/home", "/home"))
    });
    let home = [
        "/home 755 0:0 @1704067200 directory",
        "/home/app 755 0:0 @1704067200 directory",
    ];
    matrix.compare_to(&image, Ok(&home));
    let folder = of(&matrix, "a folder of the client", |llb| {
        llb.source("local://inner", &[])
    });
    let folder = folder.flags(&[&local]);
    matrix.compare_to(&folder, Ok(&["/f 644 0:0 @now \"of the client\""]));
    let fails = of(&matrix, "a step that fails", |llb| llb.sh("exit 3"));
    matrix.compare_to(&fails, Err("did not complete successfully: exit code: 3"));
    let nonesuch = of(&matrix, "no such folder", |llb| {
        llb.source("local://nonesuch", &[])
    });
    matrix.compare_to(&nonesuch, Err("no local sources enabled"));
}

#[test]
fn matrix_builds_of_definitions_are_used_by_others() {
    let matrix = Matrix::start(&[]);
    let inner = written(&matrix, |llb| llb.mkfile(None, "/x", "innermost"));
    let innermost = "/x 644 0:0 @1500000000 \"innermost\"";
    let nested = of(&matrix, "a build of a build", |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        build(llb, definition, DEFINITION)
    });
    matrix.compare_to(&nested, Ok(&[innermost]));
    let used = Case::of("used by others", &matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        let built = build(llb, definition, DEFINITION);
        let copied = llb.copy(built, None, super::file::dockerfile("/", "/copied/"));
        let mut step = llb.step("cp /in/x /out/of-the-step; ls /in >/out/seen");
        step.inputs.push(copied);
        step.exec.mounts[1].input = Some(1);
        let mount = Mount {
            dest: "/in".into(),
            readonly: true,
            ..Mount::default()
        };
        llb.run(step.bind(built, mount))
    });
    let outcome = [
        "/copied 755 0:0 @now directory",
        "/copied/x 644 0:0 @1500000000 \"innermost\"",
        "/of-the-step 644 0:0 @now \"innermost\"",
        "/seen 644 0:0 @now \"x\\n\"",
    ];
    matrix.compare_to(&used, Ok(&outcome));
    let twice = Case::of("one definition twice", &matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        let other = file(llb, Some(definition), "/else", &inner);
        let (one, two) = (
            build(llb, definition, DEFINITION),
            build(llb, other, "else"),
        );
        let inputs = vec![Some(0), Some(1)];
        llb.add(Op::Merge(llb::MergeOp { inputs }), vec![one, two])
    });
    matrix.compare_to(&twice, Ok(&[innermost]));
    let more = Case::of("an input more", &matrix, |llb| {
        let definition = file(llb, None, DEFINITION, &inner);
        let inputs = [(DEFINITION, 0), ("context", 0)];
        operation(llb, LLB, &inputs, definition)
    });
    matrix.compare_to(&more, Ok(&[innermost]));
}

/// A definition at several places, and what is none.
fn odd_place(matrix: &Matrix, filename: &str) -> Case {
    let inner = written(matrix, |llb| llb.mkfile(None, "/x", "inner"));
    Case::of(&format!("{filename:?}"), matrix, |llb| {
        let with = file(llb, None, "/f", &inner);
        let mount = Mount {
            dest: "/in".into(),
            ..Mount::default()
        };
        let step = llb.step(
            "cd /out; mkdir -p deep/er; cp /in/f deep/er/f; ln -s deep/er/f link; ln -s /deep/er/f absolute; \
             ln -s /deep/er way; mkfifo pipe; ln -s ../../../../../../etc/passwd out; ln -s /etc/passwd out-of-all; \
             ln -s nowhere dangling; ln -s round round; : >empty; echo hello >garbage; head -c 40 /in/f >cut",
        );
        let made = llb.run(step.bind(with, mount));
        build(llb, made, filename)
    })
}

#[test]
fn matrix_builds_of_files_at_odd_places() {
    let matrix = Matrix::start(&[]);
    for filename in [
        "deep/er/f",
        "/deep/er/f",
        "deep/../deep/er/f",
        "../../deep/er/f",
        "link",
        "absolute",
        "way/f",
    ] {
        let case = odd_place(&matrix, filename);
        matrix.compare_to(&case, Ok(&["/x 644 0:0 @1500000000 \"inner\""]));
    }
    // Stock ends with a panic.
    let nothing: [String; 0] = [];
    assert_eq!(matrix.build(&odd_place(&matrix, "empty")).unwrap(), nothing);
    // Stock waits for ever until somebody writes to it.
    let pipe = matrix.build(&odd_place(&matrix, "pipe")).unwrap_err();
    assert!(pipe.contains("pipe is not a regular file"), "{pipe}");
}

#[test]
fn matrix_builds_of_what_is_no_definition() {
    let matrix = Matrix::start(&[]);
    let names = [
        "nonesuch",
        "deep",
        "out",
        "out-of-all",
        "dangling",
        "round",
        "",
        "/",
        "deep/er/f/x",
        "garbage",
        "cut",
    ];
    // That they fail is compared, not in which call.
    let cases: Vec<Case> = names
        .iter()
        .map(|name| odd_place(&matrix, name).in_own_words())
        .collect();
    matrix.compare(&cases);
}

#[test]
fn matrix_build_operations_that_are_wrong() {
    let matrix = Matrix::start(&[]);
    let inner = written(&matrix, |llb| llb.mkfile(None, "/x", "inner"));
    let wrong = |name: &str, builder: i64, inputs: &[(&str, usize)]| {
        Case::of(name, &matrix, |llb| {
            let definition = file(llb, None, DEFINITION, &inner);
            operation(llb, builder, inputs, definition)
        })
    };
    matrix.compare(&[
        wrong("another builder", 0, &[(DEFINITION, 0)]),
        wrong("no definition", LLB, &[]),
        wrong("another input", LLB, &[("context", 0)]),
        wrong("an input that is not there", LLB, &[(DEFINITION, 7)]).in_own_words(),
    ]);
}
