//! Packs: many objects in a file, and the index that says where each is.
//!
//! A pack from a remote is read once from beginning to end, by which every object gets its name, and
//! objects told as differences are made from the others. Nothing of it counts before all of that is
//! done.
//!
//! Format: <https://git-scm.com/docs/pack-format>.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use diag::{Error, Result};

use super::delta;
use super::object::{Format, Kind, Oid};
use super::pack_reader::{Header, PackReader, Shape, read_entry};

/// How big an object may be that has to be in memory as a whole.
pub(super) const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// The beginning of a pack, before the number of objects.
pub(super) const MAGIC: &[u8] = b"PACK\0\0\0\x02";

/// The beginning of an index.
const INDEX_MAGIC: &[u8] = b"\xfftOc\0\0\0\x02";

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) oid: Oid,
    pub(super) offset: u64,
    /// Checksum of the bytes in the pack.
    pub(super) crc: u32,
}

/// An entry while the pack is read.
struct Entry {
    header: Header,
    crc: u32,
    oid: Option<Oid>,
}

/// Gives objects that are not in a pack.
pub(super) type Outside<'a> = &'a dyn Fn(Oid) -> Result<Option<(Kind, Vec<u8>)>>;

/// Reads a whole pack, in which objects may be told as differences to some outside of it.
///
/// Returns where its objects are, sorted by name, and the checksum that it ends with.
///
/// # Errors
/// Packs that are malformed, cut off, or that need objects that are nowhere.
pub(super) fn index(
    file: &File,
    format: Format,
    outside: Outside<'_>,
) -> Result<(Vec<Place>, Oid)> {
    let mut reader = PackReader::new(file, 0, Some(format));
    let mut head = [0; 12];
    reader.read_exact(&mut head)?;
    if !head.starts_with(MAGIC) {
        return Err(Error::invalid("what the remote sent is no pack"));
    }
    let count = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    let mut entries = Vec::new();
    for _ in 0..count {
        reader.start_crc();
        let header = reader.header(format)?;
        let oid = match header.shape {
            Shape::Whole(kind) => {
                let mut hasher = format.object_hasher(kind, header.size);
                reader.inflate(header.size, |piece| {
                    hasher.update(piece);
                    Ok(())
                })?;
                Some(hasher.finish()?)
            }
            _ => {
                reader.inflate(header.size, |_| Ok(()))?;
                None
            }
        };
        entries.push(Entry {
            header,
            crc: reader.crc(),
            oid,
        });
    }
    let checksum = reader.checksum()?;
    Deltas::of(&entries).name_all(file, format, &mut entries, outside)?;
    let mut places = Vec::with_capacity(entries.len());
    for entry in entries {
        let oid = entry
            .oid
            .ok_or_else(|| Error::invalid("a pack has differences to objects that are not here"))?;
        places.push(Place {
            oid,
            offset: entry.header.offset,
            crc: entry.crc,
        });
    }
    places.sort_by_key(|place| place.oid);
    Ok((places, checksum))
}

/// Which entries are differences to which.
struct Deltas {
    by_offset: HashMap<u64, Vec<usize>>,
    by_name: HashMap<Oid, Vec<usize>>,
}

impl Deltas {
    fn of(entries: &[Entry]) -> Deltas {
        let mut deltas = Deltas {
            by_offset: HashMap::new(),
            by_name: HashMap::new(),
        };
        for (at, entry) in entries.iter().enumerate() {
            match entry.header.shape {
                Shape::Whole(_) => {}
                Shape::OffsetDelta(base) => deltas.by_offset.entry(base).or_default().push(at),
                Shape::NameDelta(base) => deltas.by_name.entry(base).or_default().push(at),
            }
        }
        deltas
    }

    /// Makes the objects, from each whole one to those that are told by it, and names them.
    fn name_all(
        mut self,
        file: &File,
        format: Format,
        entries: &mut [Entry],
        outside: Outside<'_>,
    ) -> Result<()> {
        for at in 0..entries.len() {
            let (Shape::Whole(kind), Some(oid)) = (entries[at].header.shape, entries[at].oid)
            else {
                continue;
            };
            let children = self.children(entries[at].header.offset, oid);
            if !children.is_empty() {
                let base = read_entry(file, &entries[at].header)?;
                self.name_told_by(kind, base, children, file, format, entries)?;
            }
        }
        let bases: Vec<Oid> = self.by_name.keys().copied().collect();
        for oid in bases {
            if let Some((kind, base)) = outside(oid)? {
                let children = self.by_name.remove(&oid).unwrap_or_default();
                self.name_told_by(kind, base, children, file, format, entries)?;
            }
        }
        Ok(())
    }

    /// Names objects that are told by one, and those told by them.
    fn name_told_by(
        &mut self,
        kind: Kind,
        base: Vec<u8>,
        children: Vec<usize>,
        file: &File,
        format: Format,
        entries: &mut [Entry],
    ) -> Result<()> {
        let base = Arc::new(base);
        let mut todo: Vec<_> = children.into_iter().map(|at| (at, base.clone())).collect();
        drop(base);
        while let Some((at, base)) = todo.pop() {
            let told = read_entry(file, &entries[at].header)?;
            let data = delta::apply(&base, &told, OBJECT_BYTES_MAX)?;
            let oid = format.name_of(kind, &data)?;
            entries[at].oid = Some(oid);
            let children = self.children(entries[at].header.offset, oid);
            if !children.is_empty() {
                let data = Arc::new(data);
                todo.extend(children.into_iter().map(|at| (at, data.clone())));
            }
        }
        Ok(())
    }

    /// Those told by an object; each is given out once.
    fn children(&mut self, offset: u64, oid: Oid) -> Vec<usize> {
        let mut children = self.by_offset.remove(&offset).unwrap_or_default();
        children.extend(self.by_name.remove(&oid).unwrap_or_default());
        children
    }
}

/// Writes an index of places that are sorted by name.
pub(super) fn write_index(
    path: &Path,
    places: &[Place],
    checksum: Oid,
    format: Format,
) -> Result<()> {
    let mut out = Vec::with_capacity(1100 + places.len() * 40);
    out.extend(INDEX_MAGIC);
    let mut at = 0;
    for first in 0..=255 {
        while places
            .get(at)
            .is_some_and(|place| place.oid.as_bytes()[0] <= first)
        {
            at += 1;
        }
        out.extend((at as u32).to_be_bytes());
    }
    for place in places {
        out.extend(place.oid.as_bytes());
    }
    for place in places {
        out.extend(place.crc.to_be_bytes());
    }
    let mut far = Vec::new();
    for place in places {
        match u32::try_from(place.offset) {
            Ok(offset) if offset < 1 << 31 => out.extend(offset.to_be_bytes()),
            _ => {
                out.extend(((1_u32 << 31) | (far.len() as u32 / 8)).to_be_bytes());
                far.extend(place.offset.to_be_bytes());
            }
        }
    }
    out.extend(far);
    out.extend(checksum.as_bytes());
    let mut hasher = format.hasher();
    hasher.update(&out);
    out.extend(hasher.finish()?.as_bytes());
    let mut file = File::create(path)?;
    file.write_all(&out)?;
    file.sync_all()?;
    Ok(())
}

/// Reads an index: names with their offsets, sorted by name.
///
/// # Errors
/// What is no whole index.
pub(super) fn read_index(path: &Path, format: Format) -> Result<Vec<(Oid, u64)>> {
    let bad = || Error::internal(format!("{} is no index of a pack", path.display()));
    let bytes = std::fs::read(path)?;
    let body = bytes.strip_prefix(INDEX_MAGIC).ok_or_else(bad)?;
    let word = |from: &[u8], at: usize| {
        let bytes = from.get(4 * at..4 * at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let count = word(body, 255).ok_or_else(bad)? as usize;
    let names = body.get(1024..).ok_or_else(bad)?;
    let length = format.len();
    let offsets = names.get(count * (length + 4)..).ok_or_else(bad)?;
    let far = offsets.get(4 * count..).ok_or_else(bad)?;
    (0..count)
        .map(|at| {
            let name = names.get(at * length..(at + 1) * length);
            let oid = Oid::from_bytes(name.ok_or_else(bad)?)?;
            let offset = word(offsets, at).ok_or_else(bad)?;
            if offset < 1 << 31 {
                return Ok((oid, u64::from(offset)));
            }
            let at = 2 * (offset & !(1 << 31)) as usize;
            let (high, low) = (word(far, at), word(far, at + 1));
            let (high, low) = (high.ok_or_else(bad)?, low.ok_or_else(bad)?);
            Ok((oid, u64::from(high) << 32 | u64::from(low)))
        })
        .collect()
}

/// Puts objects into a new pack, each as a whole.
pub(super) struct PackWriter {
    file: std::io::BufWriter<File>,
    format: Format,
    hasher: super::object::Hasher,
    offset: u64,
    places: Vec<Place>,
}

impl PackWriter {
    /// Starts a pack of so many objects.
    pub(super) fn create(path: &Path, format: Format, count: u32) -> Result<PackWriter> {
        let mut writer = PackWriter {
            file: std::io::BufWriter::new(File::create(path)?),
            format,
            hasher: format.hasher(),
            offset: 0,
            places: Vec::new(),
        };
        writer.write(MAGIC)?;
        writer.write(&count.to_be_bytes())?;
        Ok(writer)
    }

    /// Appends an object.
    pub(super) fn add(&mut self, oid: Oid, kind: Kind, data: &[u8]) -> Result<()> {
        let mut entry = Vec::new();
        let mut size = data.len() as u64;
        let mut byte = (kind as u8) << 4 | (size & 0xf) as u8;
        size >>= 4;
        while size > 0 {
            entry.push(byte | 0x80);
            byte = (size & 0x7f) as u8;
            size >>= 7;
        }
        entry.push(byte);
        let mut encoder = flate2::write::ZlibEncoder::new(entry, flate2::Compression::default());
        encoder.write_all(data)?;
        let entry = encoder.finish()?;
        let mut crc = flate2::Crc::new();
        crc.update(&entry);
        self.places.push(Place {
            oid,
            offset: self.offset,
            crc: crc.sum(),
        });
        self.write(&entry)
    }

    /// Ends it; returns where the objects are, sorted by name, and its checksum.
    pub(super) fn finish(mut self) -> Result<(Vec<Place>, Oid)> {
        let hasher = std::mem::replace(&mut self.hasher, self.format.hasher());
        let checksum = hasher.finish()?;
        self.file.write_all(checksum.as_bytes())?;
        self.file.flush()?;
        self.places.sort_by_key(|place| place.oid);
        Ok((self.places, checksum))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(self.file.write_all(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(dir: &Path) -> (std::path::PathBuf, Oid) {
        let path = dir.join("p.pack");
        let mut writer = PackWriter::create(&path, Format::Sha1, 2).unwrap();
        let big = vec![b'x'; 100_000];
        for data in [b"hello\n".as_slice(), &big] {
            let oid = Format::Sha1.name_of(Kind::Blob, data).unwrap();
            writer.add(oid, Kind::Blob, data).unwrap();
        }
        let (_, checksum) = writer.finish().unwrap();
        (path, checksum)
    }

    #[test]
    fn what_is_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, checksum) = pack(dir.path());
        let (places, found) =
            index(&File::open(&path).unwrap(), Format::Sha1, &|_| Ok(None)).unwrap();
        assert_eq!((places.len(), found), (2, checksum));
        let idx = dir.path().join("p.idx");
        write_index(&idx, &places, checksum, Format::Sha1).unwrap();
        let listed = read_index(&idx, Format::Sha1).unwrap();
        let expected: Vec<_> = places
            .iter()
            .map(|place| (place.oid, place.offset))
            .collect();
        assert_eq!(listed, expected);
        let said = std::process::Command::new("git")
            .args(["verify-pack", "-v"])
            .arg(&idx)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
    }

    #[test]
    fn a_pack_that_is_cut_off_or_changed_is_an_error_at_every_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = pack(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let broken = dir.path().join("broken");
        for at in 0..whole.len() {
            std::fs::write(&broken, &whole[..at]).unwrap();
            assert!(
                index(&File::open(&broken).unwrap(), Format::Sha1, &|_| Ok(None)).is_err(),
                "{at}"
            );
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            std::fs::write(&broken, changed).unwrap();
            assert!(
                index(&File::open(&broken).unwrap(), Format::Sha1, &|_| Ok(None)).is_err(),
                "{at}"
            );
        }
    }
}
