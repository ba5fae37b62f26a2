//! Commits of repositories as a source: attributes, and what the client gives to reach them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use diag::{Code, Error, Result, Secret};
use jiff::Timestamp;
use llb::{SourceOp, Vertex};
use progress::VertexLog;
use solver::{KeyPart, RunContext};
use source::git::{GitAccess, GitPin, GitRequest};

use super::context::{BuildContext, Event};
use super::parts::Parts;
use super::ssh::SshSocket;

/// Reads identifier and attributes of a source of git; those not known do not count.
pub fn git_request(source: &SourceOp) -> Result<GitRequest> {
    let (_, address) = source.identifier.split_once("://").unwrap_or_default();
    let (remote, fragment) = address.split_once('#').unwrap_or((address, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut request = GitRequest {
        remote: with_transport(remote),
        reference: reference.to_owned(),
        subdir: pathmatch::clean_path(&format!("/{subdir}"))
            .trim_start_matches('/')
            .to_owned(),
        ..GitRequest::default()
    };
    for (name, value) in &source.attrs {
        let flag = value == "true";
        match name.as_str() {
            "git.fullurl" => request.remote = with_transport(value),
            "git.keepgitdir" => request.keep_git_dir = flag,
            "git.skipsubmodules" => request.skip_submodules = flag,
            "git.fetchbycommit" => request.fetch_by_commit = flag,
            "git.checksum" => request.checksum.clone_from(value),
            "git.knownsshhosts" => request.known_hosts.clone_from(value),
            "git.mtime" => request.commit_times = value == "commit",
            "git.bundle" | "git.checkoutbundle" => {
                return Err(Error::unimplemented(
                    "git bundles are not supported by this server",
                ));
            }
            name if name.starts_with("git.sig.") => {
                return Err(Error::unimplemented(
                    "signatures of git commits are not verified by this server",
                ));
            }
            _ => {}
        }
    }
    Ok(request)
}

/// What tells the outcome of a request apart.
pub fn git_parts(request: &GitRequest, pin: &GitPin) -> Vec<KeyPart> {
    vec![
        KeyPart::new("op", "source"),
        KeyPart::new("git", pin.key(request)),
    ]
}

/// The rights of a client, as long as git uses them.
pub struct Access {
    /// How git is called.
    pub git: GitAccess,
    _socket: Option<SshSocket>,
}

impl Access {
    /// Asks the client for what the source names: secrets and an ssh agent.
    pub async fn of_client(
        parts: &Arc<Parts>,
        vertex: &Vertex,
        source: &SourceOp,
        context: &RunContext<BuildContext>,
    ) -> Result<Self> {
        let socket = ssh_socket(parts, source, context).await?;
        let (events, vertex) = (context.clone(), vertex.digest);
        Ok(Access {
            git: GitAccess {
                authorization: authorization(source, context).await?,
                ssh_auth_sock: socket.as_ref().map(|socket| socket.path().to_owned()),
                log: Some(Arc::new(move |stream, data| {
                    events.emit(Event::Log(VertexLog {
                        vertex,
                        stream,
                        timestamp: Timestamp::now(),
                        data,
                    }));
                })),
            },
            _socket: socket,
        })
    }
}

/// The first of the client's secrets for the remote: those for its host come first, and of each kind
/// the whole header before the token.
async fn authorization(
    source: &SourceOp,
    context: &RunContext<BuildContext>,
) -> Result<Option<Secret<String>>> {
    // Builds without a client, and clients without secrets, are nothing unusual.
    let Ok(session) = context.first()?.session().await else {
        return Ok(None);
    };
    for (name, token) in secret_names(source) {
        let Ok(Some(data)) = session.secret(&name).await else {
            continue;
        };
        let text = std::str::from_utf8(data.expose())
            .map_err(|_| Error::invalid(format!("secret {name} is no text")))?;
        let value = match token {
            false => text.to_owned(),
            true => format!("basic {}", BASE64.encode(format!("x-access-token:{text}"))),
        };
        if value.trim_end().contains(['\n', '\r']) {
            return Err(Error::invalid(format!("secret {name} is no header value")));
        }
        return Ok(Some(Secret::new(value)));
    }
    Ok(None)
}

/// Names of secrets, and whether each is a token.
fn secret_names(source: &SourceOp) -> Vec<(String, bool)> {
    let attr = |name: &str| source.attrs.get(name).filter(|value| !value.is_empty());
    let kinds = [
        (attr("git.authheadersecret"), false),
        (attr("git.authtokensecret"), true),
    ];
    let remote = attr("git.fullurl").map_or("", String::as_str);
    let host = remote.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let mut names = Vec::new();
    for suffix in [Some(host).filter(|host| !host.is_empty()), None] {
        for (name, token) in &kinds {
            match (name, suffix) {
                (Some(name), Some(host)) => names.push((format!("{name}.{host}"), *token)),
                (Some(name), None) if !names.iter().any(|(known, _)| known == *name) => {
                    names.push(((*name).clone(), *token));
                }
                _ => {}
            }
        }
    }
    names
}

async fn ssh_socket(
    parts: &Arc<Parts>,
    source: &SourceOp,
    context: &RunContext<BuildContext>,
) -> Result<Option<SshSocket>> {
    let id = match source.attrs.get("git.mountsshsock").map(String::as_str) {
        None | Some("") => return Ok(None),
        Some(id) => id,
    };
    let session = context.first()?.session().await?;
    if let Err(error) = session.check_ssh(id).await {
        let error = Error::from(error);
        let error = match error.code() {
            Code::Unimplemented => Error::new(
                Code::FailedPrecondition,
                format!("no SSH key {id:?} forwarded from the client"),
            ),
            _ => error,
        };
        return Err(error.hint(format!("give the build an agent with `--ssh {id}`")));
    }
    SshSocket::open(&parts.run_dir, session, id, (0, 0, 0o700)).map(Some)
}

/// An address with a transport that git may use; what has none is reached by HTTPS.
pub(super) fn with_transport(address: &str) -> String {
    let known = ["http://", "https://", "ssh://", "git://"]
        .iter()
        .any(|scheme| address.starts_with(scheme));
    if known || is_scp_like(address) {
        address.to_owned()
    } else {
        format!("https://{address}")
    }
}

/// `user@host:path`
fn is_scp_like(address: &str) -> bool {
    let Some((user, rest)) = address.split_once('@') else {
        return false;
    };
    let word = |text: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !text.is_empty() && !text.starts_with('-') && text.chars().all(fits)
    };
    rest.split_once(':')
        .is_some_and(|(host, path)| word(user) && word(host) && !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(identifier: &str, attrs: &[(&str, &str)]) -> SourceOp {
        SourceOp {
            identifier: identifier.into(),
            attrs: attrs
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }

    #[test]
    fn addresses_are_those_git_may_use() {
        let remote = |identifier: &str, full: Option<&str>| {
            let attrs: Vec<_> = full.map(|full| ("git.fullurl", full)).into_iter().collect();
            git_request(&source(identifier, &attrs)).unwrap().remote
        };
        assert_eq!(remote("git://h/a.git#x:y", None), "https://h/a.git");
        assert_eq!(remote("git://h/a", Some("git@h:a")), "git@h:a");
        assert_eq!(remote("git://h/a", Some("ssh://h/a")), "ssh://h/a");
        for foreign in [
            "file:///etc",
            "ext::sh",
            "/etc",
            "-x@h:a",
            "--upload-pack=x",
        ] {
            assert!(
                remote("git://h", Some(foreign)).starts_with("https://"),
                "{foreign}"
            );
        }
        let request = git_request(&source("git://h/a.git#v1:/x/../y", &[])).unwrap();
        assert_eq!(
            (request.reference.as_str(), request.subdir.as_str()),
            ("v1", "y")
        );
    }

    #[test]
    fn secrets_for_the_host_come_first() {
        let attrs = [
            ("git.authheadersecret", "H"),
            ("git.authtokensecret", "T"),
            ("git.fullurl", "https://u@h:1/a"),
        ];
        let names = secret_names(&source("git://h/a", &attrs));
        let names: Vec<_> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        let expected = [("H.h:1", false), ("T.h:1", true), ("H", false), ("T", true)];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_not_verified_is_refused() {
        for name in ["git.sig.pubkey", "git.bundle"] {
            let error = git_request(&source("git://h/a", &[(name, "x")])).unwrap_err();
            assert_eq!(error.code(), Code::Unimplemented);
        }
    }
}
