//! A small test harness, and what the tests have in common.

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use executor::{ExecError, Executor, ExecutorConfig, ExitStatus, ProcessSpec, Stdio};
use tokio_util::sync::CancellationToken;

/// A test: its name and itself.
pub type Test = (&'static str, fn());

/// Lists the tests of a module.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[crate::harness::Test] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}
pub(crate) use tests;

/// Runs the tests that the arguments name, as the usual harness does.
pub fn main(tests: &[&Test]) {
    let mut filters = Vec::new();
    let mut exact = false;
    let mut list = false;
    let mut skip_all = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--exact" => exact = true,
            "--list" => list = true,
            "--ignored" => skip_all = true,
            "--format" | "--test-threads" | "--color" => drop(arguments.next()),
            flag if flag.starts_with('-') => {}
            name => filters.push(name.to_owned()),
        }
    }
    let chosen = tests.iter().filter(|(name, _)| {
        !skip_all
            && (filters.is_empty()
                || filters.iter().any(|f| {
                    if exact {
                        name == f
                    } else {
                        name.contains(f.as_str())
                    }
                }))
    });
    if list {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let mut failed = Vec::new();
    let mut count = 0;
    for (name, test) in chosen {
        let result = std::panic::catch_unwind(AssertUnwindSafe(test));
        println!(
            "test {name} ... {}",
            if result.is_ok() { "ok" } else { "FAILED" }
        );
        count += 1;
        if result.is_err() {
            failed.push(name);
        }
    }
    println!(
        "\ntest result: {count} run, {} failed {failed:?}",
        failed.len()
    );
    if !failed.is_empty() {
        std::process::exit(101);
    }
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
});

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

/// A directory with an executor and a busybox root file system.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub executor: Executor,
}

/// What a finished process left.
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<ExitStatus, ExecError>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Its output, when it ended well.
    #[track_caller]
    pub fn ok(&self) -> &str {
        match &self.result {
            Ok(status) if status.success() => &self.stdout,
            other => panic!("{other:?}: {} {}", self.stdout, self.stderr),
        }
    }

    /// The text of the error that kept it from running.
    #[track_caller]
    pub fn error(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }

    /// Its exit code.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.result.as_ref().unwrap().code
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With the executor's configuration changed.
    pub fn with(change: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_root(&dir.path().join("root"));
        let mut config = ExecutorConfig::new(dir.path().join("state"));
        change(&mut config);
        let _guard = RUNTIME.enter();
        Bench {
            executor: Executor::new(config).unwrap(),
            dir,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The specification of a shell script in the root.
    pub fn script(&self, text: &str) -> ProcessSpec {
        self.command(&["/bin/sh", "-c", text])
    }

    pub fn command(&self, args: &[&str]) -> ProcessSpec {
        ProcessSpec {
            rootfs: self.root(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: vec!["PATH=/usr/bin:/bin".to_owned()],
            ..ProcessSpec::default()
        }
    }

    /// Runs it to its end.
    pub fn run(&self, spec: ProcessSpec) -> Outcome {
        block_on(self.run_async("step", spec))
    }

    pub async fn run_async(&self, id: &str, spec: ProcessSpec) -> Outcome {
        let (stdout, stderr) = (memory_file(), memory_file());
        let stdio = Stdio {
            stdin: None,
            stdout: stdout.try_clone().unwrap(),
            stderr: stderr.try_clone().unwrap(),
        };
        let result = self
            .executor
            .run(id, spec, stdio, CancellationToken::new())
            .await;
        Outcome {
            result,
            stdout: content(stdout),
            stderr: content(stderr),
        }
    }

    /// Every path in the root file system below its top, but not what the bench put there.
    pub fn left_in_root(&self) -> Vec<String> {
        let mut found = Vec::new();
        collect(&self.root(), Path::new("/"), &mut found);
        found.retain(|path| !path.starts_with("/bin"));
        found.sort();
        found
    }
}

fn collect(dir: &Path, name: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = name.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &path, found);
        }
        found.push(path.to_str().unwrap().to_owned());
    }
}

fn make_root(root: &Path) {
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
}

pub fn memory_file() -> OwnedFd {
    rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

pub fn content(fd: OwnedFd) -> String {
    let mut file = std::fs::File::from(fd);
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Streams nobody reads.
pub fn no_streams() -> Stdio {
    let null = || {
        OwnedFd::from(
            std::fs::File::options()
                .write(true)
                .open("/dev/null")
                .unwrap(),
        )
    };
    Stdio {
        stdin: None,
        stdout: null(),
        stderr: null(),
    }
}
