//! Fetching tokens from a registry's authorization server.
//!
//! The OAuth form is tried first when there are credentials; registries that do not know it (they
//! answer 401, 404 or 405) get the older form with basic authentication.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diag::Secret;
use docker_config::Auth;
use reqwest::StatusCode;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

/// Seconds a token is taken to be good for when nothing is said.
const DEFAULT_EXPIRES_S: i64 = 60;
/// How long an authorization server has.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer looked at, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How TLS to a registry differs from the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryTls {
    /// Further certificates to trust, PEM files.
    pub root_cas: Vec<PathBuf>,
    /// Our certificate and its key, PEM files.
    pub key_pair: Option<(PathBuf, PathBuf)>,
    /// Whether the server's certificate is not verified.
    pub insecure: bool,
}

/// A token that was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub token: Secret<String>,
    pub expires_in_s: i64,
    pub issued_at_s: i64,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{0}")]
    Http(String),
    #[error("unexpected status from {method} request to {url}: {status}{detail}")]
    Status {
        method: &'static str,
        url: String,
        status: StatusCode,
        detail: String,
    },
    #[error("unable to decode token response: {0}")]
    Decode(String),
    #[error("authorization server did not include a token in the response")]
    NoToken,
    #[error("{0}")]
    Tls(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
    expires_in: i64,
    issued_at: String,
}

/// What is asked for; the names are those of a registry's challenge.
pub struct Wanted {
    pub realm: String,
    pub service: String,
    pub scopes: Vec<String>,
}

/// Fetches a token with what is known, or anonymously.
pub async fn fetch(
    client: &reqwest::Client,
    wanted: &Wanted,
    auth: &Auth,
) -> Result<Fetched, TokenError> {
    if auth.secret().is_empty() {
        return with_get(client, wanted, None).await;
    }
    // An identity token stands alone; a user name belongs to a password.
    let user = match auth.identity_token.expose().is_empty() {
        true => &auth.username[..],
        false => "",
    };
    match with_oauth(client, wanted, user, auth.secret()).await {
        Err(TokenError::Status { status, .. })
            if (status == StatusCode::METHOD_NOT_ALLOWED && !user.is_empty())
                || status == StatusCode::NOT_FOUND
                || status == StatusCode::UNAUTHORIZED =>
        {
            with_get(client, wanted, Some((user, auth.secret()))).await
        }
        result => result,
    }
}

async fn with_oauth(
    client: &reqwest::Client,
    wanted: &Wanted,
    user: &str,
    secret: &str,
) -> Result<Fetched, TokenError> {
    let scope = wanted.scopes.join(" ");
    let mut form = vec![
        ("service", &wanted.service[..]),
        ("client_id", "buildkit-client"),
    ];
    if !scope.is_empty() {
        form.push(("scope", &scope));
    }
    if user.is_empty() {
        form.extend([("grant_type", "refresh_token"), ("refresh_token", secret)]);
    } else {
        form.extend([
            ("grant_type", "password"),
            ("username", user),
            ("password", secret),
        ]);
    }
    let body = form_urlencoded(&form);
    let request = client
        .post(&wanted.realm)
        .header(
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        )
        .body(body);
    answer("POST", &wanted.realm, request).await
}

async fn with_get(
    client: &reqwest::Client,
    wanted: &Wanted,
    auth: Option<(&str, &str)>,
) -> Result<Fetched, TokenError> {
    let mut query = Vec::new();
    if !wanted.service.is_empty() {
        query.push(("service", &wanted.service[..]));
    }
    query.extend(wanted.scopes.iter().map(|scope| ("scope", &scope[..])));
    let join = if wanted.realm.contains('?') { '&' } else { '?' };
    let url = match query.is_empty() {
        true => wanted.realm.clone(),
        false => format!("{}{join}{}", wanted.realm, form_urlencoded(&query)),
    };
    let mut request = client.get(&url);
    if let Some((user, secret)) = auth {
        request = request.basic_auth(user, Some(secret));
    }
    answer("GET", &wanted.realm, request).await
}

async fn answer(
    method: &'static str,
    url: &str,
    request: reqwest::RequestBuilder,
) -> Result<Fetched, TokenError> {
    // Errors of the HTTP client name the URL, whose query and user part we would not show.
    let http = |error: reqwest::Error| {
        let error = error.without_url();
        let mut text = format!("{method} {}: {error}", diag::redact_url(url));
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text.push_str(&format!(": {inner}"));
            source = inner.source();
        }
        TokenError::Http(text)
    };
    let mut response = request.timeout(TIMEOUT).send().await.map_err(http)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(http)? {
        body.extend_from_slice(&bytes);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(TokenError::Decode("answer is too large".into()));
        }
    }
    if !status.is_success() && !status.is_redirection() {
        return Err(TokenError::Status {
            method,
            url: diag::redact_url(url),
            status,
            detail: detail(&body),
        });
    }
    let found: Answer =
        serde_json::from_slice(&body).map_err(|error| TokenError::Decode(error.to_string()))?;
    let token = match found.access_token.is_empty() {
        true => found.token,
        false => found.access_token,
    };
    if token.is_empty() {
        return Err(TokenError::NoToken);
    }
    let issued: Option<jiff::Timestamp> = found.issued_at.parse().ok();
    Ok(Fetched {
        token: Secret::new(token),
        expires_in_s: if found.expires_in == 0 {
            DEFAULT_EXPIRES_S
        } else {
            found.expires_in
        },
        issued_at_s: issued.map_or(0, |time| time.as_second()),
    })
}

/// What a server says besides its status, for a message.
fn detail(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Details {
        details: Option<String>,
        error_description: Option<String>,
    }
    let found: Option<Details> = serde_json::from_slice(body).ok();
    let text = found.and_then(|found| found.details.or(found.error_description));
    text.map_or_else(String::new, |text| format!(": {text}"))
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let pairs = pairs.iter().map(|(name, value)| {
        format!(
            "{}={}",
            crate::headers::query_escape(name),
            crate::headers::query_escape(value)
        )
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// An HTTP client for a registry's authorization server.
pub fn http_client(tls: &RegistryTls) -> Result<reqwest::Client, TokenError> {
    let broken = |error: String| TokenError::Tls(error);
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for path in SYSTEM_BUNDLES {
        if let Ok(certificates) = CertificateDer::pem_file_iter(path) {
            // A bundle may hold what cannot be used; the rest counts.
            roots.add_parsable_certificates(certificates.flatten());
            break;
        }
    }
    for path in &tls.root_cas {
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|error| broken(format!("failed to read {}: {error}", path.display())))?;
        roots.add_parsable_certificates(certificates.flatten());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.key_pair {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let failed = |error: String| {
                broken(format!(
                    "failed to load keypair for {}: {error}",
                    certificate.display()
                ))
            };
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .map_err(|error| failed(error.to_string()))?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|error| failed(error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| failed(error.to_string()))?
        }
    };
    if tls.insecure {
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(::tls::AnyServer::new(&provider)));
    }
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .user_agent("cooperage")
        .build()
        .map_err(|error| TokenError::Http(error.to_string()))
}

/// Where systems keep the certificates they trust; the first that is there is used.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
