//! Where an Engine is: the text of `DOCKER_HOST`, and how to speak TLS to it.

use std::path::PathBuf;

use crate::{EngineError, TlsFiles};

/// An Engine's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEndpoint {
    /// As the user knows it, such as `unix:///var/run/docker.sock`; used in messages.
    pub host: String,
    /// How to reach it.
    pub transport: Transport,
    /// Certificates, when TLS is spoken.
    pub tls: Option<TlsFiles>,
}

/// A way to reach an Engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A socket file.
    Unix(PathBuf),
    /// `host:port`.
    Tcp {
        /// Name or address.
        host: String,
        /// Port, 2375 without and 2376 with TLS when none is given.
        port: u16,
    },
    /// The `docker` program of another machine.
    Ssh {
        /// `user@host` or `host`.
        destination: String,
        /// Port, if not the usual one.
        port: Option<u16>,
        /// Path of the socket there, if not the usual one.
        socket: Option<String>,
    },
}

impl EngineEndpoint {
    /// Reads a Docker host: `unix://PATH`, `tcp://HOST[:PORT]`, `http(s)://HOST[:PORT]`,
    /// `ssh://[USER@]HOST[:PORT][/SOCKET]`, or `HOST:PORT` alone.
    pub fn parse(host: &str, tls: Option<TlsFiles>) -> Result<Self, EngineError> {
        let bad = || EngineError::Endpoint(host.to_owned());
        let text = host.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
        let mut tls = tls;
        let transport = match scheme {
            "unix" if rest.is_empty() => Transport::Unix("/var/run/docker.sock".into()),
            "unix" => Transport::Unix(rest.into()),
            "tcp" | "http" | "https" => {
                if scheme == "https" && tls.is_none() {
                    tls = Some(TlsFiles::default());
                }
                let default = if tls.is_some() { 2376 } else { 2375 };
                let rest = rest.split('/').next().unwrap_or_default();
                let (name, port) = host_port(rest, default).ok_or_else(bad)?;
                Transport::Tcp { host: name, port }
            }
            "ssh" => parse_ssh(rest).ok_or_else(bad)?,
            _ => return Err(bad()),
        };
        Ok(EngineEndpoint {
            host: text.to_owned(),
            transport,
            tls,
        })
    }
}

/// Splits `host[:port]`, with IPv6 addresses in brackets.
pub(crate) fn host_port(text: &str, default: u16) -> Option<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        let port = match after.strip_prefix(':') {
            None | Some("") => default,
            Some(port) => port.parse().ok()?,
        };
        return (!host.is_empty()).then(|| (host.to_owned(), port));
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, default),
        Some((host, "")) => (host, default),
        Some((host, port)) => (host, port.parse().ok()?),
    };
    let host = if host.is_empty() { "localhost" } else { host };
    (!text.is_empty()).then(|| (host.to_owned(), port))
}

fn parse_ssh(rest: &str) -> Option<Transport> {
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, String::new()),
    };
    // A password in the URL cannot be given to ssh; a name that starts with a dash would be read
    // by ssh as an option.
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if user.is_some_and(|user| user.contains(':') || user.starts_with('-') || user.is_empty()) {
        return None;
    }
    let (host, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    if host.is_empty() || host.starts_with('-') {
        return None;
    }
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    Some(Transport::Ssh {
        destination: match user {
            Some(user) => format!("{user}@{host}"),
            None => host.to_owned(),
        },
        port,
        socket: (path.len() > 1).then_some(path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(text: &str) -> Transport {
        EngineEndpoint::parse(text, None).unwrap().transport
    }

    #[test]
    fn docker_hosts_are_read_in_all_their_forms() {
        assert_eq!(transport("unix:///a/b"), Transport::Unix("/a/b".into()));
        assert_eq!(
            transport("tcp://h:1"),
            Transport::Tcp {
                host: "h".into(),
                port: 1
            }
        );
        assert_eq!(
            transport("tcp://[::1]"),
            Transport::Tcp {
                host: "::1".into(),
                port: 2375
            }
        );
        let tls = EngineEndpoint::parse("tcp://h", Some(TlsFiles::default())).unwrap();
        assert_eq!(
            tls.transport,
            Transport::Tcp {
                host: "h".into(),
                port: 2376
            }
        );
        assert_eq!(
            transport("ssh://me@box:2222/run/d.sock"),
            Transport::Ssh {
                destination: "me@box".into(),
                port: Some(2222),
                socket: Some("/run/d.sock".into())
            }
        );
    }

    #[test]
    fn what_is_no_docker_host_is_refused() {
        for bad in [
            "",
            "ftp://x",
            "tcp://h:port",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://a:pw@b",
        ] {
            assert!(EngineEndpoint::parse(bad, None).is_err(), "{bad}");
        }
    }
}
