//! Stock programs from Debian's newer suites, unpacked beside the system into `target/peers`.
//!
//! They are downloaded with the machine's own mirror and keyring; only the suite is changed. Nothing
//! is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "sid";
const PACKAGES: &[&str] = &["docker-buildx", "docker.io", "docker-cli", "containerd"];

/// Downloads and unpacks; does nothing when that was done before.
pub fn unpack() -> Result<(), String> {
    let root = super::workspace().join("target/peers");
    if root.join("done").exists() {
        return Ok(());
    }
    let _ = fs::remove_dir_all(&root);
    let work = root.join("apt");
    for folder in ["lists/partial", "cache/archives/partial", "download"] {
        fs::create_dir_all(work.join(folder)).map_err(|e| format!("{}: {e}", work.display()))?;
    }
    let work = work.canonicalize().map_err(|error| error.to_string())?;
    for (architecture, packages) in [
        ("amd64", [PACKAGES, &["busybox-static"]].concat()),
        ("arm64", vec!["busybox-static"]),
    ] {
        let native = architecture == "amd64";
        download(&work, architecture, &packages)?;
        let into = if native {
            root.clone()
        } else {
            root.join(architecture)
        };
        for package in debs(&work, architecture)? {
            run(Command::new("dpkg").arg("-x").arg(package).arg(&into))?;
        }
        let busybox = [into.join("usr/bin/busybox"), into.join("bin/busybox")];
        let busybox = busybox
            .iter()
            .find(|path| path.exists())
            .ok_or("no busybox unpacked")?;
        fs::copy(busybox, root.join(format!("busybox-{architecture}")))
            .map_err(|error| error.to_string())?;
    }
    let _ = fs::remove_dir_all(&work);
    fs::write(root.join("done"), SUITE).map_err(|error| error.to_string())
}

fn download(work: &Path, architecture: &str, packages: &[&str]) -> Result<(), String> {
    let sources = work.join("sources.list");
    let line = format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror());
    fs::write(&sources, line).map_err(|error| error.to_string())?;
    let folder = work.join("download").join(architecture);
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        for option in [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        run(command.arg("-qq").args(args).current_dir(&folder))
    };
    apt(&["update"])?;
    apt(&[&["download"], packages].concat())
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror the machine itself uses.
fn mirror() -> String {
    let modern = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let classic = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let from_modern = modern.lines().find_map(|line| line.strip_prefix("URIs:"));
    let from_classic = classic
        .lines()
        .filter(|line| line.starts_with("deb "))
        .find_map(|line| line.split_whitespace().find(|word| word.contains("://")));
    let found = from_modern
        .or(from_classic)
        .unwrap_or("http://deb.debian.org/debian");
    found.trim().to_owned()
}

fn debs(work: &Path, architecture: &str) -> Result<Vec<PathBuf>, String> {
    let folder = work.join("download").join(architecture);
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

pub fn run(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
