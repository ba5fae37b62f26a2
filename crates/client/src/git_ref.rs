//! Telling git repositories and URLs from directories.

/// Whether it is fetched by the server: an HTTP(S) URL or a git repository.
pub fn is_remote(context: &str) -> bool {
    is_http(context) || is_git(context)
}

/// Whether a context is a directory of this machine, going by how it is written.
pub fn is_local_context(context: &str) -> bool {
    !context.is_empty() && context != "-" && !is_remote(context)
}

/// Whether it starts with `http://` or `https://`.
pub fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// Whether it names a git repository: `git://`, `ssh://`, `user@host:path`, `github.com/…`, or a
/// URL whose path ends in `.git`.
pub fn is_git(text: &str) -> bool {
    if text.starts_with("./") || text.starts_with("../") {
        return false;
    }
    if text.starts_with("github.com/") {
        return true;
    }
    match scheme(text) {
        Some("http" | "https") => url_path(text).ends_with(".git"),
        Some("git" | "ssh") => true,
        Some(_) => false,
        None => is_scp_style(text),
    }
}

/// Whether it is a git repository reached over ssh.
pub fn is_git_ssh(text: &str) -> bool {
    match scheme(text) {
        Some(scheme) => scheme == "ssh",
        None => is_scp_style(text),
    }
}

/// Whether a git URL has a query that the frontend must understand.
pub fn has_query(text: &str) -> bool {
    let before_fragment = text.split('#').next().unwrap_or_default();
    is_git(text)
        && before_fragment
            .split_once('?')
            .is_some_and(|(_, q)| !q.is_empty())
}

/// The scheme of a URL, in lower case only if it was written so.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    (!scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(scheme)
}

fn url_path(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let rest = &rest[..end];
    rest.find('/').map_or("", |at| &rest[at..])
}

/// `user@host:path`, with the letters git's own shorthand may have.
fn is_scp_style(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else {
        return false;
    };
    let Some((host, _)) = rest.split_once(':') else {
        return false;
    };
    let word = |text: &str, extra: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
    };
    word(user, b"-_") && word(host, b"-.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_told_apart() {
        for (text, git, remote) in [
            ("https://example.com/repo.git#main:dir", true, true),
            ("https://example.com/x.tar.gz", false, true),
            ("git@github.com:moby/buildkit.git", true, true),
            ("github.com/moby/buildkit", true, true),
            ("git://host/x", true, true),
            ("./hack", false, false),
            ("hack/dockerfiles", false, false),
            ("docker-image://alpine", false, false),
            ("HTTPS://example.com/repo", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_git(text), is_remote(text)), (git, remote), "{text}");
        }
        assert!(is_git_ssh("ssh://git@host/x") && !is_git_ssh("https://host/x.git"));
        assert!(has_query("https://h/x.git?ref=a#b") && !has_query("https://h/x.git#b?c"));
    }
}
