//! Digests of nodes: header, content, and directories as lists of both.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use oci::{Digest, DigestHasher};
use rustix::fs::{AtFlags, StatxFlags};
use tokio_util::sync::CancellationToken;

use super::tree::{Node, Tree};
use super::{FileDigests, FileIdentity};
use crate::OpError;
use crate::root::{errno_of, is_dir, is_link, is_regular};

/// Computes digests in one tree.
pub(super) struct Hasher<'a> {
    pub(super) tree: &'a Tree,
    files: &'a FileDigests,
    cancel: &'a CancellationToken,
}

impl<'a> Hasher<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        files: &'a FileDigests,
        cancel: &'a CancellationToken,
    ) -> Self {
        Hasher {
            tree,
            files,
            cancel,
        }
    }

    /// The digest of a node with everything below it.
    pub(super) fn whole(&self, node: &Node) -> Result<Digest, OpError> {
        if !is_dir(&node.stat) {
            return self.file(node);
        }
        let mut hasher = DigestHasher::new();
        hasher.field(b"dir");
        hasher.field(self.header(node)?.as_bytes());
        for (name, child) in self.tree.children(node)? {
            hasher.field(name.as_bytes());
            hasher.field(self.whole(&child)?.as_bytes());
        }
        Ok(hasher.finish())
    }

    /// The digest of anything but a directory.
    pub(super) fn file(&self, node: &Node) -> Result<Digest, OpError> {
        let mut hasher = DigestHasher::new();
        hasher.field(b"file");
        hasher.field(self.header(node)?.as_bytes());
        if is_regular(&node.stat) {
            hasher.field(self.content(node)?.as_bytes());
        }
        Ok(hasher.finish())
    }

    /// The digest of what a node is, without content.
    pub(super) fn header(&self, node: &Node) -> Result<Digest, OpError> {
        if self.cancel.is_cancelled() {
            return Err(OpError::Canceled);
        }
        let stat = &node.stat;
        let mut hasher = DigestHasher::new();
        let kind = stat.st_mode & libc::S_IFMT;
        let bits = if is_link(stat) {
            0o777
        } else {
            stat.st_mode & 0o7777
        };
        for number in [kind, bits, stat.st_uid, stat.st_gid] {
            hasher.field(&u64::from(number).to_le_bytes());
        }
        if is_regular(stat) {
            hasher.field(&(stat.st_size as u64).to_le_bytes());
        } else if is_link(stat) {
            hasher.field(self.tree.link_target(node)?.to_bytes());
        } else if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
            hasher.field(&stat.st_rdev.to_le_bytes());
        }
        for (key, value) in self.tree.xattrs(node)? {
            let key = key.to_bytes();
            let counts = key == b"security.capability"
                || !(key.starts_with(b"security.") || key.starts_with(b"system."));
            if counts {
                hasher.field(key);
                hasher.field(&value);
            }
        }
        Ok(hasher.finish())
    }

    fn content(&self, node: &Node) -> Result<Digest, OpError> {
        if let Some(digest) = self.tree.known_content(node) {
            return Ok(digest);
        }
        let mut file = self.tree.open_file(node)?;
        let identity = identity(&file)?;
        if let Some(digest) = self.files.get(&identity) {
            return Ok(digest);
        }
        let failed = |error: std::io::Error| OpError::path("read", "", errno_of(&error));
        let mut hasher = DigestHasher::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            if self.cancel.is_cancelled() {
                return Err(OpError::Canceled);
            }
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let digest = hasher.finish();
        self.files.put(identity, digest);
        Ok(digest)
    }
}

fn identity(file: &std::fs::File) -> Result<FileIdentity, OpError> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)
        .map_err(|errno| OpError::path("statx", "", errno))?;
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let born = if has_birth {
        stat.stx_btime
    } else {
        stat.stx_ctime
    };
    let ns = |time: rustix::fs::StatxTimestamp| {
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    Ok(FileIdentity {
        device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
        inode: stat.stx_ino,
        born_ns: ns(born),
        modified_ns: ns(stat.stx_mtime),
        size_bytes: stat.stx_size,
    })
}
