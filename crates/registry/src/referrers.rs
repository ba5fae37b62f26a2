//! What a repository has about a manifest: signatures and the like.

use oci::{Descriptor, Digest, ImageIndex, Reference, media_type};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};

use crate::client::{Call, Client, Repository, expect_success};
use crate::config::Endpoint;
use crate::error::RegistryError;
use crate::manifest::{bounded_body, denied};
use crate::scope::Scopes;

impl Client {
    /// The manifests that name another one as their subject. Registries that cannot be asked for them
    /// have a list under the tag `sha256-HEX`, if anybody put one there.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses; its answer is no index.
    pub async fn referrers(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let repository = self.repository(reference).await;
        let tag = digest.to_string().replacen(':', "-", 1);
        let mut first: Option<RegistryError> = None;
        for object in [format!("referrers/{digest}"), format!("manifests/{tag}")] {
            for (index, endpoint) in repository.endpoints.iter().enumerate() {
                let last = index + 1 == repository.endpoints.len();
                let listed = self.list_at(&repository, endpoint, &object, last).await;
                match listed {
                    Ok(listed) => return Ok(listed),
                    Err(error) if error.is_not_found() => {}
                    Err(error) => {
                        first.get_or_insert(denied(error));
                    }
                }
            }
        }
        first.map_or(Ok(Vec::new()), Err)
    }

    async fn list_at(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        object: &str,
        last: bool,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let scopes = Scopes::pull(&repository.path);
        let mut call = Call::new(Method::GET, object.to_owned(), scopes);
        call.headers
            .insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let response = self.execute(repository, endpoint, &call, last).await?;
        let response = expect_success(&Method::GET, response).await?;
        let url = response.url().to_string();
        let body = bounded_body(response, object).await?;
        let index: ImageIndex =
            serde_json::from_slice(&body).map_err(|error| RegistryError::BadResponse {
                url,
                reason: format!("failed to decode referrers index: {error}"),
            })?;
        Ok(index.manifests)
    }
}
