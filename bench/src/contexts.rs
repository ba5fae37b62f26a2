//! Contexts of many files: sent through the session, as to a server anywhere, beside read in place,
//! as by a server on this machine. Two servers with states of their own, asked in turn; only the way of
//! the files differs.

use std::path::Path;

use testkit::{Lab, Tool};

use crate::{report, timed};

/// Files of the context.
const FILES: usize = 50_000;
/// Files of one folder of it.
const FOLDER_FILES: usize = 100;
/// Bytes of a file.
const FILE_BYTES: usize = 1_000;
/// The whole context is wanted, and next to nothing is done with it.
const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/sh\n\
                          RUN --mount=type=bind,target=/context echo done\n";

/// Runs it and prints a table.
pub fn run(executable: &Path, rounds: usize) {
    let lab = Lab::start();
    let home = lab.subdirectory("home");
    let tool = lab
        .tool(executable, &home)
        .env("XDG_DATA_HOME", lab.directory().display().to_string());
    let context = lab.subdirectory("context");
    fill(&context);
    for name in ["--name=far", "--name=here"] {
        tool.ok(&["create", name, "--driver=embedded", "--bootstrap"]);
    }
    let inspected = tool.ok(&["inspect", "far"]).stdout;
    let mut lines = inspected.lines();
    let socket = lines
        .find_map(|line| line.strip_prefix("Socket:"))
        .expect("the place of the socket");
    let address = format!("unix://{}", socket.trim());
    tool.ok(&["create", "--name=session", "--driver=remote", &address]);
    println!(
        "{:<44} {:>18} {:>18} {:>8}",
        format!("{FILES} files"),
        "session (ms)",
        "in place (ms)",
        "ratio"
    );
    let build = |builder: &str| {
        let builder = format!("--builder={builder}");
        let context = context.to_str().expect("UTF-8");
        drop(tool.ok(&["build", &builder, context]));
    };
    let (mut sent, mut read) = (
        vec![timed(|| build("session"))],
        vec![timed(|| build("here"))],
    );
    report(
        "the first time",
        std::mem::take(&mut sent),
        std::mem::take(&mut read),
    );
    for _ in 0..rounds {
        sent.push(timed(|| build("session")));
        read.push(timed(|| build("here")));
    }
    report(
        "unchanged",
        std::mem::take(&mut sent),
        std::mem::take(&mut read),
    );
    for round in 0..rounds {
        std::fs::write(context.join("0/0"), format!("changed {round}")).expect("write");
        sent.push(timed(|| build("session")));
        read.push(timed(|| build("here")));
    }
    report("one file changed", sent, read);
    let nothing = timed_version(&tool);
    println!("(a client that starts and does nothing takes {nothing:.0} ms)");
    tool.ok(&["rm", "far", "here", "session"]);
}

/// Makes the context: many small files, a busybox and a Dockerfile.
pub(crate) fn fill(context: &Path) {
    std::fs::write(context.join("Dockerfile"), DOCKERFILE).expect("write");
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("busybox-static is installed");
    for number in 0..FILES {
        let folder = context.join((number / FOLDER_FILES).to_string());
        if number % FOLDER_FILES == 0 {
            std::fs::create_dir(&folder).expect("make a folder");
        }
        let content = format!("{number:>FILE_BYTES$}");
        std::fs::write(folder.join((number % FOLDER_FILES).to_string()), content).expect("write");
    }
}

fn timed_version(tool: &Tool) -> f64 {
    timed(|| drop(tool.ok(&["version"]))).as_secs_f64() * 1e3
}
