//! Which node builds for which platform.
//!
//! A platform goes to a node for which it was fixed, without asking any server. Failing that, all
//! nodes are booted and asked, and it goes to the node that runs it best: natively before as a
//! variant of another, an earlier node before a later one. What no node claims goes to the first
//! node, whose server says what it thinks of it.

use driver::{BootProgress, Connection};
use futures::future::try_join_all;
use oci::Platform;
use proto::control::ListWorkersRequest;
use proto::control::control_client::ControlClient;

use crate::{Builder, Node};

/// What a node is to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNode {
    /// Its place among the builder's nodes.
    pub index: usize,
    /// For these platforms; empty: whatever its server runs natively.
    pub platforms: Vec<Platform>,
}

/// Which nodes build what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// The nodes, in order of their first platform.
    pub nodes: Vec<PlannedNode>,
    /// False when a platform went to the first node because none claims it.
    pub is_perfect: bool,
}

/// A node that builds, booted and connected.
pub struct ResolvedNode<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its place among the builder's nodes.
    pub index: usize,
    /// The connection to its server.
    pub connection: Connection,
    /// For these platforms; empty: whatever its server runs natively.
    pub platforms: Vec<Platform>,
}

impl NodePlan {
    /// Plans over nodes of these platforms; `strict` counts only the very platform.
    pub fn new(nodes: &[Vec<Platform>], wanted: &[Platform], strict: bool) -> Self {
        if wanted.is_empty() {
            return NodePlan {
                nodes: vec![PlannedNode {
                    index: 0,
                    platforms: Vec::new(),
                }],
                is_perfect: true,
            };
        }
        let mut plan = NodePlan {
            nodes: Vec::new(),
            is_perfect: true,
        };
        for platform in wanted {
            let best = best_node(nodes, platform, strict);
            plan.is_perfect &= best.is_some();
            let index = best.unwrap_or(0);
            match plan.nodes.iter_mut().find(|node| node.index == index) {
                Some(node) => node.platforms.push(platform.clone()),
                None => plan.nodes.push(PlannedNode {
                    index,
                    platforms: vec![platform.clone()],
                }),
            }
        }
        plan
    }
}

fn best_node(nodes: &[Vec<Platform>], platform: &Platform, strict: bool) -> Option<usize> {
    let mut best: Option<(u32, usize)> = None;
    for (index, platforms) in nodes.iter().enumerate() {
        let ranks = platforms.iter().filter_map(|own| own.match_rank(platform));
        let rank = ranks.filter(|rank| !strict || *rank == 0).min();
        if let Some(rank) = rank
            && best.is_none_or(|(smallest, _)| rank < smallest)
        {
            best = Some((rank, index));
        }
    }
    best.map(|(_, index)| index)
}

impl Builder {
    /// Chooses nodes for platforms, boots and connects those.
    pub async fn resolve(
        &self,
        wanted: &[Platform],
        progress: &BootProgress,
    ) -> Result<Vec<ResolvedNode<'_>>, diag::Error> {
        if let Some(error) = self.nodes().iter().find_map(|node| node.error.clone()) {
            // As long as one node can be used, it is used.
            if self.nodes().iter().all(|node| node.driver.is_none()) {
                return Err(error);
            }
        }
        if self.nodes().is_empty() {
            return Err(diag::Error::not_found("no nodes available"));
        }
        let fixed: Vec<Vec<Platform>> = self
            .nodes()
            .iter()
            .map(|node| node.platforms.clone())
            .collect();
        let mut plan = NodePlan::new(&fixed, wanted, true);
        if !plan.is_perfect && self.nodes().len() > 1 {
            let all: Vec<usize> = (0..self.nodes().len()).collect();
            let connections = self.connect_nodes(&all, progress).await?;
            let asked = try_join_all(connections.into_iter().map(worker_platforms)).await?;
            let mut known = fixed;
            for (own, more) in known.iter_mut().zip(asked) {
                own.extend(more);
            }
            plan = NodePlan::new(&known, wanted, false);
        }
        let indexes: Vec<usize> = plan.nodes.iter().map(|node| node.index).collect();
        let connections = self.connect_nodes(&indexes, progress).await?;
        let resolved = plan.nodes.into_iter().zip(connections);
        Ok(resolved
            .map(|(planned, connection)| ResolvedNode {
                node: &self.nodes()[planned.index],
                index: planned.index,
                connection,
                platforms: planned.platforms,
            })
            .collect())
    }

    async fn connect_nodes(
        &self,
        indexes: &[usize],
        progress: &BootProgress,
    ) -> Result<Vec<Connection>, diag::Error> {
        let several = indexes.len() > 1;
        try_join_all(indexes.iter().map(|index| async move {
            let node = &self.nodes()[*index];
            if several {
                let progress = progress.clone().with_prefix(node.name());
                return node.boot(&progress).await;
            }
            node.boot(progress).await
        }))
        .await
    }
}

async fn worker_platforms(connection: Connection) -> Result<Vec<Platform>, diag::Error> {
    let answer = ControlClient::new(connection.channel.clone())
        .list_workers(ListWorkersRequest { filter: Vec::new() })
        .await
        .map_err(|status| connection.call_error(&status, "listing workers"))?;
    let workers = answer.into_inner().record.into_iter();
    Ok(workers
        .flat_map(|worker| worker.platforms)
        .map(|platform| Platform::new(&platform.os, &platform.architecture, &platform.variant))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platforms(text: &str) -> Vec<Platform> {
        text.split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect()
    }

    fn plan(nodes: &[&str], wanted: &str, strict: bool) -> (Vec<(usize, String)>, bool) {
        let nodes: Vec<_> = nodes.iter().map(|text| platforms(text)).collect();
        let plan = NodePlan::new(&nodes, &platforms(wanted), strict);
        let shown = plan.nodes.into_iter().map(|node| {
            let texts: Vec<String> = node.platforms.iter().map(ToString::to_string).collect();
            (node.index, texts.join(" "))
        });
        (shown.collect(), plan.is_perfect)
    }

    #[test]
    fn a_platform_goes_to_the_node_it_was_fixed_for() {
        assert_eq!(
            plan(
                &["linux/amd64", "linux/arm64"],
                "linux/arm64 linux/amd64",
                true
            ),
            (
                vec![(1, "linux/arm64".into()), (0, "linux/amd64".into())],
                true
            )
        );
    }

    #[test]
    fn platforms_of_one_node_are_built_together() {
        assert_eq!(
            plan(
                &["linux/amd64 linux/arm64"],
                "linux/amd64 linux/arm64",
                true
            ),
            (vec![(0, "linux/amd64 linux/arm64".into())], true)
        );
    }

    #[test]
    fn native_comes_before_a_variant_and_the_first_node_takes_what_nobody_claims() {
        assert_eq!(
            plan(&["linux/arm64", "linux/arm/v7"], "linux/arm/v7", false),
            (vec![(1, "linux/arm/v7".into())], true)
        );
        assert_eq!(
            plan(&["linux/arm64"], "linux/arm/v7", true),
            (vec![(0, "linux/arm/v7".into())], false)
        );
        assert_eq!(
            plan(&["linux/amd64", "linux/arm64"], "linux/riscv64", false),
            (vec![(0, "linux/riscv64".into())], false)
        );
        assert_eq!(
            plan(&["linux/amd64"], "", true),
            (vec![(0, "".into())], true)
        );
    }
}
