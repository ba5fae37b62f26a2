//! Bringing the server to run, whatever is there now, and ending it.
//!
//! ```text
//!  listens, made from the same ─────────────────────────► wait for health
//!  listens, made from another spec, builds run on it ───► wait for health
//!  listens, made from another spec ─► end it ─┐
//!  has the state and does not listen ─► wait ─┤
//!  nothing, or what a killed one left ────────┴─► start ─► wait for health
//! ```

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

use super::EmbeddedDriver;
use super::lock::{RunLock, state_is_free};
use super::places::{Places, failed};
use super::process::{ServerProcess, spawn};
use super::spec::{ServerSpec, write_files};
use crate::active::active_builds;
use crate::connection::connect_once;
use crate::health::dial_and_check;
use crate::progress_steps::VertexProgress;
use crate::{DriverError, Loss};

/// How long a server may take to answer after it was started, or to give up its state.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a server that starts or ends is looked at.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time one question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the log that are shown when the server does not come up.
const LOG_TAIL_BYTES: u64 = 4096;
/// Bytes past which a log is set aside when a server starts.
const LOG_BYTES_MAX: u64 = 8 << 20;

impl EmbeddedDriver {
    pub(super) async fn boot(&self, steps: &VertexProgress) -> Result<(), DriverError> {
        let spec = self.spec()?;
        let _lock = RunLock::take(&self.places.lock).await?;
        if let Some(server) = self.listening_or_gone().await? {
            let same = server.spec() == Some(spec.digest.to_string());
            if same || self.is_busy().await {
                return self.wait_until_healthy(None).await;
            }
            let name = "replacing the server, which is another version or has other options";
            steps.step(name, server.end()).await?;
            self.wait_until_free().await?;
        }
        let name = format!("starting the server on {}", self.places.socket.display());
        steps.step(&name, self.start(spec)).await
    }

    /// The server that listens, once none that does not has the state.
    async fn listening_or_gone(&self) -> Result<Option<ServerProcess>, DriverError> {
        let start = Instant::now();
        loop {
            if let Some(server) = self.server().await? {
                return Ok(Some(server));
            }
            if state_is_free(&self.places.state) {
                return Ok(None);
            }
            self.check_patience(start)?;
            // It is about to listen, or about to end.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn wait_until_free(&self) -> Result<(), DriverError> {
        let start = Instant::now();
        while !state_is_free(&self.places.state) {
            self.check_patience(start)?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn check_patience(&self, start: Instant) -> Result<(), DriverError> {
        if start.elapsed() < READY_TIMEOUT {
            return Ok(());
        }
        let state = self.places.state.display();
        Err(DriverError::Boot {
            reason: format!("another server has the state in {state} and does not give it up"),
            hint: Some(format!(
                "`fuser {state}/buildkitd.lock` names its process; it may be another builder's"
            )),
        })
    }

    /// Whether builds run on the server that listens; one that cannot be asked has none.
    async fn is_busy(&self) -> bool {
        let ask = async {
            let connection = connect_once(self.connect_boxed().await?).await?;
            active_builds(connection.channel.clone()).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, ask).await {
            Ok(Ok(Some(builds))) => !builds.is_empty(),
            _ => false,
        }
    }

    async fn connect_boxed(&self) -> Result<crate::BoxedIo, DriverError> {
        let stream = self.connect().await?.ok_or(DriverError::NotRunning)?;
        Ok(engine_api::boxed(stream))
    }

    async fn start(&self, spec: ServerSpec) -> Result<(), DriverError> {
        let places = self.places.clone();
        let started = tokio::task::spawn_blocking(move || prepare_and_spawn(&places, &spec));
        let (child, log_start) = started
            .await
            .map_err(|error| DriverError::Connection(error.to_string()))??;
        self.wait_until_healthy(Some((child, log_start))).await
    }

    /// Waits until the server answers; one that we started is watched.
    async fn wait_until_healthy(
        &self,
        mut started: Option<(Child, u64)>,
    ) -> Result<(), DriverError> {
        let start = Instant::now();
        loop {
            let reason = match self.ask().await {
                Ok(()) => break,
                Err(reason) => reason,
            };
            let ended = match &mut started {
                Some((child, log_start)) => child.try_wait().ok().flatten().map(|status| {
                    (
                        format!("the build server ended at once ({status})"),
                        *log_start,
                    )
                }),
                None => None,
            };
            if let Some((reason, log_start)) = ended {
                return Err(self.boot_failure(reason, log_start));
            }
            if start.elapsed() > READY_TIMEOUT {
                let log_start = started.as_ref().map_or(0, |(_, log_start)| *log_start);
                let reason = format!("the build server does not answer: {reason}");
                return Err(self.boot_failure(reason, log_start));
            }
            tokio::time::sleep(PAUSE).await;
        }
        if let Some((mut child, _)) = started {
            // It outlives us as a rule; when it does not, it must not stay as a zombie of ours.
            std::thread::spawn(move || child.wait());
        }
        Ok(())
    }

    async fn ask(&self) -> Result<(), String> {
        dial_and_check(self.connect_boxed(), ANSWER_TIMEOUT).await
    }

    fn boot_failure(&self, reason: String, log_start: u64) -> DriverError {
        let tail = log_tail(&self.places.log, log_start);
        let reason = match tail.is_empty() {
            true => reason,
            false => format!("{reason}:\n{tail}"),
        };
        DriverError::Boot {
            reason,
            hint: Some(format!("its log is {}", self.places.log.display())),
        }
    }

    /// Ends the server, if there is one, because it was `stopped` or `removed`. The lock must be
    /// held.
    pub(super) async fn end_server(&self, how: &str) -> Result<(), DriverError> {
        let Some(server) = self.listening_or_gone().await? else {
            return Ok(());
        };
        // Its clients look for the mark to learn that it is not to come back.
        let mark = std::fs::write(&self.places.stopped, how);
        mark.map_err(|source| failed("writing", &self.places.stopped, source))?;
        // Nobody else gets on.
        let _ = std::fs::remove_file(&self.places.socket);
        server.end().await?;
        self.wait_until_free().await
    }

    /// What the log says of the end of a server.
    pub(super) fn loss(&self, cause: String, on_purpose: bool) -> Loss {
        if on_purpose {
            return Loss { cause, on_purpose };
        }
        let tail = log_tail(&self.places.log, 0);
        let last = tail.lines().rev().take(5).collect::<Vec<_>>();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Loss {
            cause: format!(
                "{cause}; the end of its log {}:\n{}",
                self.places.log.display(),
                last.join("\n")
            ),
            on_purpose,
        }
    }
}

/// Gives the process and where its log begins.
fn prepare_and_spawn(places: &Places, spec: &ServerSpec) -> Result<(Child, u64), DriverError> {
    places.make()?;
    write_files(&places.config, &spec.files)?;
    let _ = std::fs::remove_file(&places.stopped);
    let log = open_log(places)?;
    let log_start = log.metadata().map_or(0, |found| found.len());
    let child = spawn(
        &spec.executable,
        &spec.arguments,
        spec.environment.clone(),
        &log,
    );
    let child =
        child.map_err(|source| failed("starting the server with", &spec.executable, source))?;
    Ok((child, log_start))
}

/// The log to append to; one that has grown large is set aside, and only the last such is kept.
fn open_log(places: &Places) -> Result<File, DriverError> {
    let log = &places.log;
    if std::fs::metadata(log).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        std::fs::rename(log, log.with_extension("log.old"))
            .map_err(|source| failed("setting aside", log, source))?;
    }
    File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .map_err(|source| failed("opening", log, source))
}

/// The end of a log, at most from that position on.
fn log_tail(path: &std::path::Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            from.max(end.saturating_sub(LOG_TAIL_BYTES)),
        ))?;
        let mut data = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut data)?;
        Ok(data)
    };
    let data = read().unwrap_or_default();
    String::from_utf8_lossy(&data).trim_end().to_owned()
}
