//! Against Debian's OpenSSH server, with git of this machine behind it.

use std::path::Path;

use layers::{Backend, LayerStore, MountedStack};
use testkit::{GitWork, SshServer, SshServerOptions};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;
use crate::git::{GitPin, GitRequest, GitSource};

/// A server with a repository, and a source without any programs.
struct Site {
    root: tempfile::TempDir,
    work: GitWork,
    server: SshServer,
    layers: LayerStore,
    source: GitSource,
}

/// Takes the version that git asks for.
const SECOND_VERSION: &str = "AcceptEnv GIT_PROTOCOL";

fn site_with(options: SshServerOptions) -> Site {
    let root = tempfile::tempdir().unwrap();
    let work = GitWork::init(&root.path().join("www/r"), &[]);
    let server = SshServer::start_with(&root.path().join("ssh"), options);
    let layers = LayerStore::open(root.path().join("layers"), Backend::Auto).unwrap();
    let source = GitSource::open(root.path().join("git"), layers.clone()).unwrap();
    Site {
        work,
        server,
        layers,
        source: source.with_program("/nonexistent/git"),
        root,
    }
}

fn site() -> Site {
    site_with(SshServerOptions::default())
}

impl Site {
    fn request(&self, reference: &str) -> GitRequest {
        GitRequest {
            remote: self.server.url(&self.work.path().join(".git")),
            reference: reference.into(),
            known_hosts: self.server.known_hosts(),
            ..GitRequest::default()
        }
    }

    fn access(&self) -> GitAccess {
        access(&self.server.agent())
    }

    async fn take(&self, request: &GitRequest) -> Result<(GitPin, MountedStack)> {
        let access = self.access();
        let pin = self.source.pin(request, &access).await?;
        let (stack, _) = self.source.fetch(request, &pin, &access).await?;
        Ok((pin, self.layers.mount(&stack)?))
    }

    async fn pin_with(&self, agent: &Path) -> Result<GitPin> {
        self.source.pin(&self.request("main"), &access(agent)).await
    }
}

fn access(agent: &Path) -> GitAccess {
    GitAccess {
        ssh_auth_sock: Some(agent.to_owned()),
        ..GitAccess::default()
    }
}

fn read(files: &MountedStack, name: &str) -> String {
    let path = files.path().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The whole of an error: its text and what its user is told to do.
fn told(error: Error) -> String {
    format!("{error}; {}", error.hints().join("; "))
}

async fn branches_tags_commits_and_submodules(site: &Site) {
    let part = GitWork::init(&site.root.path().join("www/part"), &[]);
    part.put("p", "part");
    part.commit("first");
    site.work.put("a", "1");
    site.work.put("sub/s", "in sub");
    let first = site.work.commit("first");
    site.work.git(&["tag", "-a", "-m", "one", "v1"]);
    let path = part.path().to_str().unwrap().to_owned();
    site.work
        .git(&["submodule", "--quiet", "add", &path, "part"]);
    // Relative to the address that is cloned, so by ssh too.
    let relative = ["submodule.part.url", "../../part/.git"];
    site.work
        .git(&[&["config", "-f", ".gitmodules"][..], &relative].concat());
    site.work.put("a", "2");
    let second = site.work.commit("second");
    for (reference, commit, a) in [
        ("", &second, "2"),
        ("main", &second, "2"),
        ("v1", &first, "1"),
        (first.as_str(), &first, "1"),
    ] {
        let (pin, files) = site.take(&site.request(reference)).await.unwrap();
        assert_eq!(pin.commit.as_ref().unwrap_or(&pin.object), commit);
        assert_eq!(read(&files, "a"), a, "{reference}");
        assert_eq!(files.path().join("part/p").exists(), a == "2");
    }
    let (_, files) = site.take(&site.request("main")).await.unwrap();
    assert_eq!(read(&files, "part/p"), "part");
    let subdir = GitRequest {
        subdir: "sub".into(),
        ..site.request("main")
    };
    let (_, files) = site.take(&subdir).await.unwrap();
    assert_eq!(read(&files, "s"), "in sub");
}

#[tokio::test]
async fn commits_are_brought_by_the_second_version_of_the_protocol() {
    let site = site_with(SshServerOptions {
        configuration: SECOND_VERSION,
        ..SshServerOptions::default()
    });
    branches_tags_commits_and_submodules(&site).await;
    let mut remote = connected(&site).await;
    let mut greeting = [0; 13];
    remote.output().read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"000eversion 2");
}

#[tokio::test]
async fn hosts_that_take_no_wishes_speak_the_first_version() {
    let site = site();
    branches_tags_commits_and_submodules(&site).await;
    let mut remote = connected(&site).await;
    let mut greeting = [0; 45];
    remote.output().read_exact(&mut greeting).await.unwrap();
    let head = site.work.git(&["rev-parse", "HEAD"]);
    assert_eq!(greeting[4..], *format!("{head} ").as_bytes());
}

async fn connected(site: &Site) -> Ssh {
    let address = Address::parse(&site.request("").remote).unwrap().unwrap();
    let (known_hosts, access) = (site.server.known_hosts(), site.access());
    let ssh = Ssh::connect(&address, &known_hosts, &access, Limits::default());
    ssh.await.unwrap()
}

#[tokio::test]
async fn the_ssh_program_is_not_missed_where_git_is_installed() {
    let site = site();
    site.work.put("a", "1");
    let commit = site.work.commit("first");
    let git = site.source.clone().with_program("git");
    for (source, name) in [
        (git.clone(), "with both"),
        (git.with_ssh_program("/nonexistent/ssh"), "with git alone"),
        (site.source.clone(), "with none"),
    ] {
        let (request, access) = (site.request("main"), site.access());
        let pin = source.pin(&request, &access).await.unwrap();
        assert_eq!(pin.object, commit, "{name}");
        let (stack, _hold) = source.fetch(&request, &pin, &access).await.unwrap();
        let files = site.layers.mount(&stack).unwrap();
        assert_eq!(read(&files, "a"), "1", "{name}");
        let stranger = GitRequest {
            known_hosts: another_key(&site.server.known_hosts()),
            ..request.clone()
        };
        let error = source.pin(&stranger, &access).await.unwrap_err();
        assert!(
            error.to_string().contains("Host key verification failed"),
            "{name}: {error}"
        );
        let nobody = source.pin(&request, &GitAccess::default()).await;
        let error = nobody.unwrap_err().to_string();
        assert!(error.contains("Permission denied"), "{name}: {error}");
    }
}

/// The same line of `known_hosts` with a key that differs in its last byte.
fn another_key(line: &str) -> String {
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let end = words[2].pop().unwrap();
    words[2].push(if end == 'A' { 'B' } else { 'A' });
    words.join(" ")
}

#[tokio::test]
async fn keys_and_certificates_of_an_agent_open_hosts_with_keys_of_any_type() {
    for (host_key, other) in [("ed25519", "ecdsa"), ("ecdsa", "rsa"), ("rsa", "ed25519")] {
        let keys: &[&str] = match host_key {
            "ed25519" => &["ed25519"],
            "ecdsa" => &["ecdsa"],
            _ => &["rsa"],
        };
        let site = site_with(SshServerOptions {
            host_keys: keys,
            ..SshServerOptions::default()
        });
        let commit = site.work.commit("first");
        let stranger = site.server.make_key("stranger", &["-t", "ed25519"]);
        let key = site.server.make_key("key", &["-t", other]);
        site.server.let_in(&key, "");
        // Keys that the host does not take are passed over.
        let agent = site.server.agent_with("a", &[&stranger, &key]);
        let pin = site.pin_with(agent.socket()).await.unwrap();
        assert_eq!(pin.object, commit, "host {host_key}, key {other}");
        let signed = site.server.make_key("signed", &["-t", other]);
        site.server.sign(&key, &signed);
        let agent = site.server.agent_with("c", &[&signed]);
        assert!(site.pin_with(agent.socket()).await.is_err());
        site.server.let_in(&key, "cert-authority");
        let pin = site.pin_with(agent.socket()).await.unwrap();
        assert_eq!(pin.object, commit, "host {host_key}, certificate {other}");
    }
}

#[tokio::test]
async fn a_host_shows_the_key_by_which_it_is_known() {
    let site = site_with(SshServerOptions {
        host_keys: &["ed25519", "ecdsa", "rsa"],
        ..SshServerOptions::default()
    });
    let commit = site.work.commit("first");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let request = GitRequest {
            known_hosts: site.server.known_host(kind),
            ..site.request("main")
        };
        let pin = site.source.pin(&request, &site.access()).await.unwrap();
        assert_eq!(pin.object, commit, "{kind}");
    }
    // Who knows of no host trusts each.
    let request = GitRequest {
        known_hosts: String::new(),
        ..site.request("main")
    };
    site.source.pin(&request, &site.access()).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let site = site();
    site.work.commit("first");
    let failure = async |request: &GitRequest, access: &GitAccess| {
        told(site.source.pin(request, access).await.unwrap_err())
    };
    let has = |error: &str, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    };
    let request = site.request("main");
    let shown = format!("root@{}", site.server.address().ip());
    let error = failure(&request, &GitAccess::default()).await;
    has(
        &error,
        &[&shown, "Permission denied (publickey", "--ssh default"],
    );
    let empty = site.server.agent_with("empty", &[]);
    let error = failure(&request, &access(empty.socket())).await;
    has(&error, &["Permission denied (publickey", "ssh-add"]);
    let stranger = site.server.make_key("stranger", &["-t", "ed25519"]);
    let strangers = site.server.agent_with("strangers", &[&stranger]);
    let error = failure(&request, &access(strangers.socket())).await;
    has(
        &error,
        &[
            "Permission denied (publickey",
            "ssh-ed25519 SHA256:",
            "not taken",
        ],
    );
    let error = failure(&request, &access(Path::new("/nonexistent/agent"))).await;
    has(&error, &["the client's ssh agent: No such file"]);
    let changed = GitRequest {
        known_hosts: another_key(&site.server.known_hosts()),
        ..request.clone()
    };
    let error = failure(&changed, &site.access()).await;
    has(
        &error,
        &["Host key verification failed", "another key", "SHA256:"],
    );
    let unknown = GitRequest {
        known_hosts: "elsewhere ssh-ed25519 AAAA".into(),
        ..request.clone()
    };
    let error = failure(&unknown, &site.access()).await;
    has(&error, &["Host key verification failed", "ssh-keyscan"]);
    let gone = GitRequest {
        remote: site.server.url(Path::new("/nonexistent/r.git")),
        ..request.clone()
    };
    let error = failure(&gone, &site.access()).await;
    has(
        &error,
        &[
            "Could not read from remote repository",
            "does not appear to be a git repository",
            "make sure that the repository exists",
        ],
    );
    let unreachable = GitRequest {
        remote: "ssh://git@127.0.0.1:1/r.git".into(),
        ..request
    };
    let error = failure(&unreachable, &site.access()).await;
    has(
        &error,
        &["ssh: connect to host 127.0.0.1", "refused", "build server"],
    );
}

/// A host that takes connections and says so much and nothing more; gives the sockets.
async fn silent(
    says: &'static [u8],
) -> (Address, tokio::sync::mpsc::Receiver<tokio::net::TcpStream>) {
    use tokio::io::AsyncWriteExt;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sockets, taken) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(says).await.unwrap();
            if sockets.send(socket).await.is_err() {
                return;
            }
        }
    });
    let address = Address::parse(&format!("ssh://git@127.0.0.1:{port}/r"));
    (address.unwrap().unwrap(), taken)
}

#[tokio::test]
async fn hosts_that_fall_silent_are_given_up() {
    for says in [&b""[..], b"SSH-2.0-silent\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"] {
        let (address, _sockets) = silent(says).await;
        let limits = Limits {
            handshake: Duration::from_millis(200),
            ..Limits::default()
        };
        let access = GitAccess::default();
        let failed = Ssh::connect(&address, "", &access, limits).await.err();
        let error = failed.unwrap().to_string();
        assert!(error.contains("timed out"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_nobody_wants_any_more_is_closed() {
    let (address, mut sockets) = silent(b"SSH-2.0-silent\r\n").await;
    let access = GitAccess::default();
    let mut socket = {
        let connecting = Ssh::connect(&address, "", &access, Limits::default());
        tokio::select! {
            _ = connecting => panic!("a silent host let somebody in"),
            socket = sockets.recv() => socket.unwrap(),
        }
    };
    // What was said before, and then the end.
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said).await;

    let site = site();
    site.work.commit("first");
    let mut ssh = connected(&site).await;
    let heard = ssh.heard.clone();
    let mut byte = [0];
    ssh.output().read_exact(&mut byte).await.unwrap();
    assert_eq!(heard.end(), None);
    drop(ssh);
    site.server.wait_for_no_connections();
}

#[test]
fn known_types_of_keys_come_first() {
    let order = |known: &[&str]| {
        let known: Vec<String> = known.iter().map(|kind| (*kind).to_owned()).collect();
        let keys = configuration(&known).preferred.key.into_owned();
        keys.iter()
            .map(|key| key.as_str().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(order(&[])[0], "ssh-ed25519");
    assert_eq!(order(&["ssh-rsa"])[..2], ["rsa-sha2-512", "rsa-sha2-256"]);
    assert_eq!(order(&["ecdsa-sha2-nistp384"])[0], "ecdsa-sha2-nistp384");
    assert_eq!(order(&["ssh-rsa"]).len(), order(&[]).len());
}
