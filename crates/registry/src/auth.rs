//! What is known of how each host wants to be authorised, and the tokens held for it.
//!
//! | cached | by | until |
//! |---|---|---|
//! | scheme (Basic, or Bearer with realm and service) | host, identity | the process ends |
//! | token | host, identity, realm, service, scopes | 9/10 of its life, or it is refused |
//!
//! Concurrent wishes for the same token make one request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diag::Secret;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;

use crate::challenge::Challenge;
use crate::config::Endpoint;
use crate::credentials::{Credentials, TokenRequest};
use crate::error::RegistryError;
use crate::scope::Scopes;
use crate::token;
use crate::transport::Transport;

/// Remembered schemes; past this many all are forgotten, which costs each host one round trip.
const METHODS_MAX: usize = 4096;

/// How a host wants to be authorised.
#[derive(Clone)]
enum Method {
    Basic(HeaderValue),
    Bearer { realm: String, service: String },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    host: String,
    identity: String,
    realm: String,
    service: String,
    scopes: Scopes,
}

struct HeldToken {
    token: Secret<String>,
    until: Instant,
}

/// Holds a token, or is locked by who fetches it.
type Slot = Arc<tokio::sync::Mutex<Option<HeldToken>>>;

/// The memory for all hosts and identities.
#[derive(Default)]
pub(crate) struct AuthCache {
    methods: Mutex<HashMap<(String, String), Method>>,
    tokens: Mutex<HashMap<TokenKey, Slot>>,
}

/// A value for the `Authorization` header and where it came from.
pub(crate) struct Authorization {
    pub(crate) value: HeaderValue,
    /// True if it was obtained for this very request.
    fresh: bool,
}

/// Who asks, and where.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) credentials: &'a dyn Credentials,
}

impl AuthCache {
    /// What to send along from the beginning, if the host is known to want something.
    pub(crate) async fn known(
        &self,
        asker: Asker<'_>,
        scopes: &Scopes,
    ) -> Result<Option<Authorization>, RegistryError> {
        let key = (asker.endpoint.host.clone(), asker.credentials.identity());
        let Some(method) = self.methods.lock().get(&key).cloned() else {
            return Ok(None);
        };
        match method {
            Method::Basic(value) => Ok(Some(Authorization {
                value,
                fresh: false,
            })),
            Method::Bearer { realm, service } => {
                let token = self.token(asker, realm, service, scopes).await?;
                Ok(Some(token))
            }
        }
    }

    /// What to send after the host refused with these challenges what was sent before; `None` if
    /// there is nothing better.
    ///
    /// # Errors
    /// [`RegistryError::InvalidAuthorization`] if a fresh token was refused, and whatever happens
    /// while a token is fetched.
    pub(crate) async fn answer(
        &self,
        asker: Asker<'_>,
        challenges: &[Challenge],
        sent: Option<&Authorization>,
        scopes: &Scopes,
    ) -> Result<Option<Authorization>, RegistryError> {
        let method_key = (asker.endpoint.host.clone(), asker.credentials.identity());
        for challenge in challenges {
            match challenge.scheme.as_str() {
                "bearer" => {
                    let (realm, service) = (challenge.get("realm"), challenge.get("service"));
                    let mut wanted = scopes.clone();
                    wanted.add(challenge.get("scope"));
                    if let Some(sent) = sent {
                        if sent.fresh {
                            return refused(challenge);
                        }
                        self.forget(asker, realm, service, &wanted);
                    }
                    let method = Method::Bearer {
                        realm: realm.to_owned(),
                        service: service.to_owned(),
                    };
                    let token = self
                        .token(asker, realm.to_owned(), service.to_owned(), &wanted)
                        .await?;
                    self.remember(method_key, method);
                    return Ok(Some(token));
                }
                "basic" => {
                    if sent.is_some_and(|sent| sent.fresh) {
                        self.methods.lock().remove(&method_key);
                        return Ok(None);
                    }
                    let credentials = asker.credentials.credentials(&asker.endpoint.host).await;
                    let Some(credentials) = credentials
                        .map_err(RegistryError::Credentials)?
                        .filter(|c| !c.username.is_empty() && !c.secret.expose().is_empty())
                    else {
                        return Ok(None);
                    };
                    let value = token::basic(&credentials);
                    let method = Method::Basic(value.clone());
                    self.remember(method_key, method);
                    return Ok(Some(Authorization { value, fresh: true }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn remember(&self, key: (String, String), method: Method) {
        let mut methods = self.methods.lock();
        if methods.len() >= METHODS_MAX {
            methods.clear();
        }
        methods.insert(key, method);
    }

    fn forget(&self, asker: Asker<'_>, realm: &str, service: &str, scopes: &Scopes) {
        self.tokens.lock().retain(|key, _| {
            key.host != asker.endpoint.host
                || key.identity != asker.credentials.identity()
                || key.realm != realm
                || key.service != service
                || key.scopes != *scopes
        });
    }

    /// A token from the cache or a new one.
    async fn token(
        &self,
        asker: Asker<'_>,
        realm: String,
        service: String,
        scopes: &Scopes,
    ) -> Result<Authorization, RegistryError> {
        let key = TokenKey {
            host: asker.endpoint.host.clone(),
            identity: asker.credentials.identity(),
            realm: realm.clone(),
            service: service.clone(),
            scopes: scopes.clone(),
        };
        let slot = {
            let mut tokens = self.tokens.lock();
            let now = Instant::now();
            tokens.retain(|_, slot| {
                // A slot that is locked is being filled.
                slot.try_lock()
                    .map_or(true, |held| held.as_ref().is_none_or(|h| h.until > now))
            });
            Arc::clone(tokens.entry(key).or_default())
        };
        let mut held = slot.lock().await;
        if let Some(token) = held.as_ref().filter(|token| token.until > Instant::now()) {
            return Ok(Authorization {
                value: token::bearer(token.token.expose()),
                fresh: false,
            });
        }
        let wanted = TokenRequest {
            host: asker.endpoint.host.clone(),
            realm,
            service,
            scopes: scopes.texts(),
        };
        let new = fetch(asker, &wanted)
            .await
            .map_err(|error| RegistryError::Authorize(Arc::new(error)))?;
        let value = token::bearer(new.token.expose());
        *held = Some(HeldToken {
            token: new.token,
            until: Instant::now() + lifetime(new.expires_in),
        });
        Ok(Authorization { value, fresh: true })
    }
}

/// The keeper's own token, or one that we fetch with its credentials.
async fn fetch(
    asker: Asker<'_>,
    wanted: &TokenRequest,
) -> Result<crate::credentials::Token, RegistryError> {
    let keeper = asker.credentials;
    if let Some(token) = keeper
        .token(wanted)
        .await
        .map_err(RegistryError::Credentials)?
    {
        return Ok(token);
    }
    let credentials = keeper
        .credentials(&wanted.host)
        .await
        .map_err(RegistryError::Credentials)?
        .filter(|credentials| !credentials.secret.expose().is_empty());
    let pool = asker.transport.pool(asker.endpoint)?;
    token::fetch(asker.transport, &pool, wanted, credentials.as_ref()).await
}

/// A token is given up a little before its end.
fn lifetime(expires_in: Duration) -> Duration {
    expires_in.mul_f64(0.9)
}

fn refused(challenge: &Challenge) -> Result<Option<Authorization>, RegistryError> {
    match challenge.get("error") {
        "" => Ok(None),
        text => Err(RegistryError::InvalidAuthorization(text.to_owned())),
    }
}
