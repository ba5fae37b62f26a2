//! Containers and volumes that were made for builders whose records are gone.

use builder::{Builder, Docker};
use driver::engine::Engine;
use driver::{Orphan, orphans};
use futures::future::join_all;

use crate::printer;

/// An orphan and the Engine that has it.
pub(crate) struct Found {
    pub(crate) orphan: Orphan,
    pub(crate) engine: Engine,
}

/// Looks at the current Engine and at those of all builders; an Engine that does not answer has
/// none that we know of. What was kept on purpose is no orphan.
pub(crate) async fn find_orphans(docker: &Docker, builders: &[Builder]) -> Vec<Found> {
    let mut engines: Vec<Engine> = docker.current_engine().into_iter().collect();
    for builder in builders {
        for node in builder.nodes() {
            let answered = node.error.is_none();
            let own = driver_engine(node).filter(|_| answered);
            if let Some(engine) = own {
                let known = engines
                    .iter()
                    .any(|known| known.endpoint() == engine.endpoint());
                if !known {
                    engines.push(engine);
                }
            }
        }
    }
    let owner = docker.store().config().node_id();
    let kept = docker.store().transaction().kept();
    let is_known = |builder: &str, node: &str| {
        kept.iter().any(|name| name == node)
            || builders.iter().any(|known| {
                known.name().eq_ignore_ascii_case(builder)
                    && (known.error.is_some()
                        || known.group.nodes.iter().any(|record| record.name == node))
            })
    };
    let looked = engines.into_iter().map(|engine| {
        let (owner, is_known) = (&owner, &is_known);
        async move {
            let found = orphans(&engine, owner, is_known).await.unwrap_or_default();
            let with_engine = found.into_iter().map(|orphan| Found {
                orphan,
                engine: engine.clone(),
            });
            with_engine.collect::<Vec<_>>()
        }
    });
    join_all(looked).await.into_iter().flatten().collect()
}

fn driver_engine(node: &builder::Node) -> Option<Engine> {
    let driver = node.driver.as_ref()?;
    (driver.name() == "docker-container")
        .then(|| driver.node().engine.clone())
        .flatten()
}

/// Says on stderr what was found.
pub(crate) fn print_orphans(found: &[Found]) {
    if found.is_empty() {
        return;
    }
    let mut text = "\nLeft over from removed builders (`prune --orphans` removes it):\n".to_owned();
    for Found { orphan, engine } in found {
        text.push_str(&format!(
            "  {} {} of builder {} on {}\n",
            orphan.kind(),
            orphan.name,
            orphan.builder,
            engine.endpoint().host
        ));
    }
    printer::err(text);
}
