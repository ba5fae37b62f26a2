//! `build`: one solve, its progress and its outputs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use client::spec::{Attributes, parse_exports, parse_secrets};
use client::{Environment, Export, SolvePlan, Target, new_id, prepare_exports, write_file};
use driver::Connection;
use progress_ui::{Mode, Output, Printer, PrinterOptions};
use proto::control::control_client::ControlClient;
use proto::pb::Definition;
use proto::prost::Message;
use session::{ClientSession, ExportTarget, LocalDir, SecretSource};
use tokio_util::sync::CancellationToken;

/// Flags of `build`.
#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// Define exports for build result, e.g. --output type=image,name=docker.io/username/image,push=true
    #[arg(short, long, value_name = "string")]
    output: Vec<String>,
    /// Set type of progress (auto, plain, tty, rawjson). Use plain to show container output
    #[arg(long, value_name = "string", default_value = "auto")]
    progress: String,
    /// Allow build access to the local directory
    #[arg(long, value_name = "string")]
    local: Vec<String>,
    /// Define frontend used for build
    #[arg(long, value_name = "string", default_value = "")]
    frontend: String,
    /// Define custom options for frontend, e.g. --opt target=foo --opt build-arg:foo=bar
    #[arg(long, value_name = "string")]
    opt: Vec<String>,
    /// Disable cache for all the vertices
    #[arg(long)]
    no_cache: bool,
    /// Secret value exposed to the build. Format id=secretname,src=filepath
    #[arg(long, value_name = "string")]
    secret: Vec<String>,
    /// Allow extra privileged entitlement, e.g. network.host, security.insecure
    #[arg(long, value_name = "string")]
    allow: Vec<String>,
    /// Output build metadata (e.g., image digest) to a file as JSON
    #[arg(long, value_name = "string")]
    metadata_file: Option<PathBuf>,
    /// Write build ref to a file
    #[arg(long, value_name = "string")]
    ref_file: Option<PathBuf>,
}

/// Builds what a frontend makes of its options, or the definition on stdin.
pub(super) async fn run(
    connection: &Connection,
    args: &BuildArgs,
    cancel: &CancellationToken,
) -> Result<(), diag::Error> {
    let env = Environment::current();
    let plan = plan(args, &env)?;
    let session = session(&plan, &env)?;
    let mut request = plan.to_proto(session.id());
    if args.frontend.is_empty() {
        request.definition = Some(definition_of_stdin().await?);
    }
    if let Some(path) = &args.ref_file {
        std::fs::write(path, &plan.reference)?;
    }
    let mode: Mode = args.progress.parse()?;
    let display = Printer::start(
        PrinterOptions {
            mode,
            ..PrinterOptions::default()
        },
        Output::stderr(),
    )?;
    let handle = session.run(ControlClient::new(connection.channel.clone()))?;
    let solved = client::solve(
        connection.channel.clone(),
        request,
        false,
        &display.progress(),
        cancel,
    )
    .await;
    handle.close();
    // Closing waits for the terminal, which may be slow.
    let closed = tokio::task::spawn_blocking(move || display.finish()).await;
    closed.map_err(|error| diag::Error::internal(error.to_string()))?;
    let response = solved.map_err(|failure| failure.error)?;
    if let Some(path) = &args.metadata_file {
        let values: serde_json::Map<String, serde_json::Value> = response
            .into_iter()
            .map(|(key, value)| (key, value.into()))
            .collect();
        let text = format!("{:#}", serde_json::Value::Object(values));
        write_file(path, &text)?;
    }
    Ok(())
}

fn plan(args: &BuildArgs, env: &Environment) -> Result<SolvePlan, diag::Error> {
    let pairs = |texts: &[String], flag: &str| -> Result<Attributes, diag::Error> {
        let split = texts.iter().map(|text| {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                diag::Error::invalid(format!(
                    "invalid value {text:?} for --{flag}: expecting k=v"
                ))
            })?;
            Ok((key.to_owned(), value.to_owned()))
        });
        split.collect()
    };
    let mut attributes = pairs(&args.opt, "opt")?;
    if args.no_cache {
        attributes.insert("no-cache".to_owned(), String::new());
    }
    let stdout_is_terminal = std::io::stdout().is_terminal();
    let specs = parse_exports(&args.output)?;
    let mut exports = prepare_exports(&specs, env, false, stdout_is_terminal)?;
    for export in &mut exports {
        to_stdout(export, stdout_is_terminal)?;
    }
    let local_dirs = pairs(&args.local, "local")?
        .into_iter()
        .map(|(name, path)| (name, env.path(path)))
        .collect();
    Ok(SolvePlan {
        dockerfile_graph: None,
        reference: new_id(),
        frontend: args.frontend.clone(),
        attributes,
        exports,
        cache_to: Vec::new(),
        cache_from: Vec::new(),
        entitlements: args.allow.clone(),
        local_dirs,
        oci_layouts: BTreeMap::new(),
        uploads: Vec::new(),
        secrets: parse_secrets(&args.secret)?,
        ssh: Vec::new(),
        shared_key: env.path(".").display().to_string(),
        call: None,
        notes: Vec::new(),
    })
}

/// Without a destination an archive goes to stdout: there is no Engine here to load it into.
fn to_stdout(export: &mut Export, stdout_is_terminal: bool) -> Result<(), diag::Error> {
    if !matches!(export.target, Target::Engine(_)) {
        return Ok(());
    }
    if stdout_is_terminal {
        return Err(diag::Error::invalid(format!(
            "dest file is required for {} exporter. refusing to write to console",
            export.kind
        )));
    }
    export.target = Target::Stdout;
    Ok(())
}

fn session(plan: &SolvePlan, env: &Environment) -> Result<ClientSession, diag::Error> {
    let dirs: BTreeMap<String, LocalDir> = plan
        .local_dirs
        .iter()
        .map(|(name, path)| (name.clone(), LocalDir::new(path)))
        .collect();
    let mut builder = ClientSession::builder()
        .shared_key(&plan.shared_key)
        .local_dirs(dirs)
        .secrets(secrets(plan, env));
    if let Ok(config) = docker_config::DockerConfig::load() {
        builder = builder.auth(config);
    }
    for (number, export) in plan.exports.iter().enumerate() {
        let target = match &export.target {
            Target::Directory { path, .. } => ExportTarget::dir(path),
            Target::File(path) => ExportTarget::file(path),
            Target::Stdout => ExportTarget::writer(|_| async {
                let writer: session::ExportWriter = Box::pin(tokio::io::stdout());
                Ok(Some(writer))
            }),
            Target::Layout(_) => {
                return Err(diag::Error::unimplemented(
                    "writing an OCI layout directory (tar=false) is not supported",
                ));
            }
            Target::Server | Target::Engine(_) => continue,
        };
        builder = builder.file_target(number, target);
    }
    Ok(builder.build())
}

fn secrets(plan: &SolvePlan, env: &Environment) -> BTreeMap<String, SecretSource> {
    use client::spec::SecretSource as Spec;
    let variable = |name: &str| {
        let value = env.get(name).unwrap_or_default().as_bytes().to_vec();
        SecretSource::Value(diag::Secret::new(value))
    };
    let source = |secret: &client::spec::SecretSpec| match &secret.source {
        Spec::File(path) => SecretSource::File(env.path(path)),
        Spec::Variable(name) => variable(name),
        Spec::Named if env.get(&secret.id).is_some() => variable(&secret.id),
        Spec::Named => SecretSource::File(env.path(&secret.id)),
    };
    plan.secrets
        .iter()
        .map(|secret| (secret.id.clone(), source(secret)))
        .collect()
}

/// A build without frontend is described on stdin, as marshalled LLB.
async fn definition_of_stdin() -> Result<Definition, diag::Error> {
    if std::io::stdin().is_terminal() {
        return Err(diag::Error::invalid(
            "please specify --frontend or pipe LLB definition to stdin",
        ));
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    });
    let bytes = read
        .await
        .map_err(|error| diag::Error::internal(error.to_string()))??;
    Definition::decode(bytes.as_slice())
        .map_err(|error| diag::Error::invalid(error.to_string()).context("failed to parse input"))
}
