//! Docker's convention for plugins: the metadata question, and the global flags that stand before
//! the plugin's own name.

use std::path::PathBuf;

use builder::DockerOptions;

/// The argument with which Docker asks what a plugin is.
pub(crate) const METADATA: &str = "docker-cli-plugin-metadata";
/// Set by Docker when it runs a plugin, to its own path.
pub(crate) const ORIGINAL_COMMAND: &str = "DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND";

/// The answer to [`METADATA`].
pub(crate) fn metadata() -> String {
    let metadata = serde_json::json!({
        "SchemaVersion": "0.1.0",
        "Vendor": "Cooperage",
        "Version": crate::VERSION,
        "ShortDescription": "Docker Buildx",
    });
    format!("{metadata:#}\n")
}

/// Docker's global flags, and the arguments from the plugin's name on.
#[derive(Debug, Default)]
pub(crate) struct GlobalFlags {
    /// What they say of the endpoint.
    pub(crate) docker: DockerOptions,
    /// `--debug`.
    pub(crate) debug: bool,
    /// Everything after them.
    pub(crate) rest: Vec<String>,
}

/// Takes Docker's global flags from the front of `arguments`.
pub(crate) fn global_flags(arguments: &[String]) -> Result<GlobalFlags, String> {
    let mut flags = GlobalFlags::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if !argument.starts_with('-') || argument == "--" {
            flags.rest.push(argument.clone());
            flags.rest.extend(arguments.cloned());
            return Ok(flags);
        }
        let (name, attached) = split_flag(argument);
        if let Some(set) = bool_flag(name) {
            let value = match attached {
                None => true,
                Some(text) => driver::parse_bool(text).map_err(|error| {
                    format!("invalid argument {text:?} for {name:?} flag: {error}")
                })?,
            };
            set(&mut flags, value);
            continue;
        }
        let Some(set) = value_flag(name) else {
            return Err(format!("unknown flag: {name}"));
        };
        let value = match attached {
            Some(text) => text.to_owned(),
            None => arguments
                .next()
                .cloned()
                .ok_or_else(|| format!("flag needs an argument: {name}"))?,
        };
        set(&mut flags.docker, value);
    }
    Ok(flags)
}

fn split_flag(argument: &str) -> (&str, Option<&str>) {
    match argument.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None if !argument.starts_with("--") && argument.len() > 2 => {
            (&argument[..2], Some(&argument[2..]))
        }
        None => (argument, None),
    }
}

fn bool_flag(name: &str) -> Option<fn(&mut GlobalFlags, bool)> {
    Some(match name {
        "-D" | "--debug" => |flags, value| flags.debug = value,
        "--tls" => |flags, value| flags.docker.tls = Some(value),
        "--tlsverify" => |flags, value| flags.docker.tls_verify = Some(value),
        _ => return None,
    })
}

fn value_flag(name: &str) -> Option<fn(&mut DockerOptions, String)> {
    Some(match name {
        "--config" => |docker, value| docker.config = Some(PathBuf::from(value)),
        "-c" | "--context" => |docker, value| docker.context = Some(value),
        "-H" | "--host" => |docker, value| docker.host = Some(value),
        "--tlscacert" => |docker, value| docker.tls_ca = Some(PathBuf::from(value)),
        "--tlscert" => |docker, value| docker.tls_cert = Some(PathBuf::from(value)),
        "--tlskey" => |docker, value| docker.tls_key = Some(PathBuf::from(value)),
        // Docker's own level of logging is not ours.
        "-l" | "--log-level" => |_, _| {},
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Result<GlobalFlags, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        global_flags(&words)
    }

    #[test]
    fn flags_before_the_plugins_name_are_dockers() {
        let taken = flags(&[
            "--context",
            "far",
            "-D",
            "--tls=false",
            "buildx",
            "ls",
            "-D",
        ])
        .unwrap();
        assert_eq!(taken.docker.context.as_deref(), Some("far"));
        assert_eq!(taken.docker.tls, Some(false));
        assert!(taken.debug);
        assert_eq!(taken.rest, ["buildx", "ls", "-D"]);
        assert_eq!(
            flags(&["-H", "unix:///x", "buildx"])
                .unwrap()
                .docker
                .host
                .as_deref(),
            Some("unix:///x")
        );
        assert_eq!(flags(&["--bogus"]).unwrap_err(), "unknown flag: --bogus");
    }
}
