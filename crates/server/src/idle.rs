//! Ending a server that nobody uses: for one that a client started and that the next client starts
//! again.
//!
//! A client that comes in the moment of the end must not be lost. So the socket file is hidden
//! first: whoever looks for it then finds that there is no server, and whoever found it before is
//! still let in, and keeps the server alive.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::listen::Listener;

/// How long clients that found the socket before it was hidden have to be let in.
const GRACE: Duration = Duration::from_millis(100);

/// Counts connections.
#[derive(Clone, Default)]
pub(crate) struct Clients(watch::Sender<Count>);

#[derive(Clone, Copy, Default)]
struct Count {
    now: usize,
    /// All that ever came.
    ever: u64,
}

/// A client is there until this is dropped.
pub(crate) struct Presence(Clients);

impl Clients {
    /// Counts one more.
    pub(crate) fn enter(&self) -> Presence {
        self.0.send_modify(|count| {
            count.now += 1;
            count.ever += 1;
        });
        Presence(self.clone())
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.now -= 1);
    }
}

/// Fires `stop` when no client was connected to any of the listeners for that long.
pub(crate) fn end_when_idle(
    listeners: &mut [Listener],
    timeout: Duration,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let clients = Clients::default();
    let files: Vec<_> = listeners
        .iter_mut()
        .filter_map(|listener| listener.count(clients.clone()))
        .map(|file| std::sync::Arc::downgrade(&file))
        .collect();
    async move {
        loop {
            let ever = quiet(&clients, timeout).await;
            let files: Vec<_> = files.iter().filter_map(std::sync::Weak::upgrade).collect();
            files.iter().for_each(|file| file.hide());
            tokio::time::sleep(GRACE).await;
            if clients.0.borrow().ever == ever {
                tracing::info!("no client for {timeout:?}: stopping server");
                stop.cancel();
                return;
            }
            files.iter().for_each(|file| file.show());
        }
    }
}

/// Returns when nobody was there for that long, with the number of those who ever came.
async fn quiet(clients: &Clients, timeout: Duration) -> u64 {
    let mut watch = clients.0.subscribe();
    loop {
        let seen = *watch.borrow_and_update();
        let waited = async {
            if seen.now > 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(timeout).await;
        };
        tokio::select! {
            () = waited => return seen.ever,
            // Never an error: `clients` keeps the sending end.
            _ = watch.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_quiet_only_when_the_last_client_has_left() {
        let clients = Clients::default();
        let client = clients.enter();
        let mut waiting = std::pin::pin!(quiet(&clients, Duration::ZERO));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(clients.enter());
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(client);
        assert_eq!(waiting.await, 2);
    }

    #[tokio::test]
    async fn a_hidden_socket_comes_back_for_a_client_that_knew_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let mut listeners = [Listener::unix(&path).unwrap()];
        let stop = CancellationToken::new();
        let ending = end_when_idle(&mut listeners, Duration::from_millis(1), stop.clone());
        let [listener] = listeners;
        let clients = listener.clients();
        let ending = tokio::spawn(ending);
        while path.exists() {
            tokio::task::yield_now().await;
        }
        let client = clients.enter();
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        assert!(!stop.is_cancelled());
        drop(client);
        ending.await.unwrap();
        assert!(stop.is_cancelled() && !path.exists());
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
