//! What a build may do that could harm the machine: asked for by the client, granted by the server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cdi::Devices;
use diag::{Code, Error, Result};
use llb::{Graph, NetMode, Op, SecurityMode};
use ops::work::not_to_be_had;

use crate::config::Config;

/// Every entitlement there is.
const KNOWN: &[&str] = &["network.host", "security.insecure", DEVICE];
const DEVICE: &str = "device";

/// Entitlements granted to a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// Without their parameters.
    names: BTreeSet<String>,
    devices: DeviceGrants,
}

/// Which devices the steps of a build may have, besides those that anybody may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DeviceGrants {
    /// Any.
    all: bool,
    /// By name, kind or class.
    names: BTreeSet<String>,
    /// What steps call a device, with its name.
    aliases: BTreeMap<String, String>,
}

impl Entitlements {
    /// Those that a server may grant; unknown ones are an error. Devices are among them unless there
    /// are none.
    pub fn of_server(config: &Config) -> Result<Self> {
        let mut names = config.entitlements.clone();
        if !config.cdi.disabled {
            names.push(DEVICE.to_owned());
        }
        Self::configured(&names)
    }

    fn configured(names: &[String]) -> Result<Self> {
        for name in names {
            if !KNOWN.contains(&kind(name)) {
                return Err(Error::invalid(format!("invalid entitlement {name:?}")));
            }
        }
        Ok(Entitlements {
            names: names.iter().map(|name| kind(name).to_owned()).collect(),
            devices: DeviceGrants::default(),
        })
    }

    /// What a client asks for, if the server allows all of it.
    pub fn grant(&self, asked: &[String]) -> Result<Self> {
        let mut granted = Entitlements::default();
        for text in asked {
            let (name, parameters) = text.split_once('=').unwrap_or((text, ""));
            if !KNOWN.contains(&name) || (name != DEVICE && name != text) {
                return Err(Error::invalid(format!("unknown entitlement {text}")));
            }
            if name == DEVICE {
                granted.devices.add(parameters)?;
            }
            if !self.allows(name) {
                return Err(Error::new(
                    Code::PermissionDenied,
                    format!(
                        "granting entitlement {name} is not allowed by build daemon configuration"
                    ),
                )
                .hint(format!(
                    "start the server with `--allow-insecure-entitlement={name}`"
                )));
            }
            granted.names.insert(name.to_owned());
        }
        Ok(granted)
    }

    /// Fails for a process of a container that would do what was not granted.
    pub fn check_process(&self, network: NetMode, insecure: bool) -> Result<()> {
        let needed = [
            (network == NetMode::Host, "network.host"),
            (insecure, "security.insecure"),
        ];
        for (needs, name) in needed {
            if needs && !self.allows(name) {
                return Err(not_allowed(name));
            }
        }
        Ok(())
    }

    /// Fails for a graph that does what was not granted. The devices of its steps become those that
    /// their names mean now, so that a step is known by what it is given.
    ///
    /// Looks at the files that describe devices, a few small ones, if a step wants any.
    pub fn check(&self, graph: &mut Graph, registry: Option<&cdi::Registry>) -> Result<()> {
        let mut described = None;
        for digest in &graph.order {
            let Some(vertex) = graph.vertices.get_mut(digest) else {
                continue;
            };
            let Op::Exec(exec) = &vertex.op else { continue };
            let located = |error: Error| {
                let error = error.context("failed to load LLB");
                error.vertex(digest.to_string())
            };
            self.check_process(exec.network, exec.security == SecurityMode::Insecure)
                .map_err(located)?;
            // Who may have any is told what there is not when the step is run.
            if exec.cdi_devices.is_empty() || self.devices.all {
                continue;
            }
            let described = described
                .get_or_insert_with(|| registry.map(cdi::Registry::scan).unwrap_or_default());
            let devices = self.devices.of_step(&exec.cdi_devices, described);
            let devices = devices.map_err(located)?;
            if let Op::Exec(exec) = &mut Arc::make_mut(vertex).op {
                exec.cdi_devices = devices;
            }
        }
        Ok(())
    }

    fn allows(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

impl DeviceGrants {
    /// Adds `NAME[,alias=WORD]`, or all devices.
    fn add(&mut self, parameters: &str) -> Result<()> {
        if parameters.is_empty() {
            self.all = true;
            return Ok(());
        }
        let mut fields = parameters.split(',');
        let name = fields.next().unwrap_or_default();
        let mut alias = "";
        for field in fields {
            match field.split_once('=') {
                Some(("alias", word)) => alias = word,
                Some((key, _)) => {
                    return Err(Error::invalid(format!("unknown device config key {key:?}")));
                }
                None => return Err(Error::invalid(format!("invalid device config {field:?}"))),
            }
        }
        match alias {
            "" => drop(self.names.insert(name.to_owned())),
            alias => drop(self.aliases.insert(alias.to_owned(), name.to_owned())),
        }
        Ok(())
    }

    /// The devices of a step with their `optional` flags, from those it asks for.
    fn of_step(
        &self,
        asked: &[(String, bool)],
        described: &Devices,
    ) -> Result<Vec<(String, bool)>> {
        let mut given = Vec::new();
        let mut own = Vec::new();
        for (name, optional) in asked {
            match self.aliases.get(name) {
                Some(device) => given.push((device.clone(), *optional)),
                None => own.push((name.clone(), *optional)),
            }
        }
        let find = |names: &[(String, bool)]| {
            let found = described.find_all(names);
            found.map_err(|error| not_to_be_had(error, described))
        };
        let wanted = find(&own)?;
        if wanted.is_empty() {
            return Ok(given);
        }
        let names: Vec<_> = self
            .names
            .iter()
            .map(|name| (name.clone(), false))
            .collect();
        let granted = find(&names)?;
        let (allowed, forbidden): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|name| granted.contains(name) || described.auto_allows(name));
        if !forbidden.is_empty() {
            return Err(forbidden_devices(&forbidden));
        }
        given.extend(allowed.into_iter().map(|name| (name, false)));
        Ok(given)
    }
}

fn not_allowed(name: &str) -> Error {
    Error::new(Code::PermissionDenied, format!("{name} is not allowed"))
        .hint(format!("give the build `--allow {name}`"))
}

fn forbidden_devices(names: &[String]) -> Error {
    let list = names.join(", ");
    let text = match names.len() {
        1 => format!("device {list} is requested by the build but not allowed"),
        _ => format!("devices {list} are requested by the build but not allowed"),
    };
    let flags: Vec<String> = names
        .iter()
        .map(|name| format!("--allow device={name}"))
        .collect();
    Error::new(Code::PermissionDenied, text).hint(format!("give the build `{}`", flags.join(" ")))
}

/// An entitlement without its parameters.
fn kind(name: &str) -> &str {
    name.split('=').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_must_be_allowed() {
        let server = Entitlements::configured(&["network.host".into()]).unwrap();
        let granted = server.grant(&["network.host".into()]).unwrap();
        assert!(granted.allows("network.host"));
        for name in ["security.insecure", "device"] {
            let error = server.grant(&[name.to_owned()]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("granting entitlement {name} is not allowed by build daemon configuration")
            );
        }
        for unknown in ["x", "network.host=x"] {
            assert!(server.grant(&[unknown.to_owned()]).is_err());
        }
        assert!(Entitlements::configured(&["x".into()]).is_err());
    }

    #[test]
    fn devices_are_offered_unless_there_are_none() {
        let mut config = Config::default();
        assert!(Entitlements::of_server(&config).unwrap().allows("device"));
        config.cdi.disabled = true;
        assert!(!Entitlements::of_server(&config).unwrap().allows("device"));
    }

    #[test]
    fn grants_of_devices_are_read_as_stock_reads_them() {
        let server = Entitlements::configured(&["device".into()]).unwrap();
        let grant = |text: &str| server.grant(&[text.to_owned()]);
        assert!(grant("device").unwrap().devices.all);
        let named = grant("device=v/c=a").unwrap().devices;
        assert!(named.names.contains("v/c=a") && !named.all);
        let alias = grant("device=v/c=a,alias=disk").unwrap().devices;
        assert_eq!(alias.aliases["disk"], "v/c=a");
        for (text, expected) in [
            ("device=a,b", "invalid device config \"b\""),
            ("device=a,b=c", "unknown device config key \"b\""),
        ] {
            assert_eq!(grant(text).unwrap_err().to_string(), expected);
        }
    }

    const FILE: &str = r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [
        {"name": "a", "containerEdits": {"env": ["A=1"]}},
        {"name": "b", "containerEdits": {"env": ["B=1"]},
         "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}}]}"#;

    #[test]
    fn steps_get_what_was_granted_or_anybody_may_have() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.json"), FILE).unwrap();
        let described = cdi::Registry::new(vec![dir.path().to_owned()], []).scan();
        let server = Entitlements::configured(&["device".into()]).unwrap();
        let of_step = |grants: &[&str], asked: &[(&str, bool)]| {
            let grants: Vec<String> = grants.iter().map(|text| (*text).to_owned()).collect();
            let asked: Vec<_> = asked.iter().map(|(n, o)| ((*n).to_owned(), *o)).collect();
            let granted = server.grant(&grants).unwrap();
            let given = granted.devices.of_step(&asked, &described);
            given
                .map(|given| given.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let found = |names: &[&str]| Ok(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(of_step(&[], &[("v/c=b", false)]), found(&["v/c=b"]));
        assert_eq!(
            of_step(&["device=v/c=a"], &[("v/c=*", false)]),
            found(&["v/c=a", "v/c=b"])
        );
        assert_eq!(
            of_step(&["device=v/c=a,alias=x"], &[("x", false)]),
            found(&["v/c=a"])
        );
        assert_eq!(of_step(&[], &[("v/none=z", true)]), found(&[]));
        for (grants, asked, error) in [
            (
                &[][..],
                "v/c=a",
                "device v/c=a is requested by the build but not allowed",
            ),
            (&[], "v/x=z", "required device \"v/x=z\" is not registered"),
            (
                &["device=v/x=z"],
                "v/c=b",
                "required device \"v/x=z\" is not registered",
            ),
        ] {
            assert_eq!(of_step(grants, &[(asked, false)]).unwrap_err(), error);
        }
    }
}
