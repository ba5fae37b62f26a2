//! File operations of generated graphs.

use llb::{
    ChownOpt, CopyAction, Edge, FileAction, FileActionKind, FileOp, MkDirAction, MkFileAction, Op,
    RmAction, SymlinkAction, UserOpt,
};

use super::grammar::{Maker, State};
use super::model::{Kind, Model, pattern, spelled};

const MODES: &[u32] = &[
    0o644, 0o755, 0o600, 0o777, 0o4755, 0o2750, 0o1777, 0o7777, 0,
];
const MODE_WORDS: &[&str] = &[
    "u+x",
    "go-rwx",
    "a+X",
    "u=rwX,go=rX",
    "g+s",
    "u+s",
    "+t",
    "-t",
    "a=r",
    "0644",
    "755",
    "4711",
    "u-w,o+w",
    "g=u",
    "o=",
    "=rw",
    "ug+rw,o-x",
    "+x",
    "-w",
    "bogus",
    "u+",
    "99",
];
const PATTERNS: &[&str] = &[
    "*",
    "**",
    "*.txt",
    "**/*.txt",
    "a",
    "a/**",
    "b/*",
    "!a",
    "!**/x.txt",
    "?",
    "**/b",
    "z",
    "[a-c]",
    "a/b",
    "!a/b",
    ".hid",
    "**/z",
    "/a",
    "l",
    "c/",
    "!**",
];

/// One operation being made.
struct Parts {
    inputs: Vec<Edge>,
    /// What each input of the vertex and each action's outcome has in it.
    models: Vec<Model>,
    actions: Vec<FileAction>,
}

impl Maker<'_> {
    /// A file operation of some actions, each on the outcome of one before it or on an input.
    pub fn file(&mut self) {
        let target = (!self.dice.one_in(5)).then(|| self.any_with_files());
        let mut used: Vec<usize> = target.into_iter().collect();
        used.push(self.any_with_files());
        if self.dice.one_in(4) {
            let busybox = self.with_shell();
            used.push(busybox);
        }
        let states = used.iter().map(|index| &self.states[*index]);
        let mut parts = Parts {
            inputs: states.clone().map(|state| state.edge).collect(),
            models: states.map(|state| state.model.clone()).collect(),
            actions: Vec::new(),
        };
        let count = match self.dice.below(3) {
            0 => 1 + self.dice.below(4),
            _ => 1,
        };
        for number in 0..count {
            let before = match number {
                0 => target.map(|_| 0),
                _ if self.dice.one_in(6) => target.map(|_| 0),
                _ => Some(parts.inputs.len() + number - 1),
            };
            self.action(&mut parts, before);
        }
        let shell = target.is_some_and(|index| self.states[index].shell);
        self.with_outputs(parts, shell, target);
    }

    /// Names the outputs: the last action's, and sometimes those of others.
    fn with_outputs(&mut self, mut parts: Parts, shell: bool, parent: Option<usize>) {
        let last = parts.actions.len() - 1;
        let mut outcomes = Vec::new();
        for number in 0..=last {
            if number == last || self.dice.one_in(3) {
                parts.actions[number].output = Some(outcomes.len());
                outcomes.push(parts.models[parts.inputs.len() + number].clone());
            }
        }
        let op = Op::File(FileOp {
            actions: parts.actions,
        });
        let edge = self.llb.add(op, parts.inputs);
        for (output, model) in outcomes.into_iter().enumerate() {
            let output = output as u32;
            self.add(State::new(Edge { output, ..edge }, model, shell, parent));
        }
    }

    fn action(&mut self, parts: &mut Parts, before: Option<usize>) {
        let mut model = before.map_or_else(Model::default, |at| parts.models[at].clone());
        let mut secondary_input = None;
        let kind = match self.dice.below(12) {
            0 | 1 => FileActionKind::MkFile(self.mkfile(&mut model, parts)),
            2 | 3 => FileActionKind::MkDir(self.mkdir(&mut model, parts)),
            4 => FileActionKind::Symlink(self.symlink(&mut model, parts)),
            5 | 6 => FileActionKind::Rm(self.rm(&mut model)),
            _ => {
                let from = self.dice.below(parts.models.len());
                secondary_input = Some(from);
                let copy = self.copy(&parts.models[from].clone(), &mut model, parts);
                FileActionKind::Copy(Box::new(copy))
            }
        };
        parts.models.push(model);
        parts.actions.push(FileAction {
            input: before,
            secondary_input,
            output: None,
            kind,
        });
    }

    fn mkfile(&mut self, model: &mut Model, parts: &Parts) -> MkFileAction {
        let path = model.place(&mut self.dice);
        model.put(&path, Kind::File);
        MkFileAction {
            path: spelled(&mut self.dice, &path),
            mode: self.dice.pick(MODES),
            data: format!("made {}\n", self.new_number()).into_bytes(),
            owner: self.owner(parts),
            timestamp: self.timestamp(),
        }
    }

    fn mkdir(&mut self, model: &mut Model, parts: &Parts) -> MkDirAction {
        let path = model.place(&mut self.dice);
        model.put(&path, Kind::Directory);
        MkDirAction {
            path: spelled(&mut self.dice, &path),
            mode: self.dice.pick(MODES),
            make_parents: !self.dice.one_in(3),
            owner: self.owner(parts),
            timestamp: self.timestamp(),
        }
    }

    fn symlink(&mut self, model: &mut Model, parts: &Parts) -> SymlinkAction {
        let oldpath = model.path(&mut self.dice);
        let newpath = model.place(&mut self.dice);
        model.put(&newpath, Kind::Link);
        SymlinkAction {
            oldpath: spelled(&mut self.dice, &oldpath),
            newpath: spelled(&mut self.dice, &newpath),
            owner: self.owner(parts),
            timestamp: self.timestamp(),
        }
    }

    fn rm(&mut self, model: &mut Model) -> RmAction {
        let mut path = model.path(&mut self.dice);
        let allow_wildcard = self.dice.one_in(2);
        if allow_wildcard && self.dice.one_in(2) {
            path = pattern(&mut self.dice, &path);
        } else {
            model.remove(&path);
        }
        RmAction {
            path: spelled(&mut self.dice, &path),
            allow_not_found: self.dice.one_in(2),
            allow_wildcard,
        }
    }

    fn copy(&mut self, from: &Model, to: &mut Model, parts: &Parts) -> CopyAction {
        let mut src = from.path(&mut self.dice);
        let dest = match self.dice.below(4) {
            0 => "/".to_owned(),
            1 => to.path(&mut self.dice),
            _ => to.place(&mut self.dice),
        };
        match from.kind(&src) {
            Some(Kind::Directory) => to.graft(&from.below(&src), &dest),
            Some(kind) => to.put(&dest, kind),
            None => to.graft(from, &dest),
        }
        let allow_wildcard = self.dice.one_in(2);
        if allow_wildcard && self.dice.one_in(2) {
            src = pattern(&mut self.dice, &src);
        }
        let is_archive = src.starts_with("/ar");
        let mut action = CopyAction {
            src: spelled(&mut self.dice, &src),
            dest: spelled(&mut self.dice, &dest),
            owner: self.owner(parts),
            follow_symlink: self.dice.one_in(2),
            dir_copy_contents: self.dice.one_in(2),
            attempt_unpack: self.dice.one_in(if is_archive { 2 } else { 12 }),
            create_dest_path: !self.dice.one_in(4),
            allow_wildcard,
            allow_empty_wildcard: self.dice.one_in(2),
            timestamp: self.timestamp(),
            always_replace_existing_dest_paths: self.dice.one_in(4),
            ..CopyAction::default()
        };
        match self.dice.below(8) {
            0 | 1 => action.mode = Some(self.dice.pick(MODES)),
            2 => action.mode_str = self.dice.pick(MODE_WORDS).to_owned(),
            _ => {}
        }
        if self.dice.one_in(5) {
            action.include_patterns = self.patterns();
        }
        if self.dice.one_in(5) {
            action.exclude_patterns = self.patterns();
        }
        if self.world.newer && self.dice.one_in(12) {
            action.required_paths = self.patterns();
        }
        action
    }

    fn patterns(&mut self) -> Vec<String> {
        let count = 1 + self.dice.below(3);
        (0..count)
            .map(|_| self.dice.pick(PATTERNS).to_owned())
            .collect()
    }

    fn timestamp(&mut self) -> Option<i64> {
        let time = self.new_time();
        self.dice.one_in(2).then_some(time * 1_000_000_000)
    }

    fn owner(&mut self, parts: &Parts) -> Option<ChownOpt> {
        if !self.dice.one_in(4) {
            return None;
        }
        let mut one = || match self.dice.below(5) {
            0 => None,
            1 | 2 => Some(UserOpt::ById(self.dice.pick(&[0, 7, 1000, 65534, 100_000]))),
            _ => Some(UserOpt::ByName {
                name: self
                    .dice
                    .pick(&["app", "wheel", "daemon", "root", "app", "nonesuch", "1000"])
                    .into(),
                input: Some(self.dice.below(parts.inputs.len())),
            }),
        };
        let (user, group) = (one(), one());
        Some(ChownOpt { user, group })
    }
}
