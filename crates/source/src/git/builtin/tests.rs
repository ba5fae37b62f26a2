use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use diag::Secret;
use layers::{Backend, LayerStore, MountedStack};
use testkit::{GitServer, GitServerOptions, GitWork};

use crate::git::{GitSource, READY};

use super::*;

/// A remote on a web server, and a source without the `git` program.
struct Site {
    root: tempfile::TempDir,
    work: GitWork,
    server: GitServer,
    layers: LayerStore,
    source: GitSource,
}

fn site_with(options: GitServerOptions, init: &[&str]) -> Site {
    let root = tempfile::tempdir().unwrap();
    let work = GitWork::init(&root.path().join("www/r"), init);
    let server = GitServer::start(&root.path().join("www"), "127.0.0.1:0", options);
    let layers = LayerStore::open(root.path().join("layers"), Backend::Auto).unwrap();
    let source = open(root.path(), &layers);
    Site {
        root,
        work,
        server,
        layers,
        source,
    }
}

fn open(root: &Path, layers: &LayerStore) -> GitSource {
    GitSource::open(root.join("git"), layers.clone())
        .unwrap()
        .with_program("/nonexistent/git")
}

fn site() -> Site {
    site_with(GitServerOptions::default(), &[])
}

impl Site {
    fn request(&self, reference: &str) -> GitRequest {
        GitRequest {
            remote: self.server.url("r/.git"),
            reference: reference.into(),
            ..GitRequest::default()
        }
    }

    async fn take(&self, request: &GitRequest) -> Result<(GitPin, MountedStack)> {
        self.take_with(request, &GitAccess::default()).await
    }

    async fn take_with(
        &self,
        request: &GitRequest,
        access: &GitAccess,
    ) -> Result<(GitPin, MountedStack)> {
        let pin = self.source.pin(request, access).await?;
        let (stack, _) = self.source.fetch(request, &pin, access).await?;
        Ok((pin, self.layers.mount(&stack)?))
    }

    async fn failure(&self, request: &GitRequest) -> String {
        self.take(request).await.map(drop).unwrap_err().to_string()
    }
}

fn read(files: &MountedStack, name: &str) -> String {
    std::fs::read_to_string(files.path().join(name)).unwrap()
}

fn entries(files: &MountedStack) -> Vec<String> {
    let all = std::fs::read_dir(files.path()).unwrap();
    let mut all: Vec<String> = all
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

/// Many files that are told as differences to each other, over two commits.
fn fill(work: &GitWork) -> (String, String) {
    let long: String = (0..2000)
        .map(|n| format!("line {n} {}\n", n * 7919))
        .collect();
    for number in 0..150 {
        let text = long.replacen("line 7 ", &format!("line {number} changed "), 1);
        work.put(&format!("d{}/f{number}", number % 7), text);
    }
    work.put("run.sh", "#!/bin/sh\n");
    let script = work.path().join("run.sh");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("run.sh", work.path().join("link")).unwrap();
    work.put("empty", "");
    let first = work.commit("first");
    work.put("d0/f0", format!("{long}more\n"));
    std::fs::remove_file(work.path().join("empty")).unwrap();
    (first, work.commit("second"))
}

/// Compares with what git itself checks out.
fn same_as_git(site: &Site, commit: &str, files: &Path) {
    let theirs = tempfile::tempdir().unwrap();
    let tree = format!("--work-tree={}", theirs.path().display());
    site.work
        .git(&[&tree, "read-tree", "--reset", "-u", commit]);
    let diff = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([theirs.path(), files])
        .output()
        .unwrap();
    assert!(diff.status.success(), "{diff:?}");
    let mode = |root: &Path, name: &str| root.join(name).symlink_metadata().unwrap().mode();
    for name in ["run.sh", "link", "d0", "d0/f0", ""] {
        let ours = mode(files, name);
        assert!(
            name.is_empty() || ours == mode(theirs.path(), name),
            "{name}: {ours:o}"
        );
    }
    assert_eq!(mode(files, "") & 0o7777, 0o755);
}

#[tokio::test]
async fn the_files_of_branches_tags_and_commits_are_those_git_checks_out() {
    for first_version in [false, true] {
        let site = site_with(
            GitServerOptions {
                first_version,
                ..GitServerOptions::default()
            },
            &[],
        );
        let (first, second) = fill(&site.work);
        site.work.git(&["tag", "-a", "-m", "t", "full", &first]);
        site.work.git(&["tag", "light", &first]);
        let (pin, files) = site.take(&site.request("")).await.unwrap();
        assert_eq!(
            (pin.reference.as_str(), &pin.object),
            ("refs/heads/main", &second)
        );
        same_as_git(&site, &second, files.path());
        let (pin, files) = site.take(&site.request("full")).await.unwrap();
        assert_eq!(
            (pin.reference.as_str(), pin.commit.as_ref()),
            ("refs/tags/full", Some(&first))
        );
        same_as_git(&site, &first, files.path());
        let (pin, _) = site.take(&site.request("refs/tags/light")).await.unwrap();
        assert_eq!((pin.object, pin.commit), (first.clone(), None));
        let (pin, files) = site.take(&site.request(&first)).await.unwrap();
        assert_eq!(pin.reference, first);
        same_as_git(&site, &first, files.path());
        let missing = site.failure(&site.request("nothing")).await;
        assert!(
            missing.contains("repository does not contain ref nothing"),
            "{missing}"
        );
    }
}

#[tokio::test]
async fn a_commit_that_no_reference_has_is_found_by_either_version() {
    for first_version in [false, true] {
        let options = GitServerOptions {
            first_version,
            ..GitServerOptions::default()
        };
        let site = site_with(options, &[]);
        site.work.put("a", "1");
        let first = site.work.commit("first");
        site.work.put("a", "2");
        site.work.commit("second");
        let (_, files) = site.take(&site.request(&first)).await.unwrap();
        assert_eq!(read(&files, "a"), "1");
        let none = site.failure(&site.request(&"1".repeat(40))).await;
        assert!(
            none.contains("commit can not be found in the repository"),
            "{none}"
        );
    }
}

#[tokio::test]
async fn only_new_objects_travel_and_nothing_for_what_is_here() {
    let site = site();
    site.work.put(
        "big",
        (0..40_000_u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
            .collect::<Vec<_>>(),
    );
    let text: String = (0..3000).map(|n| format!("{}\n", n * 7919)).collect();
    site.work.put("text", &text);
    site.work.put("a", "1");
    let first = site.work.commit("first");
    let pack_bytes = |site: &Site| -> usize {
        let seen = site.server.take_seen();
        let packs = seen
            .iter()
            .filter(|one| one.target.ends_with("/git-upload-pack"));
        packs.map(|one| one.answer_bytes).sum()
    };
    site.take(&site.request("main")).await.unwrap();
    assert!(pack_bytes(&site) > 100_000);
    site.take(&site.request(&first)).await.unwrap();
    assert_eq!(site.server.take_seen().len(), 0);
    site.work.put("a", "2");
    site.work.commit("second");
    site.work.put("text", format!("{text}more\n"));
    site.work.commit("third");
    // Another start of the server finds what is here.
    let again = Site {
        source: open(site.root.path(), &site.layers),
        ..site
    };
    let (_, files) = again.take(&again.request("main")).await.unwrap();
    assert_eq!(read(&files, "a"), "2");
    assert_eq!(read(&files, "text"), format!("{text}more\n"));
    let whole = std::fs::read(files.path().join("big")).unwrap();
    assert!(whole == std::fs::read(again.work.path().join("big")).unwrap());
    let bytes = pack_bytes(&again);
    assert!(bytes < 2_000, "{bytes}");
}

#[tokio::test]
async fn names_by_sha256_work_too() {
    let site = site_with(GitServerOptions::default(), &["--object-format=sha256"]);
    let (first, second) = fill(&site.work);
    assert_eq!(second.len(), 64);
    let keep = GitRequest {
        keep_git_dir: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&keep).await.unwrap();
    git_finds_it_whole(&files, &second);
    let (_, files) = site.take(&site.request(&first)).await.unwrap();
    same_as_git(&site, &first, files.path());
}

fn ask(files: &MountedStack, args: &[&str]) -> String {
    let dir = files.path().to_str().unwrap();
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "-C", dir])
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?} {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn git_finds_it_whole(files: &MountedStack, commit: &str) {
    assert_eq!(ask(files, &["rev-parse", "HEAD"]), commit);
    assert_eq!(ask(files, &["status", "--porcelain"]), "");
    assert_eq!(ask(files, &["rev-list", "--count", "HEAD"]), "1");
    ask(files, &["fsck", "--full", "--strict"]);
}

#[tokio::test]
async fn git_reads_a_kept_git_dir() {
    let site = site();
    let (first, second) = fill(&site.work);
    site.work.git(&["tag", "-a", "-m", "t", "v1", &first]);
    let request = GitRequest {
        keep_git_dir: true,
        commit_times: true,
        ..site.request("v1")
    };
    let (_, files) = site.take(&request).await.unwrap();
    git_finds_it_whole_without_times(&files, &first);
    assert_eq!(ask(&files, &["describe", "--tags", "--exact-match"]), "v1");
    assert_eq!(
        ask(&files, &["remote", "get-url", "origin"]),
        request.remote
    );
    let time = std::fs::metadata(files.path().join("run.sh"))
        .unwrap()
        .mtime();
    assert_eq!(time, 1_600_000_000);
    let branch = GitRequest {
        keep_git_dir: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&branch).await.unwrap();
    git_finds_it_whole(&files, &second);
    assert_eq!(ask(&files, &["rev-parse", "refs/heads/main"]), second);
}

fn git_finds_it_whole_without_times(files: &MountedStack, commit: &str) {
    assert_eq!(ask(files, &["rev-parse", "HEAD"]), commit);
    assert_eq!(ask(files, &["status", "--porcelain"]), "");
    ask(files, &["fsck", "--full", "--strict"]);
}

#[tokio::test]
async fn a_subdirectory_is_taken_alone_and_only_if_it_is_one() {
    let site = site();
    site.work.put("src/deep/main.c", "int");
    site.work.put("other", "x");
    std::os::unix::fs::symlink("src", site.work.path().join("link")).unwrap();
    site.work.commit("first");
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
async fn submodules_come_with_it_also_those_in_others_and_in_a_subdirectory() {
    let site = site();
    let inner = GitWork::init(&site.root.path().join("www/inner"), &[]);
    inner.put("i", "inner");
    inner.commit("first");
    let outer = GitWork::init(&site.root.path().join("www/outer"), &[]);
    outer.put("o", "outer");
    outer.git(&[
        "submodule",
        "--quiet",
        "add",
        &site.server.url("inner/.git"),
        "in",
    ]);
    outer.commit("first");
    site.work.put("a", "1");
    site.work.git(&[
        "submodule",
        "--quiet",
        "add",
        "--name",
        "m",
        &site.server.url("outer/.git"),
        "lib/x",
    ]);
    // A relative address counts from the one that is cloned.
    site.work.git(&[
        "config",
        "-f",
        ".gitmodules",
        "submodule.m.url",
        "../../outer/.git",
    ]);
    let commit = site.work.commit("second");
    let (_, files) = site.take(&site.request("main")).await.unwrap();
    assert_eq!(entries(&files), [".gitmodules", "a", "lib"]);
    assert_eq!(read(&files, "lib/x/o"), "outer");
    assert_eq!(read(&files, "lib/x/in/i"), "inner");
    assert!(!files.path().join("lib/x/.git").exists());
    let subdir = GitRequest {
        subdir: "lib/x/in".into(),
        ..site.request("main")
    };
    let (_, files) = site.take(&subdir).await.unwrap();
    assert_eq!(entries(&files), ["i"]);
    let without = GitRequest {
        skip_submodules: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&without).await.unwrap();
    assert!(!files.path().join("lib/x/o").exists());
    let keep = GitRequest {
        keep_git_dir: true,
        ..site.request("main")
    };
    let (_, files) = site.take(&keep).await.unwrap();
    git_finds_it_whole_without_times(&files, &commit);
    let status = ask(&files, &["submodule", "status", "--recursive"]);
    let lines: Vec<&str> = status.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 2, "{status}");
    assert!(
        lines.iter().all(|line| !line.starts_with(['-', '+'])),
        "{status}"
    );
    assert!(files.path().join(".git/modules/m/modules/in/HEAD").exists());
}

#[tokio::test]
async fn a_submodule_cannot_read_the_servers_disk() {
    let site = site();
    site.work.put("a", "1");
    site.work.commit("first");
    let own = format!("file://{}", site.work.path().display());
    site.work.git(&["submodule", "--quiet", "add", &own, "sub"]);
    site.work.commit("second");
    let error = site.failure(&site.request("main")).await;
    assert!(error.contains("failed to update submodules"), "{error}");
    assert!(error.contains("transport 'file' not allowed"), "{error}");
}

#[tokio::test]
async fn a_token_is_given_to_its_remote_and_to_no_other() {
    let header = "basic abc".to_owned();
    let site = site_with(
        GitServerOptions {
            authorization: Some(header.clone()),
            ..GitServerOptions::default()
        },
        &[],
    );
    let other = GitServer::start(
        &site.root.path().join("www"),
        "127.0.0.1:0",
        GitServerOptions::default(),
    );
    site.work.put("a", "1");
    site.work.commit("first");
    let inner = GitWork::init(&site.root.path().join("www/inner"), &[]);
    inner.put("i", "inner");
    inner.commit("first");
    site.work.git(&[
        "submodule",
        "--quiet",
        "add",
        &other.url("inner/.git"),
        "sub",
    ]);
    site.work.commit("second");
    other.take_seen();
    let refused = site.failure(&site.request("main")).await;
    assert!(refused.contains("terminal prompts disabled"), "{refused}");
    let access = GitAccess {
        authorization: Some(Secret::new(header)),
        ..GitAccess::default()
    };
    let (_, files) = site
        .take_with(&site.request("main"), &access)
        .await
        .unwrap();
    assert_eq!(read(&files, "sub/i"), "inner");
    let seen = other.take_seen();
    assert!(!seen.is_empty());
    assert!(
        seen.iter().all(|one| one.authorization.is_none()),
        "{seen:?}"
    );
    // Led elsewhere on the same host, it stays with the request.
    let moved = GitRequest {
        remote: site.server.url("moved/r/.git"),
        skip_submodules: true,
        ..site.request("main")
    };
    let (_, files) = site.take_with(&moved, &access).await.unwrap();
    assert_eq!(read(&files, "a"), "1");
    let gone = GitRequest {
        remote: site.server.url("none.git"),
        ..site.request("main")
    };
    let error = site.take_with(&gone, &access).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
    assert!(!error.to_string().contains("abc"), "{error}");
}

#[tokio::test]
async fn a_checksum_is_that_of_the_commit_or_the_tag() {
    let site = site();
    site.work.put("a", "1");
    let commit = site.work.commit("first");
    site.work.git(&["tag", "-a", "-m", "t", "v1"]);
    let tag = site.work.git(&["rev-parse", "v1"]);
    let with = |checksum: &str| GitRequest {
        checksum: checksum.into(),
        ..site.request("v1")
    };
    for checksum in [&commit[..8], &tag[..12]] {
        site.take(&with(checksum)).await.unwrap();
    }
    let error = site.failure(&with("deadbeef")).await;
    assert!(
        error.contains("expected checksum to match deadbeef"),
        "{error}"
    );
    let by_commit = GitRequest {
        reference: commit.clone(),
        ..with("deadbeef")
    };
    let error = site.failure(&by_commit).await;
    assert!(
        error.contains("expected checksum to match deadbeef"),
        "{error}"
    );
    let objects = site
        .source
        .objects(
            &with(""),
            &site
                .source
                .pin(&with(""), &GitAccess::default())
                .await
                .unwrap(),
            &GitAccess::default(),
        )
        .await
        .unwrap();
    assert_eq!(objects.commit_id, commit);
    assert!(
        String::from_utf8(objects.tag.unwrap())
            .unwrap()
            .starts_with(&format!("object {commit}\n"))
    );
    let theirs = site.work.git(&["cat-file", "commit", &commit]);
    assert_eq!(String::from_utf8(objects.commit).unwrap().trim(), theirs);
}

#[tokio::test]
async fn what_a_killed_server_left_is_cleared_away() {
    let site = site();
    site.work.put("a", "1");
    site.work.commit("first");
    site.take(&site.request("main")).await.unwrap();
    let [repository] = site.source.repositories().unwrap().try_into().unwrap();
    assert_eq!(repository.remote, site.server.url("r/.git"));
    assert!(repository.size_bytes > 0 && !repository.in_use);
    let dirs = std::fs::read_dir(site.root.path().join("git")).unwrap();
    let mut dirs = dirs.map(|entry| entry.unwrap().path());
    let dir = dirs.find(|path| path.is_dir()).unwrap();
    let packs = dir.join("objects/pack");
    std::fs::write(packs.join("new-x.part"), "half").unwrap();
    std::fs::write(packs.join("pack-x.pack"), "half").unwrap();
    site.work.put("a", "2");
    site.work.commit("second");
    let (_, files) = site.take(&site.request("main")).await.unwrap();
    assert_eq!(read(&files, "a"), "2");
    assert!(!packs.join("new-x.part").exists() && !packs.join("pack-x.pack").exists());
    // Without its mark nothing in it counts.
    std::fs::remove_file(dir.join(READY)).unwrap();
    std::fs::write(dir.join("config"), "broken").unwrap();
    site.take(&site.request("main")).await.unwrap();
    assert!(site.source.remove_repository(&repository.id).unwrap());
    assert!(!site.source.remove_repository(&repository.id).unwrap());
    assert!(!site.source.remove_repository("../layers").unwrap());
    assert!(site.source.repositories().unwrap().is_empty());
    site.take(&site.request("main")).await.unwrap();
}

#[tokio::test]
async fn many_at_once_fetch_an_object_once() {
    let site = site();
    site.work.put("a", "1");
    let commit = site.work.commit("first");
    let request = site.request(&commit);
    let takes = (0..8).map(|_| site.take(&request));
    for taken in futures::future::join_all(takes).await {
        assert_eq!(read(&taken.unwrap().1, "a"), "1");
    }
    let seen = site.server.take_seen();
    let packs = seen
        .iter()
        .filter(|one| one.target.ends_with("/git-upload-pack"));
    assert_eq!(packs.count(), 1);
}

#[tokio::test]
async fn ends_of_lines_are_as_the_attributes_say() {
    let site = site();
    site.work.put(
        ".gitattributes",
        "*.bat text eol=crlf\n*.auto text=auto eol=crlf\n",
    );
    site.work.put("d/.gitattributes", "x.bat -text\n");
    site.work.put("run.bat", "a\nb\n");
    site.work.put("d/x.bat", "a\n");
    site.work.put("t.auto", "a\n");
    site.work.put("b.auto", "a\0\n");
    let commit = site.work.commit("first");
    let (_, files) = site.take(&site.request("main")).await.unwrap();
    assert_eq!(read(&files, "run.bat"), "a\r\nb\r\n");
    for (name, text) in [("d/x.bat", "a\n"), ("t.auto", "a\r\n"), ("b.auto", "a\0\n")] {
        assert_eq!(read(&files, name), text, "{name}");
    }
    let theirs = tempfile::tempdir().unwrap();
    let tree = format!("--work-tree={}", theirs.path().display());
    site.work
        .git(&[&tree, "read-tree", "--reset", "-u", &commit]);
    let diff = Command::new("diff")
        .arg("-r")
        .args([theirs.path(), files.path()])
        .output();
    assert!(diff.unwrap().status.success());
}

#[tokio::test]
async fn gits_own_transport_is_spoken_and_no_other_than_are_known() {
    let site = site();
    site.work.put("a", "1");
    let commit = site.work.commit("first");
    // What a server of either does with a connection: it runs this program on it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let base = site.root.path().join("www");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let mut daemon = Command::new("git")
                .args(["daemon", "--inetd", "--export-all"])
                .arg(format!("--base-path={}", base.display()))
                .stdin(std::os::fd::OwnedFd::from(stream.try_clone().unwrap()))
                .stdout(std::os::fd::OwnedFd::from(stream))
                .spawn()
                .unwrap();
            std::thread::spawn(move || daemon.wait());
        }
    });
    let request = GitRequest {
        remote: format!("git://127.0.0.1:{port}/r/.git"),
        ..site.request("main")
    };
    let (pin, files) = site.take(&request).await.unwrap();
    assert_eq!((pin.object, read(&files, "a")), (commit, "1".to_owned()));
    for (remote, cause) in [
        ("ssh://-oProxyCommand=x/y", "strange hostname"),
        ("ext::sh -c x", "transport 'ext' not allowed"),
    ] {
        let request = GitRequest {
            remote: remote.into(),
            ..site.request("main")
        };
        let error = site.failure(&request).await;
        assert!(error.contains(cause), "{remote}: {error}");
    }
}

/// Polls so often and then drops the future, wherever it is.
async fn poll_times<F: Future>(work: F, times: usize) -> Option<F::Output> {
    let mut work = Box::pin(work);
    let mut left = times;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_fetch_that_is_given_up_anywhere_is_in_nobodys_way() {
    let site = site();
    fill(&site.work);
    for times in 0..400 {
        site.work.put("a", times.to_string());
        let commit = site.work.commit("more");
        let given_up = poll_times(site.take(&site.request("main")), times).await;
        let (pin, files) = site.take(&site.request("main")).await.unwrap();
        assert_eq!(
            (&pin.object, read(&files, "a")),
            (&commit, times.to_string())
        );
        if let Some(taken) = given_up {
            assert_eq!(read(&taken.unwrap().1, "a"), times.to_string());
            same_as_git(&site, &commit, files.path());
            return;
        }
    }
    panic!("a fetch never ends");
}

/// Names the process that is to be killed: where its sources are, the remote, and the commits.
const VICTIM: &str = "COOPERAGE_TEST_VICTIM";

#[tokio::test]
async fn a_process_killed_while_it_fetches_leaves_a_repository_that_works() {
    if let Ok(told) = std::env::var(VICTIM) {
        return fetch_all(&told).await;
    }
    let site = site();
    fill(&site.work);
    let commits: Vec<String> = (0..40)
        .map(|number| {
            site.work.put("a", number.to_string());
            site.work.commit("more")
        })
        .collect();
    let victim_dir = site.root.path().join("victim");
    for round in 0..12_u64 {
        // Each begins with commits that are not here yet.
        let told = [
            site.root.path().to_str().unwrap().to_owned(),
            victim_dir.join(round.to_string()).display().to_string(),
            site.server.url("r/.git"),
            commits[3 * round as usize..].join(","),
        ];
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("git::builtin::tests::a_process_killed_while_it_fetches_leaves_a_repository_that_works")
            .env(VICTIM, told.join("\n"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(victim.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("fetching") {
            line.clear();
            let count = std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            assert!(count > 0, "the process ended by itself");
        }
        // Not to wait for anything: to kill it at another moment of its work each time.
        std::thread::sleep(std::time::Duration::from_micros(round * 3700));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let after = Site {
            source: open(site.root.path(), &site.layers),
            root: tempfile::tempdir().unwrap(),
            work: GitWork::at(site.work.path()),
            server: site.server.clone(),
            layers: site.layers.clone(),
        };
        let commit = &commits[(3 * round) as usize];
        let (_, files) = after.take(&after.request(commit)).await.unwrap();
        same_as_git(&after, commit, files.path());
    }
}

/// What the process does that is to be killed.
async fn fetch_all(told: &str) {
    let told: Vec<&str> = told.split('\n').collect();
    let layers = LayerStore::open(told[1], Backend::Auto).unwrap();
    let source = open(Path::new(told[0]), &layers);
    for commit in told[3].split(',') {
        println!("fetching {commit}");
        let request = GitRequest {
            remote: told[2].into(),
            reference: commit.into(),
            ..GitRequest::default()
        };
        let access = GitAccess::default();
        let pin = source.pin(&request, &access).await.unwrap();
        source.fetch(&request, &pin, &access).await.unwrap();
    }
    panic!("nobody killed it");
}
