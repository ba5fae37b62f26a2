//! Secrets the server may ask for by id.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diag::Secret;
use proto::secrets::secrets_server::{Secrets, SecretsServer};
use proto::secrets::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use crate::error::SessionError;

/// The largest secret, bytes.
pub const SECRET_BYTES_MAX: u64 = 500 << 10;

/// Where a secret is; it is read when it is asked for.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// In a file.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
    /// Here.
    Value(Secret<Vec<u8>>),
}

impl SecretSource {
    /// Fails early where the server would only fail late: a file that is missing or too large.
    pub fn check(&self, id: &str) -> Result<(), SessionError> {
        let SecretSource::File(path) = self else {
            return Ok(());
        };
        let found = std::fs::metadata(path)
            .map_err(|error| SessionError::file("failed to stat", path, error))?;
        if found.len() > SECRET_BYTES_MAX {
            return Err(SessionError::Limit(format!(
                "secret {id} too big. max size 500KB"
            )));
        }
        Ok(())
    }

    async fn read(&self) -> Result<Vec<u8>, SessionError> {
        match self {
            SecretSource::File(path) => tokio::fs::read(path)
                .await
                .map_err(|error| SessionError::file("open", path, error)),
            SecretSource::Env(name) => Ok(std::env::var_os(name)
                .unwrap_or_default()
                .into_encoded_bytes()),
            SecretSource::Value(value) => Ok(value.expose().clone()),
        }
    }
}

pub struct SecretsService {
    sources: BTreeMap<String, SecretSource>,
}

impl SecretsService {
    pub const METHODS: [&'static str; 1] = ["/moby.buildkit.secrets.v1.Secrets/GetSecret"];

    pub fn server(sources: BTreeMap<String, SecretSource>) -> SecretsServer<Self> {
        SecretsServer::new(SecretsService { sources })
    }
}

#[async_trait::async_trait]
impl Secrets for SecretsService {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let source = self
            .sources
            .get(&id)
            .ok_or_else(|| Status::not_found("not found"))?;
        // A source that cannot be read is not the same as a secret that is not there.
        let data = source
            .read()
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        if data.len() as u64 > SECRET_BYTES_MAX {
            return Err(Status::unknown(format!(
                "invalid secret size {}",
                data.len()
            )));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}
