//! Saying why a server that was just there is gone, and whether somebody wanted it gone.

use std::time::Duration;

use super::EmbeddedDriver;
use crate::Loss;

/// A connection breaks a moment before the process that had it is gone.
const ATTEMPTS: u32 = 15;
const PAUSE: Duration = Duration::from_millis(100);

impl EmbeddedDriver {
    /// What just ended the server; `None` when nothing did.
    pub(super) async fn diagnosis(&self) -> Option<Loss> {
        let name = &self.node.builder;
        let dialed = *self.dialed.lock();
        for _ in 0..ATTEMPTS {
            if !self.places.dir.exists() {
                let cause = format!("builder {name:?} was removed");
                return Some(self.loss(cause, true));
            }
            if let Ok(how) = std::fs::read_to_string(&self.places.stopped) {
                let cause = format!("the build server of builder {name:?} was {how}");
                return Some(self.loss(cause, true));
            }
            let Ok(stream) = self.connect().await else {
                return None;
            };
            let Some(stream) = stream else {
                let cause = format!("the build server of builder {name:?} was killed or crashed");
                return Some(self.loss(cause, false));
            };
            let now = stream.peer_cred().ok().and_then(|peer| peer.pid());
            if dialed.is_some() && now != dialed {
                let cause = format!("the build server of builder {name:?} was killed or crashed");
                return Some(self.loss(cause, false));
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}
