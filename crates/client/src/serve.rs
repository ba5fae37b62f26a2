//! The session of a plan: what the server may ask for while it builds.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use diag::Error;
use docker_config::DockerConfig;
use driver::engine::Engine;
use progress_ui::Progress;
use session::{
    AuthOptions, ClientSession, ClientSessionBuilder, ExportTarget, LocalDir, SecretSource,
    SshAgent, Uploads,
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::environment::Environment;
use crate::export::{Export, Target};
use crate::inputs::go_path_error;
use crate::layout::export_layout;
use crate::load::{EngineTarget, ServerContent, Store};
use crate::plan::SolvePlan;
use crate::spec;
use crate::steps::Step;

/// Bytes read of an upload at a time.
const UPLOAD_PIECE_BYTES: usize = 64 << 10;

/// What sessions of this machine are made with.
#[derive(Clone)]
pub struct Services {
    /// Docker's configuration, for credentials.
    pub config: DockerConfig,
    /// The Engine that images are loaded into.
    pub engine: Option<Engine>,
    /// Where our own steps are shown.
    pub progress: Progress,
    /// Variables and the working directory.
    pub env: Environment,
}

/// The server that a session is opened to.
pub struct Peer {
    /// What it lets its clients read.
    content: ServerContent,
    /// Whether it is on this machine and may read directories where they are.
    on_this_machine: bool,
}

impl Peer {
    /// The server at the end of that channel; one on this machine may read directories where they are.
    pub fn new(channel: tonic::transport::Channel, on_this_machine: bool) -> Self {
        Peer {
            content: ServerContent::new(channel),
            on_this_machine,
        }
    }
}

/// Prepares the session of a plan, and tells the plan what the session knows.
///
/// # Errors
/// Secrets, agents, layouts and targets of the plan that are not there.
pub fn session_for(
    plan: &mut SolvePlan,
    services: &Services,
    peer: &Peer,
) -> Result<ClientSessionBuilder, Error> {
    let dirs: BTreeMap<String, LocalDir> = plan
        .local_dirs
        .iter()
        .map(|(name, path)| (name.clone(), LocalDir::new(path)))
        .collect();
    let mut builder = ClientSession::builder()
        .shared_key(&plan.shared_key)
        .local_dirs(dirs)
        .in_place(peer.on_this_machine)
        .auth_with(auth(services))
        .secrets(secrets(plan, &services.env)?)
        .ssh(agents(plan, &services.env)?)
        .oci_layouts(layouts(plan, &services.env));
    if let Some(directory) = export_layout(plan)? {
        builder = builder.export_layout(directory);
    }
    let uploads = Uploads::new();
    for upload in &plan.uploads {
        let reader = FileReader {
            file: upload.file.clone(),
            offset: 0,
        };
        let url = uploads.add(reader);
        plan.attributes.insert(upload.attribute.clone(), url);
    }
    if !plan.uploads.is_empty() {
        builder = builder.uploads(uploads);
    }
    for (number, export) in plan.exports.iter().enumerate() {
        if let Some(target) = export_target(export, services, &peer.content)? {
            builder = builder.file_target(number, target);
        }
    }
    Ok(builder)
}

/// Credentials as the session of a plan offers them.
pub fn auth(services: &Services) -> AuthOptions {
    let progress = services.progress.clone();
    AuthOptions::new(services.config.clone()).notice(Arc::new(move |text: &str| {
        Step::done(&progress, text);
    }))
}

/// The secrets of a plan, found to be there.
fn secrets(plan: &SolvePlan, env: &Environment) -> Result<BTreeMap<String, SecretSource>, Error> {
    let mut secrets = BTreeMap::new();
    for secret in &plan.secrets {
        let source = match &secret.source {
            spec::SecretSource::File(path) => SecretSource::File(env.path(path)),
            spec::SecretSource::Variable(name) => variable(env, name),
            spec::SecretSource::Named if env.get(&secret.id).is_some() => variable(env, &secret.id),
            spec::SecretSource::Named => SecretSource::File(env.path(&secret.id)),
        };
        let shown = match &secret.source {
            spec::SecretSource::File(path) => path,
            _ => &secret.id,
        };
        if let SecretSource::File(path) = &source
            && let Err(error) = std::fs::metadata(path)
        {
            return Err(
                go_path_error("stat", shown, &error).context(format!("failed to stat {shown}"))
            );
        }
        source.check(&secret.id).map_err(Error::from)?;
        secrets.insert(secret.id.clone(), source);
    }
    Ok(secrets)
}

fn variable(env: &Environment, name: &str) -> SecretSource {
    let value = env.get(name).unwrap_or_default();
    SecretSource::Value(diag::Secret::new(value.as_bytes().to_vec()))
}

/// The agents of a plan.
fn agents(plan: &SolvePlan, env: &Environment) -> Result<Vec<SshAgent>, Error> {
    let mut agents = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    for agent in &plan.ssh {
        let id = match agent.id.as_str() {
            "" => "default",
            id => id,
        };
        if !ids.insert(id) {
            return Err(Error::invalid(format!("duplicate agent ID {id:?}")));
        }
        let given = agent.paths.iter().filter(|path| !path.is_empty());
        let mut paths: Vec<PathBuf> = given.map(|path| env.path(path)).collect();
        if paths.is_empty() {
            paths.extend(
                env.get("SSH_AUTH_SOCK")
                    .filter(|s| !s.is_empty())
                    .map(PathBuf::from),
            );
        }
        let made = SshAgent::new(id, &paths, false).map_err(|error| {
            let error = Error::from(error);
            let error = match paths.is_empty() {
                true => error,
                false => error.context(format!("failed to convert agent config for ID: {id:?}")),
            };
            error.context(format!(
                "failed to convert agent config {{{id} [{}] false}}",
                agent.paths.join(" ")
            ))
        });
        agents.push(made?);
    }
    Ok(agents)
}

/// OCI layouts under the names servers ask with, and local caches to import.
fn layouts(plan: &SolvePlan, env: &Environment) -> BTreeMap<String, PathBuf> {
    let named = plan
        .oci_layouts
        .iter()
        .map(|(name, path)| (format!("oci:{name}"), path.clone()));
    let caches = plan
        .cache_from
        .iter()
        .filter(|entry| entry.kind == "local")
        .filter_map(|entry| entry.attributes.get("src"))
        .map(|dir| (format!("local:{dir}"), env.path(dir)));
    named.chain(caches).collect()
}

fn export_target(
    export: &Export,
    services: &Services,
    server: &ServerContent,
) -> Result<Option<ExportTarget>, Error> {
    Ok(Some(match &export.target {
        Target::Server => return Ok(None),
        // Blobs come into the content store of that directory.
        Target::Layout(_) => return Ok(None),
        Target::Directory {
            path,
            delete_others,
        } => ExportTarget::Dir {
            path: path.clone(),
            mirror: *delete_others,
            progress: None,
        },
        Target::File(path) => file_target(path.clone()),
        Target::Stdout => ExportTarget::writer(|_| async {
            let writer: session::ExportWriter = Box::pin(tokio::io::stdout());
            Ok(Some(writer))
        }),
        Target::Engine(_) => {
            let engine = services.engine.clone().ok_or_else(|| {
                Error::internal("no Docker Engine to load the image into was found")
            })?;
            let target = EngineTarget {
                engine,
                // Plans turn the one into the other for such Engines.
                store: match export.kind.as_str() {
                    "oci" => Store::Containerd,
                    _ => Store::Classic,
                },
                server: server.clone(),
                progress: services.progress.clone(),
            };
            ExportTarget::writer(move |announced| target.clone().open(announced))
        }
    }))
}

/// A file whose directory is made when the file is.
fn file_target(path: PathBuf) -> ExportTarget {
    let ExportTarget::Writer(open) = ExportTarget::file(&path) else {
        return ExportTarget::file(path);
    };
    ExportTarget::writer(move |metadata| {
        let (open, path) = (open.clone(), path.clone());
        async move {
            tokio::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).await?;
            open(metadata).await
        }
    })
}

/// Reads a file from its beginning without moving its position, which others share.
struct FileReader {
    file: Arc<std::fs::File>,
    offset: u64,
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The file was just written: its pages are in memory, and reading them does not block.
        let wanted = buffer.remaining().min(UPLOAD_PIECE_BYTES);
        let offset = self.offset;
        let piece = buffer.initialize_unfilled_to(wanted);
        let count = self.file.read_at(piece, offset)?;
        buffer.advance(count);
        self.offset += count as u64;
        Poll::Ready(Ok(()))
    }
}
