use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use layers::Backend;

use super::*;

/// A repository somebody else works in, and a source to take commits of it.
struct Site {
    _dir: tempfile::TempDir,
    root: PathBuf,
    layers: LayerStore,
    source: GitSource,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let layers = LayerStore::open(root.join("layers"), Backend::Auto).unwrap();
    let source = GitSource::open(root.join("git"), layers.clone()).unwrap();
    let site = Site {
        _dir: dir,
        root,
        layers,
        source,
    };
    std::fs::create_dir(site.work()).unwrap();
    site.git(&["init", "-q", "-b", "main"]);
    site
}

impl Site {
    fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    fn git(&self, args: &[&str]) -> String {
        let mut git = Command::new("git");
        git.env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "protocol.file.allow=always", "-c", "user.name=A"])
            .args(["-c", "user.email=a@example.org"])
            .current_dir(self.work());
        for who in ["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"] {
            git.env(who, "1600000000 +0000");
        }
        let output = git.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn request(&self, reference: &str) -> GitRequest {
        GitRequest {
            remote: format!("file://{}", self.work().display()),
            reference: reference.into(),
            ..GitRequest::default()
        }
    }

    async fn take(&self, request: &GitRequest) -> Result<(GitPin, layers::MountedStack)> {
        let access = GitAccess::default();
        let pin = self.source.pin(request, &access).await?;
        let (stack, _) = self.source.fetch(request, &pin, &access).await?;
        Ok((pin, self.layers.mount(&stack)?))
    }

    async fn failure(&self, request: &GitRequest) -> String {
        self.take(request).await.map(drop).unwrap_err().to_string()
    }
}

fn read(files: &layers::MountedStack, name: &str) -> Option<String> {
    std::fs::read_to_string(files.path().join(name)).ok()
}

fn entries(files: &layers::MountedStack) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(files.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn the_default_branch_a_branch_a_tag_and_a_commit_are_found() {
    let site = site();
    site.put("run.sh", "one");
    let script = site.work().join("run.sh");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("run.sh", site.work().join("link")).unwrap();
    let first = site.commit("first");
    site.git(&["tag", "light"]);
    site.put("gone", "x");
    let second = site.commit("second");
    site.git(&["tag", "-a", "-m", "t", "full"]);
    std::fs::remove_file(site.work().join("gone")).unwrap();
    let third = site.commit("third");
    let (pin, files) = site.take(&site.request("")).await.unwrap();
    assert_eq!(
        (pin.reference.as_str(), &pin.object),
        ("refs/heads/main", &third)
    );
    assert_eq!(entries(&files), ["link", "run.sh"]);
    let mode = |name: &str| std::fs::metadata(files.path().join(name)).unwrap().mode();
    assert_eq!(mode("run.sh") & 0o7777, 0o755);
    assert_eq!(mode("") & 0o7777, 0o755);
    let (pin, files) = site.take(&site.request("full")).await.unwrap();
    assert_eq!(pin.commit.as_ref(), Some(&second));
    assert_eq!(pin.key(&site.request("")), second);
    assert_eq!(read(&files, "gone").as_deref(), Some("x"));
    let (pin, _) = site.take(&site.request("light")).await.unwrap();
    assert_eq!(pin.object, first);
    let (pin, files) = site.take(&site.request(&first)).await.unwrap();
    assert_eq!((pin.reference, pin.commit), (first, None));
    assert_eq!(entries(&files), ["link", "run.sh"]);
    let missing = site.failure(&site.request("nothing")).await;
    assert!(
        missing.contains("repository does not contain ref nothing"),
        "{missing}"
    );
    let option = site.failure(&site.request("--upload-pack=x")).await;
    assert!(option.contains("invalid git ref"), "{option}");
}

#[tokio::test]
async fn what_was_pinned_is_fetched_though_the_branch_moves() {
    let site = site();
    site.put("a", "1");
    let first = site.commit("first");
    let access = GitAccess::default();
    let request = site.request("main");
    let pin = site.source.pin(&request, &access).await.unwrap();
    site.put("a", "2");
    site.commit("second");
    let (stack, _) = site.source.fetch(&request, &pin, &access).await.unwrap();
    let files = site.layers.mount(&stack).unwrap();
    assert_eq!(read(&files, "a").as_deref(), Some("1"));
    // It stays, even when the remote has forgotten it.
    site.git(&["checkout", "-q", "--orphan", "new"]);
    site.commit("other");
    site.git(&["branch", "-D", "main"]);
    site.git(&["reflog", "expire", "--expire=now", "--all"]);
    site.git(&["gc", "-q", "--prune=now"]);
    let (_, files) = site.take(&site.request(&first)).await.unwrap();
    assert_eq!(read(&files, "a").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_checksum_must_fit() {
    let site = site();
    let commit = site.commit("first");
    site.git(&["tag", "-a", "-m", "t", "v1"]);
    let checked = |checksum: &str, reference: &str| GitRequest {
        checksum: checksum.into(),
        ..site.request(reference)
    };
    site.take(&checked(&commit[..9], "v1")).await.unwrap();
    let wrong = site.failure(&checked("abcd", "main")).await;
    assert_eq!(
        wrong,
        format!("expected checksum to match abcd, got {commit}")
    );
    let wrong = site.failure(&checked("abcd", &commit)).await;
    assert!(
        wrong.starts_with("expected checksum to match abcd"),
        "{wrong}"
    );
    let wrong = site.failure(&checked("x", "main")).await;
    assert!(wrong.contains("expected hex commit hash"), "{wrong}");
    let by_commit = GitRequest {
        fetch_by_commit: true,
        ..checked(&commit, "no-such-branch")
    };
    let (pin, _) = site.take(&by_commit).await.unwrap();
    assert_eq!(
        (pin.object, pin.reference.as_str()),
        (commit, "refs/heads/no-such-branch")
    );
}

#[tokio::test]
async fn a_subdirectory_is_taken_alone_and_only_if_it_is_one() {
    let site = site();
    site.put("src/deep/main.c", "int");
    site.put("other", "x");
    std::os::unix::fs::symlink("src", site.work().join("link")).unwrap();
    site.commit("first");
    let of = |subdir: &str| GitRequest {
        subdir: subdir.into(),
        keep_git_dir: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&of("src/deep")).await.unwrap();
    assert_eq!(entries(&files), ["main.c"]);
    for subdir in ["link/deep", "other", "../x", "none"] {
        let error = site.failure(&of(subdir)).await;
        assert!(error.contains("invalid subdir"), "{subdir}: {error}");
    }
    assert_eq!(site.layers.list().unwrap().len(), 1);
}

#[tokio::test]
async fn a_kept_git_dir_has_the_commit_its_name_and_the_address() {
    let site = site();
    site.put("a", "1");
    site.commit("first");
    site.put("a", "2");
    let commit = site.commit("second");
    site.git(&["tag", "-a", "-m", "t", "v1"]);
    let request = GitRequest {
        keep_git_dir: true,
        commit_times: true,
        ..site.request("v1")
    };
    let (_, files) = site.take(&request).await.unwrap();
    assert_eq!(entries(&files), [".git", "a"]);
    let ask = |args: &[&str]| {
        let dir = files.path().to_str().unwrap();
        let safe = format!("safe.directory={dir}");
        let all = [&["-c", &safe, "-C", dir], args].concat();
        site.git(&all)
    };
    assert_eq!(ask(&["rev-parse", "HEAD"]), commit);
    assert_eq!(ask(&["tag"]), "v1");
    assert_eq!(ask(&["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(ask(&["remote", "get-url", "origin"]), request.remote);
    let time = |name: &str| std::fs::metadata(files.path().join(name)).unwrap().mtime();
    assert_eq!((time("a"), time("")), (1_600_000_000, 1_600_000_000));
}

#[tokio::test]
async fn a_submodule_cannot_read_the_servers_disk_and_may_be_left_out() {
    let site = site();
    site.put("a", "1");
    site.commit("first");
    let own = site.request("").remote;
    site.git(&["submodule", "--quiet", "add", &own, "sub"]);
    site.commit("second");
    let error = site.failure(&site.request("main")).await;
    assert!(error.contains("failed to update submodules"), "{error}");
    assert!(error.contains("not allowed"), "{error}");
    let without = GitRequest {
        skip_submodules: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&without).await.unwrap();
    assert_eq!(entries(&files), [".gitmodules", "a", "sub"]);
}

#[tokio::test]
async fn unfinished_repositories_are_swept_and_made_anew() {
    let site = site();
    site.put("a", "1");
    site.commit("first");
    let request = site.request("main");
    site.take(&request).await.unwrap();
    let git = site.root.join("git");
    std::fs::create_dir(git.join("x.tmp")).unwrap();
    GitSource::open(&git, site.layers.clone()).unwrap();
    assert!(!git.join("x.tmp").exists());
    let repository = std::fs::read_dir(&git)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    let (lock, pack) = ("shallow.lock", "objects/pack/tmp_pack_half");
    for left in [lock, pack] {
        std::fs::write(repository.join(left), "").unwrap();
    }
    site.put("a", "2");
    site.commit("second");
    site.take(&request).await.unwrap();
    assert!(!repository.join(pack).exists());
    std::fs::remove_file(repository.join(READY)).unwrap();
    std::fs::remove_file(repository.join("HEAD")).unwrap();
    site.take(&request).await.unwrap();
}

/// A git that is cut off by a full disk leaves what had come.
#[tokio::test]
async fn a_fetch_that_fails_keeps_no_space() {
    let site = site();
    site.put("a", "1");
    let commit = site.commit("first");
    let script = site.root.join("full");
    let text = r#"#!/bin/sh
case " $* " in
*' fetch '*)
    for word; do
        if [ "$before" = --git-dir ]; then dir=$word; fi
        before=$word
    done
    mkdir -p "$dir/objects/ab"
    echo half > "$dir/objects/pack/tmp_pack_half"
    echo half > "$dir/objects/ab/tmp_obj_half"
    echo "fatal: write error: No space left on device" >&2
    exit 128;;
esac
exec git "$@"
"#;
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let source = site.source.clone().with_program(&script);
    let (request, access) = (site.request(&commit), GitAccess::default());
    let pin = source.pin(&request, &access).await.unwrap();
    let failed = source.fetch(&request, &pin, &access).await.map(drop);
    assert_eq!(failed.unwrap_err().code(), Code::ResourceExhausted);
    let git = site.root.join("git");
    let repositories = std::fs::read_dir(&git).unwrap();
    let repository = repositories
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    for folder in ["objects/pack", "objects/ab"] {
        let left = std::fs::read_dir(repository.join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
    site.take(&request).await.unwrap();
}

#[tokio::test]
async fn dropping_the_wait_ends_git_with_what_it_started() {
    let site = site();
    let script = site.root.join("slow");
    let pids = site.root.join("pids");
    let text = format!(
        "#!/bin/sh\nsleep 1000 &\nprintf '%s\\n' $$ $! > {0}.new\nmv {0}.new {0}\nwait\n",
        pids.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let source = site.source.clone().with_program(&script);
    let request = site.request("main");
    let waiting = tokio::spawn(async move {
        let _ = source.pin(&request, &GitAccess::default()).await;
    });
    while !pids.exists() {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    let _ = waiting.await;
    let gone = |pid: &str| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // Killed, and waiting for its parent to look.
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    for pid in std::fs::read_to_string(&pids).unwrap().lines() {
        while !gone(pid) {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_name_is_a_branch_before_it_is_a_tag() {
    let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
    let said = format!("{a}\trefs/heads/x\n{b}\trefs/tags/x\n{c}\trefs/tags/x^{{}}\n");
    let pin = choose("x", &said).unwrap();
    assert_eq!(
        (pin.reference.as_str(), pin.object, pin.commit),
        ("refs/heads/x", a, None)
    );
    let pin = choose("refs/tags/x", &said).unwrap();
    assert_eq!((pin.object, pin.commit), (b, Some(c)));
    assert!(choose("y", &said).is_err());
    let head = "ref: refs/heads/trunk\tHEAD\nabc\tHEAD\n";
    assert_eq!(default_branch(head).as_deref(), Some("trunk"));
}

/// A web server that knows nothing of git: it gives files.
fn serve_files(root: PathBuf) -> std::net::SocketAddr {
    use std::io::{BufRead, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::result::Result::ok) {
            let lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
            let lines: Vec<String> = lines
                .map_while(std::result::Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let target = lines.first().and_then(|line| line.split(' ').nth(1));
            let path = target
                .unwrap_or("/")
                .split('?')
                .next()
                .unwrap_or("/")
                .to_owned();
            let (status, body) = match std::fs::read(root.join(path.trim_start_matches('/'))) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body));
        }
    });
    address
}

#[tokio::test]
async fn a_server_of_plain_files_gives_whole_histories() {
    let site = site();
    site.put("f", "1");
    site.commit("first");
    site.git(&["tag", "-a", "-m", "one", "v1"]);
    site.put("f", "2");
    site.commit("second");
    site.git(&["update-server-info"]);
    let address = serve_files(site.work());
    for (reference, expected) in [("", "2"), ("v1", "1")] {
        let request = GitRequest {
            remote: format!("http://{address}/.git"),
            ..site.request(reference)
        };
        let (_, files) = site.take(&request).await.unwrap();
        assert_eq!(read(&files, "f").as_deref(), Some(expected));
    }
}
