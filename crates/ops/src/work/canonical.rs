//! One name for each thing a source can mean, for those who judge sources by their names.

use llb::SourceOp;
use percent_encoding::percent_decode_str;

use super::git::with_transport;

/// The identifier of what a source means, where it can be written in several ways: that of a
/// repository is `git://HOST/PATH[#REFERENCE[:DIRECTORY]]`, without user and transport, and an
/// attribute with its address counts before what the identifier says. `None` for other sources, which
/// are known by their identifiers.
pub fn canonical_identifier(source: &SourceOp) -> Option<String> {
    let ("git", address) = source.identifier.split_once("://")? else {
        return None;
    };
    let (remote, fragment) = address.split_once('#').unwrap_or((address, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let remote = source
        .attrs
        .get("git.fullurl")
        .map_or(remote, String::as_str);
    let subdir = pathmatch::clean_path(&format!("/{subdir}"));
    let fragment = match (reference, subdir.trim_start_matches('/')) {
        ("", "") => String::new(),
        (reference, "") => format!("#{reference}"),
        (reference, subdir) => format!("#{reference}:{subdir}"),
    };
    Some(format!(
        "git://{}{fragment}",
        place(&with_transport(remote))
    ))
}

/// Host and path of a repository's address.
fn place(remote: &str) -> String {
    let end = remote.find(['?', '#']).unwrap_or(remote.len());
    let remote = &remote[..end];
    let (authority, path) = match remote.split_once("://") {
        Some((_, rest)) => {
            let at = rest.find('/').unwrap_or(rest.len());
            let path = percent_decode_str(&rest[at..]).decode_utf8_lossy();
            (&rest[..at], path.into_owned())
        }
        // `user@host:path`
        None => {
            let (authority, path) = remote.split_once(':').unwrap_or((remote, ""));
            (authority, path.to_owned())
        }
    };
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{host}{}", pathmatch::clean_path(&format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_one_name() {
        let name = |identifier: &str, address: Option<&str>| {
            let address = address.map(|address| ("git.fullurl".to_owned(), address.to_owned()));
            canonical_identifier(&SourceOp {
                identifier: identifier.to_owned(),
                attrs: address.into_iter().collect(),
            })
        };
        for (identifier, address, wanted) in [
            ("git://x.test/a/b.git", None, "git://x.test/a/b.git"),
            (
                "git://x.test/a/b.git#v1:dir/..//sub",
                Some("https://x.test/a/b.git"),
                "git://x.test/a/b.git#v1:sub",
            ),
            ("git://git@x.test:a/b#main", None, "git://x.test/a/b#main"),
            (
                "git://allowed.test/a",
                Some("https://user:word@other.test:8443/a//%62.git?x=y#z"),
                "git://other.test:8443/a/b.git",
            ),
            (
                "git://x.test/a#:sub",
                Some("git@x.test:a.git"),
                "git://x.test/a.git#:sub",
            ),
        ] {
            assert_eq!(name(identifier, address).as_deref(), Some(wanted));
        }
        assert_eq!(name("docker-image://busybox", None), None);
        assert_eq!(name("git", None), None);
    }
}
