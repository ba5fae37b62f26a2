//! Which platforms programs can run here, natively or emulated.
//!
//! Nothing is taken on trust: for each architecture a tiny program is run, in a root of its own as
//! steps have it, and what works is listed. So an emulator counts however it was registered, and
//! one that is registered but would not be found inside a step does not.

mod binfmt;
mod elf;

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oci::Platform;
use parking_lot::Mutex;

use elf::Machine;

/// How long an answer of [`platforms`] is used again, as stock has it.
const AGE_MAX: Duration = Duration::from_secs(20);
/// Attempts to run a file that another thread's child may still hold open for writing.
const BUSY_ATTEMPTS: u32 = 50;

/// Why an architecture works here, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// The processor runs it.
    Native,
    /// An emulator runs it.
    Emulated,
    /// No emulator is registered for it.
    Missing,
    /// An emulator is registered and switched off.
    Disabled {
        /// The name of the registration.
        name: String,
    },
    /// An emulator is registered, but its file is not found inside a step.
    NotFixed {
        /// The emulator's path.
        interpreter: String,
    },
    /// An emulator is registered and does not work.
    Broken {
        /// The emulator's path.
        interpreter: String,
    },
}

/// The platforms that steps can have: this machine's own first, the others in stock's order. An
/// answer is used again for a while, so an emulator installed meanwhile is seen soon.
pub fn platforms() -> Vec<Platform> {
    static LAST: Mutex<Option<(Instant, Vec<Platform>)>> = Mutex::new(None);
    let mut last = LAST.lock();
    if let Some((when, answer)) = &*last
        && when.elapsed() < AGE_MAX
    {
        return answer.clone();
    }
    let answer = platforms_now();
    *last = Some((Instant::now(), answer.clone()));
    answer
}

/// The same, found out now. It starts about ten processes: not for an asynchronous task.
pub fn platforms_now() -> Vec<Platform> {
    let host = Platform::host();
    let mut out = vec![host.clone()];
    let linux = |architecture: &str, variant: &str| Platform::new("linux", architecture, variant);
    let Ok(probe) = Probe::new() else {
        out.extend(native_variants());
        return out;
    };
    for machine in elf::MACHINES {
        let native = machine.architecture == host.architecture;
        if native {
            out.extend(native_variants());
            continue;
        }
        let Some(code) = probe.run(machine) else {
            continue;
        };
        match machine.architecture {
            "amd64" => {
                out.push(linux("amd64", ""));
                if code == 66 {
                    out.push(linux("amd64", "v2"));
                }
            }
            "arm" => out.extend(["v7", "v6"].map(|variant| linux("arm", variant))),
            architecture => out.push(linux(architecture, "")),
        }
    }
    out
}

/// Whether and why programs of an architecture (GOARCH name) run here; `None` for architectures
/// nothing is known of.
pub fn emulation(architecture: &str) -> Option<Emulation> {
    let machine = Machine::of(architecture)?;
    if Platform::host().architecture == architecture {
        return Some(Emulation::Native);
    }
    let runs = Probe::new()
        .ok()
        .is_some_and(|probe| probe.run(machine).is_some());
    let registered = binfmt::registrations()
        .into_iter()
        .find(|registration| registration.is_for(machine));
    Some(match (runs, registered) {
        (true, Some(_)) => Emulation::Emulated,
        // A processor with a 32-bit mode, or a registration that cannot be seen from here.
        (true, None) => Emulation::Native,
        (false, None) => Emulation::Missing,
        (false, Some(found)) if !found.enabled => Emulation::Disabled { name: found.name },
        (false, Some(found)) if !found.fixed => Emulation::NotFixed {
            interpreter: found.interpreter,
        },
        (false, Some(found)) => Emulation::Broken {
            interpreter: found.interpreter,
        },
    })
}

/// What to do so that programs of the platform run here; `None` when they do.
pub fn emulator_hint(platform: &Platform) -> Option<String> {
    let architecture = platform.architecture.as_str();
    match emulation(architecture)? {
        Emulation::Native | Emulation::Emulated => None,
        Emulation::Missing => Some(format!(
            "no emulator for {architecture} is registered on this machine: install one, on Debian with `apt-get install qemu-user-static`, or with `docker run --privileged --rm tonistiigi/binfmt --install {architecture}`"
        )),
        Emulation::Disabled { name } => Some(format!(
            "the emulator for {architecture} is switched off: `echo 1 > /proc/sys/fs/binfmt_misc/{name}` on this machine switches it on"
        )),
        Emulation::NotFixed { interpreter } => Some(format!(
            "the emulator {interpreter} is registered without the flag F, so it is not found inside a build step: register it again with F, as `qemu-user-static` and `tonistiigi/binfmt` do"
        )),
        Emulation::Broken { interpreter } => Some(format!(
            "the emulator {interpreter} is registered for {architecture} but does not run programs: install it again"
        )),
    }
}

/// What to do about a program whose format the kernel does not know; `machine` is the number in its
/// ELF header, if it has one.
pub(crate) fn exec_format_hint(machine: Option<u16>) -> Option<String> {
    let Some(number) = machine else {
        return Some(
            "the file is neither an ELF program nor a script: a script begins with a line such as `#!/bin/sh`".to_owned(),
        );
    };
    // Of two byte orders the little one is the one in use.
    let of_number = || elf::MACHINES.iter().filter(|m| m.number == number);
    let known = of_number()
        .find(|m| m.order == elf::Order::Little)
        .or_else(|| of_number().next());
    let host = Platform::host().architecture;
    match known {
        Some(machine) => {
            let architecture = machine.architecture;
            let hint = emulator_hint(&Platform::new("linux", architecture, ""));
            hint.or_else(|| Some(format!(
                "the file begins like a program for {architecture}, and such run here, but it is damaged or cut off"
            )))
        }
        None => Some(format!(
            "the file is a program for an unknown machine (number {number} in its ELF header): take the one for linux/{host}, or register an emulator for it with binfmt_misc on this machine, with the flag F"
        )),
    }
}

/// The variants of this machine's own architecture.
fn native_variants() -> Vec<Platform> {
    let names: &[&str] = native_variant_names();
    let architecture = Platform::host().architecture;
    let variant = |name: &&str| Platform::new("linux", &architecture, name);
    names.iter().map(variant).collect()
}

#[cfg(target_arch = "x86_64")]
fn native_variant_names() -> &'static [&'static str] {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse3")
        && has!("ssse3")
        && has!("sse4.1")
        && has!("sse4.2")
        && has!("popcnt")
        && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => &["v2", "v3", "v4"],
        (_, true, _) => &["v2", "v3"],
        (true, _, _) => &["v2"],
        _ => &[],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn native_variant_names() -> &'static [&'static str] {
    &[]
}

/// A directory in which programs can be put and executed.
#[derive(Debug)]
struct Probe {
    dir: tempfile::TempDir,
}

impl Probe {
    /// Finds a place; in an image of nothing but this executable there may be no `/tmp`.
    fn new() -> io::Result<Probe> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let places = [
            std::env::temp_dir(),
            "/run".into(),
            "/var/lib".into(),
            "/".into(),
        ];
        for place in places {
            match Probe::in_dir(&place) {
                Ok(probe) => return Ok(probe),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn in_dir(place: &Path) -> io::Result<Probe> {
        let dir = tempfile::Builder::new()
            .prefix("cooperage-platforms-")
            .tempdir_in(place)?;
        let probe = Probe { dir };
        // Where our own architecture does not run, as on a mount without exec, nothing does.
        match Machine::of(&Platform::host().architecture) {
            Some(own) if probe.run(own).is_none() => {
                Err(io::Error::from(io::ErrorKind::PermissionDenied))
            }
            _ => Ok(probe),
        }
    }

    /// The exit code of the machine's program, if it ran.
    fn run(&self, machine: &Machine) -> Option<i32> {
        self.exit_code(machine)
            .ok()
            .filter(|code| machine.ran(*code))
    }

    fn exit_code(&self, machine: &Machine) -> io::Result<i32> {
        let path: PathBuf = self.dir.path().join(machine.architecture);
        if !path.exists() {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o755)
                .open(&path)?;
            io::Write::write_all(&mut file, &machine.program())?;
        }
        let mut attempts = 0;
        loop {
            match self.spawn(machine.architecture) {
                Err(error)
                    if error.raw_os_error() == Some(libc::ETXTBSY) && attempts < BUSY_ATTEMPTS =>
                {
                    attempts += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    fn spawn(&self, name: &str) -> io::Result<i32> {
        let root = std::ffi::CString::new(self.dir.path().as_os_str().as_encoded_bytes())?;
        let mut command = Command::new(format!("/{name}"));
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: only system calls on memory made before the fork.
        unsafe {
            command.pre_exec(move || {
                crate::sys::check(libc::chroot(root.as_ptr()).into())?;
                crate::sys::check(libc::chdir(c"/".as_ptr()).into())?;
                Ok(())
            });
        }
        let status = command.status()?;
        status
            .code()
            .ok_or_else(|| io::Error::other("ended by a signal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_platform_is_first_and_works() {
        let all = platforms_now();
        assert_eq!(all[0], Platform::host());
        assert_eq!(emulation(&all[0].architecture), Some(Emulation::Native));
        assert_eq!(emulator_hint(&all[0]), None);
        let mut unique = all.clone();
        unique.dedup();
        assert_eq!(unique, all);
    }

    #[test]
    fn what_no_emulator_is_known_for_is_said_so() {
        let hint = exec_format_hint(Some(83)).unwrap();
        assert!(
            hint.contains("number 83") && hint.contains("emulator"),
            "{hint}"
        );
        assert!(exec_format_hint(None).unwrap().contains("#!/bin/sh"));
    }

    #[test]
    fn what_is_listed_runs_and_what_is_not_has_a_hint() {
        let all = platforms_now();
        for machine in elf::MACHINES {
            let listed = all.iter().any(|p| p.architecture == machine.architecture);
            let platform = Platform::new("linux", machine.architecture, "");
            assert_eq!(listed, emulator_hint(&platform).is_none(), "{platform}");
        }
    }
}
