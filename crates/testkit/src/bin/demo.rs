//! The README's first command: the main job from nothing to a running image.
//!
//! usage: `demo EXECUTABLE EXAMPLE`
#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::path::Path;
use std::process::{Command, ExitCode};

use testkit::{Engine, Lab, Release, Tool};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [executable, example] = args.as_slice() else {
        println!("usage: demo EXECUTABLE EXAMPLE");
        return ExitCode::FAILURE;
    };
    let lab = Lab::start();
    lab.enter_network();
    let engine = Engine::start(&lab, Release::Debian);
    let context = lab.directory().join("context");
    copy(Path::new(example), &context);
    copy(Path::new("/bin/busybox"), &context.join("busybox"));
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let cooperage =
        Tool::new(&executable, &lab.subdirectory("home")).env("DOCKER_HOST", engine.host());
    let steps: [&[&str]; 4] = [
        &[
            "create",
            "--name",
            "cooper",
            "--driver",
            "docker-container",
            "--use",
            "--bootstrap",
        ],
        &[
            "build",
            "--progress",
            "plain",
            "--load",
            "-t",
            "site",
            context.to_str().expect("UTF-8"),
        ],
        &["ls"],
        &["rm", "cooper"],
    ];
    for (at, step) in steps.iter().enumerate() {
        println!("\n$ cooperage {}", step.join(" "));
        let status = cooperage
            .command(step)
            .status()
            .expect("run the executable");
        if !status.success() {
            return ExitCode::FAILURE;
        }
        if at == 1 {
            println!("\n$ docker run --rm site");
            println!("{}", engine.docker(&["run", "--rm", "site"]));
            println!("\n$ docker images");
            println!("{}", engine.docker(&["images", "site"]));
        }
    }
    ExitCode::SUCCESS
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-rL")
        .arg(from)
        .arg(to)
        .status()
        .expect("run cp");
    assert!(
        status.success(),
        "copy {} to {}",
        from.display(),
        to.display()
    );
}
