//! `build`: start a build.

mod args;
mod interrupt;

use std::io::{IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use builder::{Builder, Docker, LoadOptions};
use client::spec::CallFunction;
use client::{BuildJob, BuildRequest, Environment, NodeFacts, Outcome, SolvePlan};
use diag::{Context, Error};
use progress::VertexWarning;
use progress_ui::{Mode, Output, Printer, PrinterOptions};

pub use args::BuildArgs;

/// What the command needs besides its arguments.
pub struct BuildContext<'a> {
    /// Docker's surroundings.
    pub docker: &'a Docker,
    /// `--builder`, if it was given.
    pub builder: Option<&'a str>,
    /// Whether `--debug` was given: warnings are told in full.
    pub debug: bool,
}

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
pub async fn run(args: BuildArgs, context: BuildContext<'_>) -> Result<u8, Error> {
    let env = Environment::current();
    let flags = args.to_flags(&env)?;
    let request = BuildRequest::from_flags(&flags, &env)?;
    let display = args.display()?;
    for warning in args.warnings() {
        warn(warning);
    }
    let mut results = Results {
        quiet: display.quiet,
        mode: Mode::Auto,
        image_id_file: args.iidfile.as_ref().map(|path| env.path(path)),
        metadata_file: args.metadata_file.as_ref().map(|path| env.path(path)),
        call: request.call.clone(),
        metadata_warnings: env.is_true("BUILDX_METADATA_WARNINGS"),
    };
    if let Some(path) = &results.image_id_file {
        remove_stale(path)?;
    }
    let mut builder = Builder::load(context.docker, context.builder)?;
    builder.load_nodes(LoadOptions::default()).await?;
    let driver = builder.group.driver.clone();
    let printer = Printer::start(
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
    results.mode = printer.mode();
    builder.touch();
    let built = build(&builder, request, env, &printer).await;
    // Closing waits for the terminal, which may be slow.
    let closed = tokio::task::spawn_blocking(move || printer.finish()).await;
    let warnings = closed.map_err(|error| Error::internal(error.to_string()))?;
    if !matches!(results.mode, Mode::Quiet | Mode::RawJson) {
        let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let block = progress_ui::warnings_block(&warnings, context.debug, color);
        write_to(std::io::stderr(), &block)?;
    }
    let outcome = built.context("failed to build")?;
    results.give(&outcome, &warnings)
}

async fn build(
    builder: &Builder,
    request: BuildRequest,
    env: Environment,
    printer: &Printer,
) -> Result<Outcome, Error> {
    let state = LocalState::new(builder, &request, &env);
    let job = BuildJob {
        request,
        env,
        stdin: Box::new(std::io::stdin()),
        stdout_is_terminal: std::io::stdout().is_terminal(),
        progress: printer.progress(),
        cancel: interrupt::cancel_on_signals()?,
        warn: Arc::new(warn),
        planned: Arc::new(move |facts: &NodeFacts, plan: &SolvePlan| state.save(facts, plan)),
    };
    client::build(builder, job).await
}

impl Results {
    /// Prints and writes what was asked for.
    fn give(&self, outcome: &Outcome, warnings: &[VertexWarning]) -> Result<u8, Error> {
        if self.quiet && self.mode == Mode::Quiet && self.call.is_none() {
            write_to(std::io::stdout(), &format!("{}\n", outcome.image_id()))?;
        }
        if let Some(path) = &self.image_id_file {
            std::fs::write(path, outcome.image_id())
                .with_context(|| format!("writing image ID file: open {}", path.display()))?;
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
            write_to(std::io::stdout(), &text)?;
            code = u8::try_from(asked).unwrap_or(1);
        }
        if let Some(message) = outcome.inline_message().filter(|_| code == 0) {
            write_to(std::io::stdout(), &format!("\n{message}\n"))?;
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

/// A build that fails must not leave the ID of an older one.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::from(error).context("removing image ID file"))
        }
        _ => Ok(()),
    }
}

fn warn(text: &str) {
    let _ = write_to(std::io::stderr(), &format!("WARNING: {text}\n"));
}

fn write_to(mut output: impl std::io::Write, text: &str) -> Result<(), Error> {
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(())
}
