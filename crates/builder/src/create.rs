//! Making builders, adding nodes to them, changing and taking nodes away.

use std::path::PathBuf;
use std::time::Duration;

use crate::builder::{EMBEDDED_HINT, LoadOptions};
use crate::driver_opts::parse_driver_opts;
use crate::names::{random_name, validate_name};
use crate::platforms::parse_platforms;
use crate::server_config::{config_entitlements, load_config_files};
use crate::{Builder, BuilderError, Docker, NodeChange, NodeGroup};

/// What `create` was asked for.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Name of the builder; a random one is made when there is none.
    pub name: Option<String>,
    /// Driver; by default that of the builder, `remote` where `BUILDKIT_HOST` is set, else
    /// `docker-container`.
    pub driver: Option<String>,
    /// Node to make or change.
    pub node: Option<String>,
    /// Fixed platforms.
    pub platforms: Vec<String>,
    /// `k=v` pieces.
    pub driver_opts: Vec<String>,
    /// Server arguments as one line for a shell.
    pub flags: Option<String>,
    /// Server configuration file.
    pub config: Option<PathBuf>,
    /// A context's name or an address.
    pub endpoint: Option<String>,
    /// Add a node to a builder that exists.
    pub append: bool,
    /// Make the builder current.
    pub make_current: bool,
    /// How long each node may take to say its status; zero is for ever.
    pub timeout: Duration,
}

/// Makes a builder or changes one, and checks that its nodes can be asked; a failed check takes
/// the change back.
pub async fn create(docker: &Docker, request: &CreateRequest) -> Result<Builder, diag::Error> {
    let (group, before) = record(docker, request)?;
    let checked = check(docker, &group, request.timeout).await;
    let txn = docker.store().transaction();
    let builder = match checked {
        Ok(builder) => builder,
        Err(error) => {
            let error = match error
                .message()
                .contains("Cannot connect to the Docker daemon")
            {
                true if request.driver.is_none() => error.hint(EMBEDDED_HINT),
                _ => error,
            };
            let taken_back = match before {
                Some(before) => txn.save(&before),
                None => txn.remove(&group.name),
            };
            return Err(match taken_back {
                Ok(()) => error,
                Err(reason) => {
                    diag::Error::internal(format!("could not rollback to previous state: {reason}"))
                }
            });
        }
    };
    if request.make_current {
        txn.set_current(&docker.current_endpoint(), &group.name, false, false)?;
    }
    Ok(builder)
}

/// Takes a node away from a builder; the node's server stays.
pub fn leave(docker: &Docker, name: Option<&str>, node: Option<&str>) -> Result<(), BuilderError> {
    let given = |value: Option<&str>, what: &str| match value {
        Some(value) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(BuilderError::Invalid(format!("leave requires {what} name"))),
    };
    let (name, node) = (given(name, "instance")?, given(node, "node")?);
    let txn = docker.store().transaction();
    let Some(mut group) = txn.get(&name)? else {
        return Err(BuilderError::Invalid(format!(
            "failed to find instance {name:?} for leave"
        )));
    };
    group.leave(&node)?;
    txn.remove_node_refs(&group.name, &node);
    txn.save(&group)
}

/// Writes the record; gives it and what was there before.
fn record(
    docker: &Docker,
    request: &CreateRequest,
) -> Result<(NodeGroup, Option<NodeGroup>), BuilderError> {
    let txn = docker.store().transaction();
    let named = request.name.as_deref().filter(|name| !name.is_empty());
    if named == Some("default") {
        return Err(BuilderError::Invalid(
            "default is a reserved name and cannot be used to identify builder instance".to_owned(),
        ));
    }
    if request.append && named.is_none() {
        return Err(BuilderError::Invalid(
            "append requires a builder name".to_owned(),
        ));
    }
    let name = match named {
        Some(name) => name.to_owned(),
        None => random_name(|name| !matches!(txn.get(name), Ok(None)))?,
    };
    if !request.append && docker.context(&name).is_some() {
        return Err(BuilderError::Invalid(format!(
            "instance name {name:?} already exists as context builder"
        )));
    }
    let before = txn.get(&name)?;
    if before.is_none() && request.append {
        return Err(BuilderError::Invalid(format!(
            "failed to find instance {name:?} for append"
        )));
    }
    let driver = driver_name(request, before.as_ref());
    check_existing(request, &name, &driver, before.as_ref())?;
    let mut group = before.clone().unwrap_or_else(|| NodeGroup {
        name: name.clone(),
        driver: driver.clone(),
        ..NodeGroup::default()
    });
    validate_name(&name)?;
    let change = node_change(docker, request, &driver, &group)?;
    group.update(change)?;
    txn.save(&group)?;
    Ok((group, before))
}

fn buildkit_host() -> Option<String> {
    std::env::var("BUILDKIT_HOST")
        .ok()
        .filter(|host| !host.is_empty())
}

fn driver_name(request: &CreateRequest, before: Option<&NodeGroup>) -> String {
    if let Some(driver) = request.driver.as_deref().filter(|name| !name.is_empty()) {
        return driver.to_owned();
    }
    match (before, &request.endpoint) {
        (Some(group), _) => group.driver.clone(),
        (None, None) if buildkit_host().is_some() => "remote".to_owned(),
        (None, Some(endpoint)) if is_remote_only(endpoint) => "remote".to_owned(),
        _ => "docker-container".to_owned(),
    }
}

/// An address that only the remote driver can dial.
fn is_remote_only(endpoint: &str) -> bool {
    endpoint.starts_with("docker-container://") || endpoint.starts_with("kube-pod://")
}

fn check_existing(
    request: &CreateRequest,
    name: &str,
    driver: &str,
    before: Option<&NodeGroup>,
) -> Result<(), BuilderError> {
    if let Some(group) = before {
        if request.node.is_none() && !request.append {
            return Err(BuilderError::Invalid(format!(
                "existing instance for {name:?} but no append mode, specify the node name to make \
                 changes for existing instances"
            )));
        }
        if driver != group.driver {
            return Err(BuilderError::Invalid(format!(
                "existing instance for {name:?} but has mismatched driver {:?}",
                group.driver
            )));
        }
    }
    match driver {
        "docker" => Err(BuilderError::Invalid(
            "additional instances of driver \"docker\" cannot be created".to_owned(),
        )),
        _ if driver::INSTANCE_DRIVERS.contains(&driver) => Ok(()),
        _ => Err(driver::DriverError::UnknownDriver(driver.to_owned()).into()),
    }
}

fn node_change(
    docker: &Docker,
    request: &CreateRequest,
    driver: &str,
    group: &NodeGroup,
) -> Result<NodeChange, BuilderError> {
    let node = request.node.clone().unwrap_or_default();
    let exists = group.nodes.iter().any(|record| record.name == node);
    let driver_opts = parse_driver_opts(driver, &request.driver_opts)?;
    // The default configuration is for new nodes: a change is only what was asked for.
    let config = match &request.config {
        Some(config) => Some(config.clone()),
        None if exists => None,
        None => docker.store().config().default_server_config(),
    };
    let given = request.flags.as_deref().filter(|flags| !flags.is_empty());
    let host_network = driver_opts
        .get("network")
        .is_some_and(|mode| mode == "host");
    let flags = if exists && given.is_none() && !host_network {
        None
    } else {
        Some(server_flags(
            given,
            driver,
            host_network,
            config.as_deref(),
        )?)
    };
    let (endpoint, tls, endpoint_is_set) = endpoint(docker, request, driver)?;
    let platforms = if request.platforms.is_empty() {
        None
    } else {
        Some(
            parse_platforms(&request.platforms)
                .map_err(|error| BuilderError::Invalid(error.to_string()))?,
        )
    };
    Ok(NodeChange {
        name: node,
        endpoint,
        endpoint_is_set,
        tls,
        platforms,
        flags,
        files: config.as_deref().map(load_config_files).transpose()?,
        driver_opts,
        append: request.append,
    })
}

fn endpoint(
    docker: &Docker,
    request: &CreateRequest,
    driver: &str,
) -> Result<(String, Option<driver::engine::TlsFiles>, bool), BuilderError> {
    let given = request.endpoint.clone().filter(|text| !text.is_empty());
    if driver == "embedded" {
        let base = match &given {
            Some(folder) => PathBuf::from(folder),
            None => driver::default_base(),
        };
        if !base.is_absolute() {
            return Err(BuilderError::Invalid(format!(
                "invalid endpoint {:?} for embedded driver: expecting the absolute path of a folder",
                given.unwrap_or_default()
            )));
        }
        let base = base.to_string_lossy().into_owned();
        return Ok((base, None, given.is_some()));
    }
    if driver == "remote" {
        let Some(endpoint) = given.or_else(buildkit_host) else {
            return Err(BuilderError::Invalid(
                "no remote endpoint provided".to_owned(),
            ));
        };
        driver::check_remote_endpoint(&endpoint)?;
        return Ok((endpoint, None, true));
    }
    match given {
        Some(endpoint) => {
            let (endpoint, tls) = docker.check_endpoint(&endpoint)?;
            Ok((endpoint, tls, true))
        }
        None => Ok((docker.current_endpoint(), docker.environment_tls(), false)),
    }
}

/// The server's arguments: those given, and the entitlement to the network of the server's
/// container when none was named. That network is isolated from the host's, so nothing is lost by
/// it; with the host's own network the user has chosen so.
fn server_flags(
    given: Option<&str>,
    driver: &str,
    host_network: bool,
    config: Option<&std::path::Path>,
) -> Result<Vec<String>, BuilderError> {
    const GRANT: &str = "--allow-insecure-entitlement";
    let mut flags = match given {
        None => Vec::new(),
        Some(text) => shlex::split(text).ok_or_else(|| {
            BuilderError::Invalid(
                "failed to parse buildkit flags: EOF found when expecting closing quote".to_owned(),
            )
        })?,
    };
    if driver != "docker-container" {
        return Ok(flags);
    }
    let granted: Vec<&str> = flags
        .iter()
        .enumerate()
        .filter_map(|(index, flag)| match flag.strip_prefix(GRANT)? {
            "" => flags.get(index + 1).map(String::as_str),
            value => value.strip_prefix('='),
        })
        .collect();
    let in_config = match config {
        Some(path) => config_entitlements(path)?
            .iter()
            .any(|name| name == "network.host"),
        None => false,
    };
    let grant = if host_network {
        !granted.contains(&"network.host")
    } else {
        granted.is_empty() && !in_config
    };
    if grant {
        flags.push(format!("{GRANT}=network.host"));
    }
    Ok(flags)
}

/// Loads a new record's nodes with their status.
async fn check(
    docker: &Docker,
    group: &NodeGroup,
    timeout: Duration,
) -> Result<Builder, diag::Error> {
    let mut builder = Builder::load(docker, Some(&group.name))?;
    builder
        .load_nodes(LoadOptions::with_status(timeout))
        .await?;
    let failed = builder.nodes().iter().find_map(|node| {
        let error = node.error.clone()?;
        Some(error.context(format!(
            "failed to initialize builder {} ({})",
            group.name,
            node.name()
        )))
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(builder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_entitlement_is_granted_when_none_is_named() {
        let flags = |given, host| server_flags(given, "docker-container", host, None).unwrap();
        assert_eq!(
            flags(None, false),
            ["--allow-insecure-entitlement=network.host"]
        );
        assert_eq!(
            flags(
                Some("--debug --allow-insecure-entitlement security.insecure"),
                false
            ),
            [
                "--debug",
                "--allow-insecure-entitlement",
                "security.insecure"
            ]
        );
        assert_eq!(
            flags(Some("--allow-insecure-entitlement=security.insecure"), true).len(),
            2
        );
        assert!(
            server_flags(None, "remote", false, None)
                .unwrap()
                .is_empty()
        );
        assert!(server_flags(Some("'x"), "docker-container", false, None).is_err());
    }
}
