//! Which program is executed, and with what environment.

use std::ffi::CString;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType};

use crate::launch::{Failure, Launch, reason};
use crate::passwd;

/// Where programs are looked for when the environment does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program ready to be executed.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// The environment of the step: of a name given twice the last value, and `HOME`.
///
/// To be called inside the step's root.
pub(super) fn environment(launch: &Launch) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(launch.env.len() + 1);
    for pair in &launch.env {
        let name = name_of(pair);
        match env.iter_mut().find(|known| name_of(known) == name) {
            Some(known) => known.clone_from(pair),
            None => env.push(pair.clone()),
        }
    }
    if !env.iter().any(|pair| name_of(pair) == "HOME") {
        let root = crate::rootpath::open_root(Path::new("/")).ok();
        let home = root.and_then(|root| passwd::home(&root, launch.user.uid));
        env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    env
}

impl Program {
    /// Looks the program up, as the user it will run as.
    pub(super) fn find(args: &[String], env: &[String]) -> Result<Program, Failure> {
        let name = args
            .first()
            .ok_or_else(|| Failure::Invalid("no command specified".to_owned()))?;
        let path = if name.contains('/') {
            check_named(name)?;
            name.clone()
        } else {
            look_up(name, env)?
        };
        let strings = |all: &[String]| all.iter().map(|s| c_string(s)).collect::<Result<_, _>>();
        Ok(Program {
            path: c_string(&path)?,
            args: strings(args)?,
            env: strings(env)?,
        })
    }

    /// Becomes the program; returns only when that failed.
    pub(super) fn execute(&self) -> Failure {
        let pointers = |all: &[CString]| -> Vec<*const libc::c_char> {
            let ends = [std::ptr::null()];
            all.iter().map(|s| s.as_ptr()).chain(ends).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        // SAFETY: a C string, and two lists of C strings that end with a null pointer.
        unsafe { libc::execve(self.path.as_ptr(), args.as_ptr(), env.as_ptr()) };
        let error = std::io::Error::last_os_error();
        let program = self.path.to_string_lossy().into_owned();
        if error.raw_os_error() == Some(libc::ENOEXEC) {
            let machine = elf_machine(&program);
            return Failure::ExecFormat { program, machine };
        }
        Failure::Exec {
            program,
            reason: reason(&error),
        }
    }
}

fn name_of(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text)
        .map_err(|_| Failure::Invalid("arguments and environment cannot hold a NUL".to_owned()))
}

fn look_up(name: &str, env: &[String]) -> Result<String, Failure> {
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH="));
    let not_found = || Failure::NotFoundInPath(name.to_owned());
    if name.is_empty() {
        return Err(not_found());
    }
    path.unwrap_or(PATH_DEFAULT)
        .split(':')
        .map(|dir| match dir {
            "" => format!("./{name}"),
            dir => format!("{}/{name}", dir.trim_end_matches('/')),
        })
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(not_found)
}

/// Words a program that was named by path and cannot be executed.
fn check_named(name: &str) -> Result<(), Failure> {
    executable(name).map_err(|error| match error {
        rustix::io::Errno::NOENT => Failure::NoSuchFile(name.to_owned()),
        error => Failure::NotExecutable {
            program: name.to_owned(),
            reason: match error {
                rustix::io::Errno::NOTDIR => format!("stat {name}: not a directory"),
                error => reason(&error.into()),
            },
        },
    })
}

fn executable(path: &str) -> Result<(), rustix::io::Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(rustix::io::Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
}

/// The architecture in an ELF file's header.
fn elf_machine(path: &str) -> Option<u16> {
    let mut header = [0; 20];
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .ok()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let machine = [header[18], header[19]];
    Some(match header[5] {
        2 => u16::from_be_bytes(machine),
        _ => u16::from_le_bytes(machine),
    })
}
