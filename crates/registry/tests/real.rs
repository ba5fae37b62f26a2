//! Round trips with a real registry.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/docker_registry.rs"]
mod docker_registry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use diag::Secret;
use docker_registry::{DockerRegistry, PASSWORD, USER};
use oci::{Descriptor, Digest, ImageManifest, Reference, media_type};
use registry::{
    BytesBlob, Client, Credentials, FileBlob, HostCredentials, PushOutcome, RegistryConfig,
    RegistryError, RegistryHosts,
};

struct Tester(&'static str);

#[async_trait]
impl Credentials for Tester {
    fn identity(&self) -> String {
        self.0.to_owned()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<HostCredentials>, diag::Error> {
        Ok(Some(HostCredentials {
            username: USER.to_owned(),
            secret: Secret::new(self.0.to_owned()),
        }))
    }
}

fn reference(host: &str, rest: &str) -> Reference {
    format!("{host}/{rest}").parse().unwrap()
}

/// Bytes that do not repeat within a megabyte.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| step()).collect()
}

async fn push_bytes(
    client: &Client,
    to: &Reference,
    descriptor: &Descriptor,
    bytes: &[u8],
    mount_from: &[String],
) -> Result<PushOutcome, RegistryError> {
    let source = Arc::new(BytesBlob(Bytes::copy_from_slice(bytes)));
    client
        .push_blob(to, descriptor, source, mount_from, Arc::new(|_| ()))
        .await
}

/// Pushes a manifest of a configuration and one layer.
async fn push_image(client: &Client, to: &Reference, layer: &[u8]) -> Descriptor {
    let config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
    let layer_descriptor = Descriptor::of(media_type::OCI_LAYER_GZIP, layer);
    push_bytes(client, to, &config, b"{}", &[]).await.unwrap();
    push_bytes(client, to, &layer_descriptor, layer, &[])
        .await
        .unwrap();
    let manifest = serde_json::to_vec(&ImageManifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config,
        layers: vec![layer_descriptor],
        subject: None,
        annotations: BTreeMap::new(),
    })
    .unwrap();
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
    client
        .push_manifest(to, &descriptor, manifest.into())
        .await
        .unwrap();
    descriptor
}

async fn read_all(client: &Client, from: &Reference, descriptor: &Descriptor) -> Vec<u8> {
    let mut reader = client.fetch_blob(from, descriptor, 0).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = reader.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let peer = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default());
    let name = reference(&peer.host, "some/image:v1");
    let layer = noise(5_000_000);
    let pushed = push_image(&client, &name, &layer).await;

    let resolved = client.resolve(&name).await.unwrap();
    assert_eq!(resolved, pushed);
    let by_digest = name.clone().with_digest(pushed.digest);
    assert_eq!(client.resolve(&by_digest).await.unwrap(), pushed);
    let manifest = client.fetch_manifest(&name, &resolved).await.unwrap();
    let manifest: ImageManifest = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        client
            .fetch_small_blob(&name, &manifest.config)
            .await
            .unwrap(),
        "{}"
    );
    assert!(read_all(&client, &name, &manifest.layers[0]).await == layer);
    // Layer and configuration, once up and once down.
    let bytes = layer.len() as u64 + 2;
    let travelled = client.with_concurrency(1).traffic();
    assert_eq!((travelled.pushed_bytes, travelled.pulled_bytes), (0, 0));
    let travelled = client.clone().traffic();
    assert_eq!(
        (travelled.pushed_bytes, travelled.pulled_bytes),
        (bytes, bytes)
    );

    let mut tail = client
        .fetch_blob(&name, &manifest.layers[0], 4_999_990)
        .await
        .unwrap();
    assert_eq!(tail.chunk().await.unwrap().unwrap(), layer[4_999_990..]);
    assert!(tail.chunk().await.unwrap().is_none());
}

#[tokio::test]
async fn a_blob_is_uploaded_once_and_mounted_into_other_repositories() {
    let peer = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("blob");
    let bytes = noise(700_000);
    std::fs::write(&file, &bytes).unwrap();
    let descriptor = Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes);
    let (first, second) = (
        reference(&peer.host, "first"),
        reference(&peer.host, "deep/second"),
    );
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let push = |to: Reference, from: Vec<String>| {
        let (client, descriptor) = (client.clone(), descriptor.clone());
        let (source, counter) = (Arc::new(FileBlob(file.clone())), Arc::clone(&counter));
        async move {
            let progress = Arc::new(move |at| counter.store(at, Ordering::SeqCst));
            client
                .push_blob(&to, &descriptor, source, &from, progress)
                .await
                .unwrap()
        }
    };
    let both = tokio::join!(push(first.clone(), vec![]), push(first.clone(), vec![]));
    assert!(
        matches!(
            &both,
            (PushOutcome::Uploaded, PushOutcome::Exists)
                | (PushOutcome::Exists, PushOutcome::Uploaded)
        ),
        "{both:?}"
    );
    assert_eq!(sent.load(Ordering::SeqCst), 700_000);
    assert_eq!(
        push(
            second.clone(),
            vec!["nowhere/at-all".into(), "first".into()]
        )
        .await,
        PushOutcome::Uploaded,
        "a mount that fails becomes an upload"
    );
    let third = reference(&peer.host, "third");
    assert_eq!(
        push(third.clone(), vec!["first".into()]).await,
        PushOutcome::Mounted("first".into())
    );
    assert!(client.blob_exists(&third, descriptor.digest).await.unwrap());
    assert!(!client.blob_exists(&third, Digest::of("x")).await.unwrap());
    assert!(read_all(&client, &third, &descriptor).await == bytes);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let peer = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default());
    let name = reference(&peer.host, "no/image:v1");
    let error = client.resolve(&name).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}/no/image:v1: not found", peer.host)
    );
    assert_eq!(error.code(), diag::Code::NotFound);
    let descriptor = Descriptor::of(media_type::OCI_LAYER, b"x");
    let Err(error) = client.fetch_blob(&name, &descriptor, 0).await else {
        panic!("there is no such blob")
    };
    assert_eq!(
        error.to_string(),
        format!(
            "could not fetch content descriptor {} (application/vnd.oci.image.layer.v1.tar) from remote: not found",
            Digest::of("x")
        )
    );
    let host = peer.host.clone();
    drop(peer);
    let error = client.resolve(&name).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "failed to do request: Head \"http://{host}/v2/no/image/manifests/v1\": "
        )) && error.to_lowercase().contains("connection refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_that_names_missing_blobs_is_refused_in_the_registrys_words() {
    let peer = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default());
    let name = reference(&peer.host, "broken:v1");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[]}}"#,
        media_type::OCI_MANIFEST,
        media_type::OCI_CONFIG,
        Digest::of("{}")
    );
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, manifest.as_bytes());
    let error = client
        .push_manifest(&name, &descriptor, manifest.into())
        .await
        .unwrap_err();
    assert_eq!(
        error.with_details().to_string(),
        format!(
            "manifest blob unknown: blob unknown to registry - {}",
            Digest::of("{}")
        )
    );
}

fn secured(peer: &DockerRegistry) -> Client {
    let config = RegistryConfig {
        ca: vec![peer.ca()],
        ..Default::default()
    };
    Client::new(RegistryHosts::new(BTreeMap::from([(
        peer.host.clone(),
        config,
    )])))
}

#[tokio::test]
async fn a_registry_with_tls_and_basic_authorisation_is_used_with_credentials() {
    let peer = DockerRegistry::secured();
    let anonymous = secured(&peer);
    let name = reference(&peer.host, "private/image:v1");
    let client = anonymous.with_credentials(Arc::new(Tester(PASSWORD)));
    let pushed = push_image(&client, &name, &noise(1000)).await;
    assert_eq!(client.resolve(&name).await.unwrap(), pushed);

    let url = format!("https://{}/v2/private/image/manifests/v1", peer.host);
    let expected = format!("unexpected status from HEAD request to {url}: 401 Unauthorized");
    let error = anonymous.resolve(&name).await.unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.code(), diag::Code::Unauthenticated);
    let wrong = anonymous.with_credentials(Arc::new(Tester("wrong")));
    assert_eq!(
        wrong.resolve(&name).await.unwrap_err().to_string(),
        expected
    );
}

#[tokio::test]
async fn an_unknown_authority_is_refused_unless_the_registry_may_be_insecure() {
    let peer = DockerRegistry::secured();
    let name = reference(&peer.host, "a:b");
    let https = RegistryConfig {
        http: Some(false),
        ..Default::default()
    };
    let hosts = RegistryHosts::new(BTreeMap::from([(peer.host.clone(), https)]));
    let client = Client::new(hosts).with_credentials(Arc::new(Tester(PASSWORD)));
    let error = client.resolve(&name).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = client.with_insecure(&peer.host).resolve(&name).await;
    assert!(error.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_insecure_registry_without_tls_is_found_over_plain_http() {
    let peer = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default()).with_insecure(&peer.host);
    let name = reference(&peer.host, "a/b:c");
    let pushed = push_image(&client, &name, &noise(100_000)).await;
    assert_eq!(client.resolve(&name).await.unwrap(), pushed);
}

#[tokio::test]
async fn mirrors_are_asked_before_the_registry_itself() {
    let mirror = DockerRegistry::plain();
    let own = DockerRegistry::plain();
    let client = Client::new(RegistryHosts::default());
    let at_mirror = push_image(&client, &reference(&mirror.host, "m/x:1"), b"m").await;
    let at_own = push_image(&client, &reference(&own.host, "m/y:1"), b"o").await;
    let config = RegistryConfig {
        mirrors: vec![mirror.host.clone()],
        ..Default::default()
    };
    let client = Client::new(RegistryHosts::new(BTreeMap::from([(
        own.host.clone(),
        config,
    )])));
    let x = reference(&own.host, "m/x:1");
    assert_eq!(client.resolve(&x).await.unwrap(), at_mirror);
    client.fetch_manifest(&x, &at_mirror).await.unwrap();
    let y = reference(&own.host, "m/y:1");
    assert_eq!(client.resolve(&y).await.unwrap(), at_own);
    let z = push_image(&client, &reference(&own.host, "m/z:1"), b"z").await;
    let direct = Client::new(RegistryHosts::default());
    let pushed = direct.resolve(&reference(&own.host, "m/z:1")).await;
    assert_eq!(pushed.unwrap(), z, "pushes go to the registry itself");
}
