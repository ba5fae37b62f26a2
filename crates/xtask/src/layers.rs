//! The direction of dependencies between crates, as a check.

use std::process::Command;

use serde_json::Value;

/// Lower layers first. A crate may use those of its own layer's earlier groups and of all lower
/// layers; within a group nothing uses anything.
const LAYERS: &[(&str, &[&[&str]])] = &[
    (
        "words",
        &[
            &["proto", "diag", "oci"],
            &["pathmatch", "docker-config", "status", "llb", "dockerfile"],
            &["progress"],
        ],
    ),
    (
        "mechanisms",
        &[
            &["tls"],
            &[
                "content",
                "archive",
                "session",
                "registry",
                "executor",
                "engine-api",
                "cdi",
            ],
            &["layers"],
        ],
    ),
    ("engine", &[&["solver"]]),
    (
        "semantics",
        &[&["source", "frontend", "exporter"], &["ops"]],
    ),
    ("server", &[&["server"]]),
    (
        "clients",
        &[
            &["driver", "progress-ui"],
            &["builder"],
            &["client"],
            &["cli"],
        ],
    ),
    ("binary", &[&["cooperage"]]),
    ("development", &[&["testkit", "xtask"], &["bench"]]),
];

/// Only these may use both the server and the clients.
const BOTH: &[&str] = &["cooperage"];

/// Reads `cargo metadata` and names every edge that goes up.
pub fn check() -> Result<(), String> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(super::workspace())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let faults = faults(&metadata);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.join("\n"))
    }
}

fn faults(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for package in list(metadata, "packages") {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((layer, group)) = place(name) else {
            faults.push(format!("`{name}` has no place in the table of layers"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let used = dependency["name"].as_str().unwrap_or_default();
            let local = dependency["path"].is_string();
            if !local || dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            match place(used) {
                Some(below) if below < (layer, group) => {}
                _ => faults.push(format!("`{name}` must not use `{used}`")),
            }
            let side = |at: usize| LAYERS[at].0;
            let used_layer = place(used).map_or(0, |(layer, _)| layer);
            if side(layer) == "clients"
                && matches!(side(used_layer), "server" | "semantics" | "engine")
                && !BOTH.contains(&name)
            {
                faults.push(format!("`{name}` is a client and must not use `{used}`"));
            }
        }
    }
    faults
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn place(name: &str) -> Option<(usize, usize)> {
    LAYERS.iter().enumerate().find_map(|(layer, (_, groups))| {
        let group = groups.iter().position(|group| group.contains(&name))?;
        Some((layer, group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_go_down() {
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn an_edge_that_goes_up_is_named() {
        let metadata = serde_json::json!({"packages": [{
            "name": "content",
            "dependencies": [{"name": "server", "path": "/x", "kind": null}],
        }]});
        assert_eq!(faults(&metadata), ["`content` must not use `server`"]);
    }
}
