//! A repository that is reached by ssh: what the `ssh` program does for git, in the server itself.
//!
//! As stock's server calls that program: by nobody's configuration and without questions, with the keys
//! of the client's agent and no others; hosts are compared with the keys that the request knows of them,
//! and trusted if it knows of none at all.
//!
//! **Invariants**: dropping a connection, or the future that makes it, closes it; every wait for the
//! host has an end; a host may open nothing here.

mod address;
mod agent;
mod client;
mod known_hosts;
mod login;
mod wire;

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use diag::{Code, Context, Error, Result};
use futures::Stream;
use russh::client::{Config, Handle, Msg};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Preferred, SshId, cipher, kex};
use tokio::net::TcpStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::transport::{VERSION, connect_tcp};
use crate::git::command::GitAccess;
use client::{Client, Failure, Heard};
use known_hosts::HostKeys;
use login::Login;
use wire::Wire;

pub(super) use address::Address;

/// Name and version of this side; RFC 4253 has the form.
const NAME: &str = concat!("SSH-2.0-cooperage_", env!("CARGO_PKG_VERSION"));

/// After how much silence a host is asked whether it is there; the third time is the last.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long a host that has closed its output may go on saying why.
const LAST_WORDS_MAX: Duration = Duration::from_secs(10);

/// How long the parts of making a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Names and keys of both sides.
    handshake: Duration,
    /// Logging in; a person may have to agree to each use of a key.
    login: Duration,
    /// Anything that is asked for then.
    request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshake: Duration::from_secs(60),
            login: Duration::from_secs(300),
            request: Duration::from_secs(300),
        }
    }
}

/// What the host's program writes.
type Output = StreamReader<Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>, Bytes>;

/// A connection on which a repository is served.
pub(super) struct Ssh {
    output: Output,
    input: ChannelWriteHalf<Msg>,
    heard: Heard,
    limits: Limits,
    _handle: Handle<Client>,
    _end: DropGuard,
}

impl Ssh {
    /// Connects, logs in and has the repository served.
    ///
    /// # Errors
    /// Hosts that cannot be reached, are not the one that is known, or let nobody in.
    pub(super) async fn connect(
        address: &Address,
        known_hosts: &str,
        access: &GitAccess,
        limits: Limits,
    ) -> Result<Ssh> {
        let (host, port) = (&address.host, address.port);
        let reached = connect_tcp(host, port).await;
        let socket = reached.map_err(|cause| {
            let text = format!("ssh: connect to host {host} port {port}: {cause}");
            Error::new(Code::Unavailable, text).hint(
                "the build server makes the connection, from its own network: the host must be reachable from there",
            )
        })?;
        let opened = Ssh::open(socket, address, known_hosts, access, limits).await;
        opened.with_context(|| format!("ssh: {host} port {port}"))
    }

    async fn open(
        socket: TcpStream,
        address: &Address,
        known_hosts: &str,
        access: &GitAccess,
        limits: Limits,
    ) -> Result<Ssh> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let keys = (!known_hosts.is_empty()).then(|| HostKeys::parse(known_hosts));
        let known = keys
            .as_ref()
            .map(|keys| keys.key_types(&address.host, address.port));
        let heard = Heard::new(access.log.clone());
        let client = Client {
            address: address.clone(),
            keys,
            heard: heard.clone(),
        };
        // Small requests are what git sends; nothing is gained by waiting for more.
        let _ = socket.set_nodelay(true);
        let config = Arc::new(configuration(&known.unwrap_or_default()));
        let greeting = russh::client::connect_stream(config, Wire::new(socket, end), client);
        let greeted = within(limits.handshake, "the key exchange", greeting).await?;
        let mut handle = greeted.map_err(|failure| failure.0)?;
        let login = Login {
            handle: &mut handle,
            address,
            heard: &heard,
        };
        within(limits.login, "logging in", login.run(access)).await??;
        let serving = serve(&handle, address);
        let served = within(limits.request, "the request for the repository", serving).await?;
        let (reading, input) = served.map_err(|error| match heard.end() {
            Some(end) => Error::new(Code::Unavailable, end),
            None => Failure::from(error).0,
        })?;
        Ok(Ssh {
            output: output(reading, heard.clone()),
            input,
            heard,
            limits,
            _handle: handle,
            _end: guard,
        })
    }

    /// What the host's program writes.
    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Gives something to the host's program.
    pub(super) async fn send(&mut self, data: Vec<u8>) -> Result<()> {
        let sent = self.input.data_bytes(data);
        let sent = within(self.limits.request, "sending", sent).await?;
        sent.map_err(|error| match self.heard.end() {
            Some(end) => Error::new(Code::Unavailable, end),
            None => Failure::from(error).0,
        })
    }

    /// Adds to an error what the host says to it.
    pub(super) async fn explain(&mut self, error: Error) -> Error {
        let rest = async { tokio::io::copy(&mut self.output, &mut tokio::io::sink()).await };
        let _ = tokio::time::timeout(LAST_WORDS_MAX, rest).await;
        match self.heard.said().as_str() {
            "" => error,
            said => Error::new(
                Code::FailedPrecondition,
                format!("Could not read from remote repository: {said}"),
            )
            .hint("make sure that the repository exists and that the key may read it"),
        }
    }
}

/// Whether an address is one of ssh.
pub(in crate::git) fn is_ssh(address: &str) -> bool {
    Address::parse(address).is_some()
}

/// Has the program started that serves the repository.
async fn serve(
    handle: &Handle<Client>,
    address: &Address,
) -> Result<(ChannelReadHalf, ChannelWriteHalf<Msg>), russh::Error> {
    let channel = handle.channel_open_session().await?;
    let (reading, writing) = channel.split();
    // Hosts that do not take it speak an older version.
    writing.set_env(false, "GIT_PROTOCOL", VERSION).await?;
    writing.exec(true, address.command()).await?;
    Ok((reading, writing))
}

fn output(reading: ChannelReadHalf, heard: Heard) -> Output {
    let pieces = futures::stream::unfold((reading, heard), |(mut reading, heard)| async move {
        loop {
            match reading.wait().await {
                Some(ChannelMsg::Data { data }) => return Some((Ok(data), (reading, heard))),
                Some(ChannelMsg::ExtendedData { data, .. }) => heard.say(&data),
                Some(ChannelMsg::Failure) => {
                    heard.say(b"the host runs no git-upload-pack\n");
                    return None;
                }
                Some(_) => {}
                None => {
                    let end = heard.end()?;
                    return Some((Err(io::Error::other(end)), (reading, heard)));
                }
            }
        }
    });
    StreamReader::new(Box::pin(pieces))
}

/// What this side can, with the types of keys by which the host is known before the others.
fn configuration(known: &[String]) -> Config {
    let is_known = |algorithm: &Algorithm| {
        let name = match algorithm {
            Algorithm::Rsa { .. } => "ssh-rsa",
            other => other.as_str(),
        };
        known.iter().any(|known| known == name)
    };
    let mut keys = host_key_algorithms();
    keys.sort_by_key(|algorithm| !is_known(algorithm));
    Config {
        client_id: SshId::Standard(Cow::Borrowed(NAME)),
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        preferred: Preferred {
            kex: Cow::Borrowed(KEY_EXCHANGES),
            key: keys.into(),
            cipher: Cow::Borrowed(CIPHERS),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}

/// None with SHA-1, as in OpenSSH.
fn host_key_algorithms() -> Vec<Algorithm> {
    let curve = |curve| Algorithm::Ecdsa { curve };
    let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
    vec![
        Algorithm::Ed25519,
        curve(EcdsaCurve::NistP256),
        curve(EcdsaCurve::NistP384),
        curve(EcdsaCurve::NistP521),
        rsa(HashAlg::Sha512),
        rsa(HashAlg::Sha256),
    ]
}

/// None with SHA-1, as in OpenSSH; the last two are marks and no ways of exchanging keys.
const KEY_EXCHANGES: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// Waits no longer than that.
async fn within<F: Future>(limit: Duration, what: &str, work: F) -> Result<F::Output> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| Error::new(Code::Unavailable, format!("{what} timed out")))
}

#[cfg(test)]
mod tests;
