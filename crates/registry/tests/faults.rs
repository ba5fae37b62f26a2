//! Registries that misbehave, and authorisation servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/scripted.rs"]
mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use diag::Secret;
use oci::{Descriptor, Digest, Reference, media_type};
use registry::{
    BytesBlob, Client, Credentials, HostCredentials, PushOutcome, RegistryConfig, RegistryError,
    RegistryHosts, RetryPolicy, Token, TokenRequest,
};
use scripted::{Asked, Reply, Scripted};

fn client() -> Client {
    Client::new(RegistryHosts::default()).with_retry(RetryPolicy {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        wait_max: Duration::from_millis(2),
    })
}

fn reference(host: &str) -> Reference {
    format!("{host}/a/b:c").parse().unwrap()
}

fn manifest_reply() -> Reply {
    Reply::new(200)
        .header("content-type", media_type::OCI_INDEX)
        .header("docker-content-digest", Digest::of("hello").to_string())
        .body(b"hello")
}

async fn read(
    client: &Client,
    host: &str,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let mut reader = client.fetch_blob(&reference(host), descriptor, 0).await?;
    let mut all = Vec::new();
    while let Some(chunk) = reader.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let whole = bytes.clone();
    let peer = Scripted::start(move |asked, count| {
        let start: usize = match asked.headers.get("range") {
            Some(range) => range["bytes=".len()..]
                .trim_end_matches('-')
                .parse()
                .unwrap(),
            None => 0,
        };
        let mut reply = match start {
            0 => Reply::new(200),
            _ => Reply::new(206).header(
                "content-range",
                format!("bytes {start}-{}/{}", whole.len() - 1, whole.len()),
            ),
        }
        .body(&whole[start..]);
        reply.break_after = (count < 2).then_some(30_000);
        reply
    })
    .await;
    let descriptor = Descriptor::of(media_type::OCI_LAYER, &bytes);
    assert!(read(&client(), &peer.host, &descriptor).await.unwrap() == bytes);
    let ranges: Vec<_> = peer
        .asked()
        .iter()
        .map(|asked| asked.headers.get("range").cloned())
        .collect();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=30000-".into()),
            Some("bytes=60000-".into())
        ]
    );
}

#[tokio::test]
async fn a_server_without_ranges_is_read_again_and_the_known_part_skipped() {
    let bytes: Vec<u8> = (0..50_000u32).map(|n| (n / 3) as u8).collect();
    let whole = bytes.clone();
    let peer = Scripted::start(move |_, count| {
        let mut reply = Reply::new(200).body(&whole);
        reply.break_after = (count == 0).then_some(20_001);
        reply
    })
    .await;
    let descriptor = Descriptor::of(media_type::OCI_LAYER, &bytes);
    assert!(read(&client(), &peer.host, &descriptor).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_download_that_never_gets_further_fails() {
    let peer = Scripted::start(|_, _| {
        let mut reply = Reply::new(200).body(&[1; 1000]);
        reply.break_after = Some(0);
        reply
    })
    .await;
    let descriptor = Descriptor::of(media_type::OCI_LAYER, &[1; 1000]);
    let error = read(&client(), &peer.host, &descriptor).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Interrupted { .. }),
        "{error}"
    );
    assert_eq!(peer.asked().len(), 3);
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_refused() {
    let peer = Scripted::start(|_, _| Reply::new(200).body(b"other")).await;
    let descriptor = Descriptor::of(media_type::OCI_LAYER, b"hello");
    let error = read(&client(), &peer.host, &descriptor).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }));
    let longer = Descriptor::of(media_type::OCI_LAYER, b"hi");
    let error = read(&client(), &peer.host, &longer).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { .. }));
    let error = client()
        .fetch_manifest(&reference(&peer.host), &descriptor)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }));
}

#[tokio::test]
async fn busy_and_failing_servers_get_more_chances() {
    let peer = Scripted::start(|_, count| match count {
        0 => Reply::new(429).header("retry-after", "0"),
        1 => Reply::new(503),
        _ => manifest_reply(),
    })
    .await;
    let descriptor = client().resolve(&reference(&peer.host)).await.unwrap();
    assert_eq!(descriptor.digest, Digest::of("hello"));
    assert_eq!(descriptor.size, 5);

    let down = Scripted::start(|_, _| Reply::new(502)).await;
    let error = client().resolve(&reference(&down.host)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "unexpected status from HEAD request to http://{}/v2/a/b/manifests/c: 502 Bad Gateway",
            down.host
        )
    );
    assert_eq!(down.asked().len(), 3);
}

#[tokio::test]
async fn a_registry_without_head_or_digest_header_is_asked_for_the_manifest() {
    let peer = Scripted::start(|asked, _| match asked.line.starts_with("HEAD") {
        true => Reply::new(405),
        false => Reply::new(200)
            .header(
                "content-type",
                "application/vnd.oci.image.index.v1+json; charset=utf-8",
            )
            .body(b"hello"),
    })
    .await;
    let descriptor = client().resolve(&reference(&peer.host)).await.unwrap();
    assert_eq!(descriptor, Descriptor::of(media_type::OCI_INDEX, b"hello"));
}

#[tokio::test]
async fn schema_1_is_refused_by_name() {
    let peer = Scripted::start(|_, _| {
        Reply::new(200)
            .header(
                "content-type",
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            )
            .header("docker-content-digest", Digest::of("x").to_string())
            .body(b"x")
    })
    .await;
    let error = client().resolve(&reference(&peer.host)).await.unwrap_err();
    assert!(error.to_string().contains("schema 1 has been removed"));
}

#[tokio::test]
async fn a_mirror_learns_whose_image_is_wanted_and_a_failing_one_is_passed_over() {
    let broken = Scripted::start(|_, _| Reply::new(500)).await;
    let mirror = Scripted::start(|_, _| manifest_reply()).await;
    let config = RegistryConfig {
        mirrors: vec![broken.host.clone(), format!("{}/proxy", mirror.host)],
        ..Default::default()
    };
    let hosts = RegistryHosts::new(BTreeMap::from([("docker.io".to_owned(), config)]));
    let name: Reference = "docker.io/library/busybox:latest".parse().unwrap();
    Client::new(hosts).resolve(&name).await.unwrap();
    assert_eq!(broken.asked().len(), 1, "a mirror gets one chance");
    assert_eq!(
        mirror.lines(),
        ["HEAD /v2/proxy/library/busybox/manifests/latest?ns=docker.io"]
    );
}

#[tokio::test]
async fn referrers_are_listed_by_the_registry_or_by_a_tag() {
    const LIST: &[u8] = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":3,"artifactType":"application/x.signature"}]}"#;
    let digest = Digest::of("subject");
    let tag = format!("GET /v2/a/b/manifests/sha256-{}", digest.hex());
    for (knows, lists, wanted) in [(200, 200, 1), (404, 200, 1), (405, 200, 1), (404, 404, 0)] {
        let registry = Scripted::start(move |asked, _| {
            let status = if asked.line.contains("/referrers/") {
                knows
            } else {
                lists
            };
            Reply::new(status).body(LIST)
        });
        let registry = registry.await;
        let name = reference(&registry.host);
        let found = client().referrers(&name, digest).await.unwrap();
        assert_eq!(found.len(), wanted, "{knows} {lists}");
        let kinds: Vec<_> = found
            .iter()
            .filter_map(|f| f.artifact_type.as_deref())
            .collect();
        assert!(kinds.iter().all(|kind| *kind == "application/x.signature"));
        let asked = registry.lines();
        assert_eq!(asked.len(), if knows == 200 { 1 } else { 2 }, "{asked:?}");
        assert!(knows == 200 || asked[1].starts_with(&tag), "{asked:?}");
    }
    let garbled = Scripted::start(|_, _| Reply::new(200).body(b"[")).await;
    let error = client().referrers(&reference(&garbled.host), digest).await;
    let said = error.unwrap_err().to_string();
    assert!(said.contains("failed to decode referrers index"), "{said}");
}

/// Credentials for an authorisation server, or tokens made elsewhere.
struct Keeper {
    username: &'static str,
    secret: &'static str,
    token: Option<&'static str>,
}

#[async_trait]
impl Credentials for Keeper {
    fn identity(&self) -> String {
        self.username.to_owned()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<HostCredentials>, diag::Error> {
        Ok(Some(HostCredentials {
            username: self.username.to_owned(),
            secret: Secret::new(self.secret.to_owned()),
        }))
    }

    async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, diag::Error> {
        assert_eq!(request.scopes, ["repository:a/b:pull"]);
        Ok(self.token.map(|token| Token {
            token: Secret::new(token.to_owned()),
            expires_in: Duration::from_secs(100),
        }))
    }
}

/// A registry that wants the token `good` and sends for it to itself.
async fn bearer_registry(token_reply: fn(&Asked) -> Reply) -> Scripted {
    Scripted::start(move |asked, _| {
        if asked.line.contains("/token") {
            return token_reply(asked);
        }
        match asked.headers.get("authorization").map(String::as_str) {
            Some("Bearer good") => manifest_reply(),
            other => Reply::new(401).header(
                "www-authenticate",
                format!(
                    "Bearer realm=\"http://{}/token\",service=\"r\",scope=\"repository:a/b:pull\"{}",
                    asked.headers["host"],
                    other.map_or("", |_| ",error=\"insufficient_scope\"")
                ),
            ),
        }
    })
    .await
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_kept() {
    let peer =
        bearer_registry(|_| Reply::new(200).body(br#"{"token":"good","expires_in":300}"#)).await;
    let client = client();
    let name = reference(&peer.host);
    let (a, b) = tokio::join!(client.resolve(&name), client.resolve(&name));
    a.unwrap();
    b.unwrap();
    client.resolve(&name).await.unwrap();
    let tokens: Vec<_> = peer
        .lines()
        .into_iter()
        .filter(|line| line.contains("/token"))
        .collect();
    assert_eq!(
        tokens,
        ["GET /token?service=r&scope=repository%3Aa%2Fb%3Apull"]
    );
}

#[tokio::test]
async fn a_refused_token_is_an_access_denied() {
    let peer = bearer_registry(|_| Reply::new(200).body(br#"{"access_token":"bad"}"#)).await;
    let error = client().resolve(&reference(&peer.host)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"
    );
    let blob = Descriptor::of(media_type::OCI_LAYER, b"x");
    let source = Arc::new(BytesBlob(Bytes::from_static(b"x")));
    let error = client()
        .push_blob(&reference(&peer.host), &blob, source, &[], Arc::new(|_| ()))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "push access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"
    );
}

#[tokio::test]
async fn a_token_that_ran_out_is_replaced() {
    let peer = Scripted::start(|asked, count| {
        if asked.line.contains("/token") {
            let body = format!(r#"{{"token":"t{count}"}}"#);
            return Reply::new(200).body(body.as_bytes());
        }
        // The first token is good for one request.
        match (
            asked.headers.get("authorization").map(String::as_str),
            count,
        ) {
            (Some("Bearer t1"), 0..=2) | (Some("Bearer t4"), _) => manifest_reply(),
            _ => Reply::new(401).header(
                "www-authenticate",
                format!(
                    "Bearer realm=\"http://{}/token\",error=\"invalid_token\"",
                    asked.headers["host"]
                ),
            ),
        }
    })
    .await;
    let client = client();
    let name = reference(&peer.host);
    client.resolve(&name).await.unwrap();
    client.resolve(&name).await.unwrap();
}

#[tokio::test]
async fn wrong_credentials_say_so() {
    let peer = bearer_registry(|_| {
        Reply::new(401).body(br#"{"details":"incorrect username or password"}"#)
    })
    .await;
    let url = format!("http://{}/token", peer.host);
    let keeper = Keeper {
        username: "me",
        secret: "wrong",
        token: None,
    };
    let with = client().with_credentials(Arc::new(keeper));
    let error = with.resolve(&reference(&peer.host)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "failed to authorize: failed to fetch oauth token: unexpected status from POST request to {url}: 401 Unauthorized: incorrect username or password"
        )
    );
    assert_eq!(error.code(), diag::Code::Unauthenticated);
    let error = client().resolve(&reference(&peer.host)).await.unwrap_err();
    assert!(
        error.to_string().starts_with(
            "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to "
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_keeper_of_the_credentials_may_fetch_tokens_itself() {
    let peer = bearer_registry(|_| panic!("nobody else is asked")).await;
    let keeper = Keeper {
        username: "me",
        secret: "secret",
        token: Some("good"),
    };
    let client = client().with_credentials(Arc::new(keeper));
    client.resolve(&reference(&peer.host)).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_breaks_begins_again() {
    let peer = Scripted::start(|asked, count| {
        let method = asked.line.split(' ').next().unwrap();
        match (method, count) {
            ("HEAD", _) => Reply::new(404),
            ("POST", _) => Reply::new(202).header("location", "/upload?state=x"),
            ("PUT", 2) => Reply::new(500),
            ("PUT", _) => Reply::new(201),
            _ => Reply::new(400),
        }
    })
    .await;
    let blob = Descriptor::of(media_type::OCI_LAYER, b"hello");
    let source = Arc::new(BytesBlob(Bytes::from_static(b"hello")));
    let outcome = client()
        .push_blob(&reference(&peer.host), &blob, source, &[], Arc::new(|_| ()))
        .await
        .unwrap();
    assert_eq!(outcome, PushOutcome::Uploaded);
    let put = format!(
        "PUT /upload?state=x&digest=sha256%3A{}",
        Digest::of("hello").hex()
    );
    let post = "POST /v2/a/b/blobs/uploads/".to_owned();
    assert_eq!(
        peer.lines()[1..],
        [post.clone(), put.clone(), post, put.clone()]
    );
    let sent = peer.asked().pop().unwrap();
    assert_eq!(sent.headers["content-length"], "5");
}

#[tokio::test]
async fn a_registry_that_begins_no_upload_is_asked_as_often_as_for_anything_else() {
    let peer = Scripted::start(|asked, _| match asked.line.starts_with("POST") {
        true => Reply::new(500),
        false => Reply::new(404),
    })
    .await;
    let blob = Descriptor::of(media_type::OCI_LAYER, b"hello");
    let source = Arc::new(BytesBlob(Bytes::from_static(b"hello")));
    let error = client()
        .push_blob(&reference(&peer.host), &blob, source, &[], Arc::new(|_| ()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("500"), "{error}");
    let lines = peer.lines();
    let posts = lines.iter().filter(|line| line.starts_with("POST"));
    assert_eq!(posts.count(), 3);
}

#[tokio::test]
async fn a_local_file_that_is_too_short_is_not_the_registrys_fault() {
    let peer = Scripted::start(|asked, _| match asked.line.starts_with("POST") {
        true => Reply::new(202).header("location", "/upload"),
        false => Reply::new(404),
    })
    .await;
    let blob = Descriptor::new(media_type::OCI_LAYER, Digest::of("hello"), 500_000);
    let source = Arc::new(BytesBlob(Bytes::from_static(b"hello")));
    let error = client()
        .push_blob(&reference(&peer.host), &blob, source, &[], Arc::new(|_| ()))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Local { .. }), "{error}");
}
