//! Where both servers find repositories and files: on loopback in the lab's network.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::web::{Answer, Request, serve};
use testkit::{GitServer, GitServerOptions, GitWork};

use super::Matrix;

/// Address of the web server.
pub const WEB: &str = "http://127.0.0.1:5557";
const WEB_PORT: u16 = 5557;
/// Address of the server of repositories.
pub const GIT: &str = "http://127.0.0.1:8418";
/// One that wants to know who asks.
pub const PRIVATE: &str = "http://127.0.0.1:8419";
/// One that knows only the first version of git's protocol.
pub const OLD: &str = "http://127.0.0.1:8420";
/// What [`PRIVATE`] wants: the user `x-access-token` with the password `oak`.
pub const HEADER: &str = "basic eC1hY2Nlc3MtdG9rZW46b2Fr";

/// Servers of repositories below one directory.
pub struct Repositories {
    pub directory: PathBuf,
    /// Two commits, of which the first has the tag `v1`, and whatever git can keep.
    pub work: GitWork,
    pub first: String,
    pub second: String,
    /// The tag object of `v1`.
    pub tag: String,
}

impl Repositories {
    /// Starts three servers of `r.git`, `part.git`, `inner.git`, `empty.git` and `sha256.git`.
    pub fn start(matrix: &Matrix) -> Repositories {
        let directory = matrix.shop.lab.subdirectory("www");
        let private = GitServerOptions {
            authorization: Some(HEADER.to_owned()),
            ..GitServerOptions::default()
        };
        let old = GitServerOptions {
            first_version: true,
            ..GitServerOptions::default()
        };
        for (address, options) in [
            (GIT, GitServerOptions::default()),
            (PRIVATE, private),
            (OLD, old),
        ] {
            let address = address.trim_start_matches("http://");
            GitServer::start(&directory, address, options);
        }
        let at = |name: &str| directory.join(name);
        GitWork::init(&at("empty.git"), &[]);
        let inner = GitWork::init(&at("inner.git"), &[]);
        inner.put("i", "inner");
        inner.commit("first");
        let part = GitWork::init(&at("part.git"), &[]);
        part.put("p", "part");
        submodule(&part, "inner", "deep/inner");
        part.commit("first");
        let other = GitWork::init(&at("sha256.git"), &["--object-format=sha256"]);
        other.put("s", "256");
        other.commit("first");
        other.git(&["tag", "-a", "-m", "one", "v1"]);
        let work = GitWork::init(&at("r.git"), &[]);
        fill(&work);
        let first = work.commit("first");
        work.git(&["tag", "-a", "-m", "one", "v1"]);
        work.git(&["tag", "-a", "-m", "of a tag", "v1-again", "v1"]);
        work.git(&["tag", "light"]);
        work.git(&["branch", "feature/x"]);
        work.git(&["tag", "both"]);
        work.put("a", "2");
        let second = work.commit("second");
        work.git(&["branch", "both"]);
        work.git(&["update-ref", "refs/pull/7/head", &first]);
        work.git(&["update-ref", "refs/pull/8/merge", &second]);
        let tag = work.git(&["rev-parse", "v1"]);
        Repositories {
            directory,
            work,
            first,
            second,
            tag,
        }
    }
}

fn fill(work: &GitWork) {
    work.put("a", "1");
    work.put(".hidden", "h");
    work.put("run.sh", "#!/bin/sh\n");
    work.put("dir/deep/f", "in deep");
    work.put("with space/[x]", "odd");
    work.put("crlf.txt", "one\ntwo\n");
    work.put("dir/lines.txt", "one\ntwo\n");
    work.put("dir/deep/who.id", "$Id$\n");
    work.put("who.id", "$Id$\n");
    work.put("left-out", "not in archives");
    work.put(
        ".gitattributes",
        "*.txt text eol=crlf\n*.id ident\nleft-out export-ignore\n",
    );
    work.git(&["add", "-A"]);
    work.git(&["update-index", "--chmod=+x", "run.sh"]);
    for (link, target) in [("link", "a"), ("way", "dir"), ("out", "../../../etc")] {
        std::os::unix::fs::symlink(target, work.path().join(link)).unwrap();
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(work.path().join("run.sh"), mode).unwrap();
    submodule(work, "part", "part");
}

/// Adds a repository of the same server as a submodule, by an address relative to its own.
fn submodule(work: &GitWork, name: &str, path: &str) {
    let address = format!("{GIT}/{name}.git");
    work.git(&["submodule", "--quiet", "add", &address, path]);
    let key = format!("submodule.{path}.url");
    let relative = format!("../{name}.git");
    work.git(&["config", "-f", ".gitmodules", &key, &relative]);
}

/// The web server; how often its changing file has changed.
#[derive(Clone)]
pub struct Web(Arc<AtomicUsize>);

impl Web {
    pub fn start() -> Web {
        let web = Web(Arc::default());
        let turn = web.clone();
        serve(WEB_PORT, move |request| {
            answer(request, turn.0.load(Ordering::SeqCst))
        });
        web
    }

    /// From now on the changing file has another content.
    pub fn change(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

const LONG_AGO: &str = "Sat, 03 Jan 2015 04:05:06 GMT";

fn answer(request: &Request, turn: usize) -> Answer {
    let named =
        |disposition: &str| Answer::new(200, "named\n").header("Content-Disposition", disposition);
    match request.path.as_str() {
        "/plain" | "/dir/plain.txt" | "/dir/" | "/" => Answer::new(200, "plain\n")
            .header("ETag", "\"plain\"")
            .header("Last-Modified", LONG_AGO),
        "/bare" | "/A b" | "/%zz" | "/a%2Fb" => Answer::new(200, "bare\n"),
        "/weak" => Answer::new(200, "weak\n").header("ETag", "W/\"weak\""),
        "/bad-time" => Answer::new(200, "x\n").header("Last-Modified", "yesterday"),
        "/named" => named("attachment; filename=\"cask of oak.txt\""),
        "/named-token" => named("attachment; filename=cask.txt"),
        "/named-both" => named("attachment; filename=plain; filename*=UTF-8''f%C3%A4sser"),
        "/named-path" => named("attachment; filename=\"a/b.txt\""),
        "/named-up" => named("attachment; filename=\"../../up.txt\""),
        "/named-dots" => named("attachment; filename=\"..\""),
        "/named-slash" => named("attachment; filename=\"a/\""),
        "/named-empty" => named("attachment; filename=\"\""),
        "/named-broken" => named("attachment; filename=\"x"),
        "/moved" => Answer::new(302, "").header("Location", "/dir/plain.txt"),
        "/moved-for-good" => Answer::new(301, "").header("Location", format!("{WEB}/named")),
        "/round" => Answer::new(302, "").header("Location", "/round"),
        "/changing" => changing(request, turn),
        "/dated" => dated(request, turn),
        "/echo" => {
            // Whoever accepts everything may say so or nothing.
            let seen = ["accept", "cookie", "x-other"].map(|name| request.header(name));
            let seen = seen.map(|value| value.trim_start_matches("*/*"));
            Answer::new(200, format!("{seen:?}\n"))
        }
        "/agent" => Answer::new(200, request.header("user-agent")),
        "/packed" if request.header("accept-encoding").contains("gzip") => {
            Answer::new(200, PACKED).header("Content-Encoding", "gzip")
        }
        "/packed" => Answer::new(200, "packed\n"),
        "/private" if request.header("authorization") == "Bearer oak" => {
            Answer::new(200, "private\n")
        }
        "/private" => Answer::new(401, "who?\n").header("WWW-Authenticate", "Bearer"),
        "/forbidden" => Answer::new(403, "no\n"),
        "/gone" => Answer::new(410, "gone\n"),
        "/broken" => Answer::new(500, "oh\n"),
        "/empty" => Answer::new(200, ""),
        "/none" => Answer::new(204, ""),
        _ => Answer::new(404, "not found\n"),
    }
}

/// "packed\n" as gzip has it, without compression.
const PACKED: &[u8] = &[
    0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1, 7, 0, 0xf8, 0xff, b'p', b'a', b'c', b'k', b'e', b'd',
    b'\n', 0x43, 0xe0, 0x41, 0x2f, 7, 0, 0, 0,
];

/// A file with an `ETag` that heeds conditions.
fn changing(request: &Request, turn: usize) -> Answer {
    let tag = format!("\"turn-{turn}\"");
    let known = request
        .header("if-none-match")
        .split(", ")
        .any(|seen| seen == tag);
    let answer = if known {
        Answer::new(304, "")
    } else {
        Answer::new(200, format!("turn {turn}\n"))
    };
    answer.header("ETag", tag)
}

/// A file with nothing but a time.
fn dated(request: &Request, turn: usize) -> Answer {
    let time = format!("Sat, 03 Jan 2015 04:05:{turn:02} GMT");
    let now = "Sun, 04 Jan 2015 00:00:00 GMT";
    let answer = if request.header("if-modified-since") == time {
        Answer::new(304, "")
    } else {
        Answer::new(200, format!("turn {turn}\n"))
    };
    answer.header("Last-Modified", time).header("Date", now)
}
