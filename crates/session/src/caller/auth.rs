//! Credentials and tokens from the client.
//!
//! A server that may pass on credentials asks for them. One that need not know them asks the client
//! to fetch tokens itself; so that a token got for one client is not used for another, the client
//! proves with a key derived from its secret that it has the same one.

use std::sync::OnceLock;
use std::time::Duration;

use diag::Secret;
use proto::filesync::auth_client::AuthClient;
use proto::filesync::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use tonic::Code;

use crate::connection::Connection;
use crate::error::SessionError;
use crate::manager::Session;

/// How long a client has; it may have to run a credential helper that asks its user.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a client has for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// User name; empty when the secret is an identity token.
    pub username: String,
    /// Password or identity token.
    pub secret: Secret<String>,
}

/// A token to be fetched, from what a registry's challenge says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRequest {
    /// What we call ourselves, for registries that care.
    pub client_id: String,
    /// The registry's host.
    pub host: String,
    /// The URL that gives tokens.
    pub realm: String,
    /// The service the token is for.
    pub service: String,
    /// What it should allow, such as `repository:library/busybox:pull`.
    pub scopes: Vec<String>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: Secret<String>,
    /// Seconds it is good for from when it was issued; 0 when that was not said.
    pub expires_in_s: i64,
    /// When it was issued, in seconds since the epoch; 0 when that was not said.
    pub issued_at_s: i64,
}

impl Session {
    /// What the client has for a registry host; nothing when it has nothing or does not tell.
    pub async fn credentials(
        &self,
        host: &str,
    ) -> Result<Option<RegistryCredentials>, SessionError> {
        let request = CredentialsRequest {
            host: host.to_owned(),
        };
        let answer = self.within(self.auth().credentials(request)).await;
        match answer {
            Ok(found) if found.secret.is_empty() => Ok(None),
            Ok(found) => Ok(Some(RegistryCredentials {
                username: found.username,
                secret: Secret::new(found.secret),
            })),
            Err(error) => self.none_if(error, &[Code::Unimplemented]),
        }
    }

    /// Has the client fetch a token.
    pub async fn fetch_token(&self, request: TokenRequest) -> Result<Token, SessionError> {
        let request = FetchTokenRequest {
            client_id: request.client_id,
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let found = self.within(self.auth().fetch_token(request)).await?;
        Ok(Token {
            token: Secret::new(found.token),
            expires_in_s: found.expires_in,
            issued_at_s: found.issued_at,
        })
    }

    /// The public key that stands for what the client has for a host; nothing when the client does not
    /// fetch tokens.
    pub async fn token_authority(&self, host: &str) -> Result<Option<[u8; 32]>, SessionError> {
        let request = GetTokenAuthorityRequest {
            host: host.to_owned(),
            salt: salt().to_vec(),
        };
        match self.within(self.auth().get_token_authority(request)).await {
            Ok(found) => found
                .public_key
                .try_into()
                .map(Some)
                .map_err(|key: Vec<u8>| {
                    SessionError::Protocol(format!("invalid pubkey length {}", key.len()))
                }),
            Err(error) => self.none_if(error, &[Code::Unimplemented, Code::Unavailable]),
        }
    }

    /// Whether the client can sign with the key, so that a token got for it may be used.
    pub async fn verify_token_authority(
        &self,
        host: &str,
        public_key: &[u8; 32],
    ) -> Result<bool, SessionError> {
        let payload: [u8; 32] = rand::random();
        let request = VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: payload.to_vec(),
            salt: salt().to_vec(),
        };
        let signed = match self
            .within(self.auth().verify_token_authority(request))
            .await
        {
            Ok(answer) => answer.signed,
            Err(error) => {
                return self
                    .none_if(error, &[Code::Unimplemented])
                    .map(|_: Option<()>| false);
            }
        };
        // The signature stands before what is signed.
        let Some((signature, message)) = signed.split_at_checked(64) else {
            return Ok(false);
        };
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public_key);
        Ok(message == payload && key.verify(message, signature).is_ok())
    }

    fn auth(&self) -> AuthClient<Connection> {
        AuthClient::with_origin(self.connection(), Connection::origin())
    }

    /// Waits for an answer, not for ever.
    pub(crate) async fn within<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, SessionError> {
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failure(status)),
            Err(_) => {
                Err(tonic::Status::deadline_exceeded("client of the session did not answer").into())
            }
        }
    }

    /// Nothing, when the error says that there is nothing.
    pub(crate) fn none_if<T>(
        &self,
        error: SessionError,
        codes: &[Code],
    ) -> Result<Option<T>, SessionError> {
        match &error {
            SessionError::Status(status) if codes.contains(&status.code()) => Ok(None),
            _ => Err(error),
        }
    }
}

/// Different for every run of the server, so that keys cannot be recognised later.
fn salt() -> &'static [u8; 32] {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    SALT.get_or_init(rand::random)
}
