//! Images: list, inspect, load, export, pull, push, tag, remove.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderName;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use crate::client::{Call, percent_encode};
use crate::system::{ApiVersion, null_default};
use crate::{Engine, EngineError};

const X_REGISTRY_AUTH: HeaderName = HeaderName::from_static("x-registry-auth");
/// The first API that lists the manifests of one image.
const MANIFESTS_SINCE: ApiVersion = ApiVersion {
    major: 1,
    minor: 48,
};

/// An image of the Engine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageInspect {
    /// Digest of its configuration (classic store) or manifest (containerd store).
    #[serde(rename = "Id")]
    pub id: String,
    /// Its names.
    #[serde(deserialize_with = "null_default")]
    pub repo_tags: Vec<String>,
    /// Its names with digests.
    #[serde(deserialize_with = "null_default")]
    pub repo_digests: Vec<String>,
    /// Its layers.
    #[serde(rename = "RootFS", deserialize_with = "null_default")]
    pub root_fs: RootFs,
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// GOARM and the like.
    #[serde(deserialize_with = "null_default")]
    pub variant: String,
    /// The Engine's descriptor of it; only with the containerd store.
    pub descriptor: Option<serde_json::Value>,
}

/// Layers of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFs {
    /// Digests of the uncompressed layers, bottom first.
    #[serde(deserialize_with = "null_default")]
    pub layers: Vec<String>,
}

/// An image in the Engine's list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageSummary {
    /// As in [`ImageInspect`].
    #[serde(rename = "Id")]
    pub id: String,
    /// Its names.
    #[serde(deserialize_with = "null_default")]
    pub repo_tags: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// One manifest of an image of the containerd store.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ManifestSummary {
    /// Its digest.
    #[serde(rename = "ID")]
    pub id: String,
    /// Whether all that it names is there.
    pub available: bool,
}

/// What the registry has under a name, as the Engine sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Distribution {
    #[serde(deserialize_with = "null_default")]
    descriptor: DistributionDescriptor,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DistributionDescriptor {
    digest: String,
}

/// Credentials for a pull or push, as the Engine takes them.
#[derive(Clone, Default, Serialize)]
pub struct RegistryAuth {
    /// User name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Token instead of a password.
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    pub identity_token: String,
    /// Bearer token.
    #[serde(rename = "registrytoken", skip_serializing_if = "String::is_empty")]
    pub registry_token: String,
    /// Registry these are for.
    #[serde(rename = "serveraddress", skip_serializing_if = "String::is_empty")]
    pub server_address: String,
}

/// One message of a stream of progress.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JsonMessage {
    /// What is happening.
    pub status: String,
    /// To which layer.
    pub id: String,
    /// Text without structure.
    pub stream: String,
    /// How far it is.
    #[serde(rename = "progressDetail", deserialize_with = "null_default")]
    pub progress: ProgressDetail,
    /// The end of the work.
    pub error: Option<String>,
}

/// How far a work is.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProgressDetail {
    /// Bytes done.
    pub current: i64,
    /// Bytes in all; 0 when unknown.
    pub total: i64,
}

impl Engine {
    /// An image by name, tag or ID.
    pub async fn image(&self, name: &str) -> Result<ImageInspect, EngineError> {
        self.call_json(Call::get(format!("/images/{}/json", encode_name(name))))
            .await
    }

    /// All images but those that were only steps on the way to others.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, EngineError> {
        self.call_json(Call::get("/images/json")).await
    }

    /// Whether [`Engine::image_manifests`] is offered: since API 1.48.
    pub async fn lists_manifests(&self) -> Result<bool, EngineError> {
        Ok(self.api_version().await? >= MANIFESTS_SINCE)
    }

    /// The manifests of an image; only the containerd store knows any.
    pub async fn image_manifests(&self, name: &str) -> Result<Vec<ManifestSummary>, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "null_default")]
            manifests: Vec<ManifestSummary>,
        }
        let path = format!("/images/{}/json", encode_name(name));
        let answer: Answer = self
            .call_json(Call::get(path).query("manifests", "1"))
            .await?;
        Ok(answer.manifests)
    }

    /// An archive of an image as `docker save` writes it.
    pub async fn export_image(
        &self,
        name: &str,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin + use<>, EngineError>
    {
        let call = Call::get(format!("/images/{}/get", encode_name(name)));
        let response = self.send(call).await?;
        Ok(response
            .into_body()
            .into_data_stream()
            .map(|piece| piece.map_err(std::io::Error::other)))
    }

    /// Pushes an image under one of its names; `on_message` sees the progress.
    pub async fn push_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        on_message: impl FnMut(&JsonMessage) + Send,
    ) -> Result<(), EngineError> {
        let (name, tag) = split_tag(reference);
        // An Engine that is told nothing of credentials takes the call for a broken one.
        let nobody = RegistryAuth::default();
        let call = Call::post(format!("/images/{}/push", encode_name(name)))
            .query("tag", tag.unwrap_or("latest"))
            .header(X_REGISTRY_AUTH, &encode_auth(auth.unwrap_or(&nobody))?);
        let response = self.send(call).await?;
        read_messages(response.into_body(), on_message).await
    }

    /// The digest that the registry has under a name.
    pub async fn registry_digest(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, EngineError> {
        let mut call = Call::get(format!("/distribution/{}/json", encode_name(reference)));
        if let Some(auth) = auth {
            call = call.header(X_REGISTRY_AUTH, &encode_auth(auth)?);
        }
        let answer: Distribution = self.call_json(call).await?;
        Ok(answer.descriptor.digest)
    }

    /// Gives an image another name (`repository`, `tag`).
    pub async fn tag_image(
        &self,
        name: &str,
        repository: &str,
        tag: &str,
    ) -> Result<(), EngineError> {
        let call = Call::post(format!("/images/{}/tag", encode_name(name)))
            .query("repo", repository)
            .query("tag", tag);
        self.call(call).await?;
        Ok(())
    }

    /// Loads images from a docker archive; `on_message` sees the progress.
    pub async fn load_images<S>(
        &self,
        archive: S,
        on_message: impl FnMut(&JsonMessage) + Send,
    ) -> Result<(), EngineError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let body = StreamBody::new(archive.map(|piece| piece.map(Frame::data))).boxed_unsync();
        let call = Call::post("/images/load")
            .query("quiet", "0")
            .body("application/x-tar", body);
        let response = self.send(call).await?;
        read_messages(response.into_body(), on_message).await
    }

    /// Pulls an image by its full name; `on_message` sees the progress.
    pub async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        platform: Option<&str>,
        on_message: impl FnMut(&JsonMessage) + Send,
    ) -> Result<(), EngineError> {
        let (name, tag) = split_tag(reference);
        let mut call = Call::post("/images/create")
            .query("fromImage", name)
            .query("tag", tag.unwrap_or("latest"));
        if let Some(platform) = platform {
            call = call.query("platform", platform);
        }
        if let Some(auth) = auth {
            call = call.header(X_REGISTRY_AUTH, &encode_auth(auth)?);
        }
        let response = self.send(call).await?;
        read_messages(response.into_body(), on_message).await
    }
}

fn encode_auth(auth: &RegistryAuth) -> Result<String, EngineError> {
    let json = serde_json::to_vec(auth).map_err(std::io::Error::other)?;
    Ok(URL_SAFE.encode(json))
}

/// Splits a tag or a digest from a name; a digest is what the Engine takes as the tag too.
fn split_tag(reference: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = reference.split_once('@') {
        // With both a tag and a digest, the digest decides.
        return (split_tag(name).0, Some(digest));
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (reference, None),
    }
}

/// Image names stand in paths with their slashes.
fn encode_name(name: &str) -> String {
    name.split('/')
        .map(percent_encode)
        .collect::<Vec<_>>()
        .join("/")
}

/// Reads messages to the end; the first error among them is the result.
async fn read_messages(
    mut body: Incoming,
    mut on_message: impl FnMut(&JsonMessage) + Send,
) -> Result<(), EngineError> {
    let mut pending = Vec::new();
    let mut failure = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| EngineError::Stream(e.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        let mut stream = serde_json::Deserializer::from_slice(&pending).into_iter::<JsonMessage>();
        while let Some(Ok(message)) = stream.next() {
            if let (None, Some(error)) = (&failure, &message.error) {
                failure = Some(error.clone());
            }
            on_message(&message);
        }
        let read = stream.byte_offset();
        pending.drain(..read);
    }
    match failure {
        Some(text) => Err(EngineError::Stream(text)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(split_tag("r:5000/a"), ("r:5000/a", None));
        assert_eq!(split_tag("r:5000/a:b"), ("r:5000/a", Some("b")));
        assert_eq!(split_tag("a:b@sha256:00"), ("a", Some("sha256:00")));
    }
}
