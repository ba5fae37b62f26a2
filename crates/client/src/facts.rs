//! Asking a node what a plan must know of it.

use builder::ResolvedNode;
use diag::Error;
use driver::Feature;
use driver::engine::Engine;
use oci::Platform;
use proto::control::InfoRequest;
use proto::control::control_client::ControlClient;
use tonic::transport::Channel;

use crate::plan::NodeFacts;
use crate::request::BuildRequest;

/// The package name that stock servers say they are.
const STOCK_PACKAGE: &str = "github.com/moby/buildkit";
/// The first stock version that makes attestations.
const ATTESTATIONS_SINCE: (u32, u32) = (0, 11);
/// The first stock version that takes several outputs.
const MULTIPLE_OUTPUTS_SINCE: (u32, u32) = (0, 13);

/// What is known of a node; `loads_into` is the Engine that images of the build are loaded into, if
/// they are.
pub(crate) async fn node_facts(
    node: &ResolvedNode<'_>,
    request: &BuildRequest,
    loads_into: Option<&Engine>,
    machine_id: &str,
) -> Result<NodeFacts, Error> {
    let driver = node.node.driver()?;
    let features = driver.features().await;
    let has = |feature| features.get(&feature).copied().unwrap_or(false);
    let version = ServerVersion::ask(node.connection.channel.clone()).await;
    let wants_gateway = request
        .add_hosts
        .iter()
        .any(|host| host.contains("host-gateway"));
    let host_gateway = match wants_gateway {
        true => driver
            .host_gateway()
            .await
            .map_err(|error| error.to_string()),
        false => Err("not asked for".to_owned()),
    };
    let (engine_takes_oci, engine_platform) = match loads_into {
        Some(engine) => engine_facts(engine).await,
        None => (false, None),
    };
    Ok(NodeFacts {
        builder: node.node.builder.clone(),
        name: node.node.name().to_owned(),
        driver: driver.name().to_owned(),
        is_moby: driver.is_moby(),
        oci_exporter: has(Feature::OciExporter),
        docker_exporter: has(Feature::DockerExporter),
        cache_export: has(Feature::CacheExport),
        multi_platform: has(Feature::MultiPlatform),
        direct_push: has(Feature::DirectPush),
        prefer_image_digest: has(Feature::PreferImageDigest),
        default_load: has(Feature::DefaultLoad),
        attestations: version.is_at_least(ATTESTATIONS_SINCE),
        multiple_outputs: version.is_at_least(MULTIPLE_OUTPUTS_SINCE),
        proxy_arguments: node.node.proxies.variables.clone(),
        machine_id: machine_id.to_owned(),
        host_gateway,
        engine_takes_oci,
        engine_platform,
    })
}

/// Whether an Engine takes OCI archives, and its platform. One that does not answer is taken for an
/// old one: loading will say what is wrong with it.
async fn engine_facts(engine: &Engine) -> (bool, Option<Platform>) {
    let Ok(info) = engine.info().await else {
        return (false, None);
    };
    let platform = (!info.os_type.is_empty() && !info.architecture.is_empty())
        .then(|| Platform::new(&info.os_type, &info.architecture, ""));
    (info.has_containerd_store(), platform)
}

/// How new a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerVersion {
    /// From before servers could tell.
    Old,
    /// A stock release.
    Stock(u32, u32),
    /// Something else, such as ours, that has what we ask for.
    Other,
}

impl ServerVersion {
    async fn ask(channel: Channel) -> Self {
        match ControlClient::new(channel).info(InfoRequest {}).await {
            Ok(answer) => {
                let version = answer.into_inner().buildkit_version.unwrap_or_default();
                Self::of(&version.package, &version.version)
            }
            Err(_) => ServerVersion::Old,
        }
    }

    fn of(package: &str, version: &str) -> Self {
        if package != STOCK_PACKAGE {
            return ServerVersion::Other;
        }
        let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']);
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        match (next(), next()) {
            // Built without a version, as distributions' Engines are.
            (Some(0), Some(0)) => ServerVersion::Other,
            (Some(major), Some(minor)) => ServerVersion::Stock(major, minor),
            // Not a release: built from some commit, and new enough to say so.
            _ => ServerVersion::Other,
        }
    }

    fn is_at_least(self, version: (u32, u32)) -> bool {
        match self {
            ServerVersion::Old => false,
            ServerVersion::Stock(major, minor) => (major, minor) >= version,
            ServerVersion::Other => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_not_asked_for_what_they_lack() {
        for (package, version, attestations, outputs) in [
            (STOCK_PACKAGE, "v0.10.5", false, false),
            (STOCK_PACKAGE, "v0.12.0-rc1", true, false),
            (STOCK_PACKAGE, "v0.32.1", true, true),
            (STOCK_PACKAGE, "0f3c7d1.m", true, true),
            (STOCK_PACKAGE, "v0.0.0+unknown", true, true),
            ("cooperage", "v0.1.0", true, true),
        ] {
            let known = ServerVersion::of(package, version);
            assert_eq!(
                known.is_at_least(ATTESTATIONS_SINCE),
                attestations,
                "{version}"
            );
            assert_eq!(
                known.is_at_least(MULTIPLE_OUTPUTS_SINCE),
                outputs,
                "{version}"
            );
        }
        assert!(!ServerVersion::Old.is_at_least((0, 0)));
    }
}
