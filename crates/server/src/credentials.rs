//! Registry credentials, asked of the client whose build needs them.

use std::time::Duration;

use async_trait::async_trait;
use diag::Error;
use registry::{Credentials, HostCredentials, Token, TokenRequest};
use session::SessionManager;

/// The name this server gives itself where tokens are fetched.
const CLIENT_ID: &str = "buildkit-client";
/// How long a client may take to bring up its session.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a token is good for that does not say.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// The credentials that the client with a session has.
pub struct SessionCredentials {
    sessions: SessionManager,
    session_id: String,
}

impl SessionCredentials {
    /// Credentials of the client with that session; with an empty id there are none.
    pub fn new(sessions: SessionManager, session_id: String) -> Self {
        SessionCredentials {
            sessions,
            session_id,
        }
    }

    async fn session(&self) -> Option<session::Session> {
        if self.session_id.is_empty() {
            return None;
        }
        // Without its client a build can still pull what is public.
        self.sessions
            .get(&self.session_id, SESSION_TIMEOUT)
            .await
            .ok()
    }
}

#[async_trait]
impl Credentials for SessionCredentials {
    fn identity(&self) -> String {
        self.session_id.clone()
    }

    async fn credentials(&self, host: &str) -> Result<Option<HostCredentials>, Error> {
        let Some(session) = self.session().await else {
            return Ok(None);
        };
        let found = session.credentials(host).await?;
        Ok(found.map(|found| HostCredentials {
            username: found.username,
            secret: found.secret,
        }))
    }

    async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, Error> {
        let Some(session) = self.session().await else {
            return Ok(None);
        };
        // A client that answers with a key fetches tokens itself.
        if session.token_authority(&request.host).await?.is_none() {
            return Ok(None);
        }
        let token = session
            .fetch_token(session::TokenRequest {
                client_id: CLIENT_ID.to_owned(),
                host: request.host.clone(),
                realm: request.realm.clone(),
                service: request.service.clone(),
                scopes: request.scopes.clone(),
            })
            .await?;
        let expires_in = u64::try_from(token.expires_in_s)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs);
        Ok(Some(Token {
            token: token.token,
            expires_in,
        }))
    }
}
