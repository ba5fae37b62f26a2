//! Where credentials come from.

use std::time::Duration;

use async_trait::async_trait;
use diag::Secret;

/// User name and secret for a host.
#[derive(Clone, Debug)]
pub struct HostCredentials {
    /// Empty if the secret is an identity (refresh) token.
    pub username: String,
    /// Password or identity token.
    pub secret: Secret<String>,
}

/// A Bearer token that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Host and port of the registry that asked for it.
    pub host: String,
    /// URL of the authorisation server.
    pub realm: String,
    /// The service it is for; may be empty.
    pub service: String,
    /// Scopes such as `repository:library/busybox:pull`, sorted.
    pub scopes: Vec<String>,
}

/// A Bearer token.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token itself.
    pub token: Secret<String>,
    /// How long it may be used, counted from now.
    pub expires_in: Duration,
}

/// Keeper of credentials, most often the session of a client.
///
/// A registry that wants a Bearer token is served so: first [`Credentials::token`] is asked, so
/// that secrets need not leave the client's machine; if it has none, [`Credentials::credentials`]
/// are taken to the authorisation server by us, or nothing is, for an anonymous token. A registry
/// that wants Basic authorisation gets what [`Credentials::credentials`] returns.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// Tokens are shared between keepers of the same identity and with nobody else: a session's
    /// ID, unless more is known.
    fn identity(&self) -> String;

    /// Credentials for a host (with port, as in URLs; Docker's is `registry-1.docker.io`), if any.
    async fn credentials(&self, host: &str) -> Result<Option<HostCredentials>, diag::Error>;

    /// A token fetched by the keeper itself, if it does that.
    async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, diag::Error> {
        let _ = request;
        Ok(None)
    }
}

/// Has no credentials for anybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    fn identity(&self) -> String {
        String::new()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<HostCredentials>, diag::Error> {
        Ok(None)
    }
}
