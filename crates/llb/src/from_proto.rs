//! Wire messages → typed ops. Every index, digest and enum is checked here; nothing behind this
//! module meets one that is out of range.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use diag::SourceLocation;
use oci::{Digest, Platform};
use prost::Message;
use proto::pb;

use crate::{
    BuildOp, CacheSharing, ChownOpt, ClientFile, ContentCache, CopyAction, DiffOp, Edge, ExecOp,
    FileAction, FileActionKind, FileOp, Graph, MergeOp, MkDirAction, MkFileAction, Mount,
    MountKind, NetMode, Op, ProgressGroup, ProxyEnv, RmAction, SecretEnv, SecurityMode, SourceOp,
    SymlinkAction, Ulimit, UserOpt, Vertex, VertexMeta,
};

/// The most vertices a definition may have.
const VERTICES_MAX: usize = 100_000;

/// Why a definition cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LlbError {
    /// Bytes that are not the message they should be.
    #[error("failed to parse llb proto op: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A field whose value is out of range.
    #[error("invalid LLB definition: {0}")]
    Invalid(String),
    /// An op without something it cannot do without.
    #[error("invalid {0}")]
    Incomplete(&'static str),
    /// An op this server does not know.
    #[error("unsupported LLB op in vertex {0}")]
    UnknownOp(Digest),
}

impl From<LlbError> for diag::Error {
    fn from(error: LlbError) -> Self {
        let code = match &error {
            LlbError::UnknownOp(_) => diag::Code::Unimplemented,
            _ => diag::Code::InvalidArgument,
        };
        diag::Error::new(code, error.to_string())
    }
}

fn invalid<T>(what: impl Into<String>) -> Result<T, LlbError> {
    Err(LlbError::Invalid(what.into()))
}

/// Reads a definition. One without ops is an empty file system (`root` is `None`).
pub fn from_proto(definition: pb::Definition) -> Result<Graph, LlbError> {
    let pb::Definition {
        def,
        mut metadata,
        source,
    } = definition;
    if def.len() > VERTICES_MAX {
        return invalid(format!(
            "{} vertices are more than {VERTICES_MAX}",
            def.len()
        ));
    }
    let source = source.unwrap_or_default();
    let infos: Vec<SourceLocation> = source.infos.iter().map(info).collect();
    let mut pending: HashMap<Digest, (pb::Op, Bytes)> = HashMap::new();
    let mut last = None;
    for raw in def {
        let raw = Bytes::from(raw);
        let digest = Digest::of(&raw);
        pending.insert(digest, (pb::Op::decode(raw.clone())?, raw));
        last = Some(digest);
    }
    let Some((wanted, _)) = last.and_then(|digest| pending.remove(&digest)) else {
        return Ok(Graph::default());
    };
    if wanted.op.is_some() {
        return invalid("the last op must only name what is wanted");
    }
    let root = match wanted.inputs.first() {
        Some(input) => Some(edge(input)?),
        None => return Ok(Graph::default()),
    };
    // No cycle is possible: a vertex names its inputs by digests that its own digest is made of.
    let mut graph = Graph {
        root,
        ..Graph::default()
    };
    let mut stack: Vec<(Digest, bool)> = root.iter().map(|edge| (edge.vertex, false)).collect();
    while let Some((digest, inputs_done)) = stack.pop() {
        if graph.vertices.contains_key(&digest) {
            continue;
        }
        let Some((op, _)) = pending.get(&digest) else {
            return invalid(format!("vertex {digest} is not part of the definition"));
        };
        if !inputs_done {
            stack.push((digest, true));
            for input in &op.inputs {
                let edge = edge(input)?;
                if !graph.vertices.contains_key(&edge.vertex) {
                    stack.push((edge.vertex, false));
                }
            }
            continue;
        }
        let Some((op, raw)) = pending.remove(&digest) else {
            continue;
        };
        let key = digest.to_string();
        let meta = metadata.remove(&key).map(meta).unwrap_or_default();
        let locations = source
            .locations
            .get(&key)
            .map(|l| {
                l.locations
                    .iter()
                    .filter_map(|l| location(l, &infos))
                    .collect()
            })
            .unwrap_or_default();
        let vertex = vertex(digest, op, raw, meta, locations)?;
        graph.vertices.insert(digest, Arc::new(vertex));
        graph.order.push(digest);
    }
    Ok(graph)
}

/// A platform as it came over the wire, normalised.
pub fn platform_from_proto(platform: &pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        variant: platform.variant.clone(),
    }
    .normalized()
}

/// A mount as it came over the wire, of a vertex with that many inputs.
///
/// # Errors
/// Unknown kinds and modes; an input or output that cannot be.
pub fn mount_from_proto(message: pb::Mount, inputs: usize) -> Result<Mount, LlbError> {
    mount(message, inputs)
}

/// A network mode as it came over the wire.
///
/// # Errors
/// A mode that is not known.
pub fn net_mode_from_proto(mode: i32) -> Result<NetMode, LlbError> {
    match mode {
        0 => Ok(NetMode::Unset),
        1 => Ok(NetMode::Host),
        2 => Ok(NetMode::None),
        other => invalid(format!("unknown network mode {other}")),
    }
}

/// A location with its file, as errors and warnings carry it.
pub fn source_location(source: &pb::SourceInfo, ranges: &[pb::Range]) -> SourceLocation {
    SourceLocation {
        ranges: ranges.iter().map(range).collect(),
        ..info(source)
    }
}

fn info(info: &pb::SourceInfo) -> SourceLocation {
    SourceLocation {
        filename: info.filename.clone(),
        language: info.language.clone(),
        data: info.data.as_slice().into(),
        ranges: Vec::new(),
    }
}

fn range(range: &pb::Range) -> diag::Range {
    let position = |at: Option<pb::Position>| {
        let at = at.unwrap_or_default();
        diag::Position {
            line: at.line.max(0) as u32,
            character: at.character.max(0) as u32,
        }
    };
    diag::Range {
        start: position(range.start),
        end: position(range.end),
    }
}

fn location(location: &pb::Location, infos: &[SourceLocation]) -> Option<SourceLocation> {
    let info = infos.get(usize::try_from(location.source_index).ok()?)?;
    Some(SourceLocation {
        ranges: location.ranges.iter().map(range).collect(),
        ..info.clone()
    })
}

fn edge(input: &pb::Input) -> Result<Edge, LlbError> {
    let Ok(vertex) = input.digest.parse() else {
        return invalid(format!("`{}` is not a vertex digest", input.digest));
    };
    let Ok(output) = u32::try_from(input.index) else {
        return invalid(format!(
            "output {} of {vertex} is out of range",
            input.index
        ));
    };
    Ok(Edge { vertex, output })
}

fn meta(meta: pb::OpMetadata) -> VertexMeta {
    VertexMeta {
        description: meta.description,
        ignore_cache: meta.ignore_cache,
        export_cache: meta.export_cache.map(|export| export.value),
        progress_group: meta.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
        caps: meta.caps,
    }
}

fn vertex(
    digest: Digest,
    op: pb::Op,
    raw: Bytes,
    meta: VertexMeta,
    locations: Vec<SourceLocation>,
) -> Result<Vertex, LlbError> {
    let inputs = op.inputs.iter().map(edge).collect::<Result<Vec<_>, _>>()?;
    let Some(message) = op.op else {
        return Err(LlbError::UnknownOp(digest));
    };
    let count = inputs.len();
    let typed = match message {
        pb::op::Op::Source(source) => Op::Source(SourceOp {
            identifier: source.identifier,
            attrs: source.attrs,
        }),
        pb::op::Op::Exec(exec) => {
            check_exec(&exec)?;
            Op::Exec(Box::new(exec_op(exec, count)?))
        }
        pb::op::Op::File(file) => Op::File(file_op(file, count)?),
        pb::op::Op::Merge(merge) => {
            let inputs = merge
                .inputs
                .iter()
                .map(|m| index(m.input, count))
                .collect::<Result<_, _>>()?;
            Op::Merge(MergeOp { inputs })
        }
        pb::op::Op::Diff(diff) => {
            let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else {
                return Err(LlbError::Incomplete(
                    "diff op with nil lower or upper input",
                ));
            };
            Op::Diff(DiffOp {
                lower: index(lower.input, count)?,
                upper: index(upper.input, count)?,
            })
        }
        pb::op::Op::Build(build) => {
            let mut named = std::collections::BTreeMap::new();
            for (name, input) in build.inputs {
                if let Some(at) = index(input.input, count)? {
                    named.insert(name, at);
                }
            }
            Op::Build(BuildOp {
                builder: build.builder,
                inputs: named,
                attrs: build.attrs,
            })
        }
    };
    Ok(Vertex {
        digest,
        op: typed,
        inputs,
        platform: op.platform.as_ref().map(platform_from_proto),
        worker_filter: op.constraints.map(|c| c.filter).unwrap_or_default(),
        meta,
        locations,
        raw,
    })
}

/// What a process cannot do without.
fn check_exec(exec: &pb::ExecOp) -> Result<(), LlbError> {
    let Some(meta) = &exec.meta else {
        return Err(LlbError::Incomplete("exec op with no meta"));
    };
    if meta.args.is_empty() {
        return Err(LlbError::Incomplete("exec op with no args"));
    }
    if exec.mounts.is_empty() {
        return Err(LlbError::Incomplete("exec op with no mounts"));
    }
    if !exec.mounts.iter().any(|mount| mount.dest == "/") {
        return Err(LlbError::Incomplete("exec op with no rootfs"));
    }
    Ok(())
}

/// -1 is "none"; everything else must be one of `count`.
fn index(index: i64, count: usize) -> Result<Option<usize>, LlbError> {
    if index == -1 {
        return Ok(None);
    }
    match usize::try_from(index) {
        Ok(at) if at < count => Ok(Some(at)),
        _ => invalid(format!("input {index} is out of range (there are {count})")),
    }
}

fn output(index: i64) -> Result<Option<usize>, LlbError> {
    match index {
        -1 => Ok(None),
        0..=1023 => Ok(Some(index as usize)),
        _ => invalid(format!("output {index} is out of range")),
    }
}

fn exec_op(exec: pb::ExecOp, count: usize) -> Result<ExecOp, LlbError> {
    let meta = exec.meta.unwrap_or_default();
    let mounts = exec
        .mounts
        .into_iter()
        .map(|message| mount(message, count))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ExecOp {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        proxy_env: meta.proxy_env.map(|proxy| ProxyEnv {
            http_proxy: proxy.http_proxy,
            https_proxy: proxy.https_proxy,
            ftp_proxy: proxy.ftp_proxy,
            no_proxy: proxy.no_proxy,
            all_proxy: proxy.all_proxy,
        }),
        extra_hosts: meta
            .extra_hosts
            .into_iter()
            .map(|h| (h.host, h.ip))
            .collect(),
        hostname: meta.hostname,
        ulimits: meta
            .ulimit
            .into_iter()
            .map(|u| Ulimit {
                name: u.name,
                soft: u.soft,
                hard: u.hard,
            })
            .collect(),
        cgroup_parent: meta.cgroup_parent,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        valid_exit_codes: meta.valid_exit_codes,
        mounts,
        network: net_mode_from_proto(exec.network)?,
        security: match exec.security {
            0 => SecurityMode::Sandbox,
            1 => SecurityMode::Insecure,
            other => return invalid(format!("unknown security mode {other}")),
        },
        secret_env: exec
            .secretenv
            .into_iter()
            .map(|s| SecretEnv {
                id: s.id,
                name: s.name,
                optional: s.optional,
            })
            .collect(),
        cdi_devices: exec
            .cdi_devices
            .into_iter()
            .map(|d| (d.name, d.optional))
            .collect(),
    })
}

fn mount(mount: pb::Mount, count: usize) -> Result<Mount, LlbError> {
    let Ok(mount_type) = pb::MountType::try_from(mount.mount_type) else {
        return invalid(format!("unknown mount type {}", mount.mount_type));
    };
    let kind = match mount_type {
        pb::MountType::Bind => MountKind::Bind,
        pb::MountType::Cache => {
            let opt = mount.cache_opt.unwrap_or_default();
            let sharing = match opt.sharing {
                0 => CacheSharing::Shared,
                1 => CacheSharing::Private,
                2 => CacheSharing::Locked,
                other => return invalid(format!("unknown cache sharing mode {other}")),
            };
            MountKind::Cache {
                id: opt.id,
                sharing,
            }
        }
        pb::MountType::Secret => {
            let o = mount.secret_opt.unwrap_or_default();
            MountKind::Secret(ClientFile {
                id: o.id,
                uid: o.uid,
                gid: o.gid,
                mode: o.mode,
                optional: o.optional,
            })
        }
        pb::MountType::Ssh => {
            let o = mount.ssh_opt.unwrap_or_default();
            MountKind::Ssh(ClientFile {
                id: o.id,
                uid: o.uid,
                gid: o.gid,
                mode: o.mode,
                optional: o.optional,
            })
        }
        pb::MountType::Tmpfs => MountKind::Tmpfs {
            size: mount.tmpfs_opt.map_or(0, |opt| opt.size.max(0) as u64),
        },
    };
    Ok(Mount {
        input: index(mount.input, count)?,
        selector: mount.selector,
        dest: mount.dest,
        output: match kind {
            // They have none, whatever number a client left there.
            MountKind::Secret(_) | MountKind::Ssh(_) => None,
            _ => output(mount.output)?,
        },
        readonly: mount.readonly,
        kind,
        result_id: mount.result_id,
        content_cache: match mount.content_cache {
            0 => ContentCache::Default,
            1 => ContentCache::On,
            2 => ContentCache::Off,
            other => return invalid(format!("unknown content cache mode {other}")),
        },
    })
}

fn file_op(file: pb::FileOp, count: usize) -> Result<FileOp, LlbError> {
    let mut actions = Vec::with_capacity(file.actions.len());
    for (at, action) in file.actions.into_iter().enumerate() {
        let Some(kind) = action.action else {
            return invalid("a file action without an action");
        };
        actions.push(FileAction {
            input: index(action.input, count + at)?,
            secondary_input: index(action.secondary_input, count + at)?,
            output: output(action.output)?,
            kind: action_kind(kind, count)?,
        });
    }
    Ok(FileOp { actions })
}

fn action_kind(action: pb::file_action::Action, count: usize) -> Result<FileActionKind, LlbError> {
    use pb::file_action::Action;
    let timestamp = |value: i64| (value != -1).then_some(value);
    Ok(match action {
        Action::Copy(copy) => FileActionKind::Copy(Box::new(CopyAction {
            src: copy.src,
            dest: copy.dest,
            owner: owner(copy.owner, count)?,
            mode: u32::try_from(copy.mode).ok(),
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack: copy.attempt_unpack_docker_compatibility,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: timestamp(copy.timestamp),
            include_patterns: copy.include_patterns,
            exclude_patterns: copy.exclude_patterns,
            always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
            mode_str: copy.mode_str,
            required_paths: copy.required_paths,
        })),
        Action::Mkfile(file) => FileActionKind::MkFile(MkFileAction {
            path: file.path,
            mode: file.mode as u32,
            data: file.data,
            owner: owner(file.owner, count)?,
            timestamp: timestamp(file.timestamp),
        }),
        Action::Mkdir(dir) => FileActionKind::MkDir(MkDirAction {
            path: dir.path,
            mode: dir.mode as u32,
            make_parents: dir.make_parents,
            owner: owner(dir.owner, count)?,
            timestamp: timestamp(dir.timestamp),
        }),
        Action::Rm(rm) => FileActionKind::Rm(RmAction {
            path: rm.path,
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        Action::Symlink(link) => FileActionKind::Symlink(SymlinkAction {
            oldpath: link.oldpath,
            newpath: link.newpath,
            owner: owner(link.owner, count)?,
            timestamp: timestamp(link.timestamp),
        }),
    })
}

fn owner(owner: Option<pb::ChownOpt>, count: usize) -> Result<Option<ChownOpt>, LlbError> {
    let user = |opt: Option<pb::UserOpt>| -> Result<Option<UserOpt>, LlbError> {
        Ok(match opt.and_then(|opt| opt.user) {
            None => None,
            Some(pb::user_opt::User::ById(id)) => Some(UserOpt::ById(id)),
            Some(pb::user_opt::User::ByName(named)) => Some(UserOpt::ByName {
                name: named.name,
                input: index(named.input, count)?,
            }),
        })
    };
    owner
        .map(|owner| {
            Ok(ChownOpt {
                user: user(owner.user)?,
                group: user(owner.group)?,
            })
        })
        .transpose()
}
