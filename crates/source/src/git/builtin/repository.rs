//! What was fetched from one remote.
//!
//! ```text
//! <dir>/cooperage-ready              marks the directory; its time says when it was used last
//! <dir>/objects/pack/pack-<sum>.pack packs as they came, with an index beside each
//! <dir>/refs/cooperage/<oid>         commits and tags that are here with all their files
//! <dir>/shallow                      commits whose parents are not here
//! ```
//!
//! Objects of a pack may be told as differences to those of another, so packs go all together.
//!
//! **Invariant**: a pack counts when its index is there; a name in `refs/cooperage` is written only
//! when everything that belongs to it is there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diag::{Error, Result};
use tokio::sync::OwnedMutexGuard;

use super::delta;
use super::object::{Format, Kind, Oid, parse_commit, parse_tag, parse_tree};
use super::pack::{self, OBJECT_BYTES_MAX};
use super::pack_reader::{Header, PackReader, Shape, read_entry};
use crate::git::READY;

/// How many bytes of objects are kept for those that are told by them.
const BASES_BYTES_MAX: usize = 64 << 20;

/// How many names of what is here a remote is told at most.
const HAVE_MAX: usize = 64;

/// An open repository. Nobody else uses it while this lives, wherever it is taken.
pub(super) struct Repository {
    dir: PathBuf,
    format: Format,
    packs: Vec<Pack>,
    _alone: OwnedMutexGuard<()>,
}

struct Pack {
    file: File,
    objects: Vec<(Oid, u64)>,
}

/// Objects that others are told by, while many are read.
#[derive(Default)]
pub(super) struct Bases {
    objects: HashMap<(usize, u64), Arc<Vec<u8>>>,
    bytes: usize,
}

/// Where an object was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pack: usize,
    offset: u64,
}

impl Repository {
    /// Opens a repository, making it if needed; what is half made is removed.
    pub(super) fn open(
        dir: &Path,
        format: Format,
        alone: OwnedMutexGuard<()>,
    ) -> Result<Repository> {
        if !dir.join(READY).exists() && dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        let packs = dir.join("objects/pack");
        std::fs::create_dir_all(&packs)?;
        std::fs::create_dir_all(dir.join("refs/cooperage"))?;
        std::fs::write(dir.join(READY), "")?;
        let mut repository = Repository {
            dir: dir.to_owned(),
            format,
            packs: Vec::new(),
            _alone: alone,
        };
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&packs)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        paths.sort();
        for path in paths {
            let has_index = path.with_extension("idx").exists();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("pack") if has_index => repository.add(&path)?,
                Some("idx") if path.with_extension("pack").exists() => {}
                _ => std::fs::remove_file(&path)?,
            }
        }
        Ok(repository)
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// A place for a pack that is being received.
    pub(super) fn new_pack(&self) -> Result<tempfile::NamedTempFile> {
        Ok(tempfile::Builder::new()
            .prefix("new-")
            .suffix(".part")
            .tempfile_in(self.dir.join("objects/pack"))?)
    }

    /// Takes a pack that came, and the names of commits whose parents did not.
    pub(super) fn accept(&mut self, file: tempfile::NamedTempFile, boundary: &[Oid]) -> Result<()> {
        let outside = |oid| match self.find(oid) {
            Some(_) => self.read(oid).map(Some),
            None => Ok(None),
        };
        let (places, checksum) = pack::index(file.as_file(), self.format, &outside)?;
        self.add_boundary(boundary)?;
        if places.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(format!("objects/pack/pack-{checksum}.pack"));
        if path.exists() {
            return Ok(());
        }
        file.as_file().sync_all()?;
        file.persist(&path)
            .map_err(|error| Error::from(error.error))?;
        let temporary = path.with_extension("part");
        pack::write_index(&temporary, &places, checksum, self.format)?;
        std::fs::rename(&temporary, path.with_extension("idx"))?;
        self.add(&path)
    }

    /// Whether a commit or tag is here with everything that belongs to it.
    pub(super) fn keeps(&self, oid: Oid) -> bool {
        self.kept_path(oid).exists()
    }

    /// Looks whether everything that belongs to a commit or tag is here, and notes it down.
    pub(super) fn keep(&self, oid: Oid) -> Result<()> {
        let (_, commit) = self.commit(oid)?;
        self.check_tree(commit.tree)?;
        std::fs::write(self.kept_path(oid), format!("{oid}\n"))?;
        Ok(())
    }

    /// Commits to tell a remote of, and those of them without parents here.
    pub(super) fn kept(&self) -> Result<(Vec<Oid>, Vec<Oid>)> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("refs/cooperage"))? {
            let entry = entry?;
            if let Ok(oid) = Oid::parse(&entry.file_name().to_string_lossy()) {
                all.push((entry.metadata()?.modified()?, oid));
            }
        }
        all.sort_by(|a, b| b.cmp(a));
        let mut have = Vec::new();
        for (_, oid) in all.into_iter().take(HAVE_MAX) {
            have.push(self.commit(oid)?.0);
        }
        let boundary = self.boundary();
        let boundary = boundary.into_iter().filter(|oid| self.find(*oid).is_some());
        Ok((have, boundary.collect()))
    }

    /// The commit that a commit or tag is, with its name.
    pub(super) fn commit(&self, mut oid: Oid) -> Result<(Oid, super::object::Commit)> {
        loop {
            match self.read(oid)? {
                (Kind::Tag, data) => oid = parse_tag(&data)?,
                (Kind::Commit, data) => return Ok((oid, parse_commit(&data)?)),
                (kind, _) => {
                    return Err(Error::invalid(format!(
                        "expected commit or tag object, got {}",
                        kind.name()
                    )));
                }
            }
        }
    }

    /// Reads one object.
    pub(super) fn read(&self, oid: Oid) -> Result<(Kind, Vec<u8>)> {
        let found = self.require(oid)?;
        let (kind, data) = self.read_at(found, &mut Bases::default())?;
        Ok((kind, Arc::unwrap_or_clone(data)))
    }

    pub(super) fn find(&self, oid: Oid) -> Option<Found> {
        self.packs.iter().enumerate().find_map(|(pack, of)| {
            let at = of.objects.binary_search_by_key(&oid, |(name, _)| *name);
            let offset = of.objects[at.ok()?].1;
            Some(Found { pack, offset })
        })
    }

    pub(super) fn require(&self, oid: Oid) -> Result<Found> {
        self.find(oid)
            .ok_or_else(|| Error::not_found(format!("object {oid} is not in the repository")))
    }

    /// Reads an object; what it is told by is kept for the next one.
    pub(super) fn read_at(&self, found: Found, bases: &mut Bases) -> Result<(Kind, Arc<Vec<u8>>)> {
        let mut told = Vec::new();
        let mut at = found;
        let (kind, mut data) = loop {
            let header = self.header(at)?;
            match header.shape {
                Shape::Whole(kind) => break (kind, self.base(at, &header, bases)?),
                Shape::OffsetDelta(offset) => {
                    told.push((at, header));
                    at.offset = offset;
                }
                Shape::NameDelta(oid) => {
                    told.push((at, header));
                    at = self.require(oid)?;
                }
            }
        };
        while let Some((at, header)) = told.pop() {
            let key = (at.pack, at.offset);
            data = match bases.objects.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let difference = read_entry(&self.packs[at.pack].file, &header)?;
                    let made = delta::apply(&data, &difference, OBJECT_BYTES_MAX)?;
                    bases.put(key, Arc::new(made))
                }
            };
        }
        Ok((kind, data))
    }

    /// Gives on an object that is told as a whole in pieces; false if it is not.
    pub(super) fn stream(
        &self,
        found: Found,
        take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<bool> {
        let header = self.header(found)?;
        if !matches!(header.shape, Shape::Whole(_)) {
            return Ok(false);
        }
        let file = &self.packs[found.pack].file;
        PackReader::new(file, header.content, None).inflate(header.size, take)?;
        Ok(true)
    }

    /// Names of everything that belongs to a tree, itself included, submodules excluded.
    pub(super) fn closure(&self, tree: Oid) -> Result<BTreeSet<Oid>> {
        let (mut all, mut todo) = (BTreeSet::from([tree]), vec![tree]);
        while let Some(tree) = todo.pop() {
            let (_, data) = self.read(tree)?;
            for entry in parse_tree(&data, self.format)? {
                if !entry.is_submodule() && all.insert(entry.oid) && entry.is_dir() {
                    todo.push(entry.oid);
                }
            }
        }
        Ok(all)
    }

    fn check_tree(&self, tree: Oid) -> Result<()> {
        let (mut seen, mut todo) = (HashSet::from([tree]), vec![tree]);
        let mut bases = Bases::default();
        while let Some(tree) = todo.pop() {
            let (kind, data) = self.read_at(self.require(tree)?, &mut bases)?;
            if kind != Kind::Tree {
                return Err(Error::invalid(format!("{tree} is no tree")));
            }
            for entry in parse_tree(&data, self.format)? {
                if entry.is_submodule() || !seen.insert(entry.oid) {
                    continue;
                }
                self.require(entry.oid)?;
                if entry.is_dir() {
                    todo.push(entry.oid);
                }
            }
        }
        Ok(())
    }

    fn base(&self, at: Found, header: &Header, bases: &mut Bases) -> Result<Arc<Vec<u8>>> {
        let key = (at.pack, at.offset);
        if let Some(known) = bases.objects.get(&key) {
            return Ok(known.clone());
        }
        let data = read_entry(&self.packs[at.pack].file, header)?;
        Ok(bases.put(key, Arc::new(data)))
    }

    fn header(&self, at: Found) -> Result<Header> {
        PackReader::new(&self.packs[at.pack].file, at.offset, None).header(self.format)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let objects = pack::read_index(&path.with_extension("idx"), self.format)?;
        let file = File::open(path)?;
        self.packs.push(Pack { file, objects });
        Ok(())
    }

    fn boundary(&self) -> BTreeSet<Oid> {
        let text = std::fs::read_to_string(self.dir.join("shallow")).unwrap_or_default();
        text.lines()
            .filter_map(|line| Oid::parse(line).ok())
            .collect()
    }

    fn add_boundary(&self, more: &[Oid]) -> Result<()> {
        let mut all = self.boundary();
        all.extend(more);
        let text: String = all.iter().map(|oid| format!("{oid}\n")).collect();
        let temporary = self.dir.join("shallow.part");
        std::fs::write(&temporary, text)?;
        Ok(std::fs::rename(temporary, self.dir.join("shallow"))?)
    }

    fn kept_path(&self, oid: Oid) -> PathBuf {
        self.dir.join(format!("refs/cooperage/{oid}"))
    }
}

impl Bases {
    fn put(&mut self, key: (usize, u64), data: Arc<Vec<u8>>) -> Arc<Vec<u8>> {
        if data.len() <= BASES_BYTES_MAX / 4 {
            if self.bytes + data.len() > BASES_BYTES_MAX {
                *self = Bases::default();
            }
            self.bytes += data.len();
            self.objects.insert(key, data.clone());
        }
        data
    }
}
