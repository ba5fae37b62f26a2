//! Bringing the server's container to run, from whatever it is now.
//!
//! ```text
//!  none ──────────────► image ► volume ► container ► files ─┐
//!  dead, removing ────► remove ─► (none)                    ├─► start ─► wait for health
//!  made from another spec ─► remove, keep the volume ─► (none)
//!  created, exited, paused ─────────────────────────────────┘
//!  somebody else creates it just now (conflict) ──────────────► wait for health
//! ```

use std::time::{Duration, Instant};

use engine_api::ContainerInspect;

use super::spec::{ContainerSpec, files_archive};
use super::{CONFIG_PARENT, ContainerDriver};
use crate::DriverError;
use crate::health::dial_and_check;
use crate::progress_steps::VertexProgress;
use crate::server_image::ServerImage;

/// How long a server may take to answer after its container was started.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// When waiting is worth a line of its own.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest time one question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Starts by the Engine after which a server is taken to fail for good.
const RESTARTS_MAX: i64 = 3;
/// Lines of the log that are shown when the server does not come up.
const LOG_LINES: u32 = 50;

impl ContainerDriver {
    pub(super) async fn boot(&self, steps: &VertexProgress) -> Result<(), DriverError> {
        let spec = self.spec(self.info().await?)?;
        let name = self.container_name();
        let Some(container) = self.inspect().await? else {
            return self.create(steps, spec).await;
        };
        let gone = match container.state.status.as_str() {
            "removing" => {
                self.wait_removed().await?;
                true
            }
            _ if container.state.dead => {
                self.engine.remove_container(&name, true).await?;
                true
            }
            _ => false,
        };
        if gone {
            return self.create(steps, spec).await;
        }
        if self.differs(&container, &spec) || self.has_older_image(&container).await? {
            steps
                .step(
                    &format!("removing container {name} made with other options"),
                    self.remove_for_recreation(),
                )
                .await?;
            return self.create(steps, spec).await;
        }
        steps
            .step(&format!("starting container {name}"), async {
                self.start(&container, &spec).await?;
                self.wait_ready(steps).await
            })
            .await
    }

    /// Ends and removes the container; the volume stays. Somebody else may be doing the same.
    async fn remove_for_recreation(&self) -> Result<(), DriverError> {
        let name = self.container_name();
        match self.engine.stop_container(&name).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
            _ => {}
        }
        match self.engine.remove_container(&name, true).await {
            Err(error) if error.is_conflict() => self.wait_removed().await,
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// True for a container that does not run and was made of another version of ourselves.
    async fn has_older_image(&self, container: &ContainerInspect) -> Result<bool, DriverError> {
        let labelled = container.config.labels.contains_key(super::LABEL_SPEC);
        if self.options.image.is_some() || container.state.running || !labelled {
            return Ok(false);
        }
        let image = ServerImage::of_executable(&self.node.executable).await?;
        Ok(container.config.image != image.reference)
    }

    async fn start(
        &self,
        container: &ContainerInspect,
        spec: &ContainerSpec,
    ) -> Result<(), DriverError> {
        let name = self.container_name();
        if container.state.paused {
            return Ok(self.engine.unpause_container(&name).await?);
        }
        if container.state.status == "created" {
            // Whoever made it may have been stopped before the files were there.
            self.put_files(spec).await?;
        }
        Ok(self.engine.start_container(&name).await?)
    }

    async fn create(
        &self,
        steps: &VertexProgress,
        mut spec: ContainerSpec,
    ) -> Result<(), DriverError> {
        spec.create.config.image = match &self.options.image {
            Some(image) => self.pull(steps, image).await?,
            None => self.load_own_image(steps).await?,
        };
        let name = self.container_name();
        steps
            .step(&format!("creating container {name}"), async {
                self.engine
                    .create_volume(&self.volume_name(), &self.volume_labels())
                    .await?;
                match self.engine.create_container(&name, &spec.create).await {
                    Ok(_) => {
                        self.put_files(&spec).await?;
                        self.engine.start_container(&name).await?;
                    }
                    // Somebody else boots the same node; its server is ours too.
                    Err(error) if error.is_conflict() => self.adopt(&spec).await?,
                    Err(error) => return Err(error.into()),
                }
                self.wait_ready(steps).await
            })
            .await
    }

    /// Labels of a volume that we name; a user's own volume gets none.
    fn volume_labels(&self) -> std::collections::BTreeMap<String, String> {
        match self.options.state {
            Some(_) => Default::default(),
            None => self.labels(),
        }
    }

    /// Waits until the container that another client just made is started, and starts it when that
    /// client does not.
    async fn adopt(&self, spec: &ContainerSpec) -> Result<(), DriverError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The Engine reserves the name before it shows the container.
            match self.inspect().await? {
                Some(container) if container.state.status != "created" => return Ok(()),
                Some(container) if Instant::now() > deadline => {
                    return self.start(&container, spec).await;
                }
                None if Instant::now() > deadline => return Err(DriverError::NotRunning),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn put_files(&self, spec: &ContainerSpec) -> Result<(), DriverError> {
        if spec.files.is_empty() {
            return Ok(());
        }
        let archive = files_archive(&spec.files)?;
        let name = self.container_name();
        Ok(self
            .engine
            .copy_into_container(&name, CONFIG_PARENT, archive)
            .await?)
    }

    async fn wait_removed(&self) -> Result<(), DriverError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while self.inspect().await?.is_some() {
            if Instant::now() > deadline {
                return Err(DriverError::Boot {
                    reason: format!("container {} is still being removed", self.container_name()),
                    hint: None,
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Makes sure the Engine has the image that is made of this executable; gives its name.
    async fn load_own_image(&self, steps: &VertexProgress) -> Result<String, DriverError> {
        let info = self.info().await?;
        let image = ServerImage::of_executable(&self.node.executable).await?;
        let reference = image.reference.clone();
        if image.is_loaded(&self.engine).await? {
            return Ok(reference);
        }
        check_architecture(&info.os_type, &info.architecture)?;
        steps
            .step(
                &format!("loading image {reference}"),
                image.load(&self.engine),
            )
            .await?;
        Ok(reference)
    }

    /// Pulls an image; one that the Engine has is used when the pull fails.
    async fn pull(&self, steps: &VertexProgress, image: &str) -> Result<String, DriverError> {
        let reference: oci::Reference = image.parse().map_err(|e| {
            DriverError::Option(format!("failed to parse image reference {image}: {e}"))
        })?;
        let full = reference.clone().with_default_tag().to_string();
        let pulled = steps
            .step(&format!("pulling image {image}"), async {
                let auth = match &self.node.auth {
                    Some(auth) => auth.registry_auth(reference.registry()).await,
                    None => None,
                };
                self.engine
                    .pull_image(&full, auth.as_ref(), None, |_| {})
                    .await
            })
            .await;
        let present = self.engine.image(image).await;
        match (pulled, present) {
            (Ok(()), Ok(_)) => Ok(image.to_owned()),
            (Err(_), Ok(_)) => {
                steps.note(&format!("using local image {image}")).await;
                Ok(image.to_owned())
            }
            (Err(source), Err(_)) => Err(DriverError::EngineDuring {
                context: format!("pulling image {image}"),
                source,
            }),
            (Ok(()), Err(source)) => Err(DriverError::EngineDuring {
                context: format!("failed to inspect pulled image {image}"),
                source,
            }),
        }
    }

    /// Waits until the server answers, or it is clear that it will not.
    async fn wait_ready(&self, steps: &VertexProgress) -> Result<(), DriverError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(20);
        let mut told = false;
        loop {
            let reason = match self.ask_health().await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            if let Some(end) = self.has_ended().await? {
                return Err(self.failure(steps, end).await);
            }
            if started.elapsed() > READY_TIMEOUT {
                let reason = format!(
                    "the server in {} did not answer within {} s: {reason}",
                    self.container_name(),
                    READY_TIMEOUT.as_secs()
                );
                return Err(self.failure(steps, reason).await);
            }
            if !told && started.elapsed() > PATIENCE {
                told = true;
                let text = format!("waiting for the server to answer: {reason}\n");
                steps.log(2, text.into_bytes()).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(500));
        }
    }

    pub(super) async fn ask_health(&self) -> Result<(), String> {
        dial_and_check(crate::Driver::dial(self), ANSWER_TIMEOUT).await
    }

    /// Says how the server ended, if it did and will not be started again in a moment.
    async fn has_ended(&self) -> Result<Option<String>, DriverError> {
        let name = self.container_name();
        let Some(container) = self.inspect().await? else {
            return Ok(Some(format!(
                "container {name} was removed while it was booted"
            )));
        };
        let state = &container.state;
        if state.running && !state.restarting {
            return Ok(None);
        }
        if state.restarting && container.restart_count < RESTARTS_MAX {
            return Ok(None);
        }
        let how = if state.oom_killed {
            "was killed: it ran out of memory".to_owned()
        } else if !state.error.is_empty() {
            format!("failed: {}", state.error)
        } else {
            format!("ended with exit code {}", state.exit_code)
        };
        Ok(Some(format!("the server in {name} {how}")))
    }

    /// An error with the end of the server's log; all of that end is shown in the progress.
    async fn failure(&self, steps: &VertexProgress, reason: String) -> DriverError {
        let logs = self
            .engine
            .container_logs(&self.container_name(), LOG_LINES)
            .await
            .unwrap_or_default();
        let mut last = String::new();
        for piece in logs {
            let text = String::from_utf8_lossy(&piece.data).into_owned();
            if let Some(line) = text.lines().rfind(|line| !line.trim().is_empty()) {
                last = line.trim().to_owned();
            }
            steps.log(i64::from(piece.stream), piece.data).await;
        }
        DriverError::Boot {
            reason: if last.is_empty() {
                reason
            } else {
                format!("{reason}: {last}")
            },
            hint: Some(format!("`docker logs {}` has more", self.container_name())),
        }
    }
}

/// The executable runs only on an Engine of its own architecture.
fn check_architecture(os: &str, machine: &str) -> Result<(), DriverError> {
    let host = oci::Platform::host();
    let engine = oci::Platform::new(os, machine, "");
    if os.is_empty() || (engine.os == host.os && engine.architecture == host.architecture) {
        return Ok(());
    }
    Err(DriverError::Boot {
        reason: format!("this executable is for {host} and the Engine runs {engine}"),
        hint: Some(
            "name a server image with --driver-opt image=…, such as moby/buildkit:buildx-stable-1"
                .to_owned(),
        ),
    })
}
