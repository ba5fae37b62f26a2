//! `build`: one solve, its progress and its outputs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use client::spec::{
    Attributes, CacheEntry, parse_cache_entries, parse_exports, parse_secrets, parse_ssh,
};
use client::{
    Environment, Export, Peer, Services, SolvePlan, Target, new_id, prepare_exports, session_for,
    write_file,
};
use driver::Connection;
use progress_ui::{Mode, Output, Printer, PrinterOptions};
use proto::control::control_client::ControlClient;
use proto::pb::{Definition, Op};
use proto::prost::Message;
use proto::sourcepolicy::Policy;
use tokio_util::sync::CancellationToken;

use super::auth_tls;
use super::taps::Taps;
use crate::printer;

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
    /// Allow build access to the local OCI layout
    #[arg(long, value_name = "string")]
    oci_layout: Vec<String>,
    /// Define frontend used for build
    #[arg(long, value_name = "string", default_value = "")]
    frontend: String,
    /// Define custom options for frontend, e.g. --opt target=foo --opt build-arg:foo=bar
    #[arg(long, value_name = "string")]
    opt: Vec<String>,
    /// Disable cache for all the vertices
    #[arg(long)]
    no_cache: bool,
    /// Export build cache, e.g. --export-cache type=registry,ref=example.com/foo/bar, or --export-cache type=local,dest=path/to/dir
    #[arg(long, value_name = "string")]
    export_cache: Vec<String>,
    /// Import build cache, e.g. --import-cache type=registry,ref=example.com/foo/bar, or --import-cache type=local,src=path/to/dir
    #[arg(long, value_name = "string")]
    import_cache: Vec<String>,
    /// Secret value exposed to the build. Format id=secretname,src=filepath
    #[arg(long, value_name = "string")]
    secret: Vec<String>,
    /// Allow extra privileged entitlement, e.g. network.host, security.insecure
    #[arg(long, value_name = "string")]
    allow: Vec<String>,
    /// Allow forwarding SSH agent to the builder. Format default|<id>[=<socket>|<key>[,<key>]]
    #[arg(long, value_name = "string")]
    ssh: Vec<String>,
    /// Output build metadata (e.g., image digest) to a file as JSON
    #[arg(long, value_name = "string")]
    metadata_file: Option<PathBuf>,
    /// Read source policy file from a JSON file
    #[arg(long, value_name = "string")]
    source_policy_file: Option<PathBuf>,
    /// Not supported: run build with proxy network enforcement
    #[arg(long, hide = true)]
    proxy_network: bool,
    /// Write build ref to a file
    #[arg(long, value_name = "string")]
    ref_file: Option<PathBuf>,
    /// Path to trace file. Defaults to no tracing.
    #[arg(long, value_name = "string")]
    trace: Option<PathBuf>,
    /// Overwrite TLS configuration when authenticating with registries, e.g. --registry-auth-tlscontext host=https://myserver:2376,insecure=false,ca=/path/to/my/ca.crt,cert=/path/to/my/cert.crt,key=/path/to/my/key.crt
    #[arg(long, value_name = "string")]
    registry_auth_tlscontext: Vec<String>,
    /// Where to output json cache metrics, use 'stdout' or 'stderr' for standard (error) output.
    #[arg(long, value_name = "string", default_value = "")]
    debug_json_cache_metrics: String,
}

/// Builds what a frontend makes of its options, or the definition on stdin.
pub(super) async fn run(
    connection: &Connection,
    args: &BuildArgs,
    cancel: &CancellationToken,
) -> Result<(), diag::Error> {
    let env = Environment::current();
    if args.proxy_network {
        return Err(diag::Error::unimplemented(
            "--proxy-network is not supported by this client",
        ));
    }
    let taps = Taps::open(args.trace.as_deref(), &args.debug_json_cache_metrics)?;
    let mut plan = plan(args, &env)?;
    // Something other than a build: the answer is the frontend's, and no exporter sees it.
    let asks = plan.attributes.contains_key("requestid");
    if asks {
        plan.attributes
            .entry("frontend.caps".to_owned())
            .or_insert_with(|| "moby.buildkit.frontend.subrequests".to_owned());
    }
    let definition = match args.frontend.is_empty() {
        true => Some(definition_of_stdin(args.no_cache).await?),
        false => None,
    };
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
    let mut taps = taps.start(display.progress())?;
    let services = Services {
        config: docker_config::DockerConfig::load()?,
        engine: None,
        progress: taps.progress(),
        env,
    };
    let peer = Peer::new(connection.channel.clone(), false);
    let tls = &args.registry_auth_tlscontext;
    let auth = auth_tls::apply(tls, &services.env, client::auth(&services))?;
    let session = session_for(&mut plan, &services, &peer)?;
    let session = session.auth_with(auth).build();
    let mut request = plan.to_proto(session.id());
    request.definition = definition;
    let handle = session.run(ControlClient::new(connection.channel.clone()))?;
    let solved = client::solve(
        connection.channel.clone(),
        request,
        asks,
        &taps.progress(),
        cancel,
    )
    .await;
    handle.close();
    let report = taps.close();
    // Closing waits for the terminal, which may be slow.
    let closed = tokio::task::spawn_blocking(move || display.finish()).await;
    closed.map_err(|error| diag::Error::internal(error.to_string()))?;
    let mut response = solved.map_err(|failure| failure.error)?;
    if asks {
        print_answer(&mut response);
    }
    report?.write()?;
    client::enter_layouts(&plan, &response).await?;
    if let Some(path) = &args.metadata_file {
        let values: serde_json::Map<String, serde_json::Value> = response
            .into_iter()
            .map(|(key, value)| {
                let value = client::metadata_value(&key, &value);
                (key, value)
            })
            .collect();
        let text = format!("{:#}", serde_json::Value::Object(values));
        write_file(path, &text)?;
    }
    Ok(())
}

/// Prints what a frontend answered, as text if it has one, and leaves what exporters said.
fn print_answer(response: &mut client::Response) {
    let answers = |key: &String| key.starts_with("result.") || key == "version";
    let all = std::mem::take(response).into_iter();
    let (answer, rest): (client::Response, client::Response) = all.partition(|(k, _)| answers(k));
    *response = rest;
    if let Some(text) = answer.get("result.txt") {
        printer::out(text.clone());
        return;
    }
    for (key, value) in answer.iter().filter(|(key, _)| key.starts_with("result.")) {
        printer::out_line(format!(
            "{key}
{value}"
        ));
    }
}

/// `key=value` of a flag.
fn pairs(texts: &[String], flag: &str) -> Result<Attributes, diag::Error> {
    let split = texts.iter().map(|text| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let error = diag::Error::invalid(format!("invalid value {text}"));
            Err(error.context(format!("invalid {flag}")))
        }
    });
    split.collect()
}

/// What the frontend is told. An argument of the Dockerfile without a value has that of the client's
/// variable, and is not given if there is none.
fn options(texts: &[String], env: &Environment) -> Result<Attributes, diag::Error> {
    let mut given = Vec::new();
    if let Some(epoch) = env.get("SOURCE_DATE_EPOCH") {
        given.push(format!("build-arg:SOURCE_DATE_EPOCH={epoch}"));
    }
    for text in texts {
        let name = text.strip_prefix("build-arg:");
        match name.filter(|name| !name.is_empty() && !name.contains('=')) {
            None => given.push(text.clone()),
            Some(name) => given.extend(env.get(name).map(|value| format!("{text}={value}"))),
        }
    }
    pairs(&given, "opt")
}

/// The source policy in a file.
fn policy(env: &Environment, path: &Path) -> Result<Policy, diag::Error> {
    let data = std::fs::read(env.path(path))
        .map_err(|error| diag::Error::from(error).context(format!("open {}", path.display())))?;
    client::source_policy_of_json(&data).map_err(|error| {
        let path = path.display().to_string();
        error.context(format!("failed to unmarshal source-policy-file {path:?}"))
    })
}

fn plan(args: &BuildArgs, env: &Environment) -> Result<SolvePlan, diag::Error> {
    client::spec::parse_entitlements(&args.allow)?;
    let mut attributes = options(&args.opt, env)?;
    if args.no_cache {
        attributes.insert("no-cache".to_owned(), String::new());
    }
    let stdout_is_terminal = std::io::stdout().is_terminal();
    let specs = parse_exports(&args.output)?;
    let mut exports = prepare_exports(&specs, env, false, stdout_is_terminal)?;
    for export in &mut exports {
        to_stdout(export, stdout_is_terminal)?;
    }
    let paths = |texts: &[String], flag| -> Result<BTreeMap<_, _>, diag::Error> {
        let named = pairs(texts, flag)?.into_iter();
        Ok(named.map(|(name, path)| (name, env.path(path))).collect())
    };
    let local_dirs = paths(&args.local, "local")?;
    let oci_layouts = paths(&args.oci_layout, "oci-layout")?;
    Ok(SolvePlan {
        reference: new_id(),
        frontend: args.frontend.clone(),
        attributes,
        exports,
        cache_to: caches(&args.export_cache, env)?,
        cache_from: caches(&args.import_cache, env)?,
        entitlements: args.allow.clone(),
        local_dirs,
        oci_layouts,
        uploads: Vec::new(),
        secrets: parse_secrets(&args.secret)?,
        ssh: parse_ssh(&args.ssh),
        shared_key: env.path(".").display().to_string(),
        source_policy: args
            .source_policy_file
            .as_deref()
            .map(|path| policy(env, path))
            .transpose()?,
        call: None,
        notes: Vec::new(),
    })
}

fn caches(values: &[String], env: &Environment) -> Result<Vec<CacheEntry>, diag::Error> {
    let entries = parse_cache_entries(values)?.into_iter();
    Ok(entries.filter_map(|e| e.with_environment(env)).collect())
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

/// A build without frontend is described on stdin, as marshalled LLB.
async fn definition_of_stdin(no_cache: bool) -> Result<Definition, diag::Error> {
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
    definition_of(&bytes, no_cache)
}

/// What was piped in. An empty one is refused here: a server would take a request without frontend and
/// definition for the beginning of a gateway build, and wait for its calls.
fn definition_of(bytes: &[u8], no_cache: bool) -> Result<Definition, diag::Error> {
    let bad = |error: proto::prost::DecodeError| diag::Error::invalid(error.to_string());
    let mut definition =
        Definition::decode(bytes).map_err(|error| bad(error).context("failed to parse input"))?;
    if definition.def.is_empty() {
        return Err(diag::Error::invalid(
            "empty definition sent to build. Specify --frontend instead?",
        ));
    }
    if no_cache {
        for bytes in &definition.def {
            Op::decode(bytes.as_slice())
                .map_err(|error| bad(error).context("failed to parse llb proto op"))?;
            let digest = oci::Digest::of(bytes).to_string();
            definition.metadata.entry(digest).or_default().ignore_cache = true;
        }
    }
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_piped_in_is_refused_and_does_not_reach_a_server() {
        let error = definition_of(b"", false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "empty definition sent to build. Specify --frontend instead?"
        );
        let metadata_alone = Definition {
            metadata: [("sha256:0".to_owned(), Default::default())].into(),
            ..Definition::default()
        };
        assert!(definition_of(&metadata_alone.encode_to_vec(), true).is_err());
        let one = Definition {
            def: vec![Op::default().encode_to_vec()],
            ..Definition::default()
        };
        let ignored = definition_of(&one.encode_to_vec(), true).unwrap();
        assert!(ignored.metadata.values().all(|m| m.ignore_cache));
        assert_eq!(ignored.metadata.len(), 1);
    }
}
