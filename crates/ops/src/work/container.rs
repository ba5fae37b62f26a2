//! The files of a container that a client of the gateway asks for, and the processes in it.
//!
//! Mounts are those of a process op without outputs: what is written is gone when the container is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diag::{Error, Result};
use executor::{ProcessMount, ProcessSpec};
use llb::{ExecOp, Mount, MountKind, NetMode, SecretEnv};
use solver::RunContext;

use super::context::BuildContext;
use super::exec::{DEFAULT_PATH, Mounts, environment, step_id};
use super::output::Output;
use super::parts::{Parts, blocking};

/// The terminal that programs are told of when nothing else is asked for.
const DEFAULT_TERMINAL: &str = "xterm";

/// The files of a container. Dropping it takes them away, so no process may be left then.
pub struct ContainerFiles {
    mounts: Mounts,
    rootfs: PathBuf,
    process_mounts: Vec<ProcessMount>,
    context: RunContext<BuildContext>,
    network: NetMode,
    hostname: String,
    extra_hosts: Vec<(String, String)>,
}

/// A process of a container.
#[derive(Clone, Debug, Default)]
pub struct ContainerProcess {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Secrets of the client that become variables.
    pub secret_env: Vec<SecretEnv>,
    /// User, and group after a colon, by name or number.
    pub user: String,
    /// Working directory; empty for `/`.
    pub cwd: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it may do everything.
    pub insecure: bool,
    /// Whether directories made for mount points are removed with the parents made for them.
    pub remove_mount_stubs_recursive: bool,
}

impl ContainerFiles {
    /// Prepares the mounts of `op` (with network, host name and hosts; the rest of it does not
    /// count). The root can always be written to.
    pub async fn prepare(
        parts: &Arc<Parts>,
        mut op: ExecOp,
        inputs: &[Output],
        context: RunContext<BuildContext>,
    ) -> Result<Self> {
        for mount in &mut op.mounts {
            adapt(mount)?;
        }
        let mut mounts = Mounts::prepare(parts, &op, inputs, &context).await?;
        let rootfs = op
            .mounts
            .iter()
            .position(|mount| mount.dest == "/")
            .and_then(|root| mounts.path(root))
            .ok_or_else(|| Error::invalid("no rootfs specified"))?;
        let mut process_mounts = mounts.process_mounts(&op);
        // Parents come first.
        process_mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        Ok(ContainerFiles {
            mounts,
            rootfs,
            process_mounts,
            context,
            network: op.network,
            hostname: op.hostname,
            extra_hosts: op.extra_hosts,
        })
    }

    /// Where the files of the mount of that number, as it was asked for, are on this machine.
    pub fn path(&self, number: usize) -> Option<PathBuf> {
        self.mounts.path(number)
    }

    /// What the executor is told of a process.
    pub async fn process(&self, process: ContainerProcess) -> Result<ProcessSpec> {
        for secret in &process.secret_env {
            if secret.id.is_empty() {
                return Err(Error::invalid(format!(
                    "secret ID missing for {:?} environment variable",
                    secret.name
                )));
            }
        }
        let op = ExecOp {
            env: with_defaults(process.env, process.tty),
            secret_env: process.secret_env,
            ..ExecOp::default()
        };
        let env = environment(&op, &self.context).await?;
        let (rootfs, user) = (self.rootfs.clone(), process.user);
        let user = blocking(move || executor::resolve_user(&rootfs, &user)).await?;
        Ok(ProcessSpec {
            rootfs: self.rootfs.clone(),
            args: process.args,
            env,
            cwd: process.cwd,
            user,
            hostname: self.hostname.clone(),
            mounts: self.process_mounts.clone(),
            network: self.network,
            insecure: process.insecure,
            extra_hosts: self.extra_hosts.clone(),
            remove_mount_stubs_recursive: process.remove_mount_stubs_recursive,
            ..ProcessSpec::default()
        })
    }

    /// A name for a process that no other running one has.
    pub fn process_id() -> String {
        step_id()
    }
}

/// A mount as containers have it: nothing is an output, but what can be written is a copy.
fn adapt(mount: &mut Mount) -> Result<()> {
    if mount.dest == "/" {
        if !matches!(mount.kind, MountKind::Bind) {
            return Err(Error::invalid("the mount for / must be a bind mount"));
        }
        mount.readonly = false;
    }
    if !Path::new(&mount.dest).is_absolute() {
        mount.dest = format!("/{}", mount.dest);
    }
    mount.output = None;
    Ok(())
}

fn with_defaults(mut env: Vec<String>, tty: bool) -> Vec<String> {
    let mut add = |name: &str, value: &str| {
        let prefix = format!("{name}=");
        if !env.iter().any(|variable| variable.starts_with(&prefix)) {
            env.push(format!("{prefix}{value}"));
        }
    };
    add("PATH", DEFAULT_PATH);
    if tty {
        add("TERM", DEFAULT_TERMINAL);
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_a_name_unless_there_is_one() {
        let env = with_defaults(vec!["PATH=/x".into()], true);
        assert_eq!(env, ["PATH=/x", "TERM=xterm"]);
        let env = with_defaults(vec!["TERM=vt100".into()], true);
        assert_eq!(env[0], "TERM=vt100");
        assert_eq!(with_defaults(Vec::new(), false).len(), 1);
    }

    #[test]
    fn the_root_is_written_to_and_nothing_is_an_output() {
        let mut root = Mount {
            dest: "/".into(),
            readonly: true,
            output: Some(0),
            ..Mount::default()
        };
        adapt(&mut root).unwrap();
        assert_eq!((root.readonly, root.output), (false, None));
        root.kind = MountKind::Tmpfs { size: 0 };
        assert!(adapt(&mut root).is_err());
        let mut other = Mount {
            dest: "src".into(),
            readonly: true,
            ..Mount::default()
        };
        adapt(&mut other).unwrap();
        assert_eq!((other.dest.as_str(), other.readonly), ("/src", true));
    }
}
