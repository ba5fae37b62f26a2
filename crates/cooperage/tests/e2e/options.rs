//! For every driver option, `docker inspect` of our container equals that of stock's.

use serde_json::{Value, json};

use crate::workshop::Workshop;

/// Each list is one builder's `--driver-opt`s.
const OPTIONS: &[&[&str]] = &[
    &[],
    &["memory=512m"],
    &["memory=512m", "memory-swap=1g"],
    &["memory=512m", "memory-swap=-1"],
    &["cpu-quota=50000", "cpu-period=100000"],
    &["cpu-shares=512"],
    &["cpuset-cpus=0"],
    &["cpuset-mems=0"],
    &["default-load=true"],
    &["network=host"],
    &["network=foonet"],
    &["cgroup-parent=/cooperage-test"],
    &["restart-policy=no"],
    &["restart-policy=always"],
    &["restart-policy=on-failure:3"],
    &["env.FOO=bar", "env.EMPTY="],
];

#[test]
fn containers_are_made_as_stock_makes_them() {
    let shop = Workshop::untrusting();
    shop.engine.docker(&["network", "create", "foonet"]);
    shop.cooperage
        .ok(&["create", "--name", "first", "--bootstrap"]);
    let image = shop.engine.docker(&[
        "inspect",
        "--format={{.Config.Image}}",
        "buildx_buildkit_first0",
    ]);
    shop.cooperage.ok(&["rm", "first"]);
    let mut faults = Vec::new();
    for options in OPTIONS {
        let made = [shop.cooperage.clone(), shop.stock()].map(|tool| {
            let mut args = vec!["create", "--name", "cask", "--driver", "docker-container"];
            let own_image = format!("image={image}");
            let all = options.iter().copied().chain([own_image.as_str()]);
            for option in all {
                args.extend(["--driver-opt", option]);
            }
            args.push("--bootstrap");
            tool.ok(&args);
            let inspected = shop.engine.docker(&["inspect", "buildx_buildkit_cask0"]);
            tool.ok(&["rm", "cask"]);
            comparable(&inspected)
        });
        let mut differences = Vec::new();
        compare("", &made[0], &made[1], &mut differences);
        faults.extend(
            differences
                .into_iter()
                .map(|difference| format!("{options:?} {difference}")),
        );
    }
    assert!(faults.is_empty(), "(ours, stock's)\n{}", faults.join("\n"));
}

/// What a container is made of, without what differs between any two containers, and without the
/// differences the ledger of ARCHITECTURE.md lists: our labels.
fn comparable(inspected: &str) -> Value {
    let list: Value = serde_json::from_str(inspected).unwrap();
    let mut container = list[0].clone();
    for name in [
        "Id",
        "Created",
        "State",
        "ResolvConfPath",
        "HostnamePath",
        "HostsPath",
        "LogPath",
        "GraphDriver",
        "ExecIDs",
    ] {
        container.as_object_mut().unwrap().remove(name);
    }
    container["Config"]["Hostname"] = Value::Null;
    // Stock's variables come in any order.
    if let Some(env) = container["Config"]["Env"].as_array_mut() {
        env.sort_by_key(Value::to_string);
    }
    let networks: Vec<String> = container["NetworkSettings"]["Networks"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    container["NetworkSettings"] = json!(networks);
    if let Some(labels) = container["Config"]["Labels"].as_object_mut() {
        labels.retain(|name, _| !name.starts_with("cooperage."));
    }
    container
}

fn compare(path: &str, ours: &Value, stock: &Value, differences: &mut Vec<String>) {
    match (ours, stock) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = format!("{path}.{name}");
                compare(
                    &path,
                    &ours[name.as_str()],
                    &stock[name.as_str()],
                    differences,
                );
            }
        }
        _ if ours == stock => {}
        _ => differences.push(format!("{path}: {ours} {stock}")),
    }
}
