//! Files of a copy on several threads.
//!
//! The one thread that walks the tree makes directories, links and everything whose order matters;
//! plain files are given to others. A directory gets its metadata when the last file in it is done,
//! by whoever did it: see [`Dir`].
//!
//! Invariant: when [`Pool::scope`] returns, nothing is being copied any more.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use parking_lot::Mutex;
use rustix::fs::Stat;
use tokio_util::sync::CancellationToken;

use crate::OpError;
use crate::copy_file::{Place, copy_metadata, copy_plain_file};
use crate::tree_copy::CopyOptions;

/// Most threads: more only wait for the same disk.
const THREADS_MAX: usize = 8;
/// Files copied before it is worth to start any.
const ALONE: usize = 64;
/// Files that wait to be copied; each keeps its directory open.
const WAITING_MAX: usize = 256;

/// What all threads of a copy share.
pub(crate) struct Shared<'o> {
    pub(crate) options: &'o CopyOptions,
    cancel: &'o CancellationToken,
    failed: AtomicBool,
    error: Mutex<Option<OpError>>,
}

impl<'o> Shared<'o> {
    pub(crate) fn new(options: &'o CopyOptions, cancel: &'o CancellationToken) -> Self {
        Shared {
            options,
            cancel,
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        }
    }

    /// Whether to go on.
    pub(crate) fn check(&self) -> Result<(), OpError> {
        if self.cancel.is_cancelled() || self.failed.load(Ordering::Relaxed) {
            return Err(OpError::Canceled);
        }
        Ok(())
    }

    /// The first error of a file, if any.
    pub(crate) fn take_error(&self) -> Option<OpError> {
        self.error.lock().take()
    }

    fn note(&self, outcome: Result<(), OpError>) {
        if let Err(error) = outcome {
            self.failed.store(true, Ordering::Relaxed);
            self.error.lock().get_or_insert(error);
        }
    }
}

/// A directory that is being filled. Files on their way into it and directories below keep it; when
/// the last of them lets go, it is given its metadata.
pub(crate) struct Dir<'s> {
    pub(crate) fd: OwnedFd,
    /// `None` leaves it as it is.
    pub(crate) finish: Option<Finish<'s>>,
}

/// How a directory is finished.
pub(crate) struct Finish<'s> {
    pub(crate) shared: &'s Shared<'s>,
    pub(crate) source_parent: Arc<OwnedFd>,
    pub(crate) name: OsString,
    pub(crate) stat: Stat,
    pub(crate) parent: Arc<Dir<'s>>,
    pub(crate) display: String,
}

impl Drop for Dir<'_> {
    fn drop(&mut self) {
        let Some(finish) = &self.finish else { return };
        if finish.shared.check().is_err() {
            return;
        }
        let place = Place {
            source: &finish.source_parent,
            source_name: &finish.name,
            stat: &finish.stat,
            target: &finish.parent.fd,
            name: &finish.name,
            display: &finish.display,
        };
        let done = copy_metadata(finish.shared.options, &place);
        finish.shared.note(done);
    }
}

/// A plain file to be copied under its own name.
pub(crate) struct Job<'s> {
    pub(crate) source: Arc<OwnedFd>,
    pub(crate) target: Arc<Dir<'s>>,
    pub(crate) name: OsString,
    pub(crate) stat: Stat,
    pub(crate) display: String,
}

impl Job<'_> {
    fn run(&self, options: &CopyOptions) -> Result<(), OpError> {
        let place = Place {
            source: &self.source,
            source_name: &self.name,
            stat: &self.stat,
            target: &self.target.fd,
            name: &self.name,
            display: &self.display,
        };
        copy_plain_file(options, &place)
    }
}

/// The threads of one copy.
pub(crate) struct Pool<'t, 's: 't> {
    scope: &'t Scope<'t, 's>,
    shared: &'s Shared<'s>,
    alone: usize,
    sender: Option<SyncSender<Job<'s>>>,
}

impl<'t, 's: 't> Pool<'t, 's> {
    /// Threads that end with this scope.
    pub(crate) fn new(scope: &'t Scope<'t, 's>, shared: &'s Shared<'s>) -> Self {
        Pool {
            scope,
            shared,
            alone: 0,
            sender: None,
        }
    }

    /// Copies a file, now or soon.
    pub(crate) fn copy(&mut self, job: Job<'s>) -> Result<(), OpError> {
        self.shared.check()?;
        if self.sender.is_none() && self.alone < ALONE {
            self.alone += 1;
            return job.run(self.shared.options);
        }
        if self.sender.is_none() {
            self.sender = self.start();
        }
        let Some(sender) = &self.sender else {
            return job.run(self.shared.options);
        };
        // Nobody stops listening before the sender is gone.
        sender.send(job).map_err(|_| OpError::Canceled)
    }

    /// `None` where there is one processor only, or no thread to be had.
    fn start(&mut self) -> Option<SyncSender<Job<'s>>> {
        let count = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
        if count == 1 {
            self.alone = 0;
            return None;
        }
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut started = false;
        for _ in 0..count {
            let (receiver, shared) = (receiver.clone(), self.shared);
            let thread = std::thread::Builder::new().name("copy".to_owned());
            let work = move || work(&receiver, shared);
            started |= thread.spawn_scoped(self.scope, work).is_ok();
        }
        started.then_some(sender)
    }
}

fn work<'s>(receiver: &Mutex<Receiver<Job<'s>>>, shared: &'s Shared<'s>) {
    loop {
        let job = receiver.lock().recv();
        let Ok(job) = job else { return };
        if shared.check().is_ok() {
            shared.note(job.run(shared.options));
        }
    }
}
