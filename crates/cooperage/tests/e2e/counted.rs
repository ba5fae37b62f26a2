//! A socket before an Engine's that counts what passes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The socket; it listens as long as the test process lives.
pub struct CountedSocket {
    path: PathBuf,
    /// Bytes to the Engine.
    sent: Arc<AtomicU64>,
    /// Bytes from it.
    received: Arc<AtomicU64>,
}

/// Bytes that passed.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// To the Engine.
    pub sent: u64,
    /// From it.
    pub received: u64,
}

impl CountedSocket {
    /// One in that directory before the Engine at `host` (`unix://…`).
    pub fn before(host: &str, directory: &Path) -> CountedSocket {
        let engine = PathBuf::from(host.strip_prefix("unix://").unwrap());
        let path = directory.join("counted.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (sent.clone(), received.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&engine) else {
                    continue;
                };
                carry(&client, &server, &counters.0);
                carry(&server, &client, &counters.1);
            }
        });
        CountedSocket {
            path,
            sent,
            received,
        }
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// What passes while `work` runs.
    pub fn during(&self, work: impl FnOnce()) -> Passed {
        let now = || {
            let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
            (count(&self.sent), count(&self.received))
        };
        let before = now();
        work();
        let after = now();
        Passed {
            sent: after.0 - before.0,
            received: after.1 - before.1,
        }
    }
}

/// Copies one direction in a thread of its own; its end is handed on.
fn carry(from: &UnixStream, to: &UnixStream, counter: &Arc<AtomicU64>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let counter = counter.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            counter.fetch_add(count as u64, Ordering::SeqCst);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    });
}
