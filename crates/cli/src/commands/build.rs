//! `build`: start a build.

mod args;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use builder::{Builder, Docker, LoadOptions};
use client::spec::CallFunction;
use client::{BuildJob, BuildRequest, Environment, NodeFacts, Outcome, SolvePlan};
use diag::{Context, Error};
use progress::VertexWarning;
use progress_ui::{Mode, Output, Printer, PrinterOptions};

use super::tell_stand_in;
use crate::app::App;
use crate::printer;
use crate::runtime::unless_cancelled;

pub(crate) use args::BuildArgs;

/// What is done with a finished build.
struct Results {
    quiet: bool,
    mode: Mode,
    image_id_file: Option<PathBuf>,
    metadata_file: Option<PathBuf>,
    call: Option<CallFunction>,
    metadata_warnings: bool,
}

/// Runs the command; gives the exit code of one that did not fail.
///
/// Cancellation is the command's own: it waits for the server to tell what became of the build, so
/// its future must not be dropped when the command is asked to end.
pub(crate) async fn run(app: &App, args: &BuildArgs) -> Result<i32, Error> {
    let env = Environment::current();
    let flags = args.to_flags(&env)?;
    let request = BuildRequest::from_flags(&flags, &env)?;
    let display = args.display()?;
    for warning in args.warnings() {
        printer::warn(warning);
    }
    let mut results = Results {
        quiet: display.quiet,
        mode: Mode::Auto,
        image_id_file: named_file(&args.iidfile).map(|path| env.path(path)),
        metadata_file: named_file(&args.metadata_file).map(|path| env.path(path)),
        call: request.call.clone(),
        metadata_warnings: env.is_true("BUILDX_METADATA_WARNINGS"),
    };
    if let Some(path) = &results.image_id_file {
        client::remove_stale_image_id(path)?;
    }
    let mut builder = app.load_builder()?;
    unless_cancelled(&app.cancel, builder.load_nodes(LoadOptions::default())).await?;
    tell_stand_in(&builder);
    let driver = builder.group.driver.clone();
    let display = Printer::start(
        PrinterOptions {
            mode: display.mode,
            plain_description: format!(
                "building with {:?} instance using {driver} driver",
                builder.name()
            ),
            tty_description: format!("{driver}:{}", builder.name()),
            phase: String::new(),
        },
        Output::stderr(),
    )?;
    results.mode = display.mode();
    builder.touch();
    let built = build(app, &builder, request, env, &display).await;
    // Closing waits for the terminal, which may be slow.
    let closed = tokio::task::spawn_blocking(move || display.finish()).await;
    let warnings = closed.map_err(|error| Error::internal(error.to_string()))?;
    if !matches!(results.mode, Mode::Quiet | Mode::RawJson) {
        let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let block = progress_ui::warnings_block(&warnings, app.debug, color);
        printer::err(block);
    }
    let outcome = built.context("failed to build")?;
    results.give(&outcome, &warnings)
}

async fn build(
    app: &App,
    builder: &Builder,
    request: BuildRequest,
    env: Environment,
    display: &Printer,
) -> Result<Outcome, Error> {
    let state = LocalState::new(builder, &request, &env);
    let job = BuildJob {
        request,
        env,
        stdin: Box::new(std::io::stdin()),
        stdout_is_terminal: std::io::stdout().is_terminal(),
        progress: display.progress(),
        cancel: app.cancel.clone(),
        warn: Arc::new(|text: &str| printer::warn(text)),
        planned: Arc::new(move |facts: &NodeFacts, plan: &SolvePlan| state.save(facts, plan)),
    };
    client::build(builder, job).await
}

impl Results {
    /// Prints and writes what was asked for.
    fn give(&self, outcome: &Outcome, warnings: &[VertexWarning]) -> Result<i32, Error> {
        if self.quiet && self.mode == Mode::Quiet && self.call.is_none() {
            printer::out_line(outcome.image_id());
        }
        if let Some(path) = &self.image_id_file {
            client::write_image_id(path, outcome.image_id())?;
        }
        if let Some(path) = &self.metadata_file {
            let told = match self.metadata_warnings && self.call.is_none() {
                true => warnings,
                false => &[],
            };
            client::write_file(path, &outcome.metadata(told))?;
        }
        let mut code = 0;
        if let Some(function) = &self.call {
            let (text, asked) = outcome.call_result(function)?;
            printer::out(text);
            code = asked;
        }
        if let Some(message) = outcome.inline_message().filter(|_| code == 0) {
            printer::out(format!("\n{message}\n"));
        }
        Ok(code)
    }
}

/// The note of where a build's files were, by which its history is shown.
struct LocalState {
    docker: Docker,
    text: Option<String>,
}

impl LocalState {
    fn new(builder: &Builder, request: &BuildRequest, env: &Environment) -> Self {
        let is_local = client::is_local_context(&request.context);
        let path = |text: &str| env.path(text).to_string_lossy().into_owned();
        let context = match is_local {
            true => path(&request.context),
            false => request.context.clone(),
        };
        let dockerfile = match request.dockerfile.as_str() {
            file @ ("" | "-") => file.to_owned(),
            file if is_local => path(file),
            file => file.to_owned(),
        };
        let text = serde_json::json!({
            "Target": "default",
            "LocalPath": context,
            "DockerfilePath": dockerfile,
        });
        LocalState {
            docker: builder.docker().clone(),
            text: request.call.is_none().then(|| text.to_string()),
        }
    }

    /// Best effort: the note decides nothing.
    fn save(&self, facts: &NodeFacts, plan: &SolvePlan) {
        let Some(text) = &self.text else { return };
        let dir = format!("refs/{}/{}", facts.builder, facts.name);
        let config = self.docker.store().config();
        let name = format!("{dir}/{}", plan.reference);
        if config.make_dir(&dir).is_ok() {
            let _ = config.write(&name, text.as_bytes());
        }
    }
}

/// The file that a flag names; nothing where its value is empty.
fn named_file(flag: &str) -> Option<&str> {
    Some(flag).filter(|path| !path.is_empty())
}
