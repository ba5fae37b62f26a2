//! The session of a plan: what the server may ask for while it builds.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use diag::Error;
use docker_config::DockerConfig;
use driver::engine::Engine;
use progress_ui::Progress;
use session::{
    AuthOptions, ClientSession, ExportTarget, LocalDir, SecretSource, SshAgent, Uploads,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

use crate::environment::Environment;
use crate::export::Target;
use crate::inputs::go_path_error;
use crate::load::load_image;
use crate::plan::SolvePlan;
use crate::spec;
use crate::steps::Step;

/// Pieces of an archive that wait for the Engine.
const PIECES_MAX: usize = 16;
/// Bytes read of an upload at a time.
const UPLOAD_PIECE_BYTES: usize = 64 << 10;

/// What sessions of this machine are made with.
#[derive(Clone)]
pub(crate) struct Services {
    /// Docker's configuration, for credentials.
    pub(crate) config: DockerConfig,
    /// The Engine that images are loaded into.
    pub(crate) engine: Option<Engine>,
    /// Where our own steps are shown.
    pub(crate) progress: Progress,
    /// Variables and the working directory.
    pub(crate) env: Environment,
}

/// Makes the session of a plan, and tells the plan what the session knows. With `in_place` the
/// server is on this machine and may read directories where they are.
pub(crate) fn session_for(
    plan: &mut SolvePlan,
    services: &Services,
    in_place: bool,
) -> Result<ClientSession, Error> {
    let dirs: BTreeMap<String, LocalDir> = plan
        .local_dirs
        .iter()
        .map(|(name, path)| (name.clone(), LocalDir::new(path)))
        .collect();
    let mut builder = ClientSession::builder()
        .shared_key(&plan.shared_key)
        .local_dirs(dirs)
        .in_place(in_place)
        .auth_with(auth(services))
        .secrets(secrets(plan, &services.env)?)
        .ssh(agents(plan, &services.env)?)
        .oci_layouts(layouts(plan, &services.env));
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
        if let Some(target) = export_target(&export.target, services)? {
            builder = builder.file_target(number, target);
        }
    }
    Ok(builder.build())
}

fn auth(services: &Services) -> AuthOptions {
    let progress = services.progress.clone();
    AuthOptions::new(services.config.clone()).notice(Arc::new(move |text: &str| {
        Step::done(&progress, text);
    }))
}

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
        let made = SshAgent::new(id, &paths, false).map_err(Error::from);
        let context = format!(
            "failed to convert agent config {{{id} [{}] false}}: failed to convert agent config for ID: {id:?}",
            agent.paths.join(" ")
        );
        agents.push(made.map_err(|error| error.context(context))?);
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

fn export_target(target: &Target, services: &Services) -> Result<Option<ExportTarget>, Error> {
    Ok(Some(match target {
        Target::Server => return Ok(None),
        Target::Layout(_) => {
            return Err(Error::unimplemented(
                "writing an OCI layout directory (tar=false) is not supported",
            )
            .hint("leave out tar=false and unpack the archive"));
        }
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
            let progress = services.progress.clone();
            ExportTarget::writer(move |_| {
                let writer = EngineWriter::start(engine.clone(), progress.clone());
                async move {
                    let writer: session::ExportWriter = Box::pin(writer);
                    Ok(Some(writer))
                }
            })
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

/// Writes an archive into an Engine. Shutting it down waits until the Engine has loaded it; dropping
/// it before breaks the load off.
struct EngineWriter {
    sender: Option<PollSender<io::Result<Bytes>>>,
    task: JoinHandle<Result<(), Error>>,
    ended: bool,
}

impl EngineWriter {
    fn start(engine: Engine, progress: Progress) -> Self {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let archive = ReceiverStream::new(receiver);
        EngineWriter {
            sender: Some(PollSender::new(sender)),
            task: tokio::spawn(load_image(engine, archive, progress)),
            ended: false,
        }
    }

    /// How the load ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let result = ready!(Pin::new(&mut self.task).poll(cx));
        self.ended = true;
        Poll::Ready(match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io::Error::other(error.to_string())),
            Err(error) => Err(io::Error::other(error)),
        })
    }
}

impl AsyncWrite for EngineWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(sender) = &mut this.sender else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let sent = match ready!(sender.poll_reserve(cx)) {
            Ok(()) => sender.send_item(Ok(Bytes::copy_from_slice(data))),
            Err(closed) => Err(closed),
        };
        if sent.is_ok() {
            return Poll::Ready(Ok(data.len()));
        }
        // The Engine does not read on: how the load ended says why.
        let end = ready!(this.poll_end(cx));
        Poll::Ready(end.and(Err(io::ErrorKind::BrokenPipe.into())))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender = None;
        self.poll_end(cx)
    }
}

impl Drop for EngineWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.task.abort();
        }
    }
}
