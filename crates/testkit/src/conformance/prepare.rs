//! Writing a case out ready to build: the copy's modes, owners and times are always the same.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use rustix::fs::{
    AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use super::case::{Commit, Repository, Setup, SetupKind, Unit};

/// Every file of a context, unless the case says else: 2024-01-15T14:30:45Z.
const MTIME: i64 = 1_705_329_045;

/// Copies a case to `folder`, which must not exist; panics when something cannot be made.
pub fn prepare(unit: &Unit, folder: &Path) {
    let case = &unit.case;
    copy(&case.path, folder, true);
    if let Some(text) = &unit.dockerfile {
        fs::create_dir_all(folder.join("ctx")).expect("make the context");
        fs::write(folder.join("ctx/Dockerfile"), text).expect("write the Dockerfile");
    }
    let everything = below(folder);
    for path in &everything {
        let meta = path.symlink_metadata().expect("look at a file of a case");
        if !meta.is_symlink() {
            let executable = meta.is_dir() || meta.permissions().mode() & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a mode");
        }
        lchown(path, Some(0), Some(0)).expect("set an owner (needs root)");
    }
    let mut times = Vec::new();
    for setup in &case.spec.setup {
        apply(setup, folder, &mut times);
    }
    for repository in &case.spec.git {
        make_repository(repository, folder);
    }
    for path in below(folder) {
        if !path.starts_with(folder.join("gitrepos")) {
            set_time(&path, MTIME);
        }
    }
    set_time(folder, MTIME);
    for (path, time) in times {
        set_time(&path, time);
    }
}

fn apply(setup: &Setup, folder: &Path, times: &mut Vec<(PathBuf, i64)>) {
    let path = folder.join(&setup.path);
    let target = setup.target.as_deref().unwrap_or_default();
    let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set a mode");
    match setup.kind {
        SetupKind::Keep => {}
        SetupKind::Dir => {
            fs::create_dir_all(&path).expect("make a folder");
            mode(0o755);
        }
        SetupKind::File => {
            fs::create_dir_all(path.parent().unwrap_or(folder)).expect("make a folder");
            let content = match &setup.base64 {
                Some(text) => base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .expect("base64 in case.toml"),
                None => setup.content.clone().unwrap_or_default().into_bytes(),
            };
            fs::write(&path, content).expect("write a file");
            mode(0o644);
        }
        SetupKind::Symlink => symlink(target, &path).expect("make a link"),
        SetupKind::Hardlink => fs::hard_link(folder.join(target), &path).expect("make a link"),
        SetupKind::Fifo => {
            let kind = rustix::fs::FileType::Fifo;
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o644), 0).expect("make a fifo");
            mode(0o644);
        }
        SetupKind::Remove => {
            let gone = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            gone.expect("remove a file");
            return;
        }
    }
    if setup.uid.is_some() || setup.gid.is_some() {
        let owner = (setup.uid.unwrap_or(0), setup.gid.unwrap_or(0));
        lchown(&path, Some(owner.0), Some(owner.1)).expect("set an owner");
    }
    if let Some(text) = &setup.mode {
        mode(u32::from_str_radix(text, 8).expect("an octal mode in case.toml"));
    }
    let texts = setup
        .xattrs
        .iter()
        .map(|(key, value)| (key, value.clone().into_bytes()));
    let hexes = setup
        .xattrs_hex
        .iter()
        .map(|(key, value)| (key, unhex(value)));
    for (key, value) in texts.chain(hexes) {
        lsetxattr(&path, key.as_str(), &value, XattrFlags::empty()).expect("set an attribute");
    }
    if let Some(time) = setup.mtime {
        times.push((path, time));
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    pairs
        .collect::<Result<_, _>>()
        .expect("hexadecimal in case.toml")
}

fn copy(from: &Path, to: &Path, is_case: bool) {
    fs::create_dir_all(to).expect("make a folder");
    let entries = fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if is_case && (name == "case.toml" || name == "expect.json") {
            continue;
        }
        let kind = entry.file_type().expect("look at a file of a case");
        let into = to.join(&name);
        if kind.is_symlink() {
            let target = fs::read_link(&path).expect("read a link");
            symlink(target, into).expect("make a link");
        } else if kind.is_dir() {
            copy(&path, &into, false);
        } else {
            fs::copy(&path, into).expect("copy a file");
        }
    }
}

/// Everything below a folder, contents before their folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("set a time");
}

/// Makes `gitrepos/NAME.git` with fixed names and dates, so that the ids of commits are fixed.
fn make_repository(repository: &Repository, folder: &Path) {
    let tree = folder.join("gittree");
    fs::create_dir_all(&tree).expect("make a work tree");
    let git = |args: &[&str], date: i64| {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(&tree)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("TZ", "UTC");
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "Corpus")
                .env(format!("GIT_{who}_EMAIL"), "corpus@example.org")
                .env(format!("GIT_{who}_DATE"), format!("{date} +0000"));
        }
        let output = command.output().expect("run `git` (package git)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {args:?}: {errors}");
    };
    git(&["init", "-q", "-b", "main", "."], MTIME);
    for (number, commit) in (0..).zip(&repository.commits) {
        make_commit(commit, number, folder, &tree, &git);
    }
    let head = repository.head.as_deref().unwrap_or("main");
    git(&["checkout", "-q", "-B", head, head], MTIME);
    let bare = folder
        .join("gitrepos")
        .join(format!("{}.git", repository.name));
    fs::create_dir_all(folder.join("gitrepos")).expect("make a folder");
    let bare = bare.to_str().expect("a UTF-8 path");
    git(&["clone", "-q", "--bare", ".", bare], MTIME);
    git(
        &[
            "-C",
            bare,
            "config",
            "uploadpack.allowAnySHA1InWant",
            "true",
        ],
        MTIME,
    );
    fs::remove_dir_all(&tree).expect("remove the work tree");
}

fn make_commit(
    commit: &Commit,
    number: i64,
    folder: &Path,
    tree: &Path,
    git: &dyn Fn(&[&str], i64),
) {
    let date = MTIME + 3600 * number;
    if let Some(branch) = &commit.branch {
        git(&["checkout", "-q", "-B", branch], date);
    }
    for entry in fs::read_dir(tree).expect("read the work tree").flatten() {
        if entry.file_name() == ".git" {
            continue;
        }
        let path = entry.path();
        let gone = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
        gone.expect("empty the work tree");
    }
    copy(&folder.join(&commit.dir), tree, false);
    // So that git looks at every file's content again.
    git(&["read-tree", "--empty"], date);
    git(&["add", "-A"], date);
    let message = commit
        .message
        .clone()
        .unwrap_or_else(|| format!("commit {number}"));
    git(&["commit", "-q", "--allow-empty", "-m", &message], date);
    if let Some(tag) = &commit.tag {
        git(&["tag", tag], date);
    }
    if let Some(tag) = &commit.annotated {
        git(&["tag", "-a", "-m", "tag", tag], date);
    }
}
