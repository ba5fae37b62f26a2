//! Saying why a server that was just there is gone.

use std::time::{SystemTime, UNIX_EPOCH};

use super::ContainerDriver;

/// How far back the Engine is asked, in seconds.
const LOOK_BACK_SECS: i64 = 60;
/// Lines of the log that are shown.
const LOG_LINES: u32 = 5;

impl ContainerDriver {
    /// What ended the server in the last minute; `None` when nothing did.
    pub(super) async fn diagnosis(&self) -> Option<String> {
        let name = self.container_name();
        let Ok(container) = self.inspect().await else {
            return Some(format!(
                "the Docker daemon at {} does not answer any more",
                self.engine.endpoint().host
            ));
        };
        let Some(container) = container else {
            return Some(format!("container {name} was removed"));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
        // The Engine may have started the server again, and then its state tells nothing; events do.
        let events = self
            .engine
            .container_events(&name, now - LOOK_BACK_SECS, now)
            .await
            .unwrap_or_default();
        let death = events.iter().rev().find(|event| event.action == "die");
        let out_of_memory =
            container.state.oom_killed || events.iter().any(|event| event.action == "oom");
        if container.state.running && death.is_none() {
            return None;
        }
        let exit_code = death
            .and_then(|event| event.actor.attributes.get("exitCode")?.parse().ok())
            .unwrap_or(container.state.exit_code);
        let mut text = if out_of_memory {
            let limit = match container.host_config.memory {
                0 => "the machine's memory".to_owned(),
                bytes => format!("its memory limit of {} MiB", bytes >> 20),
            };
            format!("the server in {name} was killed for exceeding {limit} (exit code {exit_code})")
        } else {
            format!("the server in {name} ended with exit code {exit_code}")
        };
        let logs = self.engine.container_logs(&name, LOG_LINES).await;
        for piece in logs.unwrap_or_default() {
            text.push('\n');
            text.push_str(String::from_utf8_lossy(&piece.data).trim_end());
        }
        Some(text)
    }
}
