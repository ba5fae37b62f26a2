//! A `.git` directory with one commit, as a shallow clone by git has it.
//!
//! Formats: <https://git-scm.com/docs/gitrepository-layout>, <https://git-scm.com/docs/index-format>.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use diag::Result;

use super::files::Written;
use super::object::{Format, Kind, Oid};
use super::pack::{PackWriter, write_index};
use super::repository::Repository;

/// What a `.git` directory is to say.
pub(super) struct GitDir<'a> {
    /// The address of `origin`.
    pub(super) remote: &'a str,
    /// The commit or tag, and the full name by which it was asked for, if it has one.
    pub(super) object: Oid,
    pub(super) reference: Option<&'a str>,
    /// More lines of its `config`.
    pub(super) configuration: String,
    /// Where the files are.
    pub(super) work_tree: &'a Path,
    /// The files, sorted by path.
    pub(super) files: &'a [Written],
}

impl GitDir<'_> {
    /// Makes the directory.
    pub(super) fn write(&self, repository: &Repository, dir: &Path) -> Result<()> {
        let format = repository.format();
        for folder in [
            "objects/info",
            "objects/pack",
            "refs/heads",
            "refs/tags",
            "info",
        ] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let (commit, _) = repository.commit(self.object)?;
        std::fs::write(dir.join("HEAD"), format!("{commit}\n"))?;
        std::fs::write(dir.join("info/exclude"), "")?;
        let text = format!(
            "{}[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n{}",
            configuration(format),
            self.remote,
            self.configuration
        );
        std::fs::write(dir.join("config"), text)?;
        // Also where there is nothing before it, as git leaves it after a fetch of depth 1.
        std::fs::write(dir.join("shallow"), format!("{commit}\n"))?;
        if let Some(name) = self.reference.filter(|name| is_reference(name)) {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
            std::fs::write(path, format!("{}\n", self.object))?;
        }
        self.write_pack(repository, dir)?;
        self.write_index_file(format, dir)
    }

    fn write_pack(&self, repository: &Repository, dir: &Path) -> Result<()> {
        let (commit, about) = repository.commit(self.object)?;
        let mut objects = repository.closure(about.tree)?;
        objects.insert(commit);
        // A tag may be the tag of a tag.
        let mut tag = self.object;
        while tag != commit {
            objects.insert(tag);
            tag = super::object::parse_tag(&repository.read(tag)?.1)?;
        }
        let packs = dir.join("objects/pack");
        let path = packs.join("new.pack");
        let mut writer = PackWriter::create(&path, repository.format(), objects.len() as u32)?;
        for oid in objects {
            let (kind, data): (Kind, Vec<u8>) = repository.read(oid)?;
            writer.add(oid, kind, &data)?;
        }
        let (places, checksum) = writer.finish()?;
        let index = packs.join(format!("pack-{checksum}.idx"));
        write_index(&index, &places, checksum, repository.format())?;
        Ok(std::fs::rename(path, index.with_extension("pack"))?)
    }

    /// Writes what git knows of the files, by which it sees that nothing was changed.
    fn write_index_file(&self, format: Format, dir: &Path) -> Result<()> {
        let mut out = b"DIRC\0\0\0\x02".to_vec();
        out.extend((self.files.len() as u32).to_be_bytes());
        for file in self.files {
            let path = self.work_tree.join(OsStr::from_bytes(&file.path));
            let meta = path.symlink_metadata()?;
            let start = out.len();
            // The format has 32 bits for each and takes the lower ones.
            for number in [
                meta.ctime() as u32,
                meta.ctime_nsec() as u32,
                meta.mtime() as u32,
                meta.mtime_nsec() as u32,
                meta.dev() as u32,
                meta.ino() as u32,
                index_mode(file.mode),
                meta.uid(),
                meta.gid(),
                meta.size() as u32,
            ] {
                out.extend(number.to_be_bytes());
            }
            out.extend(file.oid.as_bytes());
            out.extend((file.path.len().min(0xfff) as u16).to_be_bytes());
            out.extend(&file.path);
            let padding = 8 - (out.len() - start) % 8;
            out.extend([0; 8].iter().take(padding));
        }
        let mut hasher = format.hasher();
        hasher.update(&out);
        out.extend(hasher.finish()?.as_bytes());
        Ok(std::fs::write(dir.join("index"), out)?)
    }
}

/// The beginning of `config`.
fn configuration(format: Format) -> String {
    let version = u8::from(format == Format::Sha256);
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n"
    );
    if format == Format::Sha256 {
        text.push_str("[extensions]\n\tobjectformat = sha256\n");
    }
    text
}

/// Old trees have modes of files that git has not used for long.
fn index_mode(mode: u32) -> u32 {
    match mode & 0o170_000 {
        0o100_000 if mode & 0o100 != 0 => 0o100_755,
        0o100_000 => 0o100_644,
        other => other,
    }
}

/// Whether a name is one below `refs/` that stays there.
fn is_reference(name: &str) -> bool {
    name.strip_prefix("refs/").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .split('/')
                .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
            && !rest.contains(|c: char| c.is_control())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stay_below_refs() {
        for (name, fits) in [
            ("refs/heads/a/b", true),
            ("refs/../config", false),
            ("HEAD", false),
            ("refs//x", false),
            ("refs/heads/x.lock", false),
        ] {
            assert_eq!(is_reference(name), fits, "{name}");
        }
    }
}
