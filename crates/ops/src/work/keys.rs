//! What identifies each operation, and how its inputs enter its key.
//!
//! | op | identity | keyed by content |
//! |---|---|---|
//! | exec | arguments, environment, directory, user, host names (not their addresses), network, sandbox, limits, mounts (not the names of cache mounts and secrets' contents), platform; not proxies | inputs of mounts that are read-only, have no output or show the whole input; never of the root |
//! | file | actions with their parameters, of copied paths the last component only (in the definition key also the selected paths) | inputs only copied from or looked into for names of owners: the selected paths |
//! | merge, diff | the kind and the order of inputs | nothing |
//! | build | builder, inputs by name, attributes | nothing |
//! | source | what it is pinned to | no inputs |

use std::collections::BTreeMap;

use llb::{
    BuildOp, ChownOpt, ClientFile, ContentCache, CopyAction, ExecOp, FileActionKind, FileOp, Mount,
    MountKind, Op, UserOpt, Vertex,
};
use oci::Platform;
use solver::{Identity, KeyPart};

use crate::clean;
use crate::contenthash::Selector;

/// How one input is keyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputSelection {
    /// By its own key.
    Definition,
    /// By the content that these select; none is everything.
    Content(Vec<Selector>),
}

/// How each input of a vertex is keyed.
pub fn input_selections(vertex: &Vertex) -> Vec<InputSelection> {
    let mut inputs = match &vertex.op {
        Op::Exec(exec) => exec_inputs(exec, vertex.inputs.len()),
        Op::File(file) => file_inputs(file, vertex.inputs.len()),
        _ => Vec::new(),
    };
    inputs.resize(vertex.inputs.len(), InputSelection::Definition);
    inputs
}

/// The identity of every op but a source.
pub fn identity(vertex: &Vertex) -> Identity {
    let mut parts = match &vertex.op {
        Op::Exec(exec) => exec_parts(exec),
        Op::File(file) => file_parts(file, vertex.inputs.len()),
        Op::Merge(merge) => vec![
            KeyPart::new("op", "merge"),
            KeyPart::new("inputs", format!("{:?}", merge.inputs)),
        ],
        Op::Diff(diff) => vec![
            KeyPart::new("op", "diff"),
            KeyPart::new("lower", format!("{:?}", diff.lower)),
            KeyPart::new("upper", format!("{:?}", diff.upper)),
        ],
        Op::Build(build) => build_parts(build),
        Op::Source(_) => vec![KeyPart::new("digest", vertex.digest.to_string())],
    };
    if matches!(vertex.op, Op::Exec(_)) {
        let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
        parts.push(KeyPart::new("platform", platform.to_string()));
    }
    let identity = Identity::of(parts);
    // Paths are left out above where their content says what they are; before that is known, they
    // are what tells `COPY a/x` from `COPY b/x`.
    match input_selections(vertex)
        .iter()
        .all(|selection| *selection == InputSelection::Definition)
    {
        true => identity,
        false => identity.reading(format!("{:?}", input_selections(vertex)).as_bytes()),
    }
}

fn exec_parts(exec: &ExecOp) -> Vec<KeyPart> {
    let mut parts = vec![KeyPart::new("op", "exec")];
    let mut add = |name: String, value: String| parts.push(KeyPart::new(name, value));
    for (at, arg) in exec.args.iter().enumerate() {
        add(format!("args[{at}]"), arg.clone());
    }
    for variable in &exec.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        add(format!("env {name}"), value.to_owned());
    }
    add("cwd".into(), exec.cwd.clone());
    add("user".into(), exec.user.clone());
    add("hostname".into(), exec.hostname.clone());
    for (host, _) in &exec.extra_hosts {
        add("extra host".into(), host.clone());
    }
    for limit in &exec.ulimits {
        let value = format!("{}:{}", limit.soft, limit.hard);
        add(format!("ulimit {}", limit.name), value);
    }
    add("cgroup parent".into(), exec.cgroup_parent.clone());
    let codes = format!("{:?}", exec.valid_exit_codes);
    add("valid exit codes".into(), codes);
    let stubs = exec.remove_mount_stubs_recursive;
    add("remove mount stubs".into(), stubs.to_string());
    add("network".into(), format!("{:?}", exec.network));
    add("security".into(), format!("{:?}", exec.security));
    for secret in &exec.secret_env {
        let value = format!("{} optional={}", secret.id, secret.optional);
        add(format!("secret env {}", secret.name), value);
    }
    for (device, optional) in &exec.cdi_devices {
        add(format!("device {device}"), optional.to_string());
    }
    for mount in &exec.mounts {
        add(format!("mount {}", mount.dest), mount_value(mount));
    }
    parts
}

fn build_parts(build: &BuildOp) -> Vec<KeyPart> {
    let mut parts = vec![
        KeyPart::new("op", "build"),
        KeyPart::new("builder", build.builder.to_string()),
        KeyPart::new("inputs", format!("{:?}", build.inputs)),
    ];
    for (name, value) in &build.attrs {
        parts.push(KeyPart::new(format!("attr {name}"), value.clone()));
    }
    parts
}

fn mount_value(mount: &Mount) -> String {
    let kind = match &mount.kind {
        MountKind::Bind => "bind".to_owned(),
        // What a cache mount holds never shows in the outcome's key, so its name does not either.
        MountKind::Cache { .. } => "cache".to_owned(),
        MountKind::Secret(file) => format!("secret {}", client_file(file)),
        MountKind::Ssh(file) => format!("ssh {}", client_file(file)),
        MountKind::Tmpfs { size } => format!("tmpfs {size}"),
    };
    format!(
        "{kind} input={:?} selector={:?} output={:?} readonly={}",
        mount.input, mount.selector, mount.output, mount.readonly
    )
}

fn client_file(file: &ClientFile) -> String {
    let ClientFile {
        id,
        uid,
        gid,
        mode,
        optional,
    } = file;
    format!("{id:?} {uid}:{gid} {mode:o} optional={optional}")
}

fn exec_inputs(exec: &ExecOp, count: usize) -> Vec<InputSelection> {
    let mut inputs: Vec<Option<InputSelection>> = vec![None; count];
    for mount in &exec.mounts {
        let files = matches!(mount.kind, MountKind::Bind | MountKind::Cache { .. });
        let Some(slot) = mount.input.and_then(|input| inputs.get_mut(input)) else {
            continue;
        };
        if !files {
            continue;
        }
        let selector = clean(&mount.selector);
        // Whatever is not selected must not be able to come through an output unseen.
        let safe = mount.output.is_none() || mount.readonly || selector == "/";
        let by_content = match mount.content_cache {
            ContentCache::Off => false,
            ContentCache::On => safe,
            ContentCache::Default => safe && mount.dest != "/",
        };
        let selected = match slot.take() {
            Some(InputSelection::Definition) => None,
            Some(InputSelection::Content(selectors)) => Some(selectors),
            None => Some(Vec::new()),
        };
        *slot = Some(match selected {
            Some(mut selectors) if by_content => {
                selectors.push(Selector::followed(selector));
                InputSelection::Content(selectors)
            }
            _ => InputSelection::Definition,
        });
    }
    inputs
        .into_iter()
        .map(|input| match input {
            Some(InputSelection::Content(selectors)) => InputSelection::Content(tidy(selectors)),
            _ => InputSelection::Definition,
        })
        .collect()
}

fn file_parts(file: &FileOp, inputs: usize) -> Vec<KeyPart> {
    let mut parts = vec![KeyPart::new("op", "file")];
    for (at, action) in file.actions.iter().enumerate() {
        let value = match &action.kind {
            FileActionKind::Copy(copy) => {
                let mut copy = copy.clone();
                if action.secondary_input.is_some_and(|input| input < inputs) {
                    // Where the files are is in their content digest; only the name matters.
                    let name = copy.src.trim_end_matches('/').rsplit('/').next();
                    copy.src = name.unwrap_or_default().to_owned();
                }
                format!("{copy:?}")
            }
            kind => format!("{kind:?}"),
        };
        parts.push(KeyPart::new(format!("action {at}"), value));
        let wiring = (action.input, action.secondary_input, action.output);
        parts.push(KeyPart::new(format!("wiring {at}"), format!("{wiring:?}")));
    }
    parts
}

fn file_inputs(file: &FileOp, count: usize) -> Vec<InputSelection> {
    let mut selectors: BTreeMap<usize, Vec<Selector>> = BTreeMap::new();
    let mut changed = vec![false; count];
    for action in &file.actions {
        if let Some(slot) = action.input.and_then(|input| changed.get_mut(input)) {
            *slot = true;
        }
        let owner = match &action.kind {
            FileActionKind::Copy(copy) => {
                if let Some(input) = action.secondary_input.filter(|input| *input < count) {
                    selectors
                        .entry(input)
                        .or_default()
                        .push(copy_selector(copy));
                }
                &copy.owner
            }
            FileActionKind::MkFile(file) => &file.owner,
            FileActionKind::MkDir(dir) => &dir.owner,
            FileActionKind::Symlink(link) => &link.owner,
            FileActionKind::Rm(_) => &None,
        };
        for (input, selector) in owner_selectors(owner) {
            if input < count {
                selectors.entry(input).or_default().push(selector);
            }
        }
    }
    changed
        .into_iter()
        .enumerate()
        .map(|(input, changed)| match selectors.remove(&input) {
            Some(selectors) if !changed => InputSelection::Content(tidy(selectors)),
            _ => InputSelection::Definition,
        })
        .collect()
}

fn copy_selector(copy: &CopyAction) -> Selector {
    Selector {
        path: copy.src.clone(),
        follow_links: copy.follow_symlink,
        wildcard: copy.allow_wildcard && pathmatch::has_wildcards(copy.src.as_bytes()),
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        required: copy.required_paths.clone(),
    }
}

/// The user databases that an owner by name is looked up in.
fn owner_selectors(owner: &Option<ChownOpt>) -> Vec<(usize, Selector)> {
    let Some(owner) = owner else {
        return Vec::new();
    };
    [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")]
        .into_iter()
        .filter_map(|(option, path)| match option {
            Some(UserOpt::ByName {
                input: Some(input), ..
            }) => Some((
                *input,
                Selector {
                    // The image need not have one: then nobody is found, and that is no error.
                    wildcard: true,
                    ..Selector::followed(path)
                },
            )),
            _ => None,
        })
        .collect()
}

/// Sorted, without repetitions, and without plain paths that another plain path contains.
fn tidy(mut selectors: Vec<Selector>) -> Vec<Selector> {
    selectors.sort();
    selectors.dedup();
    let plain: Vec<(String, bool)> = selectors
        .iter()
        .filter(|selector| !selector.has_wildcard_or_filters())
        .map(|selector| (clean(&selector.path), selector.follow_links))
        .collect();
    selectors.retain(|selector| {
        let path = clean(&selector.path);
        selector.has_wildcard_or_filters()
            || !plain.iter().any(|(other, follow)| {
                let above = format!("{}/", other.trim_end_matches('/'));
                *follow == selector.follow_links && *other != path && path.starts_with(&above)
            })
    });
    selectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use llb::{Edge, FileAction, GraphBuilder, SourceOp, VertexMeta};

    fn vertex(op: Op, inputs: usize) -> Vertex {
        let mut builder = GraphBuilder::new();
        let edges: Vec<Edge> = (0..inputs)
            .map(|n| {
                let source = SourceOp {
                    identifier: format!("local://{n}"),
                    ..SourceOp::default()
                };
                let meta = VertexMeta::default();
                builder.add(Op::Source(source), Vec::new(), None, meta, Vec::new())
            })
            .collect();
        let root = builder.add(op, edges, None, VertexMeta::default(), Vec::new());
        let graph = builder.finish(Some(root));
        Vertex::clone(graph.vertex(&root.vertex).unwrap())
    }

    #[test]
    fn a_process_is_keyed_by_the_content_of_what_it_only_reads() {
        let mount = |input, dest: &str, output, selector: &str| Mount {
            input: Some(input),
            dest: dest.into(),
            output,
            selector: selector.into(),
            readonly: output.is_none(),
            ..Mount::default()
        };
        let exec = ExecOp {
            args: vec!["true".into()],
            mounts: vec![
                mount(0, "/", Some(0), ""),
                mount(1, "/src", None, "sub"),
                mount(2, "/out", Some(1), "sub"),
            ],
            ..ExecOp::default()
        };
        let selections = input_selections(&vertex(Op::Exec(Box::new(exec)), 3));
        assert_eq!(
            selections,
            [
                InputSelection::Definition,
                InputSelection::Content(vec![Selector::followed("/sub")]),
                InputSelection::Definition,
            ]
        );
    }

    #[test]
    fn a_copy_is_keyed_by_what_it_copies_and_not_by_where_that_was() {
        let copy = |src: &str| {
            Op::File(FileOp {
                actions: vec![FileAction {
                    input: Some(0),
                    secondary_input: Some(1),
                    output: Some(0),
                    kind: FileActionKind::Copy(Box::new(CopyAction {
                        src: src.into(),
                        dest: "/x".into(),
                        ..CopyAction::default()
                    })),
                }],
            })
        };
        let one = vertex(copy("/a/f"), 2);
        let two = vertex(copy("/b/f"), 2);
        let (first, second) = (identity(&one), identity(&two));
        assert_eq!(first.digest, second.digest);
        assert_ne!(first.definition, second.definition);
        let other = identity(&vertex(copy("/a/g"), 2));
        assert_ne!(first.digest, other.digest);
        assert_eq!(
            input_selections(&one),
            [
                InputSelection::Definition,
                InputSelection::Content(vec![Selector::path("/a/f")]),
            ]
        );
    }

    #[test]
    fn addresses_and_proxies_do_not_change_a_process() {
        let exec = |address: &str, http_proxy: &str| {
            let exec = ExecOp {
                extra_hosts: vec![("db".into(), address.into())],
                proxy_env: Some(llb::ProxyEnv {
                    http_proxy: http_proxy.into(),
                    ..llb::ProxyEnv::default()
                }),
                ..ExecOp::default()
            };
            identity(&vertex(Op::Exec(Box::new(exec)), 0))
        };
        assert_eq!(exec("10.0.0.1", "a"), exec("10.0.0.2", "b"));
    }
}
