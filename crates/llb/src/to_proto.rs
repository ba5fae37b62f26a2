//! Typed ops → wire messages.

use std::sync::Arc;

use oci::Platform;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, int64};
use proto::pb;

use crate::{
    BuildOp, ChownOpt, Edge, ExecOp, FileAction, FileActionKind, Graph, Mount, MountKind, Op,
    ProxyEnv, UserOpt, VertexMeta,
};

/// The wire bytes of a vertex; their sha256 is its digest.
///
/// What it does comes last, where Go's encoder puts it too, so that equal vertices of stock's and ours
/// have equal digests.
pub fn marshal_vertex(op: &Op, inputs: &[Edge], platform: Option<&Platform>) -> Vec<u8> {
    let surroundings = pb::Op {
        inputs: inputs
            .iter()
            .map(|edge| pb::Input {
                digest: edge.vertex.to_string(),
                index: i64::from(edge.output),
            })
            .collect(),
        platform: platform.map(platform_to_proto),
        constraints: Some(pb::WorkerConstraints { filter: Vec::new() }),
        op: None,
    };
    let mut bytes = surroundings.encode_to_vec();
    bytes.extend(marshal_op(op));
    bytes
}

/// A whole graph as a definition; its last op names what is wanted, as BuildKit has it.
pub fn to_proto(graph: &Graph) -> pb::Definition {
    let mut definition = pb::Definition::default();
    let mut source = pb::Source::default();
    let mut files = Vec::new();
    for digest in &graph.order {
        let vertex = &graph.vertices[digest];
        definition.def.push(vertex.raw.to_vec());
        let key = digest.to_string();
        let mut locations = pb::Locations::default();
        for location in &vertex.locations {
            locations
                .locations
                .push(location_to_proto(location, &mut files));
        }
        if !locations.locations.is_empty() {
            source.locations.insert(key.clone(), locations);
        }
        definition.metadata.insert(key, meta_to_proto(&vertex.meta));
    }
    if let Some(root) = graph.root {
        let last = pb::Op {
            inputs: vec![pb::Input {
                digest: root.vertex.to_string(),
                index: i64::from(root.output),
            }],
            ..pb::Op::default()
        };
        let bytes = last.encode_to_vec();
        definition.metadata.insert(
            oci::Digest::of(&bytes).to_string(),
            pb::OpMetadata::default(),
        );
        definition.def.push(bytes);
        source.infos = files.into_iter().map(info_to_proto).collect();
        definition.source = Some(source);
    }
    definition
}

/// Takes away the lists of places that are empty, also in the graphs that source files came from.
///
/// An encoder may leave out an empty value of a map and write its key alone; Go programs then crash
/// on the value that they have not got. A key that is missing they understand.
pub fn drop_empty_locations(definition: &mut pb::Definition) {
    let Some(source) = &mut definition.source else {
        return;
    };
    source
        .locations
        .retain(|_, locations| !locations.locations.is_empty());
    for info in &mut source.infos {
        if let Some(definition) = &mut info.definition {
            drop_empty_locations(definition);
        }
    }
}

/// A platform's wire form.
pub fn platform_to_proto(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn info_to_proto(file: &diag::SourceLocation) -> pb::SourceInfo {
    pb::SourceInfo {
        filename: file.filename.clone(),
        data: file.data.to_vec(),
        definition: None,
        language: file.language.clone(),
    }
}

/// The location; `files` are those that earlier ones were in, and its own is added.
fn location_to_proto<'g>(
    location: &'g diag::SourceLocation,
    files: &mut Vec<&'g diag::SourceLocation>,
) -> pb::Location {
    // Locations share the text of their file: it is compared only when they do not.
    let known = files.iter().position(|file| {
        file.filename == location.filename
            && (Arc::ptr_eq(&file.data, &location.data) || file.data == location.data)
    });
    let index = known.unwrap_or_else(|| {
        files.push(location);
        files.len() - 1
    });
    let position = |at: diag::Position| pb::Position {
        line: at.line as i32,
        character: at.character as i32,
    };
    pb::Location {
        source_index: index as i32,
        ranges: location
            .ranges
            .iter()
            .map(|range| pb::Range {
                start: Some(position(range.start)),
                end: Some(position(range.end)),
            })
            .collect(),
    }
}

fn meta_to_proto(meta: &VertexMeta) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: meta.ignore_cache,
        description: meta.description.clone(),
        export_cache: meta.export_cache.map(|value| pb::ExportCache { value }),
        caps: meta.caps.clone(),
        progress_group: meta.progress_group.as_ref().map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
    }
}

/// What a vertex does, as a part of its message.
fn marshal_op(op: &Op) -> Vec<u8> {
    let op = match op {
        Op::Source(source) => pb::op::Op::Source(pb::SourceOp {
            identifier: source.identifier.clone(),
            attrs: source.attrs.clone(),
        }),
        Op::Exec(exec) => pb::op::Op::Exec(exec_to_proto(exec)),
        Op::File(file) => pb::op::Op::File(pb::FileOp {
            actions: file.actions.iter().map(action_to_proto).collect(),
        }),
        Op::Merge(merge) => pb::op::Op::Merge(pb::MergeOp {
            inputs: merge
                .inputs
                .iter()
                .map(|i| pb::MergeInput { input: index(*i) })
                .collect(),
        }),
        Op::Diff(diff) => pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput {
                input: index(diff.lower),
            }),
            upper: Some(pb::UpperDiffInput {
                input: index(diff.upper),
            }),
        }),
        Op::Build(build) => return marshal_build(build),
    };
    let alone = pb::Op {
        op: Some(op),
        ..pb::Op::default()
    };
    alone.encode_to_vec()
}

/// Field numbers of `Op.build`, and of `BuildOp`.
const BUILD: u32 = 5;
const BUILDER: u32 = 1;
const INPUTS: u32 = 2;
const ATTRS: u32 = 4;

/// The part of a vertex that is a build operation. An input with number 0 is an empty message, which
/// generated code leaves out of its map, and for whose absence BuildKit ends with a panic.
fn marshal_build(build: &BuildOp) -> Vec<u8> {
    let mut body = Vec::new();
    if build.builder != 0 {
        int64::encode(BUILDER, &build.builder, &mut body);
    }
    for (name, input) in &build.inputs {
        let input = pb::BuildInput {
            input: *input as i64,
        };
        put_entry(&mut body, INPUTS, name, &input.encode_to_vec());
    }
    for (name, value) in &build.attrs {
        put_entry(&mut body, ATTRS, name, value.as_bytes());
    }
    let mut bytes = Vec::new();
    put(&mut bytes, BUILD, &body);
    bytes
}

/// An entry of a map, with key and value even where they are empty.
fn put_entry(out: &mut Vec<u8>, field: u32, key: &str, value: &[u8]) {
    let mut entry = Vec::new();
    put(&mut entry, 1, key.as_bytes());
    put(&mut entry, 2, value);
    put(out, field, &entry);
}

fn put(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// -1 stands for "no input" and for "no output" on the wire.
fn index(index: Option<usize>) -> i64 {
    index.map_or(-1, |i| i as i64)
}

fn exec_to_proto(exec: &ExecOp) -> pb::ExecOp {
    let meta = pb::Meta {
        args: exec.args.clone(),
        env: exec.env.clone(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone(),
        proxy_env: exec.proxy_env.as_ref().map(proxy_to_proto),
        extra_hosts: exec
            .extra_hosts
            .iter()
            .map(|(host, ip)| pb::HostIp {
                host: host.clone(),
                ip: ip.clone(),
            })
            .collect(),
        hostname: exec.hostname.clone(),
        ulimit: exec
            .ulimits
            .iter()
            .map(|u| pb::Ulimit {
                name: u.name.clone(),
                soft: u.soft,
                hard: u.hard,
            })
            .collect(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: exec.remove_mount_stubs_recursive,
        valid_exit_codes: exec.valid_exit_codes.clone(),
    };
    pb::ExecOp {
        meta: Some(meta),
        mounts: exec.mounts.iter().map(mount_to_proto).collect(),
        network: match exec.network {
            crate::NetMode::Unset => 0,
            crate::NetMode::Host => 1,
            crate::NetMode::None => 2,
        },
        security: match exec.security {
            crate::SecurityMode::Sandbox => 0,
            crate::SecurityMode::Insecure => 1,
        },
        secretenv: exec
            .secret_env
            .iter()
            .map(|s| pb::SecretEnv {
                id: s.id.clone(),
                name: s.name.clone(),
                optional: s.optional,
            })
            .collect(),
        cdi_devices: exec
            .cdi_devices
            .iter()
            .map(|(name, optional)| pb::CdiDevice {
                name: name.clone(),
                optional: *optional,
            })
            .collect(),
    }
}

fn proxy_to_proto(proxy: &ProxyEnv) -> pb::ProxyEnv {
    pb::ProxyEnv {
        http_proxy: proxy.http_proxy.clone(),
        https_proxy: proxy.https_proxy.clone(),
        ftp_proxy: proxy.ftp_proxy.clone(),
        no_proxy: proxy.no_proxy.clone(),
        all_proxy: proxy.all_proxy.clone(),
    }
}

fn mount_to_proto(mount: &Mount) -> pb::Mount {
    let mut message = pb::Mount {
        input: index(mount.input),
        selector: mount.selector.clone(),
        dest: mount.dest.clone(),
        output: match mount.kind {
            // As stock's library leaves it, so that digests are the same.
            MountKind::Secret(_) | MountKind::Ssh(_) => 0,
            _ => index(mount.output),
        },
        readonly: mount.readonly,
        result_id: mount.result_id.clone(),
        content_cache: match mount.content_cache {
            crate::ContentCache::Default => 0,
            crate::ContentCache::On => 1,
            crate::ContentCache::Off => 2,
        },
        ..pb::Mount::default()
    };
    match &mount.kind {
        MountKind::Bind => message.mount_type = pb::MountType::Bind as i32,
        MountKind::Cache { id, sharing } => {
            message.mount_type = pb::MountType::Cache as i32;
            let sharing = match sharing {
                crate::CacheSharing::Shared => 0,
                crate::CacheSharing::Private => 1,
                crate::CacheSharing::Locked => 2,
            };
            message.cache_opt = Some(pb::CacheOpt {
                id: id.clone(),
                sharing,
            });
        }
        MountKind::Secret(file) => {
            message.mount_type = pb::MountType::Secret as i32;
            message.secret_opt = Some(pb::SecretOpt {
                id: file.id.clone(),
                uid: file.uid,
                gid: file.gid,
                mode: file.mode,
                optional: file.optional,
            });
        }
        MountKind::Ssh(file) => {
            message.mount_type = pb::MountType::Ssh as i32;
            message.ssh_opt = Some(pb::SshOpt {
                id: file.id.clone(),
                uid: file.uid,
                gid: file.gid,
                mode: file.mode,
                optional: file.optional,
            });
        }
        MountKind::Tmpfs { size } => {
            message.mount_type = pb::MountType::Tmpfs as i32;
            message.tmpfs_opt = Some(pb::TmpfsOpt { size: *size as i64 });
        }
    }
    message
}

fn action_to_proto(action: &FileAction) -> pb::FileAction {
    use pb::file_action::Action;
    let kind = match &action.kind {
        FileActionKind::Copy(copy) => Action::Copy(pb::FileActionCopy {
            src: copy.src.clone(),
            dest: copy.dest.clone(),
            owner: copy.owner.as_ref().map(owner_to_proto),
            mode: copy.mode.map_or(-1, |mode| mode as i32),
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack_docker_compatibility: copy.attempt_unpack,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: copy.timestamp.unwrap_or(-1),
            include_patterns: copy.include_patterns.clone(),
            exclude_patterns: copy.exclude_patterns.clone(),
            always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
            mode_str: copy.mode_str.clone(),
            required_paths: copy.required_paths.clone(),
        }),
        FileActionKind::MkFile(file) => Action::Mkfile(pb::FileActionMkFile {
            path: file.path.clone(),
            mode: file.mode as i32,
            data: file.data.clone(),
            owner: file.owner.as_ref().map(owner_to_proto),
            timestamp: file.timestamp.unwrap_or(-1),
        }),
        FileActionKind::MkDir(dir) => Action::Mkdir(pb::FileActionMkDir {
            path: dir.path.clone(),
            mode: dir.mode as i32,
            make_parents: dir.make_parents,
            owner: dir.owner.as_ref().map(owner_to_proto),
            timestamp: dir.timestamp.unwrap_or(-1),
        }),
        FileActionKind::Rm(rm) => Action::Rm(pb::FileActionRm {
            path: rm.path.clone(),
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        FileActionKind::Symlink(link) => Action::Symlink(pb::FileActionSymlink {
            oldpath: link.oldpath.clone(),
            newpath: link.newpath.clone(),
            owner: link.owner.as_ref().map(owner_to_proto),
            timestamp: link.timestamp.unwrap_or(-1),
        }),
    };
    pb::FileAction {
        input: index(action.input),
        secondary_input: index(action.secondary_input),
        output: index(action.output),
        action: Some(kind),
    }
}

fn owner_to_proto(owner: &ChownOpt) -> pb::ChownOpt {
    let user = |user: &UserOpt| pb::UserOpt {
        user: Some(match user {
            UserOpt::ById(id) => pb::user_opt::User::ById(*id),
            UserOpt::ByName { name, input } => pb::user_opt::User::ByName(pb::NamedUserOpt {
                name: name.clone(),
                input: index(*input),
            }),
        }),
    };
    pb::ChownOpt {
        user: owner.user.as_ref().map(user),
        group: owner.group.as_ref().map(user),
    }
}

#[cfg(test)]
mod tests;
