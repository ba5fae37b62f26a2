//! The `git` program: run without anybody's configuration, without questions, and ended with its
//! helpers when nobody waits any more.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use diag::{Code, Error, Result, Secret};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// How long git has to clean up after itself when it is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// How much of an output is kept for whoever reads it.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// The option for a part of a history.
const DEPTH: &str = "--depth";

/// The search path when the server has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the server passes on of its own environment.
const PASSED_ON: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

/// Settings of every call: no helpers that stay behind, no repositories of the server's own disk as
/// submodules, and no connection over which nothing comes.
const SETTINGS: [(&str, &str); 7] = [
    ("protocol.file.allow", "user"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("init.defaultBranch", "master"),
    ("advice.detachedHead", "false"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "300"),
];

/// Takes what git writes: 1 for standard output, 2 for standard error, and the bytes.
pub type GitLog = Arc<dyn Fn(i64, Bytes) + Send + Sync>;

/// With what rights a remote is reached, and who sees what git says.
#[derive(Clone, Default)]
pub struct GitAccess {
    /// The `Authorization` header for the remote.
    pub authorization: Option<Secret<String>>,
    /// The socket of an ssh agent.
    pub ssh_auth_sock: Option<PathBuf>,
    /// Takes what git writes.
    pub log: Option<GitLog>,
}

/// How git is called for one remote.
pub(super) struct Git<'a> {
    program: OsString,
    access: &'a GitAccess,
    /// `http.<scope>.extraheader` and its value.
    header: Option<(String, Secret<String>)>,
    /// A file with the keys of known hosts; without one every host is trusted, as for stock.
    known_hosts: Option<KnownHosts>,
}

/// A file with the keys of known hosts.
struct KnownHosts(tempfile::NamedTempFile);

impl KnownHosts {
    /// Writes the file, unless there is nothing to write.
    fn write(text: &str) -> Result<Option<KnownHosts>> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(Some(KnownHosts(file)))
    }
}

/// Options of `ssh`: nobody's configuration, no questions; without known hosts every host is trusted.
fn ssh_options(known_hosts: Option<&KnownHosts>) -> Vec<OsString> {
    let mut options: Vec<OsString> = [
        "-F",
        "/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=30",
        "-o",
        "ServerAliveInterval=60",
        "-o",
    ]
    .map(OsString::from)
    .into();
    options.push(match known_hosts {
        Some(file) => {
            let mut option = OsString::from("UserKnownHostsFile=");
            option.push(file.0.path());
            option
        }
        None => "StrictHostKeyChecking=no".into(),
    });
    options
}

impl<'a> Git<'a> {
    pub(super) fn new(
        program: &OsStr,
        remote: &str,
        known_hosts: &str,
        access: &'a GitAccess,
    ) -> Result<Self> {
        let header = access.authorization.as_ref().map(|value| {
            let value = format!("Authorization: {}", value.expose().trim_end());
            let key = format!("http.{}.extraheader", token_scope(remote));
            (key, Secret::new(value))
        });
        let known_hosts = KnownHosts::write(known_hosts)?;
        Ok(Git {
            program: program.to_owned(),
            access,
            header,
            known_hosts,
        })
    }

    /// Runs git and gives what it wrote to standard output.
    ///
    /// # Errors
    /// With all it wrote to standard error; a missing program is `FailedPrecondition`.
    pub(super) async fn run<S: AsRef<OsStr>>(
        &self,
        place: &Place<'_>,
        args: &[S],
    ) -> Result<String> {
        let output = self.run_raw(place, args).await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Like [`Git::run`], giving the bytes as they are. A server that gives only whole histories is
    /// asked for one.
    pub(super) async fn run_raw<S: AsRef<OsStr>>(
        &self,
        place: &Place<'_>,
        args: &[S],
    ) -> Result<Vec<u8>> {
        let error = match self.run_once(place, args).await {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        let mut whole: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        whole.retain(|arg| !arg.as_encoded_bytes().starts_with(DEPTH.as_bytes()));
        let said = error.to_string();
        if whole.len() == args.len() || !(said.contains("shallow") || said.contains(DEPTH)) {
            return Err(error);
        }
        self.run_once(place, &whole).await
    }

    async fn run_once<S: AsRef<OsStr>>(&self, place: &Place<'_>, args: &[S]) -> Result<Vec<u8>> {
        let mut running = Running(Some(self.start(place, args)?));
        let Some(child) = running.0.as_mut() else {
            return Err(Error::internal("git was not started"));
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr, status) = tokio::join!(
            collect(stdout, 1, &self.access.log),
            collect(stderr, 2, &self.access.log),
            child.wait()
        );
        // It has ended and was waited for: there is nobody to end.
        running.0 = None;
        if status?.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr);
        let status = if said.trim().is_empty() {
            "failed"
        } else {
            said.trim_end()
        };
        Err(Error::new(
            failure_code(&said),
            format!("git stderr:\n{status}"),
        ))
    }

    /// Like [`Git::run`] for a question: an unsuccessful end is a no.
    pub(super) async fn ask<S: AsRef<OsStr>>(&self, place: &Place<'_>, args: &[S]) -> Result<bool> {
        match self.run(place, args).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Code::Unknown => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn start<S: AsRef<OsStr>>(&self, place: &Place<'_>, args: &[S]) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.environment());
        if let Some(tree) = place.work_tree {
            command.current_dir(tree).arg("--work-tree").arg(tree);
        }
        if let Some(dir) = place.git_dir {
            command.arg("--git-dir").arg(dir);
        }
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: between fork and exec only `umask` is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
                Ok(())
            });
        }
        command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                Code::FailedPrecondition,
                "failed to find git binary: the server has no `git` program, which sources of git need",
            )
            .hint("use a server whose image has git, or give the files as a local context"),
            _ => Error::from(error).context("failed to run git"),
        })
    }

    fn environment(&self) -> Vec<(String, OsString)> {
        let mut all: Vec<(String, OsString)> = [
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
        ]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into();
        let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
        all.push(("PATH".into(), path.unwrap_or_else(|| DEFAULT_PATH.into())));
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                all.push((name.to_owned(), value));
            }
        }
        let mut ssh = OsString::from("ssh");
        for option in ssh_options(self.known_hosts.as_ref()) {
            ssh.push(" ");
            ssh.push(option);
        }
        all.push(("GIT_SSH_COMMAND".into(), ssh));
        if let Some(socket) = &self.access.ssh_auth_sock {
            all.push(("SSH_AUTH_SOCK".into(), socket.into()));
        }
        // By the environment and not by arguments, which everybody can read.
        let settings = SETTINGS.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let header = self.header.as_ref();
        let header = header.map(|(key, value)| (key.clone(), value.expose().clone()));
        let settings: Vec<_> = settings.into_iter().chain(header).collect();
        all.push(("GIT_CONFIG_COUNT".into(), settings.len().to_string().into()));
        for (at, (key, value)) in settings.into_iter().enumerate() {
            all.push((format!("GIT_CONFIG_KEY_{at}"), key.into()));
            all.push((format!("GIT_CONFIG_VALUE_{at}"), value.into()));
        }
        all
    }
}

/// What a call works on.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<'a> {
    pub(super) git_dir: Option<&'a Path>,
    pub(super) work_tree: Option<&'a Path>,
}

/// A process that is told to end, with all it started, when nobody waits for it any more.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(group) = group else { return };
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    let _ = rustix::process::kill_process_group(group, Signal::KILL);
                    let _ = child.wait().await;
                }
            });
        } else {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end, keeping the beginning.
async fn collect(
    stream: Option<impl AsyncRead + Unpin>,
    number: i64,
    log: &Option<GitLog>,
) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let piece = &buffer[..count];
        if let Some(log) = log {
            log(number, Bytes::copy_from_slice(piece));
        }
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&piece[..count.min(room)]);
    }
    kept
}

/// Whether there is such a program, by its path or on the search path.
pub(super) fn is_installed(program: &OsStr) -> bool {
    let is_program = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return is_program(Path::new(program));
    }
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path).any(|dir| is_program(&dir.join(program)))
}

/// For which addresses a token counts: the remote, and all of GitHub if it is there, because
/// submodules mostly are too.
pub(super) fn token_scope(remote: &str) -> &str {
    ["https://github.com/", "https://www.github.com/"]
        .into_iter()
        .find(|prefix| remote.starts_with(prefix))
        .unwrap_or(remote)
}

/// What kind of failure git tells of: a full disk of this machine is one of its own.
fn failure_code(said: &str) -> Code {
    let own = said.lines().filter(|line| !line.starts_with("remote:"));
    let full = ["No space left on device", "Disk quota exceeded"];
    match own
        .into_iter()
        .any(|line| full.iter().any(|words| line.contains(words)))
    {
        true => Code::ResourceExhausted,
        false => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_a_clear_error() {
        let access = GitAccess::default();
        let git = Git::new(OsStr::new("/nonexistent/git"), "r", "", &access).unwrap();
        let error = git.run(&Place::default(), &["version"]).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("failed to find git binary"));
    }

    #[tokio::test]
    async fn a_header_is_given_by_the_environment_and_for_its_remote_only() {
        let access = GitAccess {
            authorization: Some(Secret::new("basic abc".into())),
            ..GitAccess::default()
        };
        let git = Git::new(OsStr::new("git"), "https://h/r.git", "", &access).unwrap();
        let place = Place::default();
        let key = "http.https://h/r.git.extraheader";
        let said = git.run(&place, &["config", "--get", key]).await.unwrap();
        assert_eq!(said, "Authorization: basic abc\n");
        assert_eq!(token_scope("https://github.com/a/b"), "https://github.com/");
    }

    #[tokio::test]
    async fn nobody_is_asked_for_a_password() {
        let access = GitAccess::default();
        let git = Git::new(OsStr::new("git"), "r", "", &access).unwrap();
        let place = Place::default();
        assert!(
            !git.ask(&place, &["config", "--get", "user.name"])
                .await
                .unwrap()
        );
        let environment = git.environment();
        let prompt = environment
            .iter()
            .find(|(name, _)| name == "GIT_TERMINAL_PROMPT");
        assert_eq!(prompt.unwrap().1, "0");
        let ssh = environment
            .iter()
            .find(|(name, _)| name == "GIT_SSH_COMMAND");
        assert!(ssh.unwrap().1.to_str().unwrap().contains("BatchMode=yes"));
    }
}
