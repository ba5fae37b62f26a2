//! The server's half: sessions that clients have opened.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use proto::control::BytesMessage;
use proto::health::HealthCheckRequest;
use proto::health::health_client::HealthClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::Status;

use crate::connection::Connection;
use crate::error::SessionError;
use crate::headers::SessionHeaders;
use crate::in_place::OpenDir;
use crate::pipe::{MessageIo, SpooledIo};

/// How often a client is asked whether it is there.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How long it has for the answer; generous, because a slow link full of data delays it.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a new session is given for its first answer before it is taken as it is.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Unanswered questions in a row after which the session is closed.
const HEALTH_FAILURES_MAX: u32 = 2;

/// The messages of `Control.Session` toward the client.
pub type SessionStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

/// The sessions of a server.
#[derive(Clone, Default)]
pub struct SessionManager {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<String, Session>>,
    /// Counts sessions that were opened, for those who wait for one.
    opened: watch::Sender<u64>,
}

/// A client that can be asked for things.
#[derive(Clone)]
pub struct Session {
    headers: Arc<SessionHeaders>,
    /// Directories of the client that are read in place.
    dirs: Arc<BTreeMap<String, OpenDir>>,
    connection: Connection,
}

impl SessionManager {
    /// No sessions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a session opened by `Control.Session`: what the client sends, and back what is to be sent
    /// to it. `dirs` are those of the client's directories that are read in place. The session lasts
    /// until either stream ends.
    pub async fn serve<S>(
        &self,
        headers: SessionHeaders,
        dirs: BTreeMap<String, OpenDir>,
        inbound: S,
    ) -> Result<SessionStream, SessionError>
    where
        S: Stream<Item = Result<BytesMessage, Status>> + Send + 'static,
    {
        let (io, messages) = MessageIo::new(inbound);
        self.open(headers, dirs, io).await?;
        Ok(messages.map(Ok).boxed())
    }

    /// Takes a session on a connection of its own; returns when it has ended.
    pub async fn serve_io<T>(&self, headers: SessionHeaders, io: T) -> Result<(), SessionError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let session = self
            .open(headers, BTreeMap::new(), SpooledIo::new(io))
            .await?;
        session.closed().await;
        Ok(())
    }

    /// The session of that id, waited for if it is not there yet: a build may name it before the
    /// client has opened it. What stands before a `:` in the id is not part of it.
    pub async fn get(&self, id: &str, timeout: Duration) -> Result<Session, SessionError> {
        let id = id
            .split_once(':')
            .map_or(id, |(_, rest)| if rest.is_empty() { id } else { rest });
        let mut opened = self.inner.opened.subscribe();
        let found = async {
            loop {
                opened.borrow_and_update();
                if let Some(session) = self.inner.sessions.lock().get(id)
                    && !session.is_closed()
                {
                    return Some(session.clone());
                }
                opened.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(timeout, found).await {
            Ok(Some(session)) => Ok(session),
            _ => Err(SessionError::NotFound { id: id.to_owned() }),
        }
    }

    /// All sessions that are open now.
    pub fn list(&self) -> Vec<Session> {
        self.inner.sessions.lock().values().cloned().collect()
    }

    async fn open<T>(
        &self,
        headers: SessionHeaders,
        dirs: BTreeMap<String, OpenDir>,
        io: T,
    ) -> Result<Session, SessionError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connection = Connection::open(io)
            .await
            .map_err(|error| SessionError::Io(std::io::Error::other(error)))?;
        let session = Session {
            headers: Arc::new(headers),
            dirs: Arc::new(dirs),
            connection,
        };
        let (inner, watched) = (self.inner.clone(), session.clone());
        tokio::spawn(async move {
            settle(&watched).await;
            if watched.is_closed() {
                return;
            }
            let id = watched.id().to_owned();
            inner.sessions.lock().insert(id.clone(), watched.clone());
            inner.opened.send_modify(|count| *count += 1);
            tokio::select! {
                () = watched.closed() => {}
                () = watch_health(&watched) => watched.close(),
            }
            let mut sessions = inner.sessions.lock();
            // A client that came back under the same id keeps its new session.
            if sessions
                .get(&id)
                .is_some_and(|session| Arc::ptr_eq(&session.headers, &watched.headers))
            {
                sessions.remove(&id);
            }
        });
        Ok(session)
    }
}

/// Returns when the first call was answered, whatever the answer.
///
/// Until then the two ends are still exchanging how they will talk. Stock clients that close a session
/// in the midst of that, as they do after a build that takes no time, take the rest for a broken
/// connection and complain on their user's terminal. A session is found, and so a build can end, only
/// after this.
async fn settle(session: &Session) {
    let mut client = HealthClient::with_origin(session.connection.clone(), Connection::origin());
    tokio::select! {
        _ = tokio::time::timeout(SETTLE_TIMEOUT, client.check(HealthCheckRequest::default())) => {}
        () = session.closed() => {}
    }
}

/// Returns when the client no longer answers.
async fn watch_health(session: &Session) {
    if !session.supports("/grpc.health.v1.Health/Check") {
        return std::future::pending().await;
    }
    let mut failures = 0;
    while failures < HEALTH_FAILURES_MAX {
        tokio::time::sleep(HEALTH_INTERVAL).await;
        let mut client =
            HealthClient::with_origin(session.connection.clone(), Connection::origin());
        let check = client.check(HealthCheckRequest::default());
        match tokio::time::timeout(HEALTH_TIMEOUT, check).await {
            // An answer of any sort comes from somebody.
            Ok(_) => failures = 0,
            Err(_) => failures += 1,
        }
    }
    tracing::warn!(
        session = session.id(),
        "client does not answer: closing its session"
    );
}

impl Session {
    /// The session's id.
    pub fn id(&self) -> &str {
        &self.headers.id
    }

    /// The key that is the same for every session with the same context directory; may be empty.
    pub fn shared_key(&self) -> &str {
        &self.headers.shared_key
    }

    /// Whether the client serves a method, such as `/moby.filesync.v1.FileSync/DiffCopy`; the case of
    /// letters does not matter.
    pub fn supports(&self, method: &str) -> bool {
        self.headers
            .methods
            .iter()
            .any(|offered| offered.eq_ignore_ascii_case(method))
    }

    /// Whether the session has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.closed().is_cancelled()
    }

    /// Returns when the session has ended.
    pub async fn closed(&self) {
        self.connection.closed().cancelled().await;
    }

    /// Ends the session; calls under way fail.
    pub fn close(&self) {
        self.connection.closed().cancel();
    }

    /// The client's directory of that name, if it is read in place.
    pub(crate) fn dir_in_place(&self, name: &str) -> Option<&OpenDir> {
        self.dirs.get(name)
    }

    /// The connection on which the client is asked.
    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// An error of a call, which is that the session is closed if it is.
    pub(crate) fn failure(&self, status: Status) -> SessionError {
        if self.is_closed() {
            SessionError::Closed
        } else {
            status.into()
        }
    }

    /// Fails unless the client serves the method.
    pub(crate) fn require(&self, method: &str, otherwise: &str) -> Result<(), SessionError> {
        if self.is_closed() {
            Err(SessionError::Closed)
        } else if self.supports(method) {
            Ok(())
        } else {
            Err(SessionError::Unsupported(otherwise.to_owned()))
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.id())
    }
}

impl fmt::Debug for SessionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SessionManager({} sessions)",
            self.inner.sessions.lock().len()
        )
    }
}
