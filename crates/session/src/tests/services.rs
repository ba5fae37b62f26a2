//! Every service once, and its refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diag::Secret;
use docker_config::DockerConfig;
use oci::Digest;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Opened, open};
use crate::{
    AuthOptions, ClientSession, ExportTarget, LocalDir, SecretSource, SendDirRequest, SessionError,
    SessionManager, SshAgent, SyncRequest, TokenRequest, Uploads,
};

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn paths(root: &Path) -> Vec<String> {
    let mut walker = crate::walk::Walker::new(root, Default::default()).unwrap();
    let mut paths = Vec::new();
    while let Some(entry) = walker.next_entry().unwrap() {
        paths.push(String::from_utf8(entry.stat.path).unwrap());
    }
    paths
}

async fn open_with_context(dir: &Path) -> Opened {
    let dirs = [("context".to_owned(), LocalDir::new(dir))].into();
    open(
        ClientSession::builder()
            .local_dirs(dirs)
            .shared_key("k")
            .build(),
    )
    .await
}

#[tokio::test]
async fn a_context_is_synced_with_patterns_and_followed_links() {
    let context = tempfile::tempdir().unwrap();
    for path in [
        "src/main.c",
        "src/deep/er.c",
        "d\u{e9}j\u{e0}",
        "node_modules/x",
        "real/file",
    ] {
        write(context.path(), path, path);
    }
    std::os::unix::fs::symlink("real", context.path().join("link")).unwrap();
    let opened = open_with_context(context.path()).await;
    assert_eq!(opened.session.shared_key(), "k");
    let dest = tempfile::tempdir().unwrap();
    let mut request = SyncRequest::new("context", dest.path());
    request.exclude = vec!["node_modules".into(), "src/*".into(), "!src/main.c".into()];
    let stats = opened
        .session
        .sync_dir(request.clone(), None)
        .await
        .unwrap();
    let all = [
        "d\u{e9}j\u{e0}",
        "link",
        "real",
        "real/file",
        "src",
        "src/main.c",
    ];
    assert_eq!(paths(dest.path()), all);
    assert_eq!(stats.files, 3);
    // Not ASCII: travels encoded. Followed: the link and what it leads to.
    request.include = vec!["d\u{e9}*".into()];
    request.follow_paths = vec!["link/file".into()];
    opened.session.sync_dir(request, None).await.unwrap();
    assert_eq!(
        paths(dest.path()),
        ["d\u{e9}j\u{e0}", "link", "real", "real/file"]
    );
}

#[tokio::test]
async fn a_directory_that_was_not_offered_is_refused() {
    let context = tempfile::tempdir().unwrap();
    let opened = open_with_context(context.path()).await;
    let request = SyncRequest::new("other", context.path());
    let error = opened.session.sync_dir(request, None).await.unwrap_err();
    assert_eq!(error.to_string(), "no access allowed to dir \"other\"");
    assert_eq!(error.code(), diag::Code::NotFound);
}

#[tokio::test]
async fn an_unreadable_pattern_is_an_error_with_its_text() {
    let context = tempfile::tempdir().unwrap();
    let opened = open_with_context(context.path()).await;
    let mut request = SyncRequest::new("context", context.path());
    request.exclude = vec!["a[".into()];
    let error = opened.session.sync_dir(request, None).await.unwrap_err();
    assert!(
        error.to_string().starts_with("invalid excludepatterns"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_arrives_whole_with_its_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let log = seen.clone();
    let path = dir.path().join("out.tar");
    let target = path.clone();
    let client = ClientSession::builder()
        .file_target(1, ExportTarget::file(dir.path().join("other.tar")))
        .file_target(
            0,
            ExportTarget::writer(move |metadata| {
                *log.lock() = metadata;
                let file = tokio::fs::File::create(target.clone());
                async move { Ok(Some(Box::pin(file.await?) as crate::ExportWriter)) }
            }),
        )
        .build();
    let opened = open(client).await;
    let metadata = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:1".to_owned())]);
    let content: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    for exporter in [0, 1] {
        let mut sink = opened.session.send_file(exporter, &metadata).await.unwrap();
        sink.write_all(&content).await.unwrap();
        sink.shutdown().await.unwrap();
    }
    assert_eq!(*seen.lock(), metadata);
    assert!(fs::read(path).unwrap() == content);
    assert!(fs::read(dir.path().join("other.tar")).unwrap() == content);
}

#[tokio::test]
async fn a_file_nobody_takes_fails_with_the_reason() {
    let client = ClientSession::builder()
        .file_target(0, ExportTarget::writer(|_| async { Ok(None) }))
        .build();
    let opened = open(client).await;
    let mut sink = opened.session.send_file(0, &BTreeMap::new()).await.unwrap();
    let error = loop {
        if let Err(error) = sink.write_all(&[0; 4096]).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.to_string(), "target already exists");
    let mut sink = opened.session.send_file(7, &BTreeMap::new()).await.unwrap();
    assert_eq!(
        sink.shutdown().await.unwrap_err().to_string(),
        "exporter 7 not found"
    );
}

#[tokio::test]
async fn a_full_disk_of_the_client_is_told_from_other_failures() {
    let client = ClientSession::builder()
        .file_target(
            0,
            ExportTarget::writer(|_| async { Err(std::io::ErrorKind::StorageFull.into()) }),
        )
        .build();
    let opened = open(client).await;
    let mut sink = opened.session.send_file(0, &BTreeMap::new()).await.unwrap();
    let error = sink.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
}

#[tokio::test]
async fn a_file_that_is_cut_off_does_not_appear() {
    let dir = tempfile::tempdir().unwrap();
    let client = ClientSession::builder()
        .file_target(0, ExportTarget::file(dir.path().join("out.tar")))
        .build();
    let mut opened = open(client).await;
    let mut sink = opened.session.send_file(0, &BTreeMap::new()).await.unwrap();
    sink.write_all(b"half").await.unwrap();
    drop(sink);
    opened.handle.close();
    opened.handle.wait().await.unwrap();
    assert!(!dir.path().join("out.tar").exists());
}

#[tokio::test]
async fn a_directory_is_sent_beside_what_is_there() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "bin/tool", "x");
    write(to.path(), "out/mine", "y");
    let target = ExportTarget::dir(to.path().join("out"));
    let opened = open(ClientSession::builder().file_target(0, target).build()).await;
    let request = SendDirRequest {
        root: from.path().into(),
        ..Default::default()
    };
    let stats = opened.session.send_dir(request).await.unwrap();
    assert_eq!((stats.entries, stats.files), (2, 1));
    assert_eq!(paths(&to.path().join("out")), ["bin", "bin/tool", "mine"]);
}

#[tokio::test]
async fn a_mirror_wants_all_platforms_in_one_transfer() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "new", "x");
    write(to.path(), "old", "y");
    let target = ExportTarget::Dir {
        path: to.path().into(),
        mirror: true,
        progress: None,
    };
    let opened = open(ClientSession::builder().file_target(0, target).build()).await;
    let mut request = SendDirRequest {
        root: from.path().into(),
        ..Default::default()
    };
    let error = opened.session.send_dir(request.clone()).await.unwrap_err();
    assert!(error.to_string().contains("mode=delete"), "{error}");
    assert_eq!(paths(to.path()), ["old"]);
    request.all_platforms = true;
    opened.session.send_dir(request).await.unwrap();
    assert_eq!(paths(to.path()), ["new"]);
}

#[tokio::test]
async fn secrets_come_from_values_and_files_and_may_be_missing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "from file").unwrap();
    let sources = BTreeMap::from([
        (
            "a".to_owned(),
            SecretSource::Value(Secret::new(b"here".to_vec())),
        ),
        ("b".to_owned(), SecretSource::File(file.path().into())),
        ("c".to_owned(), SecretSource::File("/nonexistent/c".into())),
    ]);
    let opened = open(ClientSession::builder().secrets(sources).build()).await;
    let session = &opened.session;
    assert_eq!(
        session.secret("a").await.unwrap().unwrap().expose(),
        b"here"
    );
    assert_eq!(
        session.secret("b").await.unwrap().unwrap().expose(),
        b"from file"
    );
    assert!(session.secret("none").await.unwrap().is_none());
    assert!(session.secret("c").await.is_err());
}

fn docker_config(dir: &Path, text: &str) -> DockerConfig {
    fs::write(dir.join("config.json"), text).unwrap();
    DockerConfig::load_from(dir).unwrap()
}

#[tokio::test]
async fn credentials_are_shared_and_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = docker_config(dir.path(), r#"{"auths":{"a.io":{"auth":"bWU6cHc="}}}"#);
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let options = AuthOptions::new(config)
        .notice(Arc::new(move |text: &str| log.lock().push(text.to_owned())));
    let opened = open(ClientSession::builder().auth_with(options).build()).await;
    for _ in 0..2 {
        let found = opened.session.credentials("a.io").await.unwrap().unwrap();
        assert_eq!(
            (&found.username[..], &found.secret.expose()[..]),
            ("me", "pw")
        );
    }
    assert!(opened.session.credentials("b.io").await.unwrap().is_none());
    assert_eq!(*told.lock(), ["[auth] sharing credentials for a.io"]);
}

#[tokio::test]
async fn the_token_authority_is_proved_by_who_has_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let config = docker_config(dir.path(), r#"{"auths":{"a.io":{"auth":"bWU6cHc="}}}"#);
    let opened = open(ClientSession::builder().auth(config).build()).await;
    let session = &opened.session;
    let key = session.token_authority("a.io").await.unwrap().unwrap();
    assert!(session.verify_token_authority("a.io", &key).await.unwrap());
    assert!(!session.verify_token_authority("b.io", &key).await.unwrap());
    assert!(
        !session
            .verify_token_authority("a.io", &[7; 32])
            .await
            .unwrap()
    );
    let bare = open(ClientSession::builder().build()).await;
    assert!(
        bare.session
            .token_authority("a.io")
            .await
            .unwrap()
            .is_none()
    );
}

/// An authorization server that answers each connection from a script.
async fn authorization_server(answers: Vec<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = requests.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let complete = |request: &[u8]| {
                let text = String::from_utf8_lossy(request).to_lowercase();
                let (head, body) = text.split_once("\r\n\r\n")?;
                let len = head
                    .split_once("content-length: ")
                    .map_or("0", |(_, rest)| rest.split("\r\n").next().unwrap());
                (body.len() >= len.parse().unwrap()).then_some(())
            };
            while complete(&request).is_none() {
                assert!(socket.read_buf(&mut request).await.unwrap() > 0);
            }
            log.lock().push(String::from_utf8(request).unwrap());
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
        }
    });
    (realm, requests)
}

#[tokio::test]
async fn tokens_are_fetched_with_oauth_and_else_with_basic_authentication() {
    let (realm, requests) = authorization_server(vec![
        "HTTP/1.1 405 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 33\r\nconnection: close\r\n\r\n{\"token\": \"t1\",\"expires_in\": 300}",
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let config = docker_config(dir.path(), r#"{"auths":{"a.io":{"auth":"bWU6cHc="}}}"#);
    let opened = open(ClientSession::builder().auth(config).build()).await;
    let token = opened
        .session
        .fetch_token(TokenRequest {
            host: "a.io".into(),
            realm,
            service: "reg".into(),
            scopes: vec!["repository:x/y:pull".into()],
            ..TokenRequest::default()
        })
        .await
        .unwrap();
    assert_eq!((&token.token.expose()[..], token.expires_in_s), ("t1", 300));
    let requests = requests.lock();
    assert!(requests[0].starts_with("POST /token "), "{}", requests[0]);
    assert!(
        requests[0].ends_with("grant_type=password&username=me&password=pw"),
        "{}",
        requests[0]
    );
    let get = "GET /token?service=reg&scope=repository%3Ax%2Fy%3Apull ";
    assert!(requests[1].starts_with(get), "{}", requests[1]);
    assert!(
        requests[1].contains("authorization: Basic bWU6cHc="),
        "{}",
        requests[1]
    );
}

#[tokio::test]
async fn a_refused_token_says_who_refused() {
    let refuse = "HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (realm, _) = authorization_server(vec![refuse]).await;
    let dir = tempfile::tempdir().unwrap();
    let config = docker_config(dir.path(), "{}");
    let opened = open(ClientSession::builder().auth(config).build()).await;
    let request = TokenRequest {
        host: "a.io".into(),
        realm: realm.clone(),
        ..Default::default()
    };
    let error = opened.session.fetch_token(request).await.unwrap_err();
    let expected = format!(
        "failed to fetch anonymous token: unexpected status from GET request to {realm}: 401 Unauthorized"
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_raw_socket_is_forwarded_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut data = Vec::new();
        socket.read_to_end(&mut data).await.unwrap();
        data.reverse();
        socket.write_all(&data).await.unwrap();
    });
    let agent = SshAgent::new("", &[path], true).unwrap();
    let opened = open(ClientSession::builder().ssh(vec![agent]).build()).await;
    opened.session.check_ssh("").await.unwrap();
    let error = opened.session.check_ssh("x").await.unwrap_err();
    assert_eq!(error.to_string(), "unset ssh forward key x");
    let mut stream = opened.session.ssh_forward("default").await.unwrap();
    let data: Vec<u8> = (0..500_000u32).map(|n| n as u8).collect();
    stream.write_all(&data).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    back.reverse();
    assert!(back == data);
}

#[tokio::test]
async fn an_upload_is_read_once() {
    let uploads = Uploads::new();
    let url = uploads.add(&b"a tar archive"[..]);
    let path = url.strip_prefix("http://buildkit-session").unwrap();
    let opened = open(ClientSession::builder().uploads(uploads).build()).await;
    let mut text = String::new();
    let mut reader = opened.session.upload(path).await.unwrap();
    reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "a tar archive");
    let mut again = opened.session.upload(path).await.unwrap();
    assert!(again.read_to_string(&mut text).await.is_err());
}

#[tokio::test]
async fn blobs_of_a_layout_are_read_whole_and_from_an_offset() {
    let dir = tempfile::tempdir().unwrap();
    let blob: Vec<u8> = (0..2_000_000u32).map(|n| (n / 7) as u8).collect();
    let digest = Digest::of(&blob);
    write(dir.path(), &format!("blobs/sha256/{}", digest.hex()), &blob);
    let layouts = [("id".to_owned(), dir.path().to_owned())].into();
    let opened = open(ClientSession::builder().oci_layouts(layouts).build()).await;
    let content = opened.session.content_store("id").unwrap();
    assert_eq!(content.size(&digest).await.unwrap(), Some(2_000_000));
    assert!(content.read(&digest).await.unwrap() == blob);
    let mut rest = Vec::new();
    let mut reader = content.reader(&digest, 1_999_990).await.unwrap();
    reader.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, blob[1_999_990..]);
    assert_eq!(content.size(&Digest::of(b"none")).await.unwrap(), None);
    let other = opened.session.content_store("other").unwrap();
    assert_eq!(other.size(&digest).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_not_offered_is_unsupported_and_not_a_hang() {
    let opened = open(ClientSession::builder().build()).await;
    let session = &opened.session;
    assert!(session.supports("/grpc.health.v1.Health/Check"));
    let error = session
        .sync_dir(SyncRequest::new("context", "/"), None)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no local sources enabled");
    assert!(session.secret("x").await.unwrap().is_none());
    assert!(session.credentials("x").await.unwrap().is_none());
    assert!(matches!(
        session.content_store("x"),
        Err(SessionError::Unsupported(_))
    ));
}

#[tokio::test]
async fn a_closed_session_is_gone_for_everybody() {
    let opened = open(ClientSession::builder().build()).await;
    let id = opened.session.id().to_owned();
    opened.handle.close();
    opened.session.closed().await;
    assert!(matches!(
        opened.session.secret("x").await,
        Err(SessionError::Closed)
    ));
    let error = opened.manager.get(&id, Duration::ZERO).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no active session for {id}: context deadline exceeded")
    );
}

#[tokio::test]
async fn a_session_can_be_waited_for_and_opened_on_a_connection_of_its_own() {
    let manager = SessionManager::new();
    let client = ClientSession::builder().build();
    let waiting = tokio::spawn({
        let (manager, id) = (manager.clone(), format!("prefix:{}", client.id()));
        async move { manager.get(&id, Duration::from_secs(30)).await }
    });
    let (a, b) = tokio::io::duplex(1024);
    let mut handle = client.run_on_io(a);
    let headers = client.headers().clone();
    let serving = tokio::spawn({
        let manager = manager.clone();
        async move { manager.serve_io(headers, b).await }
    });
    let session = waiting.await.unwrap().unwrap();
    assert_eq!(session.id(), client.id());
    session.close();
    serving.await.unwrap().unwrap();
    // The client sees the connection go; whether as an end or as an error is the transport's business.
    let _ = handle.wait().await;
}
