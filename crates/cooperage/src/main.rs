//! The executable: one file, several programs, chosen by the name it is called by or by its first
//! argument.
//!
//! | called as | is |
//! |---|---|
//! | `docker-buildx`, `cooperage` | the command line of Buildx |
//! | `buildkitd` | the build server |
//! | `buildctl` | its tool |
//! | `cooperage cooperage-init` | the first process of a step's container; not for users |

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    DockerBuildx,
    Buildkitd,
    Buildctl,
    Init,
}

impl Face {
    fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "docker-buildx" | "cooperage" => Face::DockerBuildx,
            "buildkitd" => Face::Buildkitd,
            "buildctl" => Face::Buildctl,
            "cooperage-init" => Face::Init,
            _ => return None,
        })
    }
}

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    match choose(&mut arguments) {
        Face::DockerBuildx => std::process::exit(cli::docker_buildx(arguments)),
        Face::Buildctl => std::process::exit(cli::buildctl(arguments)),
        Face::Buildkitd => server::main(arguments),
        Face::Init => executor::init_main(),
    }
}

/// The face that was asked for; a face named by the first argument becomes the program's name.
fn choose(arguments: &mut Vec<OsString>) -> Face {
    let name = |argument: &OsString| {
        let name = Path::new(argument).file_name()?;
        name.to_str().map(str::to_owned)
    };
    // The hidden face comes first: its caller runs `/proc/self/exe`, whatever that is called.
    let second = arguments.get(1).and_then(|word| word.to_str());
    match second.and_then(Face::of_name) {
        Some(Face::Init) => {
            arguments.remove(0);
            return Face::Init;
        }
        Some(face) if !is_plugin_call() => {
            arguments.remove(0);
            return face;
        }
        _ => {}
    }
    let own = arguments.first().and_then(name);
    own.and_then(|name| Face::of_name(&name))
        .unwrap_or(Face::DockerBuildx)
}

/// Docker names the plugin in the first argument, and a builder may be called like a face.
fn is_plugin_call() -> bool {
    std::env::var_os("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND")
        .is_some_and(|value| !value.is_empty())
}
