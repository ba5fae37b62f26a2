//! The images that a Dockerfile on this machine names.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::lint::Linter;
use dockerfile::shell::Lexer;
use dockerfile::{Dockerfile, Kind};
use oci::Reference;

use crate::plan::SolvePlan;

/// The names of the images that a plan's Dockerfile names, in full; none when the Dockerfile is not
/// on this machine, or is not one: the server will say what is wrong with it.
pub(super) async fn of_plan(plan: &SolvePlan) -> Vec<Reference> {
    let Some(directory) = plan
        .local_dirs
        .get("dockerfile")
        .or_else(|| plan.local_dirs.get("context"))
    else {
        return Vec::new();
    };
    let name = plan.attributes.get("filename");
    let path = directory.join(name.map_or("Dockerfile", String::as_str));
    let arguments = plan
        .attributes
        .iter()
        .filter_map(|(key, value)| {
            Some((key.strip_prefix("build-arg:")?.to_owned(), value.clone()))
        })
        .collect();
    match tokio::fs::read(path).await {
        Ok(text) => of_text(&text, &arguments),
        Err(_) => Vec::new(),
    }
}

fn of_text(text: &[u8], arguments: &BTreeMap<String, String>) -> Vec<Reference> {
    let Ok(dockerfile) = Dockerfile::read(text, &Linter::off()) else {
        return Vec::new();
    };
    let lexer = Lexer::new(dockerfile.escape);
    let mut variables = BTreeMap::new();
    let declared = dockerfile.global_args.iter().flat_map(|line| &line.args);
    for argument in declared {
        let default = argument.value.as_deref().unwrap_or_default();
        let value = match arguments.get(&argument.key) {
            Some(given) => Some(given.clone()),
            None => lexer.expand(default, &variables).ok().map(|e| e.text),
        };
        variables.insert(argument.key.clone(), value.unwrap_or_default());
    }
    let mut stages = BTreeSet::from(["scratch".to_owned(), "context".to_owned()]);
    let mut found = BTreeMap::new();
    for stage in &dockerfile.stages {
        let froms = stage
            .instructions
            .iter()
            .flat_map(|instruction| match &instruction.kind {
                Kind::Copy(copy) => vec![copy.from.as_str()],
                Kind::Run(run) => run.mounts.iter().map(|mount| mount.from.as_str()).collect(),
                _ => Vec::new(),
            });
        for name in std::iter::once(stage.base_name.as_str()).chain(froms) {
            let Ok(name) = lexer.expand(name, &variables) else {
                continue;
            };
            let name = name.text;
            let is_number = name.parse::<usize>().is_ok();
            if name.is_empty() || is_number || stages.contains(&name.to_lowercase()) {
                continue;
            }
            if let Ok(reference) = name.parse::<Reference>() {
                let reference = reference.with_default_tag();
                found.insert(reference.to_string(), reference);
            }
        }
        stages.insert(stage.name.clone());
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_and_sources_of_copies_are_named_and_stages_are_not() {
        let text = "ARG TAG=1\nARG BASE=mine:$TAG\nFROM $BASE AS build\n\
                    RUN --mount=from=tools,target=/t true\nFROM build\n\
                    COPY --from=build /a /\nCOPY --from=other:2 /b /\nCOPY --from=0 /c /\n\
                    FROM scratch\n";
        let names = |arguments: &[(&str, &str)]| -> Vec<String> {
            let arguments = arguments
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            of_text(text.as_bytes(), &arguments)
                .iter()
                .map(Reference::familiar)
                .collect()
        };
        assert_eq!(names(&[]), ["mine:1", "other:2", "tools:latest"]);
        assert_eq!(names(&[("TAG", "7")])[0], "mine:7");
        assert!(of_text(b"FROM", &BTreeMap::new()).is_empty());
    }
}
