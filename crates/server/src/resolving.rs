//! What gateway clients ask about sources before they build: digests, configurations, commits.

use std::sync::Arc;

use diag::{Error, Result};
use oci::{Platform, Reference};
use ops::work::{
    Outside, SourceMeta, SourceQuestions, layout_provider, registry_provider, source_meta,
};
use proto::gateway::checksum_request::ChecksumAlgo;
use proto::gateway::{
    ChecksumResponse, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use proto::pb;
use source::http::ChecksumAlgorithm;
use source::image::{ContentProvider, ImageRequest};
use tokio_util::sync::CancellationToken;

use crate::gateway_build::{GatewayBuild, refuse_policies};
use crate::job::Job;
use crate::wire::timestamp;

impl GatewayBuild {
    /// Digest and configuration of an image.
    pub async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse> {
        refuse_policies(&request.source_policies)?;
        // 0 is a registry, 1 an OCI layout.
        let scheme = match request.resolver_type {
            1 => "oci-layout",
            _ => "docker-image",
        };
        let provider = self.provider(scheme, &request.session_id, &request.store_id);
        let provider = provider.await?;
        let reference = request
            .r#ref
            .parse::<Reference>()
            .map_err(|error| Error::invalid(error.to_string()))?;
        let platform = request.platform.as_ref();
        let platform = platform.map_or_else(Platform::host, llb::platform_from_proto);
        let identifier = format!("{scheme}://{reference}");
        let name = log_name(&request.log_name, &identifier);
        let id = format!("{identifier}{platform}");
        let wanted = ImageRequest::new(reference, platform);
        let silent: Arc<dyn status::StatusSink> = Arc::new(status::Silent);
        let images = &self.job().parts().ops.images;
        let resolve = async { images.resolve(&*provider, &wanted, &silent).await };
        let image = self.job().running().step(&name, &id, resolve).await?;
        Ok(ResolveImageConfigResponse {
            digest: image.digest().to_string(),
            config: image.config.to_vec(),
            r#ref: image.reference.to_string(),
        })
    }

    /// What a source stands for.
    pub async fn resolve_source_meta(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        resolve_source_meta(self.job(), request).await
    }

    async fn provider(
        &self,
        scheme: &str,
        session: &str,
        store: &str,
    ) -> Result<Arc<dyn ContentProvider>> {
        let running = self.job().running();
        if scheme != "oci-layout" {
            return Ok(registry_provider(running.registry()));
        }
        let session = match session {
            "" => running.session().await?,
            id => running.session_of(id).await?,
        };
        layout_provider(&session, store)
    }
}

/// What a source stands for.
pub(crate) async fn resolve_source_meta(
    job: &Job,
    request: ResolveSourceMetaRequest,
) -> Result<ResolveSourceMetaResponse> {
    refuse_policies(&request.source_policies)?;
    let questions = questions(&request)?;
    // Clients tell the checksum from others by what they put behind the file.
    let suffix = questions
        .checksum
        .as_ref()
        .map(|(_, suffix)| suffix.clone());
    let source = request
        .source
        .ok_or_else(|| Error::invalid("source is required"))?;
    let op = llb::SourceOp {
        identifier: source.identifier.clone(),
        attrs: source.attrs.clone().into_iter().collect(),
    };
    let platform = request.platform.as_ref();
    let platform = platform.map_or_else(Platform::host, llb::platform_from_proto);
    let name = log_name(&request.log_name, &diag::redact_url(&op.identifier));
    let id = format!("{}{platform}", op.identifier);
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
    if let Some(image) = &request.image
        && (image.attestation_chain || !image.resolve_attestations.is_empty())
    {
        return Err(Error::unimplemented(
            "attestations of images are not resolved by this server",
        ));
    }
    let http = request.http.as_ref();
    let checksum = http.and_then(|http| http.checksum_request.as_ref());
    let checksum = match checksum {
        None => None,
        Some(asked) => Some((algorithm(asked.algo)?, asked.suffix.clone())),
    };
    Ok(SourceQuestions {
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
        SourceMeta::Image { digest, config } => {
            response.image = Some(ResolveSourceImageResponse {
                digest: digest.to_string(),
                config: if no_config { Vec::new() } else { config },
                attestation_chain: None,
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
