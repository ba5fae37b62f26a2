//! Names to descriptors, and the manifests behind them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use oci::{Descriptor, Digest, Reference, media_type};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};

use crate::client::{Call, Client, Payload, Repository, expect_success, status_error};
use crate::config::Endpoint;
use crate::error::RegistryError;
use crate::scope::Scopes;

/// Manifests and indexes larger than this are refused, in bytes.
pub const MANIFEST_SIZE_MAX: u64 = 8 * 1024 * 1024;

const ACCEPT_MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

const SCHEMA1: &[&str] = &[
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

impl Client {
    /// What a name with a tag or digest stands for. A name with both is taken by its digest.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] with the whole name; [`RegistryError::PullDenied`]; of several
    /// endpoints that fail, the failure of the one that got furthest.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let repository = self.repository(reference).await;
        let object = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let mut worst: Option<(u8, RegistryError)> = None;
        for (index, endpoint) in repository.endpoints.iter().enumerate() {
            let last = index + 1 == repository.endpoints.len();
            let error = match self
                .resolve_at(&repository, endpoint, &object, reference.digest(), last)
                .await
            {
                Ok(descriptor) => return checked(reference, descriptor),
                Err(error) => denied(error),
            };
            tracing::info!(host = endpoint.host, %error, "resolving failed");
            let rank = match &error {
                RegistryError::Status { status, .. } if *status == StatusCode::NOT_FOUND => 2,
                RegistryError::Status { .. } | RegistryError::BadResponse { .. } => 3,
                _ => 1,
            };
            if worst.as_ref().is_none_or(|(known, _)| *known < rank) {
                worst = Some((rank, error));
            }
        }
        match worst {
            Some((_, error)) if !error.is_not_found() => Err(error),
            _ => Err(RegistryError::NotFound(reference.to_string())),
        }
    }

    async fn resolve_at(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        object: &str,
        digest: Option<Digest>,
        last: bool,
    ) -> Result<Descriptor, RegistryError> {
        let mut call = Call::new(
            Method::HEAD,
            format!("manifests/{object}"),
            Scopes::pull(&repository.path),
        );
        call.headers
            .insert(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS));
        let response = self.execute(repository, endpoint, &call, last).await?;
        let response = match response.status() {
            // A HEAD has no body; the same GET says why it is forbidden.
            StatusCode::FORBIDDEN => {
                let error = status_error(&Method::HEAD, response).await;
                let body = self.forbidden_body(repository, endpoint, &call).await;
                return Err(with_body(error, body));
            }
            _ => expect_success(&Method::HEAD, response).await?,
        };
        let named = digest.or(header_digest(response.headers(), response.url().as_str())?);
        if let (Some(digest), Some(size)) = (named, header_size(response.headers())) {
            let media_type = content_type(response.headers());
            return Ok(Descriptor::new(media_type, digest, size));
        }
        // The registry says too little about it: look at the manifest itself.
        call.method = Method::GET;
        let response = self.execute(repository, endpoint, &call, last).await?;
        let response = expect_success(&Method::GET, response).await?;
        let media_type = content_type(response.headers());
        let body = bounded_body(response, object).await?;
        let actual = Digest::of(&body);
        if let Some(expected) = digest.filter(|expected| *expected != actual) {
            return Err(RegistryError::DigestMismatch { expected, actual });
        }
        Ok(Descriptor::new(media_type, actual, body.len() as u64))
    }

    /// The bytes of a manifest or index, verified.
    ///
    /// # Errors
    /// [`RegistryError::BlobNotFound`] if no endpoint has it.
    pub async fn fetch_manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let repository = self.repository(reference).await;
        let mut first: Option<RegistryError> = None;
        for (index, endpoint) in repository.endpoints.iter().enumerate() {
            let last = index + 1 == repository.endpoints.len();
            match self
                .fetch_manifest_at(&repository, endpoint, descriptor, last)
                .await
            {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    first.get_or_insert(denied(error));
                }
            }
        }
        Err(match first {
            Some(error) if !error.is_not_found() => error,
            _ => RegistryError::BlobNotFound {
                digest: descriptor.digest,
                media_type: descriptor.media_type.clone(),
            },
        })
    }

    async fn fetch_manifest_at(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        last: bool,
    ) -> Result<Bytes, RegistryError> {
        let mut call = Call::new(
            Method::GET,
            format!("manifests/{}", descriptor.digest),
            Scopes::pull(&repository.path),
        );
        call.headers.insert(ACCEPT, accept(&descriptor.media_type));
        let response = self.execute(repository, endpoint, &call, last).await?;
        let response = expect_success(&Method::GET, response).await?;
        let body = bounded_body(response, &descriptor.digest.to_string()).await?;
        let actual = Digest::of(&body);
        if actual != descriptor.digest {
            return Err(RegistryError::DigestMismatch {
                expected: descriptor.digest,
                actual,
            });
        }
        Ok(body)
    }

    /// Puts a manifest or index under the tag of a name, or only under its digest if the name has
    /// no tag. Nothing is sent if it stands there already.
    ///
    /// # Errors
    /// Those of the registry with its own words ([`RegistryError::with_details`] gives them).
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        manifest: Bytes,
    ) -> Result<(), RegistryError> {
        let repository = self.repository(reference).await;
        let Some(endpoint) = repository.endpoints.last() else {
            return Err(RegistryError::NotFound(reference.to_string()));
        };
        let scopes = Scopes::push(&repository.path);
        let object = match reference.tag() {
            Some(tag) => tag.to_owned(),
            None => descriptor.digest.to_string(),
        };
        let mut call = Call::new(Method::HEAD, format!("manifests/{object}"), scopes);
        call.headers.insert(ACCEPT, accept(&descriptor.media_type));
        match self.execute(&repository, endpoint, &call, true).await {
            Ok(response) if response.status().is_success() => {
                let there = header_digest(response.headers(), response.url().as_str())?;
                if there == Some(descriptor.digest) {
                    return Ok(());
                }
            }
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {}
            Ok(response) if response.status() == StatusCode::FORBIDDEN => {
                let error = status_error(&Method::HEAD, response).await;
                let body = self.forbidden_body(&repository, endpoint, &call).await;
                return Err(with_body(error, body));
            }
            Ok(response) => return Err(status_error(&Method::HEAD, response).await),
            // The push itself will tell.
            Err(error) if error.is_invalid_authorization() => {}
            Err(error) => return Err(error),
        }
        call.method = Method::PUT;
        call.headers.clear();
        call.headers
            .insert(CONTENT_TYPE, header_value(&descriptor.media_type));
        call.payload = Payload::Bytes(manifest);
        let response = self.execute(&repository, endpoint, &call, true).await;
        let response = response.map_err(push_denied)?;
        let response = expect_success(&Method::PUT, response).await?;
        confirmed(&response, descriptor.digest)
    }

    /// What the registry says to a GET where a HEAD was forbidden.
    pub(crate) async fn forbidden_body(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        call: &Call,
    ) -> Arc<[u8]> {
        let mut get = call.clone();
        get.method = Method::GET;
        match self.execute(repository, endpoint, &get, true).await {
            Ok(response) if response.status() == StatusCode::FORBIDDEN => {
                match status_error(&Method::GET, response).await {
                    RegistryError::Status { body, .. } => body,
                    _ => Arc::default(),
                }
            }
            _ => Arc::default(),
        }
    }
}

/// An error of a HEAD request with the body of the same GET.
pub(crate) fn with_body(error: RegistryError, body: Arc<[u8]>) -> RegistryError {
    match error {
        RegistryError::Status {
            method,
            url,
            status,
            ..
        } => RegistryError::Status {
            method,
            url,
            status,
            body,
        },
        other => other,
    }
}

/// A refused token means, for a push, that the repository is not ours.
pub(crate) fn push_denied(error: RegistryError) -> RegistryError {
    match error.is_invalid_authorization() {
        true => RegistryError::PushDenied(Arc::new(error)),
        false => error,
    }
}

/// Fails if the registry says that it stored something else.
pub(crate) fn confirmed(response: &Response, digest: Digest) -> Result<(), RegistryError> {
    match header_digest(response.headers(), response.url().as_str())? {
        Some(actual) if actual != digest => Err(RegistryError::DigestMismatch {
            expected: digest,
            actual,
        }),
        _ => Ok(()),
    }
}

pub(crate) fn denied(error: RegistryError) -> RegistryError {
    match error.is_invalid_authorization() {
        true => RegistryError::PullDenied(Arc::new(error)),
        false => error,
    }
}

/// `Accept` for one media type and, because registries are not exact about them, all others.
pub(crate) fn accept(media_type: &str) -> HeaderValue {
    match media_type {
        "" => HeaderValue::from_static("*/*"),
        given => header_value(&format!("{given}, */*")),
    }
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("*/*"))
}

fn checked(reference: &Reference, descriptor: Descriptor) -> Result<Descriptor, RegistryError> {
    if SCHEMA1.contains(&descriptor.media_type.as_str()) {
        return Err(RegistryError::Schema1);
    }
    if descriptor.size > MANIFEST_SIZE_MAX {
        return Err(RegistryError::ManifestTooLarge {
            name: reference.to_string(),
            size: descriptor.size,
        });
    }
    Ok(descriptor)
}

/// The media type of a response without its parameters; a registry that names none means OCI's
/// manifest.
fn content_type(headers: &HeaderMap) -> String {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim();
    match text {
        "" => media_type::OCI_MANIFEST.to_owned(),
        given => given.to_owned(),
    }
}

pub(crate) fn header_size(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn header_digest(headers: &HeaderMap, url: &str) -> Result<Option<Digest>, RegistryError> {
    let Some(value) = headers.get("docker-content-digest") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    text.parse()
        .map(Some)
        .map_err(|error| RegistryError::BadResponse {
            url: url.to_owned(),
            reason: format!("\"{text}\" in header not a valid digest: {error}"),
        })
}

/// A body in memory, no larger than a manifest may be.
pub(crate) async fn bounded_body(
    mut response: Response,
    name: &str,
) -> Result<Bytes, RegistryError> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) => {
                return Err(RegistryError::Interrupted {
                    what: name.to_owned(),
                    cause: crate::transport::innermost(&error),
                });
            }
        }
        if body.len() as u64 > MANIFEST_SIZE_MAX {
            return Err(RegistryError::ManifestTooLarge {
                name: name.to_owned(),
                size: body.len() as u64,
            });
        }
    }
}
