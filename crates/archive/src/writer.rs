//! Writing tar archives.
//!
//! Headers are chosen as Go's `archive/tar` chooses them: plain ustar when every field fits (long
//! names split at a `/` where that is possible), otherwise the same block with a PAX extended
//! header before it, its records sorted by key.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use crate::header::{BLOCK, checksums, field, fits_octal, put_octal, put_text};
use crate::{ArchiveError, EntryKind, Header, Mtime, Result, pax};

const BUFFER_SIZE: usize = 256 << 10;

/// Writes a tar archive to a stream. [`Writer::finish`] must be called at the end.
pub struct Writer<W: Write> {
    out: W,
    /// For copying contents; made when first needed.
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Writer {
            out,
            buffer: Vec::new(),
        }
    }

    /// Appends an entry with its content, which must be exactly as long as the header says (only
    /// regular files have any).
    pub fn append(&mut self, header: &Header, mut content: impl Read) -> Result<()> {
        self.append_header(header)?;
        if header.kind != EntryKind::Regular {
            return Ok(());
        }
        self.append_content(header, &mut content)
    }

    /// Appends a small regular file held in memory; the header's size is set from it.
    pub fn append_bytes(&mut self, mut header: Header, content: &[u8]) -> Result<()> {
        header.size = content.len() as u64;
        self.append(&header, content)
    }

    /// Ends the archive and gives the stream back.
    pub fn finish(mut self) -> Result<W> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(ArchiveError::Stream)?;
        Ok(self.out)
    }

    /// Writes only the header of an entry; [`Writer::append_content`] must follow if it has content.
    pub(crate) fn append_header(&mut self, header: &Header) -> Result<()> {
        let plan = Plan::of(header)?;
        match plan.format {
            Format::Ustar => self.write_ustar(header),
            Format::Pax => self.write_pax(header, &plan.records),
        }
    }

    /// Copies exactly as much content as the header says, and pads it.
    pub(crate) fn append_content(
        &mut self,
        header: &Header,
        content: &mut impl Read,
    ) -> Result<()> {
        self.buffer.resize(BUFFER_SIZE, 0);
        let mut left = header.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_SIZE);
            let read = match content.read(&mut self.buffer[..want]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::Stream(error)),
            };
            if read == 0 {
                let (size, got) = (header.size, header.size - left);
                let reason = format!("content ends after {got} of {size} bytes");
                return Err(ArchiveError::entry(&header.path, reason));
            }
            let written = self.out.write_all(&self.buffer[..read]);
            written.map_err(ArchiveError::Stream)?;
            left -= read as u64;
        }
        self.pad(header.size)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over > 0 {
            self.write(&[0; BLOCK][over..])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(ArchiveError::Stream)
    }

    fn write_ustar(&mut self, header: &Header) -> Result<()> {
        let (prefix, name) = split_name(&header.path).unwrap_or((b"", &header.path));
        let mut block = template(header, name, &header.link, &header.uname, &header.gname);
        put_text(&mut block[field::PREFIX], prefix);
        self.write_block(block)
    }

    fn write_pax(&mut self, header: &Header, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        if !records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in records {
                pax::push(&mut data, key, value);
            }
            self.write_extended(&header.path, &data)?;
        }
        let [name, link, uname, gname] =
            [&header.path, &header.link, &header.uname, &header.gname].map(|s| ascii(s));
        let block = template(header, &name, &link, &uname, &gname);
        self.write_block(block)
    }

    /// The extended header: an entry of type `x` whose content is the records.
    fn write_extended(&mut self, path: &[u8], data: &[u8]) -> Result<()> {
        let mut name = ascii(&extended_name(path));
        name.truncate(field::NAME.len());
        while name.last() == Some(&b'/') {
            name.pop();
        }
        let mut block = [0; BLOCK];
        put_text(&mut block[field::NAME], &name);
        for range in [field::MODE, field::UID, field::GID, field::MTIME] {
            put_octal(&mut block[range], 0);
        }
        put_octal(&mut block[field::SIZE], data.len() as i64);
        block[field::FLAG] = b'x';
        self.write_block(block)?;
        self.write(data)?;
        self.pad(data.len() as u64)
    }

    fn write_block(&mut self, mut block: [u8; BLOCK]) -> Result<()> {
        block[field::MAGIC].copy_from_slice(b"ustar\x0000");
        let (sum, _) = checksums(&block);
        let field = &mut block[field::CHECKSUM];
        put_octal(&mut field[..7], sum);
        field[7] = b' ';
        self.write(&block)
    }
}

enum Format {
    Ustar,
    Pax,
}

/// Which format a header needs, and the records it has in PAX.
struct Plan {
    format: Format,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Plan {
    fn of(header: &Header) -> Result<Self> {
        let mut plan = Plan {
            format: Format::Ustar,
            records: BTreeMap::new(),
        };
        plan.text(&header.path, field::NAME.len(), b"path", header)?;
        plan.text(&header.link, field::LINK.len(), b"linkpath", header)?;
        plan.text(&header.uname, field::UNAME.len(), b"uname", header)?;
        plan.text(&header.gname, field::GNAME.len(), b"gname", header)?;
        plan.number(header.uid, field::UID.len(), b"uid", header)?;
        plan.number(header.gid, field::GID.len(), b"gid", header)?;
        plan.number(header.size, field::SIZE.len(), b"size", header)?;
        plan.time(header.mtime);
        for (name, value) in &header.xattrs {
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
                let reason = "an extended attribute's name cannot be stored";
                return Err(ArchiveError::entry(&header.path, reason));
            }
            plan.set([pax::XATTR, name].concat(), value.clone());
        }
        Ok(plan)
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.format = Format::Pax;
        self.records.insert(key, value);
    }

    fn text(&mut self, text: &[u8], width: usize, key: &[u8], header: &Header) -> Result<()> {
        if text.contains(&0) {
            return Err(ArchiveError::entry(&header.path, "a NUL byte in a name"));
        }
        if text.is_ascii() && text.len() <= width {
            return Ok(());
        }
        self.records.insert(key.to_vec(), text.to_vec());
        // A long name that can be split fits; its record is used only if PAX is needed anyway.
        if key != b"path" || split_name(text).is_none() {
            self.format = Format::Pax;
        }
        Ok(())
    }

    fn number(&mut self, value: u64, width: usize, key: &[u8], header: &Header) -> Result<()> {
        let value = i64::try_from(value)
            .map_err(|_| ArchiveError::entry(&header.path, "a number is too large"))?;
        if !fits_octal(width, value) {
            self.set(key.to_vec(), value.to_string().into_bytes());
        }
        Ok(())
    }

    fn time(&mut self, time: Mtime) {
        if !fits_octal(field::MTIME.len(), time.secs) || time.nanos != 0 {
            self.set(b"mtime".to_vec(), pax::format_time(time).into_bytes());
        }
    }
}

/// The fields that ustar and PAX blocks have in common.
fn template(header: &Header, name: &[u8], link: &[u8], uname: &[u8], gname: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put_text(&mut block[field::NAME], name);
    put_text(&mut block[field::LINK], link);
    put_text(&mut block[field::UNAME], uname);
    put_text(&mut block[field::GNAME], gname);
    for (range, value) in [
        (field::MODE, i64::from(header.mode)),
        (field::UID, header.uid as i64),
        (field::GID, header.gid as i64),
        (field::SIZE, header.size as i64),
        (field::MTIME, header.mtime.secs),
        (field::DEV_MAJOR, i64::from(header.dev_major)),
        (field::DEV_MINOR, i64::from(header.dev_minor)),
    ] {
        put_octal(&mut block[range], value);
    }
    block[field::FLAG] = header.kind.flag();
    block
}

/// Splits a name that is too long for the name field into prefix and name, at the last `/` that
/// leaves both short enough.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = name.len();
    if length <= field::NAME.len() || !name.is_ascii() {
        return None;
    }
    if length > field::PREFIX.len() + 1 {
        length = field::PREFIX.len() + 1;
    } else if name[length - 1] == b'/' {
        length -= 1;
    }
    let slash = name[..length].iter().rposition(|&b| b == b'/')?;
    let rest = &name[slash + 1..];
    let fits = slash > 0
        && !rest.is_empty()
        && rest.len() <= field::NAME.len()
        && slash <= field::PREFIX.len();
    fits.then_some((&name[..slash], rest))
}

/// `dir/PaxHeaders.0/file`.
fn extended_name(path: &[u8]) -> Vec<u8> {
    let split = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    let joined = [&path[..split], b"PaxHeaders.0/", &path[split..]].concat();
    let mut name = if joined.starts_with(b"/") {
        b"/".to_vec()
    } else {
        Vec::new()
    };
    name.extend(crate::header::clean(&joined).join(&b'/'));
    name
}

/// Without the bytes that are not ASCII.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .filter(|b| b.is_ascii() && *b != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(header: &Header) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.append(header, io::repeat(b'x')).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn a_plain_file_is_one_ustar_block_as_go_writes_it() {
        let mut header = Header::file("etc/passwd", 3);
        header.mode = 0o4755;
        header.uid = 1000;
        header.mtime = Mtime::from_secs(1_700_000_000);
        let tar = archive(&header);
        assert_eq!(tar.len(), 4 * BLOCK);
        assert_eq!(&tar[100..108], b"0004755\0");
        assert_eq!(&tar[108..116], b"0001750\0");
        assert_eq!(&tar[124..136], b"00000000003\0");
        assert_eq!(&tar[257..265], b"ustar\x0000");
        assert_eq!(&tar[329..345], b"0000000\x000000000\0");
        assert_eq!(&tar[154..156], b"\0 ");
        assert_eq!(&tar[512..515], b"xxx");
    }

    #[test]
    fn long_names_are_split_where_possible_and_extended_where_not() {
        let split = format!("{}/{}", "d".repeat(120), "f".repeat(90));
        let tar = archive(&Header::file(split.as_str(), 0));
        assert_eq!(&tar[..90], "f".repeat(90).as_bytes());
        assert_eq!(&tar[345..465], "d".repeat(120).as_bytes());
        let whole = "n".repeat(150);
        let tar = archive(&Header::file(whole.as_str(), 0));
        assert_eq!(tar[156], b'x');
        assert!(tar.starts_with(b"PaxHeaders.0/nnn"));
        assert!(tar[512..].starts_with(format!("160 path={whole}\n").as_bytes()));
    }

    #[test]
    fn big_ids_sizes_times_and_attributes_become_sorted_records() {
        let mut header = Header::directory("ä");
        header.uid = 3_000_000;
        header.mtime = Mtime {
            secs: -2,
            nanos: 750_000_000,
        };
        header.xattrs.insert(b"user.a".to_vec(), b"b\nc".to_vec());
        let tar = archive(&header);
        let records = pax::parse(crate::header::text(&tar[512..1024])).unwrap();
        let keys: Vec<_> = records
            .iter()
            .map(|r| String::from_utf8_lossy(&r.0))
            .collect();
        assert_eq!(keys, ["SCHILY.xattr.user.a", "mtime", "path", "uid"]);
        assert_eq!(records[1].1, b"-1.25");
        assert_eq!(&tar[1024..1026], b"/\0");
    }

    #[test]
    fn content_shorter_than_its_header_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let error = writer
            .append(&Header::file("a", 5), &b"abc"[..])
            .unwrap_err();
        assert!(error.to_string().contains("3 of 5"), "{error}");
    }
}
