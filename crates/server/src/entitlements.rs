//! What a build may do that could harm the machine: asked for by the client, granted by the server.

use std::collections::BTreeSet;

use diag::{Code, Error, Result};
use llb::{ExecOp, Graph, NetMode, Op, SecurityMode};

/// Every entitlement there is.
const KNOWN: &[&str] = &["network.host", "security.insecure", "device"];

/// Entitlements granted to a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements(BTreeSet<String>);

impl Entitlements {
    /// Those of the server's configuration; unknown ones are an error.
    pub fn configured(names: &[String]) -> Result<Self> {
        for name in names {
            if !KNOWN.contains(&kind(name)) {
                return Err(Error::invalid(format!("invalid entitlement {name:?}")));
            }
        }
        Ok(Entitlements(names.iter().cloned().collect()))
    }

    /// What a client asks for, if the server allows all of it.
    pub fn grant(&self, asked: &[String]) -> Result<Self> {
        for name in asked {
            if !KNOWN.contains(&kind(name)) {
                return Err(Error::invalid(format!("unknown entitlement {name}")));
            }
            // Asking for devices needs no leave of the server's.
            if kind(name) != "device" && !self.allows(kind(name)) {
                return Err(Error::new(
                    Code::PermissionDenied,
                    format!(
                        "granting entitlement {} is not allowed by build daemon configuration",
                        kind(name)
                    ),
                )
                .hint(format!(
                    "start the server with `--allow-insecure-entitlement={}`",
                    kind(name)
                )));
            }
        }
        Ok(Entitlements(asked.iter().cloned().collect()))
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

    /// Fails for a graph that does what was not granted, or needs a device.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        for vertex in graph.order.iter().filter_map(|digest| graph.vertex(digest)) {
            let Op::Exec(exec) = &vertex.op else { continue };
            self.check_step(exec).map_err(|error| {
                error
                    .context("failed to load LLB")
                    .vertex(vertex.digest.to_string())
            })?;
        }
        Ok(())
    }

    fn check_step(&self, exec: &ExecOp) -> Result<()> {
        self.check_process(exec.network, exec.security == SecurityMode::Insecure)?;
        match exec.cdi_devices.iter().find(|(_, optional)| !optional) {
            Some((name, _)) => Err(unknown_device(name)),
            None => Ok(()),
        }
    }

    fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|granted| kind(granted) == name)
    }
}

fn not_allowed(name: &str) -> Error {
    Error::new(Code::PermissionDenied, format!("{name} is not allowed"))
        .hint(format!("give the build `--allow {name}`"))
}

/// This server knows no devices: optional ones are never there, required ones always missing.
fn unknown_device(name: &str) -> Error {
    let text = format!("required device \"{name}\" is not registered");
    Error::new(Code::NotFound, text).hint(
        "devices of steps (CDI) are not supported by this server; `required=false` builds without",
    )
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
        let error = server.grant(&["security.insecure".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "granting entitlement security.insecure is not allowed by build daemon configuration"
        );
        server
            .grant(&["device=vendor.example/device".into()])
            .unwrap();
        assert!(server.grant(&["x".into()]).is_err());
        assert!(Entitlements::configured(&["x".into()]).is_err());
    }

    #[test]
    fn a_step_goes_without_optional_devices_and_not_without_required_ones() {
        let granted = Entitlements::default();
        let step = |optional| ExecOp {
            cdi_devices: vec![("vendor.example/device=one".into(), optional)],
            ..ExecOp::default()
        };
        granted.check_step(&step(true)).unwrap();
        assert_eq!(
            granted.check_step(&step(false)).unwrap_err().to_string(),
            "required device \"vendor.example/device=one\" is not registered"
        );
    }
}
