//! What is answered to a host: whether its key is accepted, and that it may open nothing here.

use std::sync::Arc;

use bytes::Bytes;
use diag::{Code, Error};
use parking_lot::Mutex;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{Channel, SendError};

use super::address::Address;
use super::known_hosts::{HostKeys, Verdict, full_name};
use crate::git::command::GitLog;

/// How much of what a host says is kept.
const SAID_BYTES_MAX: usize = 64 << 10;

/// Our side of a connection.
pub(super) struct Client {
    /// Where the connection goes.
    pub(super) address: Address,
    /// The keys that are accepted; without any, every key is.
    pub(super) keys: Option<HostKeys>,
    pub(super) heard: Heard,
}

/// What a host said besides its output, and why the connection ended.
#[derive(Clone)]
pub(super) struct Heard {
    log: Option<GitLog>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    said: Vec<u8>,
    end: Option<String>,
}

/// An error of a connection, as its user meets it.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Error);

impl Heard {
    pub(super) fn new(log: Option<GitLog>) -> Heard {
        Heard {
            log,
            kept: Arc::default(),
        }
    }

    /// Takes what the host's program writes to its standard error; the build's user sees it.
    pub(super) fn say(&self, piece: &[u8]) {
        self.show(piece);
        let said = &mut self.kept.lock().said;
        let room = SAID_BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// What it wrote so far.
    pub(super) fn said(&self) -> String {
        let kept = self.kept.lock();
        String::from_utf8_lossy(&kept.said).trim().replace('\r', "")
    }

    /// Why the connection ended, if it did.
    pub(super) fn end(&self) -> Option<String> {
        self.kept.lock().end.clone()
    }

    fn show(&self, piece: &[u8]) {
        if let Some(log) = &self.log {
            log(2, Bytes::copy_from_slice(piece));
        }
    }
}

impl From<russh::Error> for Failure {
    fn from(error: russh::Error) -> Self {
        use russh::Error as E;
        let text = match error {
            E::HUP | E::Disconnect | E::SendError | E::RecvError => {
                "Connection closed by the host".to_owned()
            }
            E::KeepaliveTimeout => "the host does not answer any more".to_owned(),
            E::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                "Connection closed by the host".to_owned()
            }
            error => error.to_string(),
        };
        Failure(Error::new(Code::Unavailable, text))
    }
}

impl From<SendError> for Failure {
    fn from(_: SendError) -> Self {
        Failure::from(russh::Error::SendError)
    }
}

impl Client {
    fn check(&self, key: &PublicKeyOrCertificate) -> Result<(), Error> {
        let Some(keys) = &self.keys else {
            return Ok(());
        };
        let key = key.public_key();
        let blob = key.to_bytes().map_err(|error| {
            let text = format!("the host's key is not understood: {error}");
            Error::new(Code::Unavailable, text)
        })?;
        let (host, port) = (&self.address.host, self.address.port);
        let name = full_name(host, port);
        let kind = key.algorithm();
        let shown = format!("{} {}", kind.as_str(), key.fingerprint(HashAlg::Sha256));
        let (text, hint) = match keys.verdict(host, port, &blob) {
            Verdict::Known => return Ok(()),
            Verdict::Changed => (
                format!("{name} has another key than is known of it ({shown})"),
                "somebody may be answering in the host's place; if it does have a new key, give the build that one",
            ),
            Verdict::Revoked => (
                format!("the key of {name} is marked as revoked ({shown})"),
                "the host needs a new key",
            ),
            Verdict::Unknown => (
                format!("no such key is known of {name} ({shown})"),
                "add the host's key, as `ssh-keyscan` tells it, to the known hosts that the build gives",
            ),
        };
        let text = format!("Host key verification failed: {text}");
        Err(Error::new(Code::FailedPrecondition, text).hint(hint))
    }
}

/// Requests of a host, of which none is granted, each with the types of its details. A request whose handle
/// is dropped is refused; the trait's own methods would accept it.
macro_rules! refuse {
    ($($request:ident($($detail:ty),*);)*) => {$(
        async fn $request(
            &mut self,
            _: Channel<Msg>,
            $(_: $detail,)*
            _: ChannelOpenHandle,
            _: &mut Session,
        ) -> Result<(), Failure> {
            Ok(())
        }
    )*};
}

impl Handler for Client {
    type Error = Failure;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Failure> {
        self.check(key).map_err(Failure)?;
        Ok(true)
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), Failure> {
        self.heard.show(banner.as_bytes());
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Failure>) -> Result<(), Failure> {
        let (end, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => (info.message, Ok(())),
            DisconnectReason::Error(error) => (error.0.to_string(), Err(error)),
        };
        self.heard.kept.lock().end = Some(end);
        result
    }

    refuse! {
        server_channel_open_forwarded_tcpip(&str, u32, &str, u32);
        server_channel_open_forwarded_streamlocal(&str);
        server_channel_open_agent_forward();
        server_channel_open_session();
        server_channel_open_direct_tcpip(&str, u32, &str, u32);
        server_channel_open_direct_streamlocal(&str);
        server_channel_open_x11(&str, u32);
    }
}
