//! SSH agents, and other unix sockets, the server may connect to.
//!
//! An agent is not handed over whole: a step may list identities and have something signed, and may
//! not add, remove or lock keys. That also holds for files with private keys, for which this process is the
//! agent. A raw socket is passed through as it is.

mod keys;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use proto::sshforward::ssh_server::{Ssh, SshServer};
use proto::sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming};

use self::keys::Keyring;
use crate::error::SessionError;
use crate::headers::first;

pub use self::keys::KeyError;

/// The id used when none is named.
const DEFAULT_ID: &str = "default";
/// The largest agent message, as OpenSSH has it.
const AGENT_MESSAGE_BYTES_MAX: u32 = 256 << 10;
const CHUNK_BYTES: usize = 32 << 10;

// Message numbers of draft-ietf-sshm-ssh-agent.
const AGENT_FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// An agent, or a socket that is forwarded.
#[derive(Clone, Debug)]
pub struct SshAgent {
    id: String,
    target: Target,
}

/// Who answers.
#[derive(Clone, Debug)]
enum Target {
    /// The agent behind a socket.
    Agent(PathBuf),
    /// Whatever is behind a socket.
    Raw(PathBuf),
    /// We, with the keys of files.
    Keys(Arc<Keyring>),
}

impl SshAgent {
    /// The agent for an id (empty is `default`) from the paths its user gave: one socket, or files with
    /// private keys; none means `$SSH_AUTH_SOCK`. The files are read here.
    ///
    /// # Errors
    /// Paths that are not there, files without a key that can be used, and what cannot be had together.
    pub fn new(id: &str, paths: &[PathBuf], raw: bool) -> Result<Self, SessionError> {
        let unsupported = |text: &str| Err(SessionError::Unsupported(text.to_owned()));
        if raw && paths.len() != 1 {
            return unsupported("raw mode must supply exactly one path");
        }
        let given = paths.iter().filter(|path| !path.as_os_str().is_empty());
        let mut given: Vec<PathBuf> = given.cloned().collect();
        if given.is_empty() {
            let named = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
            given.extend(named.map(PathBuf::from));
        }
        if given.is_empty() {
            return unsupported("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set");
        }
        let (mut socket, mut keys) = (None, Keyring::default());
        for path in given {
            if socket.is_some() {
                return unsupported("only single socket allowed");
            }
            if is_socket(&path)? {
                socket = Some(path);
            } else if raw {
                return unsupported("raw mode only supported with socket paths");
            } else {
                keys.add(&path)?;
            }
        }
        let target = match socket {
            Some(_) if !keys.is_empty() => {
                return unsupported("invalid combination of keys and sockets");
            }
            Some(socket) if raw => Target::Raw(socket),
            Some(socket) => Target::Agent(socket),
            None => Target::Keys(Arc::new(keys)),
        };
        Ok(SshAgent {
            id: if id.is_empty() { DEFAULT_ID } else { id }.to_owned(),
            target,
        })
    }
}

fn is_socket(path: &Path) -> Result<bool, SessionError> {
    use std::os::unix::fs::FileTypeExt;
    let found = std::fs::metadata(path).map_err(|error| SessionError::file("stat", path, error))?;
    Ok(found.file_type().is_socket())
}

pub struct SshService {
    agents: BTreeMap<String, SshAgent>,
}

impl SshService {
    pub const METHODS: [&'static str; 2] = [
        "/moby.sshforward.v1.SSH/CheckAgent",
        "/moby.sshforward.v1.SSH/ForwardAgent",
    ];

    pub fn server(agents: Vec<SshAgent>) -> SshServer<Self> {
        let agents = agents
            .into_iter()
            .map(|agent| (agent.id.clone(), agent))
            .collect();
        SshServer::new(SshService { agents })
    }

    fn agent(&self, id: &str) -> Result<&SshAgent, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.agents
            .get(id)
            .ok_or_else(|| Status::unknown(format!("unset ssh forward key {id}")))
    }
}

#[async_trait::async_trait]
impl Ssh for SshService {
    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let agent = self.agent(&first(request.metadata(), "buildkit.ssh.id"))?;
        let target = agent.target.clone();
        let inbound = request.into_inner().map(|message| match message {
            Ok(message) => Ok(bytes::Bytes::from(message.data)),
            Err(status) => Err(io::Error::other(status)),
        });
        let inbound = tokio_util::io::StreamReader::new(inbound);
        let (ours, theirs) = tokio::io::duplex(CHUNK_BYTES);
        let forward = match target {
            Target::Keys(keys) => answer_with(keys, inbound, ours).boxed(),
            Target::Agent(path) => {
                let (from, to) = connect(&path).await?.into_split();
                filter_agent(inbound, to, from, ours).boxed()
            }
            Target::Raw(path) => {
                let (from, to) = connect(&path).await?.into_split();
                pass(inbound, to, from, ours).boxed()
            }
        };
        let forward = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(forward));
        let answers = tokio_util::io::ReaderStream::with_capacity(theirs, CHUNK_BYTES);
        let answers = answers.map(move |data| {
            // The forwarding lasts as long as its answers are read.
            let _ = &forward;
            data.map(|data| BytesMessage { data: data.into() })
                .map_err(Status::from)
        });
        Ok(Response::new(answers.boxed()))
    }
}

async fn connect(path: &Path) -> Result<UnixStream, Status> {
    let socket = UnixStream::connect(path).await;
    socket.map_err(|error| {
        Status::unknown(format!("failed to connect to {}: {error}", path.display()))
    })
}

/// Copies both directions; each ends by itself.
async fn pass(
    mut inbound: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut from: impl AsyncRead + Unpin,
    mut answers: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let forth = async {
        tokio::io::copy(&mut inbound, &mut to).await?;
        to.shutdown().await
    };
    let back = async {
        tokio::io::copy(&mut from, &mut answers).await?;
        answers.shutdown().await
    };
    tokio::try_join!(forth, back).map(drop)
}

/// Passes on what may be asked of an agent and refuses the rest itself, one request after the other.
async fn filter_agent(
    mut inbound: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut from: impl AsyncRead + Unpin,
    mut answers: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(request) = read_message(&mut inbound).await? {
        let answer = match request.first() {
            Some(&REQUEST_IDENTITIES | &SIGN_REQUEST) => {
                write_message(&mut to, &request).await?;
                let answer = read_message(&mut from).await?;
                answer.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?
            }
            _ => vec![AGENT_FAILURE],
        };
        write_message(&mut answers, &answer).await?;
    }
    Ok(())
}

/// Answers requests from keys of our own, one after the other.
async fn answer_with(
    keys: Arc<Keyring>,
    mut inbound: impl AsyncRead + Unpin,
    mut answers: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(request) = read_message(&mut inbound).await? {
        let keys = keys.clone();
        // A signature of a large RSA key takes a while.
        let answer = tokio::task::spawn_blocking(move || keys.answer(&request));
        write_message(&mut answers, &answer.await?).await?;
    }
    Ok(())
}

async fn read_message(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let len = match reader.read_u32().await {
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if len > AGENT_MESSAGE_BYTES_MAX {
        return Err(io::Error::other("agent message too large"));
    }
    let mut message = vec![0; len as usize];
    reader.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    writer.write_u32(message.len() as u32).await?;
    writer.write_all(message).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn agents_list_and_sign_but_do_not_change() {
        let (mut client, inbound) = tokio::io::duplex(1024);
        let (agent, socket) = tokio::io::duplex(1024);
        let (answers, mut out) = tokio::io::duplex(1024);
        let (from, to) = tokio::io::split(socket);
        let filter = tokio::spawn(filter_agent(inbound, to, from, answers));
        let (mut agent_in, mut agent_out) = tokio::io::split(agent);
        write_message(&mut client, &[REQUEST_IDENTITIES])
            .await
            .unwrap();
        assert_eq!(
            read_message(&mut agent_in).await.unwrap().unwrap(),
            [REQUEST_IDENTITIES]
        );
        write_message(&mut agent_out, &[12, 0]).await.unwrap();
        assert_eq!(read_message(&mut out).await.unwrap().unwrap(), [12, 0]);
        // 19: remove all identities.
        write_message(&mut client, &[19]).await.unwrap();
        assert_eq!(
            read_message(&mut out).await.unwrap().unwrap(),
            [AGENT_FAILURE]
        );
        drop(client);
        filter.await.unwrap().unwrap();
        assert!(read_message(&mut agent_in).await.unwrap().is_none());
    }

    #[test]
    fn sockets_and_keys_are_not_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success(), "ssh-keygen");
        let socket = dir.path().join("sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let nowhere = dir.path().join("nowhere");
        let stat = format!("stat {}: no such file or directory", nowhere.display());
        let mixed = "invalid combination of keys and sockets";
        let cases: [(&[&PathBuf], bool, &str); 6] = [
            (&[&key], true, "raw mode only supported with socket paths"),
            (&[&key, &key], true, "raw mode must supply exactly one path"),
            (&[&key, &socket], false, mixed),
            (&[&socket, &key], false, "only single socket allowed"),
            (&[&socket, &socket], false, "only single socket allowed"),
            (&[&key, &nowhere], false, &stat),
        ];
        for (paths, raw, expected) in cases {
            let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
            let error = SshAgent::new("", &paths, raw).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let agent = SshAgent::new("", &[key.clone(), key], false).unwrap();
        assert_eq!(agent.id, "default");
        assert!(matches!(agent.target, Target::Keys(_)), "{agent:?}");
    }
}
