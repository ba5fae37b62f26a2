//! Running a process op: its mounts, its environment, its output, and what it leaves behind.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use diag::{Context, Error, Result};
use executor::{ExecError, MountFlags, MountSource, ProcessMount, ProcessSpec, Stdio};
use layers::{LayerNote, WritableStack};
use llb::{ClientFile, ExecOp, Mount, MountKind, SecurityMode, Vertex};
use progress::VertexLog;
use solver::RunContext;

use super::cache_mounts::CacheMount;
use super::context::{BuildContext, Event, FailedStep};
use super::devices::add_devices;
use super::logs::{self, LogChunk};
use super::output::Output;
use super::parts::{Parts, ReadOnly, blocking};
use super::ssh::SshSocket;
use crate::clean;

/// The search path of steps whose image does not set one.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a process op on its inputs.
pub async fn run_exec_op(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    op: &ExecOp,
    inputs: Vec<Output>,
    context: &RunContext<BuildContext>,
) -> Result<Vec<Output>> {
    let mut mounts = Mounts::prepare(parts, op, &inputs, context).await?;
    let spec = specification(parts, op, &mut mounts, context).await?;
    let ended = run_process(parts, vertex, op, spec, context).await;
    // A cancelled step's mounts are never committed: they go away with `mounts`.
    if let Err(error) = ended {
        let watching = context.contexts();
        if !error.is_canceled() && watching.iter().any(|build| build.wants_failures()) {
            match mounts.keep_failed(parts, op, &inputs, vertex.name()).await {
                Ok(failed) => {
                    for build in watching {
                        build.failed(&vertex.digest, &failed);
                    }
                }
                // A full disk, often: why the step failed is what matters.
                Err(error) => tracing::warn!("keeping the files of a failed step: {error}"),
            }
        }
        return Err(error);
    }
    mounts.commit(vertex.name()).await
}

/// A mount of files while the process runs.
enum Prepared {
    ReadOnly(ReadOnly),
    /// Written to; becomes the output of that number, or nothing.
    Writable(WritableStack, Option<usize>),
    Cache(CacheMount),
    /// The untouched input is the output, since nothing could write to it.
    Same(ReadOnly, usize, Output),
    /// The same as a root file system: mount points and the working directory are made in a layer that
    /// goes away, never in those of the input.
    Root(WritableStack, Option<usize>, Output),
}

impl Prepared {
    fn path(&self) -> PathBuf {
        match self {
            Prepared::ReadOnly(mounted) | Prepared::Same(mounted, _, _) => {
                mounted.path().to_owned()
            }
            Prepared::Writable(stack, _) | Prepared::Root(stack, _, _) => stack.path(),
            Prepared::Cache(cache) => cache.path(),
        }
    }
}

/// What a process sees of files and secrets; dropping it takes everything away again.
pub(super) struct Mounts {
    /// By the number of the mount in the op.
    files: HashMap<usize, Prepared>,
    others: Vec<(usize, ProcessMount)>,
    _sockets: Vec<SshSocket>,
}

impl Mounts {
    /// Prepares all mounts of an op. A cancelled or failed preparation leaves nothing behind.
    pub(super) async fn prepare(
        parts: &Arc<Parts>,
        op: &ExecOp,
        inputs: &[Output],
        context: &RunContext<BuildContext>,
    ) -> Result<Self> {
        let mut mounts = Mounts {
            files: HashMap::new(),
            others: Vec::new(),
            _sockets: Vec::new(),
        };
        for (number, mount) in op.mounts.iter().enumerate() {
            let input = input_of(mount, inputs)?;
            match &mount.kind {
                MountKind::Bind => {
                    let files = bind(parts, mount, input).await?;
                    mounts.files.insert(number, files);
                }
                MountKind::Cache { .. } => {
                    let files = cache(parts, mount, input, context).await?;
                    mounts.files.insert(number, files);
                }
                MountKind::Tmpfs { size } => {
                    let source = MountSource::Tmpfs { size: *size };
                    let mount = ProcessMount::new(source, &mount.dest);
                    mounts.others.push((number, mount));
                }
                MountKind::Secret(file) => {
                    if let Some(mount) = secret(file, &mount.dest, context).await? {
                        mounts.others.push((number, mount));
                    }
                }
                MountKind::Ssh(file) => {
                    if let Some(socket) = ssh_socket(file, parts, context).await? {
                        let source = MountSource::Socket(socket.path().to_owned());
                        let mut mount = ProcessMount::new(source, &mount.dest);
                        mount.flags = MountFlags::RESTRICTED;
                        mounts.others.push((number, mount));
                        mounts._sockets.push(socket);
                    }
                }
            }
        }
        Ok(mounts)
    }

    /// Where the files of the mount of that number are; `None` for one without files of its own.
    pub(super) fn path(&self, number: usize) -> Option<PathBuf> {
        self.files.get(&number).map(Prepared::path)
    }

    /// The mounts over the root file system, in the order of the op.
    pub(super) fn process_mounts(&mut self, op: &ExecOp) -> Vec<ProcessMount> {
        let mut mounts = std::mem::take(&mut self.others);
        for (number, prepared) in &self.files {
            let mount = &op.mounts[*number];
            if mount.dest == "/" {
                continue;
            }
            let mut mounted = ProcessMount::bind(prepared.path(), &mount.dest);
            if clean(&mount.selector) != "/" {
                mounted.selector.clone_from(&mount.selector);
            }
            mounted.readonly = mount.readonly;
            mounts.push((*number, mounted));
        }
        mounts.sort_by_key(|(number, _)| *number);
        mounts.into_iter().map(|(_, mount)| mount).collect()
    }

    /// What a failed step started from and left behind, for those who want to look into it.
    async fn keep_failed(
        self,
        parts: &Arc<Parts>,
        op: &ExecOp,
        inputs: &[Output],
        name: String,
    ) -> Result<FailedStep> {
        let before: Vec<Option<Output>> = op
            .mounts
            .iter()
            .map(|mount| inputs.get(mount.input?).cloned())
            .collect();
        let (Mounts { files, .. }, layers) = (self, parts.layers.clone());
        blocking(move || {
            let mut after = before.clone();
            for (number, prepared) in files {
                if let Prepared::Writable(stack, _) = prepared {
                    let (stack, hold) = stack.commit_held(LayerNote::new(&name))?;
                    after[number] = Some(Output::temporary(&layers, stack, hold));
                }
            }
            Ok(FailedStep { before, after })
        })
        .await
    }

    /// Makes layers of what was written.
    async fn commit(self, name: String) -> Result<Vec<Output>> {
        let Mounts { files, .. } = self;
        blocking(move || {
            let mut outputs: Vec<(usize, Output)> = Vec::new();
            for (_, prepared) in files {
                match prepared {
                    Prepared::Writable(stack, Some(output)) => {
                        let (stack, hold) = stack.commit_held(LayerNote::new(&name))?;
                        outputs.push((output, Output::held(stack, hold)));
                    }
                    Prepared::Same(_, number, output) | Prepared::Root(_, Some(number), output) => {
                        outputs.push((number, output))
                    }
                    Prepared::ReadOnly(_)
                    | Prepared::Writable(_, None)
                    | Prepared::Root(_, None, _)
                    | Prepared::Cache(_) => {}
                }
            }
            outputs.sort_by_key(|(number, _)| *number);
            Ok(outputs.into_iter().map(|(_, output)| output).collect())
        })
        .await
    }
}

fn input_of<'i>(mount: &Mount, inputs: &'i [Output]) -> Result<Option<&'i Output>> {
    match mount.input {
        None => Ok(None),
        Some(number) => inputs.get(number).map(Some).ok_or_else(|| {
            Error::invalid(format!("missing input {number} for mount {}", mount.dest))
        }),
    }
}

async fn bind(parts: &Arc<Parts>, mount: &Mount, input: Option<&Output>) -> Result<Prepared> {
    let (parts, output) = (parts.clone(), mount.output);
    let input = input.cloned().unwrap_or_default();
    let (readonly, is_root) = (mount.readonly, mount.dest == "/");
    blocking(move || {
        Ok(match output {
            output if readonly && is_root => {
                Prepared::Root(parts.layers.writable(&input.stack)?, output, input)
            }
            Some(number) if readonly => {
                let mounted = parts.read_only(&input.stack)?;
                Prepared::Same(mounted, number, input)
            }
            None if readonly => Prepared::ReadOnly(parts.read_only(&input.stack)?),
            output => Prepared::Writable(parts.layers.writable(&input.stack)?, output),
        })
    })
    .await
}

async fn cache(
    parts: &Arc<Parts>,
    mount: &Mount,
    input: Option<&Output>,
    context: &RunContext<BuildContext>,
) -> Result<Prepared> {
    let MountKind::Cache { id, sharing } = &mount.kind else {
        return Err(Error::internal("not a cache mount"));
    };
    let name = if id.is_empty() { &mount.dest } else { id };
    let base = match input.filter(|input| !input.stack.is_empty()) {
        None => None,
        Some(input) => {
            let (parts, stack) = (parts.clone(), input.stack.clone());
            Some(blocking(move || parts.read_only(&stack)).await?)
        }
    };
    let key = input.map(|input| format!("{:?}", input.stack));
    let cache = parts
        .cache_mounts
        .acquire(
            name,
            *sharing,
            key.as_deref().unwrap_or_default(),
            base.as_ref().map(|base| base.path().to_owned()),
            &context.cancel,
        )
        .await?;
    Ok(Prepared::Cache(cache))
}

/// The bytes of a secret; `None` when it is not there and need not be.
async fn secret_data(
    id: &str,
    optional: bool,
    context: &RunContext<BuildContext>,
) -> Result<Option<diag::Secret<Vec<u8>>>> {
    if id.is_empty() {
        return Err(Error::invalid("secret ID missing from mount options"));
    }
    let session = match context.first()?.session().await {
        Ok(session) => session,
        Err(_) if optional => return Ok(None),
        Err(error) => return Err(error),
    };
    match session.secret(id).await {
        Ok(None) if !optional => Err(Error::not_found(format!("secret {id}: not found"))
            .hint(format!("give it to the build with `--secret id={id},…`"))),
        Ok(secret) => Ok(secret),
        Err(_) if optional => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn secret(
    file: &ClientFile,
    dest: &str,
    context: &RunContext<BuildContext>,
) -> Result<Option<ProcessMount>> {
    let Some(data) = secret_data(&file.id, file.optional, context).await? else {
        return Ok(None);
    };
    let source = MountSource::File {
        data,
        uid: file.uid,
        gid: file.gid,
        mode: file.mode & 0o777,
    };
    let mut mounted = ProcessMount::new(source, dest).readonly();
    mounted.flags = MountFlags::RESTRICTED;
    Ok(Some(mounted))
}

/// A socket to an agent of the client; `None` when that has none and need not have one.
async fn ssh_socket(
    file: &ClientFile,
    parts: &Arc<Parts>,
    context: &RunContext<BuildContext>,
) -> Result<Option<SshSocket>> {
    let session = match context.first()?.session().await {
        Ok(session) => session,
        Err(_) if file.optional => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Err(error) = session.check_ssh(&file.id).await {
        if file.optional {
            return Ok(None);
        }
        let shown = match file.id.as_str() {
            "" => "default",
            id => id,
        };
        let error = Error::from(error);
        // A client that forwards no agent at all does not know the service.
        let error = match error.code() {
            diag::Code::Unimplemented => {
                let text = format!("no SSH key {shown:?} forwarded from the client");
                Error::new(diag::Code::FailedPrecondition, text)
            }
            _ => error,
        };
        return Err(error.hint(format!("give the build an agent with `--ssh {shown}`")));
    }
    let owner = (file.uid, file.gid, file.mode);
    SshSocket::open(&parts.run_dir, session, &file.id, owner).map(Some)
}

async fn specification(
    parts: &Arc<Parts>,
    op: &ExecOp,
    mounts: &mut Mounts,
    context: &RunContext<BuildContext>,
) -> Result<ProcessSpec> {
    check_hosts(op)?;
    let root = op.mounts.iter().position(|mount| mount.dest == "/");
    let root = root.ok_or_else(|| Error::invalid("no rootfs specified"))?;
    let rootfs = mounts
        .files
        .get(&root)
        .map(Prepared::path)
        .ok_or_else(|| Error::invalid("the root file system must be files"))?;
    let (passwd, user) = (rootfs.clone(), op.user.clone());
    let user = blocking(move || executor::resolve_user(&passwd, &user)).await;
    let user = user.map_err(|error| did_not_complete(op, error))?;
    let process_mounts = mounts.process_mounts(op);
    let mut spec = ProcessSpec {
        rootfs,
        readonly_rootfs: op.mounts[root].readonly,
        args: op.args.clone(),
        env: environment(op, context).await?,
        cwd: op.cwd.clone(),
        user,
        hostname: op.hostname.clone(),
        mounts: process_mounts,
        network: op.network,
        insecure: op.security == SecurityMode::Insecure,
        extra_hosts: op.extra_hosts.clone(),
        ulimits: op.ulimits.clone(),
        cgroup_parent: op.cgroup_parent.clone(),
        oom_score_adj: None,
        remove_mount_stubs_recursive: op.remove_mount_stubs_recursive,
    };
    add_devices(parts, op, &mut spec).await?;
    Ok(spec)
}

/// Addresses that are none are told before anything of the process is set up.
fn check_hosts(op: &ExecOp) -> Result<()> {
    for (_, address) in &op.extra_hosts {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        if address != "host-gateway" && bare.parse::<std::net::IpAddr>().is_err() {
            return Err(Error::invalid(format!("failed to parse IP {address}")));
        }
    }
    Ok(())
}

/// The environment of a process with the client's secrets in it.
pub(super) async fn environment(
    op: &ExecOp,
    context: &RunContext<BuildContext>,
) -> Result<Vec<String>> {
    let mut env = op.env.clone();
    if let Some(proxy) = &op.proxy_env {
        for (name, value) in [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ] {
            if !value.is_empty() {
                env.push(format!("{name}={value}"));
                env.push(format!("{}={value}", name.to_lowercase()));
            }
        }
    }
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    for secret in &op.secret_env {
        let data = secret_data(&secret.id, secret.optional, context).await?;
        // As for stock, one that need not be there and is not is set to nothing.
        let value = data
            .as_ref()
            .map(|data| String::from_utf8_lossy(data.expose()));
        env.push(format!("{}={}", secret.name, value.unwrap_or_default()));
    }
    Ok(env)
}

async fn run_process(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    op: &ExecOp,
    spec: ProcessSpec,
    context: &RunContext<BuildContext>,
) -> Result<()> {
    let pipe = || -> Result<(OwnedFd, OwnedFd)> {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .context("pipe")
    };
    let ((stdout, stdout_write), (stderr, stderr_write)) = (pipe()?, pipe()?);
    let stdio = Stdio {
        stdin: None,
        stdout: stdout_write,
        stderr: stderr_write,
    };
    let emit = |chunk: LogChunk| {
        context.emit(Event::Log(VertexLog {
            vertex: vertex.digest,
            stream: chunk.stream,
            timestamp: chunk.timestamp,
            data: Bytes::from(chunk.data),
        }));
    };
    let limits = parts.log_limits;
    let id = step_id();
    let rootfs = spec.rootfs.clone();
    let run = parts
        .executor
        .run(&id, spec, stdio, context.cancel.child_token());
    let (ended, out, err) = tokio::join!(
        run,
        logs::forward(stdout, 1, limits, emit),
        logs::forward(stderr, 2, limits, emit),
    );
    let failure = match ended {
        Ok(status) => {
            let code = status.code;
            let fine = match op.valid_exit_codes.as_slice() {
                [] => code == 0,
                codes => codes.contains(&code),
            };
            if fine {
                return Ok(());
            }
            let failure = Error::new(diag::Code::Unknown, format!("exit code: {code}"));
            crate::error::hint_at_disk_of(&rootfs, failure.exit_code(code))
        }
        Err(ExecError::Canceled) => return Err(Error::canceled()),
        Err(error) => error.into(),
    };
    // What was clipped is shown after all when it may say why the step failed.
    for (stream, tail) in [(1, out), (2, err)] {
        let data = tail.unwrap_or_default();
        if !data.is_empty() {
            emit(LogChunk {
                stream,
                timestamp: jiff::Timestamp::now(),
                data,
            });
        }
    }
    Err(did_not_complete(op, failure))
}

fn did_not_complete(op: &ExecOp, failure: Error) -> Error {
    failure.context(format!(
        "process {} did not complete successfully",
        quoted(&op.args.join(" "))
    ))
}

/// A name for a running step that no other has.
pub(super) fn step_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{number:x}", std::process::id())
}

/// In double quotes, as Go's `%q` writes a text.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_as_go_quotes_them() {
        assert_eq!(quoted("/bin/sh -c exit 7"), "\"/bin/sh -c exit 7\"");
        assert_eq!(
            quoted("a \"b\"\n'c' ü\u{1}"),
            "\"a \\\"b\\\"\\n'c' ü\\x01\""
        );
    }
}
