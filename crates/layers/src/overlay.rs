//! Mounting overlayfs.
//!
//! Layers must stay whole by themselves, so everything by which overlayfs makes an upper directory
//! point into its lower ones is off: `redirect_dir`, `metacopy`, `index`. Writable mounts are
//! `volatile`: a step that was interrupted is thrown away anyway, so its writes need no syncing.
//!
//! Lower directories are given one by one through the new mount API where the kernel takes them so
//! (6.7 and later), otherwise as one `lowerdir=` option of `mount(2)`, which must fit into a page:
//! names are then relative to the directory of layers.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use crate::{LayerError, Result};

/// What overlayfs itself allows is 500; one is for the upper directory's side and some for luck.
const LOWERS_MAX: usize = 480;
/// Values given to `fsconfig` are at most this long, with their NUL.
const VALUE_MAX: usize = 256;
const PAGE: usize = 4096;

/// How this kernel mounts overlays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `fsconfig` with `lowerdir+`.
    New,
    /// `mount(2)`.
    Classic {
        /// Whether the kernel knows `volatile` (5.10 and later).
        volatile: bool,
    },
}

/// What to mount where.
pub(crate) struct Request<'a> {
    /// Lower directories, bottom first, at least one.
    pub lowers: Vec<PathBuf>,
    /// Upper and work directory, if it is to be written to.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// The mount point.
    pub target: &'a Path,
    /// The directory that lower directories are named from where space is short.
    pub base: &'a Path,
}

impl Api {
    /// How many lower directories a mount can have. Below `base`, names have at most that length.
    pub(crate) fn lowers_max(self, name_length: usize) -> usize {
        match self {
            Api::New => LOWERS_MAX,
            // Half a kilobyte is left for the other options.
            Api::Classic { .. } => LOWERS_MAX.min((PAGE - 512) / (name_length + 1)),
        }
    }

    /// Mounts; the mount stays until [`unmount`].
    pub(crate) fn mount(self, request: &Request<'_>) -> Result<()> {
        match self {
            Api::New => mount_new(request),
            Api::Classic { volatile } => mount_classic(request, volatile),
        }
    }
}

/// Finds out in the empty directory `scratch` whether and how overlays work there, by trying all
/// that layers need: mounting, whiteouts, opaque directories.
pub(crate) fn probe(scratch: &Path) -> Result<Api> {
    let [classic, old] = [true, false].map(|volatile| Api::Classic { volatile });
    probe_with(&scratch.join(PROBES[0]), Api::New)
        .or_else(|_| probe_with(&scratch.join(PROBES[1]), classic))
        .or_else(|_| probe_with(&scratch.join(PROBES[2]), old))
}

/// The directories that [`probe`] works in; each may have a mount on `target` in it.
pub(crate) const PROBES: [&str; 3] = ["new", "classic", "old"];

fn probe_with(dir: &Path, api: Api) -> Result<Api> {
    let [lower, upper, work, target] = ["lower", "upper", "work", "target"].map(|n| dir.join(n));
    let io = |action| LayerError::io::<std::io::Error>(action, dir);
    for path in [&lower.join("dir"), &upper, &work, &target] {
        std::fs::create_dir_all(path).map_err(io("create"))?;
    }
    std::fs::write(lower.join("file"), "x").map_err(io("write"))?;
    std::fs::write(lower.join("dir/file"), "x").map_err(io("write"))?;
    api.mount(&Request {
        lowers: vec![lower],
        upper: Some((&upper, &work)),
        target: &target,
        base: dir,
    })?;
    let tried = (|| {
        std::fs::remove_file(target.join("file"))?;
        std::fs::remove_dir_all(target.join("dir"))?;
        std::fs::create_dir(target.join("dir"))
    })();
    unmount(&target)?;
    tried.map_err(io("try overlay in"))?;
    let whiteout =
        rustix::fs::lstat(upper.join("file")).is_ok_and(|stat| archive::is_whiteout(&stat));
    let opaque = archive::is_opaque(&upper.join("dir")).unwrap_or(false);
    match whiteout && opaque {
        true => Ok(api),
        false => Err(io("find overlay's marks in")(Errno::NOTSUP.into())),
    }
}

/// Unmounts; what is not mounted is no error. A mount still busy is detached: it is gone for
/// everybody at once and really when the last user ends.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(LayerError::io("unmount", target)(error)),
    }
}

fn mount_new(request: &Request<'_>) -> Result<()> {
    let fail = |log: String| {
        move |source: Errno| LayerError::Mount {
            path: request.target.to_owned(),
            source: source.into(),
            log,
        }
    };
    let none = String::new;
    let context =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail(none()))?;
    configure(&context, request)
        .and_then(|()| rustix::mount::fsconfig_create(&context))
        .map_err(|error| fail(kernel_log(&context))(error))?;
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(fail(none()))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", CWD, request.target, flags).map_err(fail(none()))
}

fn configure(context: &OwnedFd, request: &Request<'_>) -> rustix::io::Result<()> {
    use rustix::mount::{fsconfig_set_flag, fsconfig_set_string};
    fsconfig_set_string(context, "source", "overlay")?;
    // Topmost first.
    for lower in request.lowers.iter().rev() {
        set_path(context, "lowerdir+", lower)?;
    }
    if let Some((upper, work)) = request.upper {
        set_path(context, "upperdir", upper)?;
        set_path(context, "workdir", work)?;
        fsconfig_set_flag(context, "volatile")?;
    }
    for option in ["redirect_dir", "metacopy", "index"] {
        fsconfig_set_string(context, option, "off")?;
    }
    Ok(())
}

/// Gives a directory by name, or by a short name for its descriptor if its own is too long.
fn set_path(context: &OwnedFd, key: &str, path: &Path) -> rustix::io::Result<()> {
    if path.as_os_str().len() < VALUE_MAX {
        return rustix::mount::fsconfig_set_string(context, key, path);
    }
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::mount::fsconfig_set_string(context, key, short)
}

/// What the kernel has to say about a failed mount.
fn kernel_log(context: &OwnedFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 || lines.len() > 20 {
            break;
        }
        let line = String::from_utf8_lossy(&buffer[..length]);
        // Each begins with its severity: `e overlay: …`.
        lines.push(
            line.trim_end()
                .trim_start_matches(['e', 'w', 'i', ' '])
                .to_owned(),
        );
    }
    lines.join("; ")
}

fn mount_classic(request: &Request<'_>, volatile: bool) -> Result<()> {
    let fail = |source: std::io::Error| LayerError::Mount {
        path: request.target.to_owned(),
        source,
        log: String::new(),
    };
    let data = classic_options(request, volatile).map_err(|error| fail(error.into()))?;
    // The working directory belongs to the whole process, so a thread with one of its own mounts.
    let mounted = std::thread::scope(|scope| {
        let work = || -> rustix::io::Result<()> {
            // SAFETY: only this thread's working directory and umask are separated from those of
            // the other threads; descriptors stay shared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
            rustix::process::chdir(request.base)?;
            let flags = MountFlags::empty();
            rustix::mount::mount("overlay", request.target, "overlay", flags, data.as_c_str())
        };
        let thread = std::thread::Builder::new().spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(result)) => result.map_err(std::io::Error::from),
            Ok(Err(_)) => Err(std::io::Error::other("the mounting thread panicked")),
            Err(error) => Err(error),
        }
    });
    mounted.map_err(fail)
}

fn classic_options(request: &Request<'_>, volatile: bool) -> rustix::io::Result<CString> {
    let mut options = b"redirect_dir=off,metacopy=off,index=off,".to_vec();
    if let Some((upper, work)) = request.upper {
        let volatile: &[u8] = if volatile { b"volatile," } else { b"" };
        options.extend_from_slice(volatile);
        options.extend_from_slice(b"upperdir=");
        push_escaped(&mut options, upper.as_os_str(), b"\\,");
        options.extend_from_slice(b",workdir=");
        push_escaped(&mut options, work.as_os_str(), b"\\,");
        options.push(b',');
    }
    options.extend_from_slice(b"lowerdir=");
    for (i, lower) in request.lowers.iter().rev().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        let relative = lower.strip_prefix(request.base).unwrap_or(lower);
        push_escaped(&mut options, relative.as_os_str(), b"\\,:");
    }
    if options.len() >= PAGE {
        return Err(Errno::NAMETOOLONG);
    }
    CString::new(options).map_err(|_| Errno::INVAL)
}

fn push_escaped(options: &mut Vec<u8>, name: &OsStr, special: &[u8]) {
    for &byte in name.as_bytes() {
        if special.contains(&byte) {
            options.push(b'\\');
        }
        options.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_mounting_passes_the_probe_where_the_kernel_has_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(probe(&dir.path().join("all")).unwrap(), Api::New);
        for volatile in [true, false] {
            let api = Api::Classic { volatile };
            let scratch = dir.path().join(format!("o,d:d{volatile}"));
            assert_eq!(probe_with(&scratch, api).unwrap(), api);
        }
    }

    #[test]
    fn the_classic_way_takes_as_many_layers_as_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let api = Api::Classic { volatile: true };
        let count = api.lowers_max(25);
        assert!(count > 100);
        let lower = |i: usize| dir.path().join("layers").join(format!("{i:025}"));
        for i in 0..count {
            std::fs::create_dir_all(lower(i)).unwrap();
            std::fs::write(lower(i).join(i.to_string()), "").unwrap();
        }
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let request = Request {
            lowers: (0..count).map(lower).collect(),
            upper: None,
            target: &target,
            base: &dir.path().join("layers"),
        };
        api.mount(&request).unwrap();
        let seen = std::fs::read_dir(&target).unwrap().count();
        unmount(&target).unwrap();
        assert_eq!(seen, count);
    }
}
