//! `debug dump-llb`: a marshalled definition for people, without a server.

use std::io::Read;

use clap::Args;
use proto::pb::op::Op as Kind;
use proto::pb::{Definition, FileAction, Op, file_action::Action};
use proto::prost::Message;

use crate::printer;

/// Flags of `debug dump-llb`.
#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// Output dot format
    #[arg(long)]
    dot: bool,
    /// A file; `-` or nothing is stdin
    #[arg(value_name = "llbfile")]
    file: Option<String>,
}

/// Prints the operations of a definition.
pub(super) fn run(args: &DumpArgs) -> Result<(), diag::Error> {
    let bytes = match args.file.as_deref() {
        None | Some("" | "-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            bytes
        }
        Some(path) => std::fs::read(path)
            .map_err(|error| diag::Error::from(error).context(format!("open {path}")))?,
    };
    let definition =
        Definition::decode(&*bytes).map_err(|error| diag::Error::invalid(error.to_string()))?;
    let text = match args.dot {
        true => dot(&definition)?,
        false => lines(&definition)?,
    };
    printer::out(text);
    Ok(())
}

/// A line of JSON for each operation.
fn lines(definition: &Definition) -> Result<String, diag::Error> {
    let ops = llb::op_lines(definition).ok_or_else(|| failed("it is no operation"))?;
    let lines = ops
        .iter()
        .map(|op| progress_ui::go_escapes(&op.to_string()) + "\n");
    Ok(lines.collect())
}

fn failed(reason: &str) -> diag::Error {
    diag::Error::invalid(reason).context("failed to parse op")
}

/// The graph in Graphviz's language.
fn dot(definition: &Definition) -> Result<String, diag::Error> {
    let decoded = definition.def.iter().map(|bytes| {
        let op = Op::decode(bytes.as_slice()).map_err(|error| failed(&error.to_string()))?;
        Ok((oci::Digest::of(bytes).to_string(), op))
    });
    let ops = decoded.collect::<Result<Vec<_>, diag::Error>>()?;
    let mut text = "digraph {\n".to_owned();
    for (digest, op) in &ops {
        let (label, shape) = node(digest, op);
        text += &format!("  {digest:?} [label={label:?} shape={shape:?}];\n");
    }
    for (digest, op) in &ops {
        for (number, input) in op.inputs.iter().enumerate() {
            let label = mount_of(op, number).unwrap_or_default();
            text += &format!("  {:?} -> {digest:?} [label={label:?}];\n", input.digest);
        }
    }
    Ok(text + "}\n")
}

/// Where a step sees an input, if that is not its root.
fn mount_of(op: &Op, input: usize) -> Option<&str> {
    let Some(Kind::Exec(exec)) = &op.op else {
        return None;
    };
    let mut mounts = exec.mounts.iter().rev();
    let found = mounts.find(|mount| mount.input == input as i64 && mount.dest != "/");
    found.map(|mount| mount.dest.as_str())
}

fn node(digest: &str, op: &Op) -> (String, &'static str) {
    match &op.op {
        Some(Kind::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Kind::Exec(exec)) => {
            let words = exec.meta.as_ref().map(|meta| meta.args.join(" "));
            (words.unwrap_or_default(), "box")
        }
        Some(Kind::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Kind::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Kind::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Kind::File(file)) => {
            let names: Vec<String> = file.actions.iter().map(action).collect();
            (names.join(","), "note")
        }
        None => (digest.to_owned(), "plaintext"),
    }
}

fn action(action: &FileAction) -> String {
    match &action.action {
        Some(Action::Copy(copy)) => format!("copy{{src={}, dest={}}}", copy.src, copy.dest),
        Some(Action::Mkfile(file)) => format!("mkfile{{path={}}}", file.path),
        Some(Action::Mkdir(dir)) => format!("mkdir{{path={}}}", dir.path),
        Some(Action::Rm(gone)) => format!("rm{{path={}}}", gone.path),
        Some(Action::Symlink(link)) => format!(
            "symlink{{oldpath={}, newpath={}}}",
            link.oldpath, link.newpath
        ),
        None => String::new(),
    }
}
