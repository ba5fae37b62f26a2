//! Saying why a server that was just there is gone, and whether somebody wanted it gone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine_api::{ContainerEvent, ContainerInspect};

use super::ContainerDriver;
use crate::Loss;

/// How far back the Engine is asked, in seconds.
const LOOK_BACK_SECS: i64 = 120;
/// A start of this many seconds ago may have followed the death that we look for.
const RESTART_SECS: i64 = 15;
/// A connection breaks a moment before the Engine notices why; a moment that is long on a busy
/// machine.
const ATTEMPTS: u32 = 100;
/// Attempts after which a server that answers is taken to have lived on.
const ATTEMPTS_BEFORE_ASKING: u32 = 15;
const PAUSE: Duration = Duration::from_millis(100);
/// Lines of the log that are shown.
const LOG_LINES: u32 = 5;
/// SIGINT, SIGQUIT and SIGTERM: a server that gets one of them was asked to end.
const STOP_SIGNALS: &[&str] = &["2", "3", "15"];

/// How a run of the server ended.
#[derive(Debug, PartialEq, Eq)]
struct Death {
    exit_code: i64,
    out_of_memory: bool,
    /// It was asked to end, as `docker stop` does.
    stopped: bool,
}

impl ContainerDriver {
    /// What just ended the server; `None` when nothing did.
    pub(super) async fn diagnosis(&self) -> Option<Loss> {
        let name = self.container_name();
        for attempt in 1..=ATTEMPTS {
            let Ok(container) = self.inspect().await else {
                return Some(Loss {
                    cause: format!(
                        "the Docker daemon at {} does not answer any more",
                        self.engine.endpoint().host
                    ),
                    on_purpose: false,
                });
            };
            let being_removed = |container: &ContainerInspect| {
                container.state.dead || container.state.status == "removing"
            };
            let Some(container) = container.filter(|container| !being_removed(container)) else {
                return Some(Loss {
                    cause: format!("container {name} was removed"),
                    on_purpose: true,
                });
            };
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
            let events = self
                .engine
                .container_events(&name, now - LOOK_BACK_SECS, now + 1)
                .await
                .unwrap_or_default();
            if let Some(death) = last_death(&container, &events, now) {
                return Some(Loss {
                    cause: self.describe(&container, &death).await,
                    on_purpose: death.stopped,
                });
            }
            if attempt >= ATTEMPTS_BEFORE_ASKING && self.ask_health().await.is_ok() {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn describe(&self, container: &ContainerInspect, death: &Death) -> String {
        let name = self.container_name();
        let exit_code = death.exit_code;
        let mut text = if death.out_of_memory {
            let limit = match container.host_config.memory {
                0 => "the machine's memory".to_owned(),
                bytes => format!("its memory limit of {} MiB", bytes >> 20),
            };
            format!("the server in {name} was killed for exceeding {limit} (exit code {exit_code})")
        } else if death.stopped {
            // Its last words are those of every orderly end.
            return format!("container {name} was stopped");
        } else if exit_code == 137 {
            format!("the server in {name} was killed (exit code 137)")
        } else {
            format!("the server in {name} ended with exit code {exit_code}")
        };
        let logs = self.engine.container_logs(&name, LOG_LINES).await;
        for piece in logs.unwrap_or_default() {
            text.push('\n');
            text.push_str(String::from_utf8_lossy(&piece.data).trim_end());
        }
        text
    }
}

/// How the last run ended: the container's own word when it does not run, and when the Engine has
/// started it again just now, the Engine's memory of what happened before that.
fn last_death(
    container: &ContainerInspect,
    events: &[ContainerEvent],
    now_secs: i64,
) -> Option<Death> {
    let position = |action: &str, before: usize| {
        events[..before]
            .iter()
            .rposition(|event| event.action == action)
    };
    let last_start = position("start", events.len());
    let killed_for_memory = |from: Option<usize>, to: usize| {
        events[from.unwrap_or(0)..to]
            .iter()
            .any(|event| event.action == "oom")
    };
    let stopped = |from: Option<usize>, to: usize| {
        events[from.unwrap_or(0)..to].iter().any(|event| {
            let signal = event.actor.attributes.get("signal");
            event.action == "stop"
                || event.action == "kill"
                    && signal.is_some_and(|signal| STOP_SIGNALS.contains(&signal.as_str()))
        })
    };
    let state = &container.state;
    let is_stopped = stopped(last_start, events.len());
    // A server that was told to end may take its time.
    if !state.running || state.restarting || is_stopped {
        return Some(Death {
            exit_code: state.exit_code,
            out_of_memory: state.oom_killed || killed_for_memory(last_start, events.len()),
            stopped: is_stopped,
        });
    }
    let start = last_start?;
    if now_secs - events[start].time_nanos / 1_000_000_000 > RESTART_SECS {
        return None;
    }
    let death = position("die", start)?;
    // Then somebody stopped it and somebody booted it: an end of earlier, and what broke the
    // connection now is yet to be seen.
    if stopped(position("start", death), start) {
        return None;
    }
    let exit_code = events[death].actor.attributes.get("exitCode")?;
    Some(Death {
        exit_code: exit_code.parse().ok()?,
        out_of_memory: killed_for_memory(position("start", death), death + 1),
        // Started again, so it is wanted.
        stopped: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_api::EventActor;

    fn event(secs: i64, action: &str, exit_code: Option<i64>) -> ContainerEvent {
        let attributes = exit_code.map(|code| ("exitCode".to_owned(), code.to_string()));
        ContainerEvent {
            action: action.to_owned(),
            actor: EventActor {
                attributes: attributes.into_iter().collect(),
            },
            time_nanos: secs * 1_000_000_000,
        }
    }

    fn container(running: bool, exit_code: i64) -> ContainerInspect {
        let mut container = ContainerInspect::default();
        container.state.running = running;
        container.state.exit_code = exit_code;
        container
    }

    #[test]
    fn a_server_that_runs_on_did_not_die_of_an_earlier_stop() {
        let events = [event(10, "die", Some(0)), event(20, "start", None)];
        assert_eq!(last_death(&container(true, 0), &events, 100), None);
        assert_eq!(
            last_death(&container(false, 137), &events, 100),
            Some(Death {
                exit_code: 137,
                out_of_memory: false,
                stopped: false,
            })
        );
    }

    #[test]
    fn a_server_booted_after_a_stop_did_not_die_of_that_stop() {
        let mut asked = event(50, "kill", None);
        let attributes = &mut asked.actor.attributes;
        attributes.insert("signal".to_owned(), "15".to_owned());
        let stop = [event(10, "start", None), asked, event(60, "die", Some(137))];
        let boot = [event(60, "stop", None), event(61, "start", None)];
        let events: Vec<_> = stop.into_iter().chain(boot).collect();
        // It is being removed, and the Engine does not show that yet.
        assert_eq!(last_death(&container(true, 0), &events, 63), None);
    }

    #[test]
    fn a_server_killed_for_memory_and_started_again_is_recognised() {
        let events = [
            event(10, "start", None),
            event(50, "oom", None),
            event(51, "die", Some(137)),
            event(52, "start", None),
        ];
        assert_eq!(
            last_death(&container(true, 0), &events, 53),
            Some(Death {
                exit_code: 137,
                out_of_memory: true,
                stopped: false,
            })
        );
    }

    #[test]
    fn a_server_that_was_asked_to_end_is_told_from_one_that_was_killed() {
        let signalled = |number: &str| {
            let mut event = event(50, "kill", None);
            let attributes = &mut event.actor.attributes;
            attributes.insert("signal".to_owned(), number.to_owned());
            event
        };
        for (signal, exit_code, stopped) in [("15", 0, true), ("9", 137, false)] {
            let earlier = [event(5, "stop", None), event(10, "start", None)];
            let events: Vec<_> = earlier
                .into_iter()
                .chain([signalled(signal), event(51, "die", Some(exit_code))])
                .collect();
            let death = last_death(&container(false, exit_code), &events, 52).unwrap();
            assert_eq!(death.stopped, stopped, "signal {signal}");
        }
        let asked = [event(10, "start", None), signalled("15")];
        let death = last_death(&container(true, 0), &asked, 52).unwrap();
        assert!(death.stopped, "it still ends");
    }
}
