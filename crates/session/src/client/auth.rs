//! Registry credentials, and tokens fetched with them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use docker_config::{Auth, DockerConfig};
use parking_lot::Mutex;
use proto::filesync::auth_server::{Auth as AuthApi, AuthServer};
use proto::filesync::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tonic::{Request, Response, Status};

use super::token::{self, RegistryTls, Wanted};
use super::token_seed;

/// How long credentials are kept: those from some helpers are good for 5 minutes.
const KEEP: Duration = Duration::from_secs(290);

/// Told what is done with credentials, in the words stock clients show, such as
/// `[auth] sharing credentials for ghcr.io`; each once.
pub type AuthNotice = Arc<dyn Fn(&str) + Send + Sync>;

/// How credentials are offered.
#[derive(Clone)]
pub struct AuthOptions {
    config: DockerConfig,
    tls: BTreeMap<String, RegistryTls>,
    notice: Option<AuthNotice>,
    client_tokens: bool,
}

impl AuthOptions {
    /// Credentials from a configuration. The environment variable `BUILDKIT_NO_CLIENT_TOKEN` turns
    /// fetching tokens off, as for stock clients.
    pub fn new(config: DockerConfig) -> Self {
        let off = std::env::var("BUILDKIT_NO_CLIENT_TOKEN").unwrap_or_default();
        AuthOptions {
            config,
            tls: BTreeMap::new(),
            notice: None,
            client_tokens: !matches!(&off[..], "1" | "t" | "T" | "true" | "TRUE" | "True"),
        }
    }

    /// Trusts what is signed by these PEM files for a host, besides what is trusted anyway.
    #[must_use]
    pub fn root_cas(mut self, host: impl Into<String>, files: Vec<std::path::PathBuf>) -> Self {
        self.tls
            .entry(host.into())
            .or_default()
            .root_cas
            .extend(files);
        self
    }

    /// Shows a host this certificate, with its key; PEM files.
    #[must_use]
    pub fn key_pair(
        mut self,
        host: impl Into<String>,
        certificate: std::path::PathBuf,
        key: std::path::PathBuf,
    ) -> Self {
        self.tls.entry(host.into()).or_default().key_pair = Some((certificate, key));
        self
    }

    /// Does not verify the certificate of a host.
    #[must_use]
    pub fn insecure(mut self, host: impl Into<String>) -> Self {
        self.tls.entry(host.into()).or_default().insecure = true;
        self
    }

    /// Who is told.
    #[must_use]
    pub fn notice(mut self, notice: AuthNotice) -> Self {
        self.notice = Some(notice);
        self
    }
}

pub struct AuthService {
    options: AuthOptions,
    /// Held while a helper runs: some do not bear company.
    known: Arc<Mutex<HashMap<String, (Instant, Auth)>>>,
    told: Mutex<HashSet<String>>,
}

impl AuthService {
    pub const METHODS: [&'static str; 4] = [
        "/moby.filesync.v1.Auth/Credentials",
        "/moby.filesync.v1.Auth/FetchToken",
        "/moby.filesync.v1.Auth/GetTokenAuthority",
        "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    ];

    pub fn server(options: AuthOptions) -> AuthServer<Self> {
        AuthServer::new(AuthService {
            options,
            known: Arc::default(),
            told: Mutex::default(),
        })
    }

    async fn auth_of(&self, host: &str) -> Result<Auth, Status> {
        let (known, config, host) = (
            self.known.clone(),
            self.options.config.clone(),
            host.to_owned(),
        );
        let found = tokio::task::spawn_blocking(move || {
            let mut known = known.lock();
            if let Some((since, auth)) = known.get(&host)
                && since.elapsed() < KEEP
            {
                return Ok(auth.clone());
            }
            let auth = config.auth(&host)?;
            known.insert(host, (Instant::now(), auth.clone()));
            Ok::<_, docker_config::ConfigError>(auth)
        });
        found
            .await
            .map_err(|_| Status::cancelled("session dropped"))?
            .map_err(|error| Status::unknown(error.to_string()))
    }

    fn tell(&self, text: String) {
        if let Some(notice) = &self.options.notice
            && self.told.lock().insert(text.clone())
        {
            notice(&text);
        }
    }

    /// The key that stands for what we have for a host: whoever has the same secret and the same seed
    /// has the same key, for one run of the server (which picks the salt).
    async fn key(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        if !self.options.client_tokens {
            return Err(Status::unavailable("client side tokens disabled"));
        }
        let auth = self.auth_of(host).await?;
        let (dir, host) = (self.options.config.dir().to_owned(), host.to_owned());
        let seed = tokio::task::spawn_blocking(move || token_seed::seed(&dir, &host))
            .await
            .map_err(|_| Status::cancelled("session dropped"))??;
        let mac_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, salt);
        let secret: &[u8] = if auth.secret().is_empty() { b"" } else { &seed };
        let sum = ring::hmac::sign(&mac_key, secret);
        Ed25519KeyPair::from_seed_unchecked(sum.as_ref())
            .map_err(|_| Status::internal("cannot derive a key"))
    }
}

#[async_trait::async_trait]
impl AuthApi for AuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let auth = self.auth_of(&host).await?;
        if !auth.secret().is_empty() {
            self.tell(format!("[auth] sharing credentials for {host}"));
        }
        let username = match auth.identity_token.expose().is_empty() {
            true => auth.username.clone(),
            false => String::new(),
        };
        let secret = auth.secret().to_owned();
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let request = request.into_inner();
        let auth = self.auth_of(&request.host).await?;
        if !auth.registry_token.expose().is_empty() {
            return Ok(Response::new(FetchTokenResponse {
                token: auth.registry_token.expose().clone(),
                expires_in: 60,
                issued_at: 0,
            }));
        }
        let anonymous = auth.secret().is_empty();
        if !anonymous {
            let scopes = request.scopes.iter();
            let scopes = scopes.map(|scope| scope.strip_prefix("repository:").unwrap_or(scope));
            let scopes = scopes.collect::<Vec<_>>().join(" ");
            self.tell(format!("[auth] {scopes} token for {}", request.host));
        }
        let tls = self
            .options
            .tls
            .get(&request.host)
            .cloned()
            .unwrap_or_default();
        let wanted = Wanted {
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let fetched = async {
            let client = token::http_client(&tls)?;
            token::fetch(&client, &wanted, &auth).await
        };
        let fetched = fetched.await.map_err(|error| {
            let what = if anonymous { "anonymous" } else { "oauth" };
            let text = format!("failed to fetch {what} token: {error}");
            match error {
                token::TokenError::Status { status, .. }
                    if status == reqwest::StatusCode::UNAUTHORIZED =>
                {
                    Status::unauthenticated(text)
                }
                _ => Status::unknown(text),
            }
        })?;
        Ok(Response::new(FetchTokenResponse {
            token: fetched.token.expose().clone(),
            expires_in: fetched.expires_in_s,
            issued_at: fetched.issued_at_s,
        }))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        Ok(Response::new(GetTokenAuthorityResponse {
            public_key: key.public_key().as_ref().to_vec(),
        }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        let mut signed = key.sign(&request.payload).as_ref().to_vec();
        signed.extend_from_slice(&request.payload);
        Ok(Response::new(VerifyTokenAuthorityResponse { signed }))
    }
}
