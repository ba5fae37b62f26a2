//! Joining what several nodes pushed into one image: an index of all their manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use diag::{Context, Error, Secret};
use docker_config::{DOCKER_HUB_HOST, DockerConfig};
use oci::{Descriptor, ImageIndex, Platform, Reference, media_type};
use registry::{Client, Credentials, HostCredentials, RegistryHosts};

use crate::response::{DESCRIPTOR, DIGEST, Response};
use crate::spec::Annotation;

/// Where the joined image goes.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// Its names.
    pub(crate) names: Vec<String>,
    /// Whether the registry may be plain HTTP or have any certificate.
    pub(crate) insecure: bool,
    /// Annotations for the index and its descriptors.
    pub(crate) annotations: BTreeMap<Annotation, String>,
}

/// Pushes an index of the images in the responses under all names. The response is that of a build
/// by one node.
pub(crate) async fn join_images(
    responses: &[Response],
    push: &Push,
    config: &DockerConfig,
) -> Result<Response, Error> {
    let mut names = Vec::new();
    for name in &push.names {
        let parsed: Result<Reference, _> = name.parse();
        let reference = parsed.map_err(|error| Error::invalid(error.to_string()))?;
        names.push(reference.with_default_tag());
    }
    let Some(first) = names.first() else {
        return Err(Error::invalid("tag is needed when pushing to registry"));
    };
    let mut client = Client::new(RegistryHosts::default())
        .with_credentials(Arc::new(ConfiguredCredentials(config.clone())));
    if push.insecure {
        client = client.with_insecure(first.registry());
    }
    let mut manifests: Vec<Descriptor> = Vec::new();
    for response in responses {
        for manifest in manifests_of(&client, first, response).await? {
            let known = manifests
                .iter()
                .any(|known| known.digest == manifest.digest);
            if !known {
                manifests.push(manifest);
            }
        }
    }
    let (descriptor, index) = make_index(manifests, &push.annotations)?;
    for name in &names {
        client
            .push_manifest(name, &descriptor, index.clone())
            .await
            .map_err(Error::from)?;
    }
    Ok([(DIGEST.to_owned(), descriptor.digest.to_string())].into())
}

/// The manifests of what one node pushed: its image, or all of its index.
async fn manifests_of(
    client: &Client,
    name: &Reference,
    response: &Response,
) -> Result<Vec<Descriptor>, Error> {
    let reference = name.clone().without_digest();
    let descriptor = match response.get(DESCRIPTOR) {
        Some(text) => parse_descriptor(text)?,
        None => {
            let digest = response
                .get(DIGEST)
                .ok_or_else(|| Error::internal("a node gave no digest of its image"))?;
            let digest = digest
                .parse()
                .map_err(|error: oci::DigestError| Error::internal(error.to_string()))?;
            client
                .resolve(&reference.clone().with_digest(digest))
                .await
                .map_err(Error::from)?
        }
    };
    if !media_type::is_index(&descriptor.media_type) {
        return Ok(vec![descriptor]);
    }
    let bytes = client
        .fetch_manifest(&reference, &descriptor)
        .await
        .map_err(Error::from)?;
    let index: ImageIndex = serde_json::from_slice(&bytes)
        .map_err(|error| Error::internal(error.to_string()))
        .with_context(|| format!("index {}", descriptor.digest))?;
    Ok(index.manifests)
}

fn parse_descriptor(text: &str) -> Result<Descriptor, Error> {
    STANDARD
        .decode(text)
        .map_err(|error| error.to_string())
        .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()))
        .map_err(Error::internal)
        .with_context(|| format!("failed to unmarshal descriptor {text}"))
}

fn make_index(
    mut manifests: Vec<Descriptor>,
    annotations: &BTreeMap<Annotation, String>,
) -> Result<(Descriptor, Bytes), Error> {
    let is_docker = |d: &Descriptor| d.media_type.starts_with("application/vnd.docker.");
    let kind = match manifests.iter().all(is_docker) {
        true => media_type::DOCKER_INDEX,
        false => media_type::OCI_INDEX,
    };
    let mut on_index = BTreeMap::new();
    // Docker's list has no place for annotations.
    if kind == media_type::OCI_INDEX {
        for (annotation, value) in annotations {
            match annotation.level.as_str() {
                "index" => {
                    on_index.insert(annotation.key.clone(), value.clone());
                }
                "manifest-descriptor" => {
                    for manifest in &mut manifests {
                        annotate(manifest, annotation, value);
                    }
                }
                _ => {}
            }
        }
    }
    let index = ImageIndex {
        schema_version: 2,
        media_type: kind.to_owned(),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: on_index,
    };
    let bytes = serde_json::to_vec_pretty(&index)
        .map_err(|error| Error::internal(error.to_string()))
        .context("failed to marshal index")?;
    Ok((Descriptor::of(kind, &bytes), bytes.into()))
}

fn annotate(manifest: &mut Descriptor, annotation: &Annotation, value: &str) {
    let fits = |wanted: &Platform| manifest.platform.as_ref() == Some(wanted);
    if annotation.platform.as_ref().is_none_or(fits) {
        manifest
            .annotations
            .insert(annotation.key.clone(), value.to_owned());
    }
}

/// Credentials of Docker's configuration.
struct ConfiguredCredentials(DockerConfig);

#[async_trait]
impl Credentials for ConfiguredCredentials {
    fn identity(&self) -> String {
        self.0.dir().to_string_lossy().into_owned()
    }

    async fn credentials(&self, host: &str) -> Result<Option<HostCredentials>, Error> {
        let host = match host {
            "docker.io" => DOCKER_HUB_HOST,
            other => other,
        };
        let (config, host) = (self.0.clone(), host.to_owned());
        // A credential helper is another program and may take its time.
        let found = tokio::task::spawn_blocking(move || config.auth(&host)).await;
        let auth = found.map_err(|error| Error::internal(error.to_string()))??;
        if auth.is_anonymous() {
            return Ok(None);
        }
        // An identity token goes without a user name.
        let username = match auth.identity_token.expose().is_empty() {
            true => auth.username.clone(),
            false => String::new(),
        };
        Ok(Some(HostCredentials {
            username,
            secret: Secret::new(auth.secret().to_owned()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(kind: &str, platform: &str) -> Descriptor {
        Descriptor {
            platform: Some(platform.parse().unwrap()),
            ..Descriptor::of(kind, platform.as_bytes())
        }
    }

    #[test]
    fn the_index_has_all_manifests_and_its_annotations() {
        let annotations = crate::spec::parse_annotations(&[
            "index:a=1".to_owned(),
            "manifest-descriptor[linux/arm64]:b=2".to_owned(),
        ])
        .unwrap();
        let manifests = ["linux/amd64", "linux/arm64"]
            .map(|platform| manifest(media_type::OCI_MANIFEST, platform))
            .to_vec();
        let (descriptor, bytes) = make_index(manifests, &annotations).unwrap();
        let index: ImageIndex = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(descriptor.media_type, media_type::OCI_INDEX);
        assert_eq!(index.annotations["a"], "1");
        assert_eq!(index.manifests.len(), 2);
        assert!(index.manifests[0].annotations.is_empty());
        assert_eq!(index.manifests[1].annotations["b"], "2");
    }

    #[test]
    fn manifests_of_dockers_types_make_dockers_list() {
        let manifests = vec![manifest(media_type::DOCKER_MANIFEST, "linux/amd64")];
        let (descriptor, _) = make_index(manifests, &BTreeMap::new()).unwrap();
        assert_eq!(descriptor.media_type, media_type::DOCKER_INDEX);
    }
}
