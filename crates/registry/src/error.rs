//! What can go wrong between us and a registry.

use std::sync::Arc;

use diag::Code;
use oci::Digest;
use reqwest::StatusCode;
use serde::Deserialize;

/// Failure of a request to a registry.
///
/// Clonable, because one fetch may serve several builds.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name or digest does not exist.
    #[error("{0}: not found")]
    NotFound(String),
    /// A blob that a manifest names does not exist.
    #[error("could not fetch content descriptor {digest} ({media_type}) from remote: not found")]
    BlobNotFound {
        /// The blob.
        digest: Digest,
        /// What it was to be.
        media_type: String,
    },
    /// The registry answered with a status that is not one of success.
    #[error("unexpected status from {method} request to {url}: {status}")]
    Status {
        /// `GET`, `HEAD`, ….
        method: String,
        /// Where the request went, without secrets.
        url: String,
        /// The status.
        status: StatusCode,
        /// The body, at most 64 KB of it.
        body: Arc<[u8]>,
    },
    /// A status together with what the registry said about it.
    #[error("{0}")]
    Details(String, Code),
    /// A pull is refused with the token that we could get.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    PullDenied(Arc<RegistryError>),
    /// A push is refused with the token that we could get.
    #[error("push access denied, repository does not exist or may require authorization: {0}")]
    PushDenied(Arc<RegistryError>),
    /// The registry says what is wrong with a token; the text is its error code, such as
    /// `insufficient_scope`.
    #[error("server message: {0}: authorization failed")]
    InvalidAuthorization(String),
    /// A token or credentials could not be had.
    #[error("failed to authorize: {0}")]
    Authorize(Arc<RegistryError>),
    /// An authorisation server refused.
    #[error("failed to fetch {kind} token: {cause}")]
    Token {
        /// `oauth` with credentials, `anonymous` without.
        kind: &'static str,
        /// What it answered.
        cause: Arc<RegistryError>,
    },
    /// Whoever keeps the credentials failed.
    #[error("{0}")]
    Credentials(diag::Error),
    /// No answer: connection, TLS or name resolution failed.
    #[error("failed to do request: {method} \"{url}\": {cause}")]
    Transport {
        /// `Get`, `Head`, ….
        method: String,
        /// Where the request went, without secrets.
        url: String,
        /// The innermost cause.
        cause: String,
        /// True if trying again may help.
        transient: bool,
    },
    /// The body broke off and could not be resumed.
    #[error("failed to read {what}: {cause}")]
    Interrupted {
        /// The blob or manifest.
        what: String,
        /// The last failure.
        cause: String,
    },
    /// The content does not have its digest.
    #[error("unexpected commit digest {actual}, expected {expected}: failed precondition")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The content is not as long as its descriptor says.
    #[error("unexpected commit size {actual}, expected {expected}: failed precondition")]
    SizeMismatch {
        /// Bytes the descriptor names.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// A manifest larger than we are willing to hold.
    #[error("rejecting {size} byte manifest for {name}")]
    ManifestTooLarge {
        /// The image.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Docker's first manifest format.
    #[error(
        "support Docker Image manifest version 2, schema 1 has been removed. More information at https://docs.docker.com/go/deprecated-image-specs/"
    )]
    Schema1,
    /// The answer makes no sense.
    #[error("{url}: {reason}")]
    BadResponse {
        /// Where it came from.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration of the registry cannot be used.
    #[error("registry configuration of {host}: {reason}")]
    Config {
        /// The registry.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// What is to be pushed cannot be read here.
    #[error("failed to read {digest}: {cause}")]
    Local {
        /// The blob.
        digest: Digest,
        /// The operating system's text.
        cause: String,
    },
}

/// The registry's errors in the form of the distribution specification.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: serde_json::Value,
}

/// What Azure and others say instead.
#[derive(Deserialize)]
struct PlainDetails {
    details: String,
}

impl RegistryError {
    /// True when the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            RegistryError::NotFound(_) | RegistryError::BlobNotFound { .. } => true,
            RegistryError::Status { status, .. } => *status == StatusCode::NOT_FOUND,
            _ => false,
        }
    }

    /// True when a token was refused: the cases for which pulls and pushes say "access denied".
    pub(crate) fn is_invalid_authorization(&self) -> bool {
        matches!(self, RegistryError::InvalidAuthorization(_))
    }

    /// True when the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            RegistryError::Transport { transient, .. } => *transient,
            RegistryError::Interrupted { .. } => true,
            RegistryError::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }

    /// Replaces a bare status by what the registry said, where it said something, as is done for
    /// failed pushes and token requests.
    #[must_use]
    pub fn with_details(self) -> Self {
        let RegistryError::Status { body, .. } = &self else {
            return self;
        };
        let code = self.code();
        if let Ok(parsed) = serde_json::from_slice::<Errors>(body)
            && !parsed.errors.is_empty()
        {
            return RegistryError::Details(describe(&parsed.errors), code);
        }
        if body.is_empty() {
            return self;
        }
        let details = match serde_json::from_slice::<PlainDetails>(body) {
            Ok(plain) if !plain.details.is_empty() => plain.details,
            _ => shortened(body),
        };
        RegistryError::Details(format!("{self}: {details}"), code)
    }

    /// The class of the failure.
    pub fn code(&self) -> Code {
        match self {
            RegistryError::NotFound(_) | RegistryError::BlobNotFound { .. } => Code::NotFound,
            RegistryError::Status { status, .. } => match status.as_u16() {
                401 => Code::Unauthenticated,
                403 => Code::PermissionDenied,
                404 => Code::NotFound,
                // It is the peer that is exhausted, and not this machine.
                429 | 500..=599 => Code::Unavailable,
                _ => Code::Unknown,
            },
            RegistryError::Details(_, code) => *code,
            RegistryError::PullDenied(_)
            | RegistryError::PushDenied(_)
            | RegistryError::InvalidAuthorization(_) => Code::PermissionDenied,
            RegistryError::Authorize(inner) | RegistryError::Token { cause: inner, .. } => {
                inner.code()
            }
            RegistryError::Credentials(error) => error.code(),
            RegistryError::Transport { .. } | RegistryError::Interrupted { .. } => {
                Code::Unavailable
            }
            RegistryError::DigestMismatch { .. } | RegistryError::SizeMismatch { .. } => {
                Code::DataLoss
            }
            RegistryError::ManifestTooLarge { .. } => Code::ResourceExhausted,
            RegistryError::Schema1 => Code::FailedPrecondition,
            RegistryError::BadResponse { .. } => Code::Unknown,
            RegistryError::Config { .. } => Code::InvalidArgument,
            RegistryError::Local { .. } => Code::Internal,
        }
    }
}

impl From<RegistryError> for diag::Error {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Credentials(error) => error,
            other => diag::Error::new(other.code(), other.to_string()),
        }
    }
}

fn describe(errors: &[OneError]) -> String {
    let one = |error: &OneError| {
        let mut text = format!(
            "{}: {}",
            error.code.to_ascii_lowercase().replace('_', " "),
            error.message
        );
        if let Some(detail) = error.detail.as_str().filter(|d| !d.is_empty()) {
            text.push_str(" - ");
            text.push_str(detail);
        }
        text
    };
    match errors {
        [error] => one(error),
        many => {
            let lines: Vec<String> = many.iter().map(|e| format!("{}\n", one(e))).collect();
            format!("errors:\n{}", lines.concat())
        }
    }
}

/// The first 256 bytes of a body, and how much more there was.
fn shortened(body: &[u8]) -> String {
    const BYTES_MAX: usize = 256;
    let text = String::from_utf8_lossy(&body[..body.len().min(BYTES_MAX)]);
    if body.len() > BYTES_MAX {
        return format!("{text}... ({} bytes truncated)", body.len() - BYTES_MAX);
    }
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(body: &str) -> RegistryError {
        RegistryError::Status {
            method: "PUT".into(),
            url: "https://r/v2/a/manifests/b".into(),
            status: StatusCode::FORBIDDEN,
            body: body.as_bytes().into(),
        }
    }

    #[test]
    fn the_registrys_own_words_replace_the_status() {
        let one = r#"{"errors":[{"code":"DENIED","message":"no","detail":"quota"}]}"#;
        assert_eq!(status(one).with_details().to_string(), "denied: no - quota");
        let two =
            r#"{"errors":[{"code":"NAME_INVALID","message":"a"},{"code":"X","message":"b"}]}"#;
        assert_eq!(
            status(two).with_details().to_string(),
            "errors:\nname invalid: a\nx: b\n"
        );
        assert_eq!(
            status("plain").with_details().to_string(),
            "unexpected status from PUT request to https://r/v2/a/manifests/b: 403 Forbidden: plain"
        );
        assert_eq!(
            status("").with_details().to_string(),
            "unexpected status from PUT request to https://r/v2/a/manifests/b: 403 Forbidden"
        );
        assert_eq!(status("").with_details().code(), Code::PermissionDenied);
    }

    #[test]
    fn a_refused_pull_reads_as_stocks() {
        let error = RegistryError::PullDenied(Arc::new(RegistryError::InvalidAuthorization(
            "insufficient_scope".into(),
        )));
        assert_eq!(
            error.to_string(),
            "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"
        );
    }
}
