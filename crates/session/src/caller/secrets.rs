//! Secrets from the client.

use diag::Secret;
use proto::secrets::GetSecretRequest;
use proto::secrets::secrets_client::SecretsClient;
use tonic::Code;

use crate::connection::Connection;
use crate::error::SessionError;
use crate::manager::Session;

impl Session {
    /// The secret of that id; nothing when the client does not have it.
    pub async fn secret(&self, id: &str) -> Result<Option<Secret<Vec<u8>>>, SessionError> {
        let mut client = SecretsClient::with_origin(self.connection(), Connection::origin());
        let request = GetSecretRequest {
            id: id.to_owned(),
            ..GetSecretRequest::default()
        };
        match self.within(client.get_secret(request)).await {
            Ok(found) => Ok(Some(Secret::new(found.data))),
            Err(error) => self.none_if(error, &[Code::Unimplemented, Code::NotFound]),
        }
    }
}
