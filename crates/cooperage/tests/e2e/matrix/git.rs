//! Commits of repositories, by our server with and without a git program.

use std::path::Path;
use std::process::Command;

use testkit::{BuildServer, SshServer};

use super::site::{GIT, HEADER, OLD, PRIVATE, Repositories};
use super::{Case, Matrix, Peer};
use crate::workshop::text;

/// Our server, one that finds no git, and the Engine's.
struct Bench {
    matrix: Matrix,
    repositories: Repositories,
    without: Peer,
    _server: BuildServer,
}

impl Bench {
    fn start() -> Bench {
        let matrix = Matrix::start(&[]);
        let repositories = Repositories::start(&matrix);
        let (server, without) = matrix.another("without-git", &[("PATH", "/nonexistent")]);
        Bench {
            matrix,
            repositories,
            without,
            _server: server,
        }
    }

    /// The files of `NAME.git#FRAGMENT` of a server.
    fn case(&self, server: &str, source: &str, attrs: &[(&str, &str)]) -> Case {
        let (path, _) = source.split_once('#').unwrap_or((source, ""));
        let full = format!("{server}/{path}");
        let host = server.trim_start_matches("http://");
        let mut all = vec![("git.fullurl", full.as_str())];
        all.extend_from_slice(attrs);
        let case = Case::of(&format!("{source} {attrs:?}"), &self.matrix, |llb| {
            llb.source(&format!("git://{host}/{source}"), &all)
        });
        case.seen_by(without_dead_links)
    }

    fn compare(&self, cases: Vec<Case>) {
        // Git's own words are of its version; those about what was asked for are compared below.
        let cases: Vec<Case> = cases.into_iter().map(Case::in_own_words).collect();
        let ours = [("", &self.matrix.ours), ("without git", &self.without)];
        self.matrix.compare_all(&ours, &cases);
    }
}

/// Stock leaves the files by which submodules name a repository that is not there.
pub(super) fn without_dead_links(_: &Path, mut tree: Vec<String>) -> Vec<String> {
    tree.retain(|line| !(line.contains("/.git 644 ") && line.contains("gitdir: ")));
    tree
}

#[test]
fn matrix_git_references_and_folders() {
    let bench = Bench::start();
    let (first, second, tag) = {
        let known = &bench.repositories;
        (
            known.first.as_str(),
            known.second.as_str(),
            known.tag.as_str(),
        )
    };
    let (short, nobodys) = (&first[..10], "0123456789012345678901234567890123456789");
    let mut fragments: Vec<String> = [
        "",
        "main",
        "refs/heads/main",
        "heads/main",
        "feature/x",
        "v1",
        "light",
        "tags/v1",
        "refs/tags/v1",
        "v1-again",
        "both",
        "refs/tags/both",
        "refs/pull/7/head",
        "pull/8/merge",
        "HEAD",
        "nonesuch",
        "-x",
        "refs/heads",
        "main~1",
        first,
        second,
        tag,
        short,
        nobodys,
    ]
    .map(str::to_owned)
    .to_vec();
    for folder in [
        "dir",
        "dir/deep",
        "/dir/",
        "./dir",
        "dir/../dir",
        "with space",
        "part",
        "part/deep/inner",
        "a",
        "nonesuch",
        "way",
        "way/deep",
        "../dir",
        ".git",
        "/",
    ] {
        fragments.push(format!("main:{folder}"));
    }
    fragments.push(":dir".to_owned());
    fragments.push(format!("{first}:part"));
    let case = |name: &str, fragment: &String| {
        let source = match fragment.as_str() {
            "" => name.to_owned(),
            fragment => format!("{name}#{fragment}"),
        };
        bench.case(GIT, &source, &[])
    };
    let mut cases: Vec<Case> = fragments.iter().map(|f| case("r.git", f)).collect();
    for (name, fragment) in [
        ("empty.git", ""),
        ("nonesuch.git", ""),
        ("sha256.git", ""),
        ("sha256.git", "v1"),
        ("part.git", ""),
    ] {
        cases.push(case(name, &fragment.to_owned()));
    }
    for fragment in ["v1", first, "refs/pull/7/head", nobodys] {
        cases.push(bench.case(OLD, &format!("r.git#{fragment}"), &[]));
    }
    bench.compare(cases);
}

#[test]
fn matrix_git_options() {
    let bench = Bench::start();
    let known = &bench.repositories;
    let (first, tag) = (known.first.as_str(), known.tag.as_str());
    let skip = ("git.skipsubmodules", "true");
    let mut cases = Vec::new();
    for attrs in [
        &[skip][..],
        &[("git.skipsubmodules", "false")],
        &[("git.checksum", first)],
        &[("git.checksum", &first[..7])],
        &[("git.nonesuch", "x")],
    ] {
        for fragment in ["v1", "light", first] {
            cases.push(bench.case(GIT, &format!("r.git#{fragment}"), attrs));
        }
    }
    cases.push(bench.case(GIT, "r.git#main:part", &[skip]));
    for folder in ["dir", "dir/deep", "part/deep"] {
        cases.push(bench.case(GIT, &format!("r.git#main:{folder}"), &[skip]));
    }
    cases.push(bench.case(GIT, "r.git#v1", &[("git.checksum", tag)]));
    // Stock asks this only of what it has yet to check out.
    for wrong in ["0123456", "not hexadecimal"] {
        for fragment in ["feature/x", "v1-again"] {
            let source = format!("r.git#{fragment}:dir");
            cases.push(bench.case(GIT, &source, &[("git.checksum", wrong)]));
        }
    }
    // Without the full address it is one of HTTPS, which nobody serves.
    cases.push(Case::of("no full address", &bench.matrix, |llb| {
        llb.source("git://127.0.0.1:8418/r.git#main", &[])
    }));
    for (name, address) in [
        ("file", "file:///etc"),
        ("program", "ext::sh -c true"),
        ("option", "--upload-pack=true"),
        ("path", "/etc"),
    ] {
        cases.push(Case::of(
            &format!("address of a {name}"),
            &bench.matrix,
            |llb| llb.source("git://x/y", &[("git.fullurl", address)]),
        ));
    }
    bench.compare(cases);
    // What a branch is now counts, and not what it was.
    for turn in 0..2 {
        known.work.put("a", format!("moved {turn}"));
        known.work.commit("moved");
        known.work.git(&["tag", "-f", "light"]);
        bench.compare(vec![
            bench.case(GIT, "r.git#main", &[]),
            bench.case(GIT, "r.git#light", &[]),
            bench.case(GIT, "r.git", &[skip]),
        ]);
    }
}

/// What people see of a checkout with its `.git`.
fn seen_by_git(directory: &Path, _: Vec<String>) -> Vec<String> {
    let mut lines = Vec::new();
    // Which other references there are depends on what stock has built before.
    for arguments in [
        &["status", "--porcelain", "--ignored"][..],
        &["rev-parse", "HEAD", "--is-shallow-repository"],
        &["symbolic-ref", "-q", "HEAD"],
        &["log", "HEAD", "--format=%H %an %cI %s"],
        &["remote", "-v"],
        &["ls-files", "-s"],
        &[
            "submodule",
            "foreach",
            "-q",
            "--recursive",
            "git rev-parse HEAD; git status --porcelain",
        ],
        &["fsck", "--no-dangling", "--no-progress"],
    ] {
        let output = Command::new("git")
            .args(["-c", "safe.directory=*"])
            .args(arguments)
            .current_dir(directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        lines.push(format!(
            "git {arguments:?}: {} {said}{error}",
            output.status
        ));
    }
    lines
}

#[test]
fn matrix_git_directories_that_are_kept() {
    let bench = Bench::start();
    let first = bench.repositories.first.as_str();
    let keep = ("git.keepgitdir", "true");
    let mut cases = Vec::new();
    for fragment in [
        "main",
        "v1",
        "v1-again",
        "light",
        "feature/x",
        "refs/pull/7/head",
        first,
    ] {
        for attrs in [&[keep][..], &[keep, ("git.skipsubmodules", "true")]] {
            let case = bench.case(GIT, &format!("r.git#{fragment}"), attrs);
            cases.push(case.seen_by(seen_by_git));
        }
    }
    cases.push(bench.case(GIT, "r.git", &[keep]).seen_by(seen_by_git));
    cases.push(
        bench
            .case(GIT, "sha256.git#v1", &[keep])
            .seen_by(seen_by_git),
    );
    // Of a folder there is none.
    cases.push(bench.case(GIT, "r.git#main:dir", &[keep]));
    cases.push(bench.case(GIT, "r.git#main:part", &[keep]));
    bench.compare(cases);
}

#[test]
fn matrix_git_secrets_and_keys() {
    let bench = Bench::start();
    let secrets = bench.matrix.shop.lab.subdirectory("secrets");
    let secret = |name: &str, content: &str| {
        let path = secrets.join(name);
        std::fs::write(&path, content).unwrap();
        text(&path)
    };
    let (token, header) = (secret("token", "oak"), secret("header", HEADER));
    let wrong = secret("wrong", "pine");
    let given = |id: &str, path: &str| format!("--secret=id={id},src={path}");
    let attrs = [
        ("git.authtokensecret", "GIT_AUTH_TOKEN"),
        ("git.authheadersecret", "GIT_AUTH_HEADER"),
    ];
    let host = "127.0.0.1:8419";
    let mut cases = Vec::new();
    for (name, flags) in [
        ("nothing", vec![]),
        ("token", vec![given("GIT_AUTH_TOKEN", &token)]),
        ("header", vec![given("GIT_AUTH_HEADER", &header)]),
        ("wrong token", vec![given("GIT_AUTH_TOKEN", &wrong)]),
        (
            "token of the host",
            vec![given(&format!("GIT_AUTH_TOKEN.{host}"), &token)],
        ),
        (
            "header of the host before a wrong one",
            vec![
                given(&format!("GIT_AUTH_HEADER.{host}"), &header),
                given("GIT_AUTH_HEADER", &wrong),
            ],
        ),
        (
            "token of another host",
            vec![given("GIT_AUTH_TOKEN.example.org", &token)],
        ),
        (
            "wrong header before a token",
            vec![
                given("GIT_AUTH_HEADER", &wrong),
                given("GIT_AUTH_TOKEN", &token),
            ],
        ),
    ] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        // A folder of its own each, as what is here already is asked for by nobody.
        let path = format!("{}.git", name.replace(' ', "-"));
        let link = bench.repositories.directory.join(&path);
        std::os::unix::fs::symlink("inner.git", link).unwrap();
        cases.push(bench.case(PRIVATE, &path, &attrs).flags(&flags));
    }
    let ssh = SshServer::start(&bench.matrix.shop.lab.subdirectory("ssh"));
    let mut ssh_cases = Vec::new();
    let address = ssh.url(&bench.repositories.directory.join("inner.git"));
    let agent = format!("--ssh=default={}", text(&ssh.agent()));
    let (known, unknown) = (
        ssh.known_hosts(),
        ssh.known_hosts().replace("127.0.0.1", "127.0.0.2"),
    );
    for (name, hosts, flags) in [
        ("ssh", known.as_str(), vec![agent.as_str()]),
        ("ssh without agent", known.as_str(), vec![]),
        (
            "ssh to a host nobody knows",
            unknown.as_str(),
            vec![agent.as_str()],
        ),
        ("ssh to any host", "", vec![agent.as_str()]),
    ] {
        let mut attrs = vec![
            ("git.fullurl", address.as_str()),
            ("git.mountsshsock", "default"),
        ];
        if !hosts.is_empty() {
            attrs.push(("git.knownsshhosts", hosts));
        }
        let case = Case::of(name, &bench.matrix, |llb| {
            llb.source(
                &format!("git://127.0.0.1/inner.git#main:{}", "deep/.."),
                &attrs,
            )
        });
        ssh_cases.push(case.flags(&flags).in_own_words());
    }
    bench.compare(cases);
    bench.matrix.compare(&ssh_cases);
}

/// The Engine's BuildKit does not know these options yet; what they do is what BuildKit 0.32 says of them.
#[test]
fn matrix_git_options_that_the_engine_does_not_know() {
    let bench = Bench::start();
    let first = bench.repositories.first.as_str();
    for (special, peer) in [("", &bench.matrix.ours), ("without git", &bench.without)] {
        let times = [("git.mtime", "commit")];
        let built = peer.tree(&bench.case(GIT, "r.git#v1", &times), &bench.matrix);
        let built = built.unwrap_or_else(|error| panic!("{special}: {error}"));
        assert!(built.len() > 10, "{built:#?}");
        for line in &built {
            assert!(line.contains(" @1600000000 "), "{special}: {line}");
        }
        let fetched = [("git.fetchbycommit", "true"), ("git.checksum", first)];
        let by_name = bench.case(GIT, "r.git#main", &fetched);
        let built = peer.tree(&by_name, &bench.matrix).unwrap().join("\n");
        assert!(
            built.contains("/a 644 0:0 @now \"1\""),
            "{special}: {built}"
        );
        let unsure = bench.case(GIT, "r.git#main", &[("git.fetchbycommit", "true")]);
        let error = peer.tree(&unsure, &bench.matrix).unwrap_err();
        assert!(
            error.contains("fetch-by-commit requires a checksum or a commit SHA ref"),
            "{special}: {error}"
        );
    }
}
