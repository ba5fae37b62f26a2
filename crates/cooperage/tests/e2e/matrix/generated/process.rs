//! Processes of generated graphs: scripts that change what is mounted, and look at it.

use llb::{
    CacheSharing, ClientFile, Edge, ExecOp, Mount, MountKind, NetMode, Op, ProxyEnv, SecretEnv,
    Ulimit,
};

use super::grammar::{Maker, State};
use super::model::{Kind, Model, fresh};

/// A process being made.
struct Parts {
    exec: ExecOp,
    inputs: Vec<Edge>,
    script: Vec<String>,
    /// Of each output: what is in it, whether it has a shell, what it was made of.
    outputs: Vec<(Model, bool, Option<usize>)>,
    /// Whether there is a place where what is seen can be written.
    out: bool,
}

impl Maker<'_> {
    pub fn process(&mut self) {
        let root = self.with_shell();
        let mut parts = Parts {
            exec: ExecOp {
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                ..ExecOp::default()
            },
            inputs: Vec::new(),
            script: Vec::new(),
            outputs: Vec::new(),
            out: false,
        };
        self.root(&mut parts, root);
        if !self.dice.one_in(4) {
            self.out(&mut parts);
        }
        for number in 0..self.dice.below(3) {
            self.bind(&mut parts, &format!("/m{number}"));
        }
        self.other_mounts(&mut parts);
        self.settings(&mut parts);
        self.finish_process(parts);
    }

    fn finish_process(&mut self, mut parts: Parts) {
        if parts.outputs.is_empty() {
            self.out(&mut parts);
        }
        let code = match self.dice.below(14) {
            0 => 3,
            _ => 0,
        };
        if code != 0 && !self.dice.one_in(4) || self.dice.one_in(30) {
            parts.exec.valid_exit_codes = vec![0, 3];
        }
        parts.script.push(format!("exit {code}"));
        let script = parts.script.join("\n");
        parts.exec.args = vec!["/bin/sh".into(), "-c".into(), script];
        let edge = self.llb.add(Op::Exec(Box::new(parts.exec)), parts.inputs);
        for (output, (model, shell, parent)) in parts.outputs.into_iter().enumerate() {
            let output = output as u32;
            self.add(State::new(Edge { output, ..edge }, model, shell, parent));
        }
    }

    fn root(&mut self, parts: &mut Parts, root: usize) {
        let state = self.states[root].clone();
        let mut model = state.model;
        parts.inputs.push(state.edge);
        let readonly = self.dice.one_in(8);
        let mut mount = Mount {
            input: Some(0),
            dest: "/".into(),
            readonly,
            ..Mount::default()
        };
        if !readonly {
            if self.dice.one_in(2) {
                let mut inside = model.below("/tmp");
                self.changes("/tmp", &mut inside, &mut parts.script);
                model.remove("/tmp");
                model.graft(&inside, "/tmp");
            }
            // Without an output stock mounts it to be read only.
            mount.output = Some(parts.outputs.len());
            parts.outputs.push((model, true, Some(root)));
        }
        parts.exec.mounts.push(mount);
    }

    /// Somewhere to write to, from nothing or from a state.
    fn out(&mut self, parts: &mut Parts) {
        let from = self.dice.one_in(2).then(|| self.any());
        let mut model = Model::default();
        let mut input = None;
        if let Some(from) = from {
            model = self.states[from].model.clone();
            parts.inputs.push(self.states[from].edge);
            input = Some(parts.inputs.len() - 1);
        }
        self.changes("/out", &mut model, &mut parts.script);
        parts.exec.mounts.push(Mount {
            input,
            dest: "/out".into(),
            output: Some(parts.outputs.len()),
            ..Mount::default()
        });
        parts.outputs.push((model, false, from));
        parts.out = true;
    }

    fn bind(&mut self, parts: &mut Parts, dest: &str) {
        let from = self.any();
        let mut model = self.states[from].model.clone();
        parts.inputs.push(self.states[from].edge);
        let mut mount = Mount {
            input: Some(parts.inputs.len() - 1),
            dest: dest.to_owned(),
            readonly: self.dice.one_in(2),
            ..Mount::default()
        };
        if self.dice.one_in(3) {
            mount.selector = model.path(&mut self.dice);
        }
        if !mount.readonly {
            let mut inside = model.below(&mount.selector);
            self.changes(dest, &mut inside, &mut parts.script);
            model.remove(&mount.selector);
            model.graft(&inside, &mount.selector);
            if self.dice.one_in(2) {
                mount.output = Some(parts.outputs.len());
                parts.outputs.push((model, false, Some(from)));
            }
        }
        if self.dice.one_in(2) {
            self.look(parts, dest);
        }
        parts.exec.mounts.push(mount);
    }

    /// Writes down what is below a path.
    fn look(&mut self, parts: &mut Parts, path: &str) {
        if parts.out {
            let number = self.new_number();
            parts.script.push(format!(
                "find {path} 2>/dev/null | sort | while read -r f; do stat -c '%n %a %u:%g %F %h' \"$f\"; done >/out/seen-{number} 2>&1"
            ));
        }
    }

    fn write_down(&mut self, parts: &mut Parts, command: &str) {
        if parts.out {
            let number = self.new_number();
            parts
                .script
                .push(format!("({command}) >/out/said-{number} 2>&1"));
        }
    }

    fn other_mounts(&mut self, parts: &mut Parts) {
        let mut mount = |dest: &str, kind: MountKind| {
            parts.exec.mounts.push(Mount {
                dest: dest.into(),
                kind,
                ..Mount::default()
            });
        };
        let (mut looks, dice) = (Vec::new(), &mut self.dice);
        if dice.one_in(6) {
            let size = dice.pick(&[0, 1 << 20]);
            mount("/memory", MountKind::Tmpfs { size });
            looks.push("/memory");
        }
        if dice.one_in(6) {
            let id = dice.pick(&["file", "MATRIX_SECRET", "nonesuch"]);
            mount(
                "/run/secrets/s",
                MountKind::Secret(ClientFile {
                    id: id.into(),
                    uid: dice.pick(&[0, 1000]),
                    gid: dice.pick(&[0, 10]),
                    mode: dice.pick(&[0o400, 0o444, 0o640]),
                    optional: id == "nonesuch" || dice.one_in(3),
                }),
            );
            looks.push("/run/secrets");
        }
        if dice.one_in(8) {
            let sharing = dice.pick(&[
                CacheSharing::Shared,
                CacheSharing::Private,
                CacheSharing::Locked,
            ]);
            let id = format!("generated-{}", dice.roll());
            mount("/cache", MountKind::Cache { id, sharing });
            looks.push("/cache");
        }
        for path in looks {
            self.look(parts, path);
        }
    }

    fn settings(&mut self, parts: &mut Parts) {
        let dice = &mut self.dice;
        let exec = &mut parts.exec;
        let mut wanted = Vec::new();
        if dice.one_in(8) {
            let users = [
                "app",
                "1000",
                "daemon",
                "app:wheel",
                "4242:4343",
                "nonesuch",
            ];
            exec.user = dice.pick(&users).into();
            wanted.push("id; grep Groups /proc/self/status; echo $HOME");
        }
        if dice.one_in(6) {
            exec.cwd = match dice.one_in(2) {
                true => dice
                    .pick(&["/tmp", "/home/app", "/new/dir", "/tmp/new"])
                    .into(),
                false => format!("/tmp{}", fresh(dice)),
            };
            wanted.push("pwd; stat -c '%a %u:%g' .");
        }
        if dice.one_in(10) {
            exec.hostname = "cask".into();
            wanted.push("hostname; cat /etc/hosts");
        }
        if dice.one_in(10) {
            exec.extra_hosts = vec![("db".into(), "10.1.2.3".into())];
            wanted.push("cat /etc/hosts");
        }
        if dice.one_in(8) {
            exec.network = NetMode::None;
            wanted.push("cut -d: -f1 /proc/net/dev");
        }
        if dice.one_in(8) {
            exec.env.push("ODD=a b=c".into());
            exec.env.push("EMPTY=".into());
            wanted.push("env | sort");
        }
        if dice.one_in(12) {
            exec.secret_env = vec![SecretEnv {
                id: dice.pick(&["file", "nonesuch"]).into(),
                name: "GIVEN".into(),
                optional: true,
            }];
            wanted.push("env | sort");
        }
        if dice.one_in(12) {
            exec.ulimits = vec![Ulimit {
                name: "nofile".into(),
                soft: 100,
                hard: 200,
            }];
            wanted.push("ulimit -n; ulimit -Hn");
        }
        if dice.one_in(16) {
            exec.proxy_env = Some(ProxyEnv {
                http_proxy: "http://p:1".into(),
                ..ProxyEnv::default()
            });
            wanted.push("env | sort");
        }
        exec.remove_mount_stubs_recursive = dice.one_in(4);
        for command in wanted {
            self.write_down(parts, command);
        }
    }

    /// A few commands that change what is below a directory; none makes the script fail.
    fn changes(&mut self, directory: &str, model: &mut Model, script: &mut Vec<String>) {
        for _ in 0..self.dice.below(6) {
            let command = self.change(directory, model);
            script.push(format!("{{ {command}; }} 2>/dev/null"));
        }
    }

    fn change(&mut self, directory: &str, model: &mut Model) -> String {
        let number = self.new_number();
        let time = self.new_time();
        let there = model.existing(&mut self.dice, None);
        let folder = model.existing(&mut self.dice, Some(Kind::Directory));
        let file = model.existing(&mut self.dice, Some(Kind::File));
        let place = model.place(&mut self.dice);
        let at = |path: &str| format!("'{directory}{path}'");
        let parent = place.rsplit_once('/').map_or("", |(parent, _)| parent);
        match self.dice.below(18) {
            0 | 1 => {
                model.put(&place, Kind::Directory);
                format!("mkdir -p {}", at(&place))
            }
            2..=4 => {
                model.put(&place, Kind::File);
                let (parent, place) = (at(parent), at(&place));
                // Nobody reads from pipes.
                format!("mkdir -p {parent}; test -p {place} || echo {number} >{place}")
            }
            5 => format!("test -p {0} || echo {number} >>{0}", at(&file)),
            6 | 7 => {
                model.remove(&there);
                format!("rm -rf {}", at(&there))
            }
            8 => {
                model.remove(&folder);
                model.put(&format!("{folder}/new"), Kind::File);
                let folder = at(&folder);
                format!("rm -rf {folder}; mkdir {folder}; echo {number} >{folder}/new")
            }
            9 => {
                model.put(&place, Kind::Link);
                let target = self.dice.pick(&["../x.txt", "a", "/b", "/nonesuch", "."]);
                format!("ln -s {target} {}", at(&place))
            }
            10 => {
                model.put(&place, Kind::File);
                format!("ln {} {}", at(&file), at(&place))
            }
            11 => {
                let modes = ["600", "777", "1755", "2755", "4711", "0", "u+x", "g-w"];
                format!("chmod {} {}", self.dice.pick(&modes), at(&there))
            }
            12 => {
                let owners = ["7:8", "1000:10", "0:0", ":5", "70000"];
                format!("chown -h {} {}", self.dice.pick(&owners), at(&there))
            }
            13 => {
                let moved = model.below(&there);
                let kind = model.kind(&there).unwrap_or(Kind::File);
                model.remove(&there);
                model.put(&place, kind);
                model.graft(&moved, &place);
                format!("mv {} {}", at(&there), at(&place))
            }
            14 if !place.starts_with(&format!("{there}/")) => {
                let copied = model.below(&there);
                model.put(&place, model.kind(&there).unwrap_or(Kind::File));
                model.graft(&copied, &place);
                format!("cp -a {} {}", at(&there), at(&place))
            }
            15 => {
                model.put(&place, Kind::Other);
                let kind = self.dice.pick(&["p", "c 1 3", "c 1 5"]);
                format!("mknod {} {kind}", at(&place))
            }
            16 => {
                model.remove(&there);
                model.put(&there, Kind::Directory);
                format!("rm -rf {0}; mkdir {0}", at(&there))
            }
            _ => format!("touch -h -d @{time} {}", at(&there)),
        }
    }
}
