//! What becomes of a node's result: outputs that its server, its driver and the user's Engine can do.

use std::collections::BTreeMap;

use diag::{Context, Error};
use oci::Platform;

use super::{NodeFacts, PlanContext, SolvePlan, no_default_load, not_supported};
use crate::export::{Export, Target};
use crate::request::BuildRequest;
use crate::spec::{is_true, parse_bool, parse_tags};

const EXPORTERS: &str = "https://docs.docker.com/go/build-exporters/";

impl SolvePlan {
    /// Plans the outputs; platforms become fewer if they are loaded where only one can be.
    pub(super) fn set_exports(
        &mut self,
        context: PlanContext<'_>,
        facts: &NodeFacts,
        platforms: &mut Vec<Platform>,
    ) -> Result<(), Error> {
        let request = context.request;
        if self.exports.is_empty() && request.call.is_none() && !no_default_load(context.env) {
            if facts.is_moby {
                self.exports.push(Export::of("image"));
            } else if facts.default_load {
                self.exports.push(Export {
                    target: Target::Engine(None),
                    ..Export::of("docker")
                });
            }
        }
        if self.exports.len() > 1 && !facts.multiple_outputs {
            return Err(Error::unimplemented(
                "multiple outputs currently unsupported by the current BuildKit daemon, please upgrade to version v0.13+ or use a single output",
            ));
        }
        self.check_annotations(request, facts)?;
        self.name_exports(request)?;
        self.exports.retain(|export| export.kind != "cacheonly");
        let attested = request.attests.values().any(Option::is_some);
        let only_load = self.exports.len() == 1;
        for place in 0..self.exports.len() {
            if self.exports[place].kind == "docker" {
                let note = limit_to_engine(&self.exports[place], facts, only_load, platforms);
                self.notes.extend(note);
            }
            plan_export(
                &mut self.exports[place],
                facts,
                platforms.len() > 1 || attested,
                &request.build_args,
            )?;
        }
        let off = match context.env.get("BUILDX_NO_DEFAULT_OCI_ARTIFACT") {
            Some(value) => parse_bool(value).context("invalid BUILDX_NO_DEFAULT_OCI_ARTIFACT")?,
            None => false,
        };
        if off && facts.attestations && facts.multi_platform {
            for export in &mut self.exports {
                if matches!(&*export.kind, "image" | "oci" | "moby") {
                    let attributes = &mut export.attributes;
                    attributes
                        .entry("oci-artifact".to_owned())
                        .or_insert_with(|| "false".to_owned());
                }
            }
        }
        Ok(())
    }

    fn check_annotations(&self, request: &BuildRequest, facts: &NodeFacts) -> Result<(), Error> {
        let loads = |export: &Export| matches!(&*export.kind, "image" | "docker");
        let on_index = request
            .annotations
            .keys()
            .any(|annotation| annotation.is_index());
        if facts.is_moby
            && !facts.multi_platform
            && request.call.is_none()
            && on_index
            && self.exports.iter().any(loads)
        {
            return Err(Error::invalid(
                "index annotations not supported for single platform export",
            ));
        }
        Ok(())
    }

    fn name_exports(&mut self, request: &BuildRequest) -> Result<(), Error> {
        let tags = parse_tags(&request.tags)?;
        for export in &mut self.exports {
            if !tags.is_empty() {
                if matches!(&*export.kind, "image" | "oci" | "docker") {
                    export.attributes.insert("name".to_owned(), tags.join(","));
                }
            } else if export.kind == "image"
                && export.pushes()
                && export.attributes.get("name").is_none_or(String::is_empty)
            {
                return Err(Error::invalid("tag is needed when pushing to registry"));
            }
        }
        Ok(())
    }
}

/// An Engine without containerd's store cannot take an image for several platforms: it gets its
/// own. Says so.
fn limit_to_engine(
    export: &Export,
    facts: &NodeFacts,
    only_output: bool,
    platforms: &mut Vec<Platform>,
) -> Option<String> {
    let loads = matches!(export.target, Target::Engine(_));
    if !loads || facts.engine_takes_oci || facts.is_moby || platforms.len() < 2 || !only_output {
        return None;
    }
    let engine = facts.engine_platform.as_ref()?;
    let own = platforms
        .iter()
        .filter_map(|platform| Some((engine.match_rank(platform)?, platform.clone())))
        .min_by_key(|(rank, _)| *rank)?
        .1;
    let text = format!(
        "the image store of the Docker Engine holds one platform of an image: only {own} is built and loaded"
    );
    *platforms = vec![own];
    Some(text)
}

fn plan_export(
    export: &mut Export,
    facts: &NodeFacts,
    several_manifests: bool,
    build_args: &BTreeMap<String, String>,
) -> Result<(), Error> {
    if export.kind == "oci" && !facts.oci_exporter {
        return Err(not_supported("OCI exporter", facts, EXPORTERS));
    }
    let was_image = matches!(&*export.kind, "docker" | "image" | "oci");
    if export.kind == "docker" {
        let loads = matches!(export.target, Target::Engine(_));
        if facts.engine_takes_oci && loads {
            // It takes images for several platforms, and keeps the digest of what it is given.
            export.kind = "oci".to_owned();
            prefer_image_digest(export);
        } else if several_manifests {
            let hint = if loads {
                "does not currently support exporting manifest lists"
            } else {
                "does not support exporting manifest lists, use the oci exporter instead"
            };
            return Err(Error::invalid(format!("docker exporter {hint}")));
        }
        if loads && facts.is_moby {
            export.kind = "image".to_owned();
            export.target = Target::Server;
        } else if !loads && !facts.docker_exporter {
            return Err(not_supported("Docker exporter", facts, EXPORTERS));
        }
    }
    if export.kind == "image" && facts.is_moby {
        export.kind = "moby".to_owned();
        if facts.prefer_image_digest {
            prefer_image_digest(export);
        }
        if export.pushes() && is_true(&export.attributes, "push-by-digest") {
            return Err(Error::unimplemented(
                "push-by-digest is currently not implemented for docker driver, please create a new builder instance",
            ));
        }
    }
    if was_image && let Some(value) = build_args.get("BUILDKIT_INLINE_BUILDINFO_ATTRS") {
        export
            .attributes
            .insert("buildinfo-attrs".to_owned(), value.clone());
    }
    Ok(())
}

fn prefer_image_digest(export: &mut Export) {
    export
        .attributes
        .insert("prefer-image-digest".to_owned(), "true".to_owned());
}
