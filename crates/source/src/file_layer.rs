//! Single files as layers: names that stay in their directory, mode, owner and time.

use std::path::Path;

use diag::Result;

/// The mode of a file when none is asked for.
pub(crate) const MODE_DEFAULT: u32 = 0o600;

/// The name of a file when nothing names it.
const NAME_DEFAULT: &str = "download";

/// Sets mode, owner (user and group) and times (seconds since 1970), in the order in which none
/// undoes another. No mode, or 0, is [`MODE_DEFAULT`].
pub(crate) fn finish_file(
    path: &Path,
    mode: Option<u32>,
    owner: (u32, u32),
    modified: i64,
) -> Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
    let mode = mode.filter(|mode| *mode != 0).unwrap_or(MODE_DEFAULT);
    let mode = rustix::fs::Mode::from_raw_mode(mode & 0o777);
    rustix::fs::fchmod(&file, mode).map_err(std::io::Error::from)?;
    let time = rustix::fs::Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(&file, &times).map_err(std::io::Error::from)?;
    Ok(())
}

/// A name that is a single component of a path.
pub(crate) fn safe_name(name: &str) -> String {
    let name = name.trim().trim_end_matches('/');
    let last = name.rsplit('/').next().unwrap_or_default();
    let unfit = matches!(last, "" | "." | "..") || last.chars().any(char::is_control);
    if unfit { NAME_DEFAULT } else { last }.to_owned()
}
