//! Addresses of repositories that are reached by ssh: `ssh://user@host:port/path` and `user@host:path`.
//!
//! Format: <https://git-scm.com/docs/git-clone#_git_urls>.

use std::fmt;

use diag::{Error, Result};
use percent_encoding::percent_decode_str;

/// Who is logged in as when the address does not say it: what stock's server, which is root, gives `ssh`.
const DEFAULT_USER: &str = "root";

/// The port of ssh.
pub(super) const DEFAULT_PORT: u16 = 22;

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::git::builtin) struct Address {
    /// Who is logged in as.
    pub(super) user: String,
    /// A name, or an IP address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As the host's shell is told it, before quoting.
    pub(super) path: String,
}

impl Address {
    /// Reads an address; `None` if it is none of ssh.
    ///
    /// # Errors
    /// Addresses without a host or path, and those that a program could take for an option.
    pub(in crate::git::builtin) fn parse(address: &str) -> Option<Result<Address>> {
        let (authority, path) = match address.split_once("://") {
            Some(("ssh" | "git+ssh" | "ssh+git", rest)) => {
                let at = rest.find('/').unwrap_or(rest.len());
                let (authority, path) = rest.split_at(at);
                let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
                // `/~user/…` is meant relative to the user's directory.
                let path = match path.strip_prefix("/~") {
                    Some(_) => path[1..].to_owned(),
                    None => path,
                };
                (
                    percent_decode_str(authority)
                        .decode_utf8_lossy()
                        .into_owned(),
                    path,
                )
            }
            Some(_) => return None,
            None => {
                let (authority, path) = split_scp(address)?;
                (authority.to_owned(), path.to_owned())
            }
        };
        Some(Address::of_parts(&authority, path))
    }

    fn of_parts(authority: &str, path: String) -> Result<Address> {
        // `[user@host:port]:path` has all of it in brackets.
        let whole = authority
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let authority = whole.unwrap_or(authority);
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (user.split(':').next().unwrap_or_default(), place),
            None => ("", authority),
        };
        let (host, port) = match place
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
        {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            // More than one is an address of IPv6.
            None if place.matches(':').count() == 1 => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
            None => (place, None),
        };
        if host.is_empty() || host.starts_with('-') || host.contains(char::is_whitespace) {
            return Err(Error::invalid(format!("strange hostname '{host}' blocked")));
        }
        if path.starts_with('-') {
            return Err(Error::invalid(format!("strange pathname '{path}' blocked")));
        }
        if path.is_empty() || path.contains('\0') {
            return Err(Error::invalid(format!("no path of a repository on {host}")));
        }
        let port = match port {
            None | Some("") => DEFAULT_PORT,
            Some(text) => text
                .parse()
                .map_err(|_| Error::invalid(format!("{text} is no port of {host}")))?,
        };
        Ok(Address {
            user: if user.is_empty() { DEFAULT_USER } else { user }.to_owned(),
            host: host.to_ascii_lowercase(),
            port,
            path,
        })
    }

    /// The command that serves the repository.
    pub(super) fn command(&self) -> String {
        let quoted = self.path.replace('\'', "'\\''").replace('!', "'\\!'");
        format!("git-upload-pack '{quoted}'")
    }
}

impl fmt::Display for Address {
    /// User and host, as `ssh` names them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)
    }
}

/// Authority and path of `user@host:path`; brackets may hold further colons.
fn split_scp(address: &str) -> Option<(&str, &str)> {
    let colon = address.find(':')?;
    let at = match address[..colon].contains('[') {
        true => address.find("]:")? + 1,
        false => colon,
    };
    let (authority, path) = (&address[..at], &address[at + 1..]);
    (!authority.contains('/')).then_some((authority, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(address: &str) -> Option<(String, String, u16, String)> {
        let address = Address::parse(address)?.unwrap();
        Some((address.user, address.host, address.port, address.path))
    }

    fn is(address: &str, user: &str, host: &str, port: u16, path: &str) {
        let expected = (user.to_owned(), host.to_owned(), port, path.to_owned());
        assert_eq!(parts(address), Some(expected), "{address}");
    }

    #[test]
    fn both_forms_are_read() {
        is("git@h:a/b.git", "git", "h", 22, "a/b.git");
        is("git@H:/a", "git", "h", 22, "/a");
        is("h:a", "root", "h", 22, "a");
        is("[git@h:2222]:a", "git", "h", 2222, "a");
        is("git@[::1]:a", "git", "::1", 22, "a");
        is("[::1]:a", "root", "::1", 22, "a");
        is("ssh://git@h/a", "git", "h", 22, "/a");
        is("ssh://h:2222/a%20b", "root", "h", 2222, "/a b");
        is("ssh://git:secret@h/a", "git", "h", 22, "/a");
        is("ssh://git@[fe80::1]:2222/a", "git", "fe80::1", 2222, "/a");
        is("ssh://h/~me/a", "root", "h", 22, "~me/a");
        is("git+ssh://h/a", "root", "h", 22, "/a");
    }

    #[test]
    fn other_addresses_are_not_of_ssh() {
        for other in ["https://h/a:b", "/a:b", "./a:b", "a/b", "git://h/a"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn what_could_be_an_option_is_refused() {
        for bad in [
            "ssh://-oProxyCommand=x/y",
            "git@h:-x",
            "-x:a",
            "ssh://h",
            "git@h:",
            "ssh://h:x/a",
        ] {
            assert!(Address::parse(bad).unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        let address = Address::parse("git@h:it's; rm!").unwrap().unwrap();
        assert_eq!(address.command(), r"git-upload-pack 'it'\''s; rm'\!''");
    }
}
