//! An OCI runtime for Docker Engine on machines that lack a capability.
//!
//! `docker run --privileged` and `docker exec` ask runc for every capability there is; where the
//! machine has fewer, runc fails. This program takes those the machine lacks out of the bundle's
//! `config.json` (`create`, `run`) and of the process file (`exec --process`), then becomes `runc`.
#![expect(clippy::print_stderr, reason = "a program's errors go to stderr")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((file, pointer)) = file_to_change(&args)
        && let Err(error) = drop_missing(&file, pointer)
    {
        eprintln!("oci-runtime: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    let error = Command::new("runc").args(&args).exec();
    eprintln!("oci-runtime: runc: {error}");
    ExitCode::FAILURE
}

/// The file that names capabilities, and where in it the process is.
fn file_to_change(args: &[String]) -> Option<(PathBuf, &'static str)> {
    let value = |names: &[&str]| {
        args.iter().enumerate().find_map(|(at, arg)| {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), args.get(at + 1).cloned()),
            };
            names.contains(&name).then_some(value).flatten()
        })
    };
    if args.iter().any(|arg| arg == "exec") {
        return Some((value(&["--process", "-p", "-process"])?.into(), ""));
    }
    if args.iter().any(|arg| arg == "create" || arg == "run") {
        let bundle = value(&["--bundle", "-b", "-bundle"]).unwrap_or_else(|| ".".into());
        return Some((Path::new(&bundle).join("config.json"), "/process"));
    }
    None
}

fn drop_missing(file: &Path, pointer: &str) -> std::io::Result<()> {
    let mut root: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let missing = missing_capabilities()?;
    if let Some(Value::Object(sets)) = root.pointer_mut(&format!("{pointer}/capabilities")) {
        for (_, set) in sets.iter_mut() {
            if let Value::Array(names) = set {
                names.retain(|name| !missing.iter().any(|m| name == m));
            }
        }
    }
    std::fs::write(file, serde_json::to_vec(&root)?)
}

/// Names of the capabilities that are not in this process's bounding set.
fn missing_capabilities() -> std::io::Result<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let missing = |number: &usize| bounding & (1 << number) == 0;
    Ok((0..NAMES.len())
        .filter(missing)
        .map(|number| NAMES[number])
        .collect())
}

/// Capabilities by number. Source: `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
