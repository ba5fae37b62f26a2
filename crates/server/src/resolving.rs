//! What gateway clients ask about sources before they build: digests, configurations, commits.

use bytes::Bytes;
use diag::{Error, Result};
use llb::SourceOp;
use oci::{Descriptor, Digest, Platform, Reference};
use ops::work::{SourceMeta, SourceQuestions, source_meta};
use proto::gateway::checksum_request::ChecksumAlgo;
use proto::gateway::{
    Blob, ChecksumResponse, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use proto::pb;
use proto::sourcepolicy::Policy;
use source::attestations::AttestationChain;
use source::http::ChecksumAlgorithm;
use tokio_util::sync::CancellationToken;

use crate::gateway_build::GatewayBuild;
use crate::job::Job;
use crate::source_policy::Rules;
use crate::wire::timestamp;

/// Who wants to know what a source stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// Who builds. Of the source decide the rules and the session that judges sources.
    Frontend,
    /// That session; the rules alone decide.
    Judge,
}

/// A question for an image of a registry or of a client's layout.
pub(crate) struct ImageQuestion {
    /// The image.
    pub(crate) source: SourceOp,
    /// What it is to run on.
    pub(crate) platform: Platform,
    /// The name under which the question is shown; empty for the usual.
    pub(crate) log_name: String,
    /// What decides besides the build's own policy.
    pub(crate) policies: Vec<Policy>,
}

/// An image that was asked for, or the one that a policy puts in its place.
pub(crate) struct FoundImage {
    pub(crate) reference: Reference,
    pub(crate) digest: Digest,
    /// As stored.
    pub(crate) config: Vec<u8>,
}

impl GatewayBuild {
    /// Digest and configuration of an image.
    pub async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse> {
        let reference = request.r#ref.parse::<Reference>();
        let reference = reference.map_err(|error| Error::invalid(error.to_string()))?;
        let reference = reference.with_default_tag();
        // 0 is a registry, 1 an OCI layout.
        let source = match request.resolver_type {
            1 => layout_source(&reference, &request.session_id, &request.store_id),
            _ => registry_source(&reference),
        };
        let platform = request.platform.as_ref();
        let question = ImageQuestion {
            source,
            platform: platform.map_or_else(Platform::host, llb::platform_from_proto),
            log_name: request.log_name,
            policies: request.source_policies,
        };
        let image = resolve_image(self.job(), question).await?;
        Ok(ResolveImageConfigResponse {
            digest: image.digest.to_string(),
            config: image.config,
            r#ref: image.reference.to_string(),
        })
    }

    /// What a source stands for.
    pub async fn resolve_source_meta(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        resolve_source_meta(self.job(), request, Asker::Frontend).await
    }
}

/// The source of an image in its registry.
pub(crate) fn registry_source(reference: &Reference) -> SourceOp {
    SourceOp {
        identifier: format!("docker-image://{reference}"),
        ..SourceOp::default()
    }
}

/// The source of an image in a layout that a client has; without a session it is the build's own.
pub(crate) fn layout_source(reference: &Reference, session: &str, store: &str) -> SourceOp {
    let attrs = [("oci.session", session), ("oci.store", store)];
    let given = attrs.into_iter().filter(|(_, value)| !value.is_empty());
    SourceOp {
        identifier: format!("oci-layout://{reference}"),
        attrs: given
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    }
}

/// Digest and configuration of an image.
///
/// # Errors
///
/// What [`resolve_source_meta`] fails with; a policy puts something in its place that is no image.
pub(crate) async fn resolve_image(job: &Job, question: ImageQuestion) -> Result<FoundImage> {
    let asked = question.source.identifier.clone();
    let name = asked.split_once("://").map_or("", |(_, name)| name);
    let request = ResolveSourceMetaRequest {
        source: Some(pb::SourceOp {
            identifier: asked.clone(),
            attrs: question.source.attrs.into_iter().collect(),
        }),
        platform: Some(llb::platform_to_proto(&question.platform)),
        log_name: question.log_name,
        source_policies: question.policies,
        ..ResolveSourceMetaRequest::default()
    };
    let found = resolve_source_meta(job, request, Asker::Frontend).await;
    let found = found
        .map_err(|error| error.context(format!("failed to resolve source metadata for {name}")))?;
    let updated = found.source.unwrap_or_default().identifier;
    let Some(image) = found.image else {
        return Err(Error::invalid(format!(
            "ref mutated by policy to non-image: docker-image://{name} -> {updated}"
        )));
    };
    let (_, updated) = updated.split_once("://").unwrap_or_default();
    let reference = updated.parse::<Reference>();
    let digest = image.digest.parse();
    Ok(FoundImage {
        reference: reference
            .map_err(|error| Error::invalid(error.to_string()))?
            .with_default_tag(),
        digest: digest.map_err(|error: oci::DigestError| Error::internal(error.to_string()))?,
        config: image.config,
    })
}

/// What a source stands for, or the one that a policy puts in its place.
///
/// # Errors
///
/// The source is not allowed; it cannot be had; what is asked for is not known here.
pub(crate) async fn resolve_source_meta(
    job: &Job,
    request: ResolveSourceMetaRequest,
    asker: Asker,
) -> Result<ResolveSourceMetaResponse> {
    let mut policy = job.policy();
    policy.rules = Rules::read(&request.source_policies)?.then(&policy.rules);
    if asker == Asker::Judge {
        policy.judge = None;
    }
    let questions = questions(&request)?;
    // Clients tell the checksum from others by what they put behind the file.
    let suffix = questions
        .checksum
        .as_ref()
        .map(|(_, suffix)| suffix.clone());
    let asked = request
        .source
        .ok_or_else(|| Error::invalid("source is required"))?;
    let name = log_name(&request.log_name, &diag::redact_url(&asked.identifier));
    let platform = request.platform.as_ref();
    let platform = platform.map_or_else(Platform::host, llb::platform_from_proto);
    let id = format!("{}{platform}", asked.identifier);
    let mut op = SourceOp {
        identifier: asked.identifier,
        attrs: asked.attrs.into_iter().collect(),
    };
    let wanted = policy.source(&op, request.platform.clone()).await;
    let wanted = wanted.map_err(|error| error.context("could not resolve image due to policy"))?;
    if let Some(wanted) = wanted {
        op = wanted;
    }
    let source = pb::SourceOp {
        identifier: op.identifier.clone(),
        attrs: op.attrs.clone().into_iter().collect(),
    };
    let (parts, context) = (job.parts().ops.clone(), job.context());
    // Dropping the call ends what git and others have begun.
    let cancel = CancellationToken::new();
    let _ended = cancel.clone().drop_guard();
    let find = source_meta(&parts, op, Some(platform), questions, context, cancel);
    let meta = job.running().step(&name, &id, find).await?;
    let no_config = request.image.is_some_and(|image| image.no_config);
    let mut response = response(source, meta, no_config);
    let http = response.http.as_mut();
    if let Some(checksum) = http.and_then(|http| http.checksum_response.as_mut()) {
        checksum.suffix = suffix.unwrap_or_default();
    }
    Ok(response)
}

/// The name shown for a question about a source.
fn log_name(given: &str, identifier: &str) -> String {
    match given {
        "" => format!("resolve image config for {identifier}"),
        name => name.to_owned(),
    }
}

/// What is asked besides names; what would be missing in the answer without a word is refused.
fn questions(request: &ResolveSourceMetaRequest) -> Result<SourceQuestions> {
    let image = request.image.as_ref();
    let attested = image.filter(|i| i.attestation_chain || !i.resolve_attestations.is_empty());
    let http = request.http.as_ref();
    let checksum = http.and_then(|http| http.checksum_request.as_ref());
    let checksum = match checksum {
        None => None,
        Some(asked) => Some((algorithm(asked.algo)?, asked.suffix.clone())),
    };
    Ok(SourceQuestions {
        attestations: attested.map(|image| image.resolve_attestations.clone()),
        git_objects: request.git.as_ref().is_some_and(|git| git.return_object),
        checksum,
    })
}

fn algorithm(number: i32) -> Result<ChecksumAlgorithm> {
    match ChecksumAlgo::try_from(number) {
        Ok(ChecksumAlgo::Sha256) => Ok(ChecksumAlgorithm::Sha256),
        Ok(ChecksumAlgo::Sha384) => Ok(ChecksumAlgorithm::Sha384),
        Ok(ChecksumAlgo::Sha512) => Ok(ChecksumAlgorithm::Sha512),
        Err(_) => Err(Error::invalid(format!(
            "unsupported checksum algorithm {number}"
        ))),
    }
}

fn response(source: pb::SourceOp, meta: SourceMeta, no_config: bool) -> ResolveSourceMetaResponse {
    let mut response = ResolveSourceMetaResponse {
        source: Some(source),
        ..ResolveSourceMetaResponse::default()
    };
    match meta {
        SourceMeta::Nothing => {}
        SourceMeta::Image {
            digest,
            config,
            attestations,
        } => {
            response.image = Some(ResolveSourceImageResponse {
                digest: digest.to_string(),
                config: if no_config { Vec::new() } else { config },
                attestation_chain: attestations.map(chain),
            });
        }
        SourceMeta::Git {
            reference,
            object,
            commit,
            objects,
        } => {
            let mut git = ResolveSourceGitResponse {
                commit_checksum: commit.unwrap_or_default(),
                checksum: object,
                r#ref: reference,
                ..ResolveSourceGitResponse::default()
            };
            if let Some(objects) = objects {
                // Now it is known what kind of object it is.
                git.commit_checksum = match objects.tag {
                    Some(_) => objects.commit_id,
                    None => String::new(),
                };
                git.commit_object = objects.commit;
                git.tag_object = objects.tag.unwrap_or_default();
            }
            response.git = Some(git);
        }
        SourceMeta::Http {
            digest,
            filename,
            last_modified,
            checksum,
        } => {
            let changed = last_modified.and_then(|text| http_date(&text));
            response.http = Some(ResolveSourceHttpResponse {
                checksum: digest.to_string(),
                filename,
                last_modified: changed.map(timestamp),
                checksum_response: checksum.map(|digest| ChecksumResponse {
                    digest,
                    suffix: Vec::new(),
                }),
            });
        }
    }
    response
}

fn chain(found: AttestationChain) -> proto::gateway::AttestationChain {
    let blob = |(descriptor, data): (Descriptor, Bytes)| {
        let digest = descriptor.digest.to_string();
        let blob = Blob {
            descriptor: Some(proto::gateway::Descriptor {
                media_type: descriptor.media_type,
                digest: digest.clone(),
                size: descriptor.size as i64,
                annotations: descriptor.annotations.into_iter().collect(),
            }),
            data: data.to_vec(),
        };
        (digest, blob)
    };
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    proto::gateway::AttestationChain {
        root: found.root.to_string(),
        image_manifest: found.image_manifest.to_string(),
        attestation_manifest: text(found.attestation_manifest).unwrap_or_default(),
        signature_manifests: text(found.signature_manifest).into_iter().collect(),
        blobs: found.blobs.into_iter().map(blob).collect(),
    }
}

/// The time in a `Last-Modified` header.
fn http_date(text: &str) -> Option<jiff::Timestamp> {
    let time = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_web_servers_are_read() {
        let time = http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        assert_eq!(time.as_second(), 1_445_412_480);
        assert!(http_date("yesterday").is_none());
    }

    #[test]
    fn an_annotated_tag_has_two_checksums() {
        let meta = SourceMeta::Git {
            reference: "refs/tags/v1".into(),
            object: "aa".into(),
            commit: Some("bb".into()),
            objects: None,
        };
        let git = response(pb::SourceOp::default(), meta, false).git.unwrap();
        assert_eq!(
            (git.r#ref.as_str(), git.checksum.as_str()),
            ("refs/tags/v1", "aa")
        );
        assert_eq!(git.commit_checksum, "bb");
    }
}
