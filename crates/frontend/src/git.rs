//! Addresses of git repositories as builds write them: `https://host/repo.git#ref:dir`,
//! `git@host:repo`, `…?tag=v1&subdir=x`.

use std::collections::BTreeMap;

use diag::{Error, Result};
use dockerfile::quote;
use llb::SourceOp;
use pathmatch::clean_path;
use percent_encoding::percent_decode_str;

use crate::failure::fail;

/// What an address says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    /// What git is given.
    pub(crate) remote: String,
    /// The host, as part of the source's name.
    host: String,
    /// The path on the host, likewise.
    path: String,
    /// Whether git is reached by ssh.
    ssh: bool,
    /// A commit, tag or branch; empty for the default branch.
    pub(crate) reference: String,
    /// The commit that the reference must be.
    pub(crate) checksum: String,
    /// A directory in the repository.
    pub(crate) subdir: String,
    /// Whether the text could also be a local path, such as `github.com/a/b`.
    pub(crate) may_be_local: bool,
    /// `keep-git-dir`
    pub(crate) keep_git_dir: Option<bool>,
    /// `submodules`
    pub(crate) submodules: Option<bool>,
    /// `mtime`: `checkout` or `commit`; empty if not given.
    pub(crate) mtime: String,
    /// `fetch-by-commit`
    pub(crate) fetch_by_commit: bool,
}

/// The repository that an address names without reference and directory: `https://host/repo.git#main:dir` gives `https://host/repo.git`. `None` if it is no address
/// of a repository.
pub fn git_remote(address: &str) -> Option<String> {
    let found = GitRef::parse(address).ok().flatten()?;
    Some(found.remote)
}

impl GitRef {
    /// Reads an address. `None`: it is no address of a repository. An error: it is one, and wrong.
    pub(crate) fn parse(text: &str) -> Result<Option<GitRef>> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        let short = text.starts_with("github.com/");
        let address = if short {
            format!("https://{text}")
        } else {
            text.to_owned()
        };
        let Some(url) = GitUrl::parse(&address) else {
            return Ok(None);
        };
        let is_http = matches!(url.scheme.as_str(), "http" | "https");
        if is_http && !short && !url.path.ends_with(".git") {
            return Ok(None);
        }
        let (reference, subdir) = match url.fragment.split_once(':') {
            Some((reference, subdir)) => {
                let subdir = clean_path(&format!("/{subdir}"));
                (reference, subdir.trim_start_matches('/').to_owned())
            }
            None => (url.fragment.as_str(), String::new()),
        };
        let mut found = GitRef {
            remote: match url.remote.split_once("://") {
                Some((_, rest)) if short => rest.to_owned(),
                _ => url.remote,
            },
            ssh: url.scheme == "ssh",
            host: url.host,
            path: url.path,
            reference: reference.to_owned(),
            subdir,
            may_be_local: short,
            ..GitRef::default()
        };
        found.read_query(&url.query)?;
        Ok(Some(found))
    }

    fn read_query(&mut self, query: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let (mut tag, mut branch) = (None, None);
        for (key, values) in query {
            let flag = matches!(
                key.as_str(),
                "submodules" | "keep-git-dir" | "fetch-by-commit"
            );
            let value = match values.as_slice() {
                [value] if !value.is_empty() => Some(value.as_str()),
                [_] | [] if flag => None,
                [_] | [] => return Err(fail(format!("query {} has no value", quote::quoted(key)))),
                _ => {
                    return Err(fail(format!(
                        "query {} has multiple values",
                        quote::quoted(key)
                    )));
                }
            };
            let boolean = || match value {
                None => Ok(true),
                Some(text) => quote::parse_bool(text)
                    .ok_or_else(|| fail(format!("invalid {key} value: {}", quote::quoted(text)))),
            };
            let text = value.unwrap_or_default();
            match key.as_str() {
                "ref" => set_once(&mut self.reference, text, "ref")?,
                "tag" => tag = value,
                "branch" => branch = value,
                "subdir" => set_once(&mut self.subdir, text, "subdir")?,
                "checksum" | "commit" => self.checksum = text.to_owned(),
                "keep-git-dir" => self.keep_git_dir = Some(boolean()?),
                "submodules" => self.submodules = Some(boolean()?),
                "fetch-by-commit" => self.fetch_by_commit = boolean()?,
                "mtime" if matches!(text, "checkout" | "commit") => self.mtime = text.to_owned(),
                "mtime" => {
                    return Err(fail(format!(
                        "invalid mtime value: {} (must be \"checkout\" or \"commit\")",
                        quote::quoted(text)
                    )));
                }
                _ => return Err(fail(format!("unexpected query {}", quote::quoted(key)))),
            }
        }
        if let Some(tag) = tag {
            set_once(&mut self.reference, &in_namespace("refs/tags/", tag), "ref")?;
        }
        if let Some(branch) = branch {
            if tag.is_some() {
                return Err(fail("branch conflicts with tag"));
            }
            set_once(
                &mut self.reference,
                &in_namespace("refs/heads/", branch),
                "ref",
            )?;
        }
        Ok(())
    }

    /// The source of the repository's files.
    pub(crate) fn source(&self, keep_git_dir: bool) -> SourceOp {
        let mut identifier = format!(
            "git://{}{}",
            self.host,
            clean_path(&format!("/{}", self.path))
        );
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&self.reference);
            if !self.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&self.subdir);
            }
        }
        let full = if self.may_be_local {
            format!("https://{}", self.remote)
        } else {
            self.remote.clone()
        };
        let mut attrs = BTreeMap::from([
            ("git.fullurl".to_owned(), full),
            (
                "git.authtokensecret".to_owned(),
                "GIT_AUTH_TOKEN".to_owned(),
            ),
            (
                "git.authheadersecret".to_owned(),
                "GIT_AUTH_HEADER".to_owned(),
            ),
        ]);
        let mut set = |key: &str, value: &str| {
            attrs.insert(key.to_owned(), value.to_owned());
        };
        if keep_git_dir {
            set("git.keepgitdir", "true");
        }
        if self.ssh {
            set("git.mountsshsock", "default");
        }
        if !self.checksum.is_empty() {
            set("git.checksum", &self.checksum);
        }
        if self.submodules == Some(false) {
            set("git.skipsubmodules", "true");
        }
        if !self.mtime.is_empty() {
            set("git.mtime", &self.mtime);
        }
        if self.fetch_by_commit {
            set("git.fetchbycommit", "true");
        }
        SourceOp { identifier, attrs }
    }
}

fn set_once(target: &mut String, value: &str, what: &str) -> Result<()> {
    if !target.is_empty() && target != value {
        return Err(fail(format!(
            "{what} conflicts: {} vs {}",
            quote::quoted(target),
            quote::quoted(value)
        )));
    }
    value.clone_into(target);
    Ok(())
}

fn in_namespace(namespace: &str, name: &str) -> String {
    if name.starts_with(namespace) {
        name.to_owned()
    } else {
        format!("{namespace}{name}")
    }
}

/// An address in its parts.
struct GitUrl {
    scheme: String,
    host: String,
    path: String,
    query: BTreeMap<String, Vec<String>>,
    fragment: String,
    remote: String,
}

impl GitUrl {
    fn parse(text: &str) -> Option<GitUrl> {
        match text.split_once("://") {
            Some((scheme, rest))
                if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                GitUrl::parse_url(&scheme.to_ascii_lowercase(), rest)
            }
            _ => GitUrl::parse_scp(text),
        }
    }

    fn parse_url(scheme: &str, rest: &str) -> Option<GitUrl> {
        if !matches!(scheme, "http" | "https" | "ssh" | "git") {
            return None;
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let invalid = |text: &str| text.chars().any(|c| c.is_whitespace() || c.is_control());
        if invalid(authority) || invalid(path) {
            return None;
        }
        Some(GitUrl {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            path: percent_decode_str(path).decode_utf8_lossy().into_owned(),
            query: parse_query(query),
            fragment: percent_decode_str(fragment)
                .decode_utf8_lossy()
                .into_owned(),
            remote: format!("{scheme}://{authority}{path}"),
        })
    }

    /// `user@host:path?query#fragment`
    fn parse_scp(text: &str) -> Option<GitUrl> {
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let word = |text: &str, also: &[u8]| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || also.contains(&b))
        };
        if !word(user, b"-_") || !word(host, b"-.") {
            return None;
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        Some(GitUrl {
            scheme: "ssh".to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: parse_query(query),
            fragment: fragment.to_owned(),
            remote: format!("{user}@{host}:{path}"),
        })
    }
}

fn parse_query(query: &str) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned()
        };
        out.entry(decode(key)).or_default().push(decode(value));
    }
    out
}

/// True for an address of a web server that is not one of a repository.
pub(crate) fn is_http_source(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git_source(text)
}

/// True for an address of a repository that is well formed.
pub(crate) fn is_git_source(text: &str) -> bool {
    matches!(GitRef::parse(text), Ok(Some(_)))
}

/// The file name that an address from the web gets.
pub(crate) fn http_file_name(address: &str) -> String {
    let path = address.split_once("://").map_or(address, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = path.find('/').map_or("", |at| &path[at..]);
    let name = percent_decode_str(
        path.trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default(),
    )
    .decode_utf8_lossy();
    if name.is_empty() {
        "__unnamed__".to_owned()
    } else {
        name.into_owned()
    }
}

/// A source of the web.
pub(crate) fn http_source(address: &str, file_name: &str, checksum: Option<&str>) -> SourceOp {
    let mut attrs = BTreeMap::from([("http.filename".to_owned(), file_name.to_owned())]);
    if let Some(checksum) = checksum {
        attrs.insert("http.checksum".to_owned(), checksum.to_owned());
    }
    SourceOp {
        identifier: address.to_owned(),
        attrs,
    }
}

/// Reads a digest as image tools do; messages are theirs.
pub(crate) fn parse_checksum(text: &str) -> Result<String> {
    let wrong = |what: &str| -> Error { fail(what) };
    let Some((algorithm, digits)) = text.split_once(':') else {
        return Err(wrong("invalid checksum digest format"));
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(wrong("unsupported digest algorithm")),
    };
    if digits.len() != length {
        return Err(wrong("invalid checksum digest length"));
    }
    if !digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(wrong("invalid checksum digest format"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_repositories() {
        for (text, remote, reference, subdir, identifier) in [
            (
                "https://h/a/b.git",
                "https://h/a/b.git",
                "",
                "",
                "git://h/a/b.git",
            ),
            (
                "http://h:1/b.git#v1:src",
                "http://h:1/b.git",
                "v1",
                "src",
                "git://h:1/b.git#v1:src",
            ),
            (
                "https://h/b.git#:/x/../y",
                "https://h/b.git",
                "",
                "y",
                "git://h/b.git#:y",
            ),
            (
                "git@h:a/b.git#main",
                "git@h:a/b.git",
                "main",
                "",
                "git://h/a/b.git#main",
            ),
            (
                "https://h/b.git?tag=v1",
                "https://h/b.git",
                "refs/tags/v1",
                "",
                "git://h/b.git#refs/tags/v1",
            ),
            (
                "github.com/a/b",
                "github.com/a/b",
                "",
                "",
                "git://github.com/a/b",
            ),
            ("ssh://u@h/b#x", "ssh://u@h/b", "x", "", "git://h/b#x"),
        ] {
            let found = GitRef::parse(text).unwrap().unwrap();
            assert_eq!(
                (
                    found.remote.as_str(),
                    found.reference.as_str(),
                    found.subdir.as_str()
                ),
                (remote, reference, subdir),
                "{text}"
            );
            assert_eq!(found.source(false).identifier, identifier);
        }
        for text in [
            "./a.git",
            "a/b.git",
            "https://h/file.txt",
            "file.txt",
            "ftp://h/a.git",
            "a b@c:d",
        ] {
            assert_eq!(GitRef::parse(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn queries_are_checked() {
        for (query, message) in [
            ("tag=", "query \"tag\" has no value"),
            ("ref=a&ref=b", "query \"ref\" has multiple values"),
            ("x=1", "unexpected query \"x\""),
            ("tag=a&branch=b", "branch conflicts with tag"),
            ("keep-git-dir=x", "invalid keep-git-dir value: \"x\""),
            (
                "mtime=x",
                "invalid mtime value: \"x\" (must be \"checkout\" or \"commit\")",
            ),
        ] {
            let text = format!("https://h/b.git?{query}");
            assert_eq!(GitRef::parse(&text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn files_from_the_web_are_named_by_their_address() {
        assert_eq!(http_file_name("http://h/a/deep.bin?q=1"), "deep.bin");
        assert_eq!(http_file_name("http://h/a%20b"), "a b");
        assert_eq!(http_file_name("http://h/"), "__unnamed__");
        assert_eq!(http_file_name("http://h"), "__unnamed__");
        assert!(is_http_source("https://h/a") && !is_http_source("https://h/a.git"));
    }
}
