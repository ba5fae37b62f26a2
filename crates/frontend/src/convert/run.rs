//! `RUN`.

use diag::Result;
use dockerfile::quote::{plain_list, quoted};
use dockerfile::shell::{Lexer, Variables};
use dockerfile::{CommandLine, Heredoc, Mount, MountType, RunInstruction, RunNetwork, Sharing};
use llb::{
    CacheSharing, ChownOpt, ClientFile, ExecOp, FileActionKind, MkDirAction, MountKind, NetMode,
    SecretEnv, SecurityMode, UserOpt, VertexMeta,
};
use pathmatch::clean_path;

use crate::convert::Converter;
use crate::convert::dispatch::Place;
use crate::failure::fail;
use crate::image::with_shell;
use crate::plan::{Change, ExecMount, Node, NodeOp, Output, named};
use crate::state::EnvList;

/// What a step's mounts come to.
#[derive(Default)]
struct Mounts {
    /// Files, caches and memory, to be sorted by where they are seen.
    files: Vec<ExecMount>,
    secrets: Vec<llb::Mount>,
    secret_env: Vec<SecretEnv>,
    ssh: Vec<llb::Mount>,
}

impl Converter<'_> {
    pub(super) fn run(&mut self, place: Place<'_>, run: &RunInstruction) -> Result<()> {
        let id = place.id;
        let mounts = self.resolve_mounts(place, run)?;
        // A command may read anything.
        let paths = self.stages[id].paths;
        self.path_sets[paths].insert("/".to_owned());
        let mut made = Mounts::default();
        let mut shown = place.code.to_owned();
        let args = self.run_args(id, &run.command, &mut made, &mut shown)?;
        if args.is_empty() {
            let error = fail("arguments are required").context("failed to marshal LLB definition");
            let error = self.at(error, place.lines);
            self.refused.get_or_insert(error);
        }
        for (mount, source) in mounts.iter().zip(place.sources) {
            self.add_mount(place, mount, *source, &mut made)?;
        }
        if self.options.shm_size > 0 {
            made.files.push(ExecMount {
                source: Output::Scratch,
                mount: llb::Mount {
                    dest: "/dev/shm".to_owned(),
                    kind: MountKind::Tmpfs {
                        size: self.options.shm_size,
                    },
                    ..llb::Mount::default()
                },
            });
        }
        let name = self.run_name(id, &shown, &mounts);
        let exec = self.exec_op(id, run, args.clone(), &mut made);
        let meta = VertexMeta {
            ignore_cache: self.stages[id].ignore_cache,
            ..with_command(name, place.code)
        };
        let created_by = self.run_history(id, &args);
        let node = Node {
            op: NodeOp::Exec(Box::new(exec), made.into_sorted(self.stages[id].fs.output)),
            platform: self.stages[id].fs.platform.clone(),
            meta,
            lines: Some(place.lines),
        };
        self.stages[id].fs.output = self.plan.add(node);
        self.add_history(id, created_by, true);
        Ok(())
    }

    fn resolve_mounts(&self, place: Place<'_>, run: &RunInstruction) -> Result<Vec<Mount>> {
        let mut failed = None;
        let mut out = Vec::with_capacity(run.mounts.len());
        for spec in &run.mounts {
            let resolved = spec.resolve(|value| {
                self.expand(place, value).map_err(|error| {
                    let text = error.to_string();
                    failed = Some(error);
                    text
                })
            });
            match (resolved, failed.take()) {
                (Ok(mount), _) => out.push(mount),
                (Err(_), Some(error)) => return Err(error),
                (Err(message), None) => return Err(fail(message)),
            }
        }
        Ok(out)
    }

    /// The words of the command, here-documents taken care of.
    fn run_args(
        &mut self,
        id: usize,
        command: &CommandLine,
        made: &mut Mounts,
        shown: &mut String,
    ) -> Result<Vec<String>> {
        let mut words = command.words.clone();
        if let Some(first) = command.files.first() {
            let [text] = words.as_slice() else {
                return Err(fail(format!(
                    "parsing produced an invalid run command: {}",
                    plain_list(&words)
                )));
            };
            if let Ok(Some(mut heredoc)) = Heredoc::parse(text) {
                // The command is the document and nothing else.
                heredoc.content = first.data.clone().into_bytes();
                heredoc.chomp = first.chomp;
                let data = String::from_utf8_lossy(&heredoc.text()).into_owned();
                shown.push_str(&format!(" ({})", summary(&first.data)));
                if data.starts_with("#!") && self.stages[id].image.os != "windows" {
                    words = vec![self.inline_script(id, &first.name, data, made)];
                } else {
                    words = vec![data];
                }
            } else {
                let mut script = text.clone();
                for file in &command.files {
                    script.push('\n');
                    script.push_str(&file.data);
                    script.push_str(&file.name);
                }
                words = vec![script];
            }
        }
        if command.shell_form {
            words = with_shell(&self.stages[id].image, &words);
        }
        Ok(words)
    }

    /// Mounts a script where the step can run it; gives its path.
    fn inline_script(&mut self, id: usize, name: &str, data: String, made: &mut Mounts) -> String {
        let path = clean_path(&format!("/{name}"));
        let source = self.inline_document(id, &path, 0o755, data.into_bytes());
        made.files.push(ExecMount {
            source,
            mount: llb::Mount {
                dest: "/dev/pipes/".to_owned(),
                selector: "/".to_owned(),
                readonly: true,
                ..llb::Mount::default()
            },
        });
        clean_path(&format!("/dev/pipes/{name}"))
    }

    fn run_name(&mut self, id: usize, text: &str, mounts: &[Mount]) -> String {
        let mut lexer: Lexer = self.lexer;
        lexer.raw_quotes = true;
        lexer.skip_unset = true;
        let stage = &self.stages[id];
        let env = Masked {
            secrets: mounts
                .iter()
                .filter(|mount| mount.kind == MountType::Secret)
                .filter_map(|mount| mount.env.as_deref())
                .collect(),
            env: &stage.fs.env,
        };
        let shown = self.shown_text(&lexer, text, &env);
        let platform = stage.fs.platform.clone();
        self.step_name(id, &shown, platform.as_ref(), true)
    }

    fn exec_op(
        &self,
        id: usize,
        run: &RunInstruction,
        args: Vec<String>,
        made: &mut Mounts,
    ) -> ExecOp {
        let fs = &self.stages[id].fs;
        let mut env = fs.env.clone();
        for (index, socket) in made.ssh.iter_mut().enumerate() {
            if socket.dest.is_empty() {
                socket.dest = format!("/run/buildkit/ssh_agent.{index}");
            }
        }
        if let Some(socket) = made.ssh.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", &socket.dest);
        }
        ExecOp {
            args,
            env: env.to_pairs(),
            cwd: fs.dir.clone(),
            user: fs.user.clone(),
            proxy_env: self.proxy.clone(),
            extra_hosts: self.options.extra_hosts.clone(),
            hostname: fs.hostname.clone(),
            ulimits: self.options.ulimits.clone(),
            cgroup_parent: self.options.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            network: match run.network {
                RunNetwork::Default => fs.network,
                RunNetwork::None => NetMode::None,
                RunNetwork::Host => NetMode::Host,
            },
            security: if run.insecure {
                SecurityMode::Insecure
            } else {
                SecurityMode::Sandbox
            },
            secret_env: std::mem::take(&mut made.secret_env),
            cdi_devices: run
                .devices
                .iter()
                .map(|device| (device.name.clone(), !device.required))
                .collect(),
            ..ExecOp::default()
        }
    }

    fn run_history(&self, id: usize, args: &[String]) -> String {
        let values = self.arg_values(id);
        let mut words = vec!["RUN".to_owned()];
        if !values.is_empty() {
            words.push(format!("|{}", values.len()));
            words.extend(values);
        }
        words.extend_from_slice(args);
        format!("{} # buildkit", words.join(" "))
    }

    fn add_mount(
        &mut self,
        place: Place<'_>,
        mount: &Mount,
        source: usize,
        made: &mut Mounts,
    ) -> Result<()> {
        let uses_stage = !mount.from.is_empty() || mount.kind == MountType::Cache;
        if uses_stage && !self.stages[source].dispatched {
            return Err(fail(format!(
                "cannot mount from stage {} to {}, stage needs to be defined before current command",
                quoted(&mount.from),
                quoted(&mount.target)
            )));
        }
        match mount.kind {
            MountType::Secret => return self.add_secret(place, mount, made),
            MountType::Ssh => return self.add_ssh(place, mount, made),
            MountType::Bind | MountType::Cache | MountType::Tmpfs => {}
        }
        let (mut files, paths) = if uses_stage {
            let stage = &self.stages[source];
            (stage.fs.output, stage.paths)
        } else {
            (self.context, self.context_paths)
        };
        let kind = match mount.kind {
            MountType::Tmpfs => {
                files = Output::Scratch;
                MountKind::Tmpfs {
                    size: u64::try_from(mount.size).unwrap_or(0),
                }
            }
            MountType::Cache => self.cache_kind(mount),
            _ => MountKind::Bind,
        };
        let target = if clean_path(&mount.target).starts_with('/') {
            mount.target.clone()
        } else {
            let dir = &self.stages[place.id].fs.dir;
            clean_path(&format!("/{dir}/{}", mount.target))
        };
        if target == "/" {
            return Err(fail(format!("invalid mount target {}", quoted(&target))));
        }
        let used = clean_path(&format!("/{}", mount.source));
        let mut selector = String::new();
        if used != "/" {
            selector.clone_from(&used);
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            files = self.cache_directory(mount, files);
            "/cache".clone_into(&mut selector);
        }
        made.files.push(ExecMount {
            source: files,
            mount: llb::Mount {
                selector,
                dest: target,
                readonly: mount.readonly,
                kind,
                ..llb::Mount::default()
            },
        });
        self.path_sets[paths].insert(used);
        Ok(())
    }

    fn cache_kind(&self, mount: &Mount) -> MountKind {
        let id = match mount.id.as_str() {
            "" => clean_path(&mount.target),
            id => id.to_owned(),
        };
        MountKind::Cache {
            id: format!("{}/{id}", self.options.cache_namespace),
            sharing: match mount.sharing {
                Some(Sharing::Private) => CacheSharing::Private,
                Some(Sharing::Locked) => CacheSharing::Locked,
                Some(Sharing::Shared) | None => CacheSharing::Shared,
            },
        }
    }

    /// A directory with the owner and mode that a new cache is to start with.
    fn cache_directory(&mut self, mount: &Mount, base: Output) -> Output {
        self.plan.add(Node {
            op: NodeOp::File(
                base,
                vec![Change {
                    kind: FileActionKind::MkDir(MkDirAction {
                        path: "/cache".to_owned(),
                        mode: mount.mode.unwrap_or(0o755) & 0o777,
                        make_parents: false,
                        owner: Some(ChownOpt {
                            user: Some(UserOpt::ById(mount.uid.unwrap_or(0))),
                            group: Some(UserOpt::ById(mount.gid.unwrap_or(0))),
                        }),
                        timestamp: None,
                    }),
                    source: None,
                }],
            ),
            platform: None,
            meta: named("[internal] setting cache mount permissions"),
            lines: None,
        })
    }

    fn add_secret(&mut self, place: Place<'_>, mount: &Mount, made: &mut Mounts) -> Result<()> {
        let last = |path: &str| {
            clean_path(path)
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let id = match (mount.source.as_str(), mount.id.as_str()) {
            ("", "") if mount.target.is_empty() => {
                return Err(fail("one of source, target required"));
            }
            ("", "") => last(&mount.target),
            ("", id) => id.to_owned(),
            (source, _) => source.to_owned(),
        };
        let optional = !mount.required;
        let outline = &mut self.stages[place.id].outline;
        outline.add_secret(&id, mount.required, place.lines);
        if let Some(name) = &mount.env {
            made.secret_env.push(SecretEnv {
                id: id.clone(),
                name: name.clone(),
                optional,
            });
        }
        let target = match (mount.target.as_str(), &mount.env) {
            ("", Some(_)) => return Ok(()),
            ("", None) => format!("/run/secrets/{}", last(&id)),
            (target, _) => target.to_owned(),
        };
        made.secrets.push(llb::Mount {
            dest: target,
            kind: MountKind::Secret(client_file(id, mount, 0o400, optional)),
            ..llb::Mount::default()
        });
        Ok(())
    }

    fn add_ssh(&mut self, place: Place<'_>, mount: &Mount, made: &mut Mounts) -> Result<()> {
        if !mount.source.is_empty() {
            return Err(fail("ssh does not support source"));
        }
        let shown = if mount.id.is_empty() {
            "default"
        } else {
            &mount.id
        };
        let outline = &mut self.stages[place.id].outline;
        outline.add_ssh(shown, mount.required, place.lines);
        made.ssh.push(llb::Mount {
            dest: mount.target.clone(),
            kind: MountKind::Ssh(client_file(mount.id.clone(), mount, 0o600, !mount.required)),
            ..llb::Mount::default()
        });
        Ok(())
    }
}

fn client_file(id: String, mount: &Mount, mode: u32, optional: bool) -> ClientFile {
    ClientFile {
        id,
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(mode),
        optional,
    }
}

impl Mounts {
    /// All mounts with the root in front of them; only the root becomes an outcome.
    fn into_sorted(self, root: Output) -> Vec<ExecMount> {
        let mut all = vec![ExecMount {
            source: root,
            mount: llb::Mount {
                dest: "/".to_owned(),
                output: Some(0),
                ..llb::Mount::default()
            },
        }];
        all.extend(self.files);
        all.sort_by(|a, b| a.mount.dest.cmp(&b.mount.dest));
        let without_files = |mount| ExecMount {
            source: Output::Scratch,
            mount,
        };
        all.extend(self.secrets.into_iter().map(without_files));
        all.extend(self.ssh.into_iter().map(without_files));
        all
    }
}

/// Variables of a step, those that are secrets hidden.
struct Masked<'a> {
    secrets: Vec<&'a str>,
    env: &'a EnvList,
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secrets.contains(&name) {
            return Some("****");
        }
        self.env.get(name)
    }
}

fn with_command(name: String, code: &str) -> VertexMeta {
    let mut meta = named(name);
    meta.description.insert(
        "com.docker.dockerfile.v1.command".to_owned(),
        code.to_owned(),
    );
    meta
}

/// The first line of a here-document.
fn summary(data: &str) -> String {
    let text = data.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}
