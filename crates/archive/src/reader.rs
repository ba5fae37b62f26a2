//! Reading tar archives: v7, ustar, star, GNU (long names, sparse files, base-256 numbers) and PAX.
//!
//! Global extended headers are skipped, as image tools do.

use std::io::{self, Read};

use crate::header::{BLOCK, checksums, field, number, text};
use crate::sparse::{SparseMap, SparseRecords, read_old_gnu};
use crate::{ArchiveError, EntryKind, Header, Mtime, Result, pax};

/// The most bytes an extended header or a long name may have.
const SPECIAL_SIZE_BYTES_MAX: u64 = 1 << 20;

/// Reads a tar archive from a stream, entry by entry.
pub struct Reader<R: Read> {
    input: R,
    /// Data bytes of the present entry not read yet, and the padding after them.
    remaining: u64,
    padding: u64,
    done: bool,
}

/// An entry being read; `Read` gives its content, holes of sparse files as zeros. What is not read
/// is skipped by the next [`Reader::next_entry`].
pub struct Entry<'a, R: Read> {
    reader: &'a mut Reader<R>,
    header: Header,
    sparse: Option<SparseMap>,
    /// How far the expanded content of a sparse file was read.
    position: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the archive in `input`, which is not buffered further: give it large reads.
    pub fn new(input: R) -> Self {
        Reader {
            input,
            remaining: 0,
            padding: 0,
            done: false,
        }
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_, R>>> {
        let mut records = Vec::new();
        let mut long_path = None;
        let mut long_link = None;
        let mut announced = false;
        loop {
            self.skip_rest()?;
            let Some(block) = self.read_block()? else {
                return match announced {
                    true => Err(ArchiveError::Truncated),
                    false => Ok(None),
                };
            };
            let mut header = parse_block(&block)?;
            announced |= matches!(block[field::FLAG], b'x' | b'L' | b'K');
            match block[field::FLAG] {
                b'x' => records = pax::parse(&self.special(&header)?)?,
                b'g' => self.expect_data(header.size),
                b'L' => long_path = Some(text(&self.special(&header)?).to_vec()),
                b'K' => long_link = Some(text(&self.special(&header)?).to_vec()),
                _ => {
                    if let Some(path) = long_path {
                        header.path = path;
                    }
                    if let Some(link) = long_link {
                        header.link = link;
                    }
                    let sparse = apply_records(&mut header, records)?;
                    return self.begin(header, sparse, &block).map(Some);
                }
            }
        }
    }

    /// Reads what follows the archive's end up to the end of the stream, so that whoever hashes the
    /// stream has seen all of it; gives the stream back.
    pub fn drain(mut self) -> Result<R> {
        io::copy(&mut self.input, &mut io::sink()).map_err(ArchiveError::Stream)?;
        Ok(self.input)
    }

    fn begin(
        &mut self,
        mut header: Header,
        records: SparseRecords,
        block: &[u8; BLOCK],
    ) -> Result<Entry<'_, R>> {
        if block[field::FLAG] == 0 && header.path.ends_with(b"/") {
            header.kind = EntryKind::Directory;
        }
        if !matches!(header.kind, EntryKind::Regular | EntryKind::Other(_)) {
            header.size = 0;
        }
        self.expect_data(header.size);
        let mut sparse = None;
        if block[field::FLAG] == b'S' {
            sparse = Some(read_old_gnu(block, &mut self.input)?);
        } else if header.kind == EntryKind::Regular
            && let Some((map, used)) = records.map(&mut self.input)?
        {
            if used > self.remaining {
                return Err(ArchiveError::Format("malformed sparse map".into()));
            }
            self.remaining -= used;
            sparse = Some(map);
        }
        let sparse = sparse.map(|map| map.check(self.remaining)).transpose()?;
        if let Some(map) = &sparse {
            header.size = map.size;
        }
        Ok(Entry {
            reader: self,
            header,
            sparse,
            position: 0,
        })
    }

    fn expect_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_rest(&mut self) -> Result<()> {
        let rest = self.remaining + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())
            .map_err(ArchiveError::Stream)?;
        // Some writers leave out the padding of the very last entry.
        if skipped < self.remaining {
            return Err(ArchiveError::Truncated);
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block; `None` at the end: zero blocks, or a stream that just stops.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.done {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => break,
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if filled == 0 || block == [0; BLOCK] {
            self.done = true;
            return Ok(None);
        }
        Ok(Some(block))
    }

    fn special(&mut self, header: &Header) -> Result<Vec<u8>> {
        if header.size > SPECIAL_SIZE_BYTES_MAX {
            return Err(ArchiveError::Format("extended header too large".into()));
        }
        self.expect_data(header.size);
        let mut data = vec![0; header.size as usize];
        self.input.read_exact(&mut data).map_err(read_error)?;
        self.remaining = 0;
        Ok(data)
    }
}

impl<R: Read> Entry<'_, R> {
    /// What the archive says about the entry.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Gives each range that has data to `sink`, with its offset in the file; holes of sparse files
    /// are left out.
    pub(crate) fn for_each_data<E: From<ArchiveError>>(
        &mut self,
        buffer: &mut [u8],
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let whole = [crate::sparse::Extent {
            offset: 0,
            length: self.header.size,
        }];
        let extents = match &self.sparse {
            Some(map) => map.extents.as_slice(),
            None => &whole,
        };
        for extent in extents {
            let mut done = 0;
            while done < extent.length {
                let want = buffer.len().min((extent.length - done) as usize);
                let read = self.reader.read_data(&mut buffer[..want]);
                let read = read.map_err(read_error)?;
                if read == 0 {
                    return Err(ArchiveError::Truncated.into());
                }
                sink(extent.offset + done, &buffer[..read])?;
                done += read as u64;
            }
        }
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= read as u64;
        Ok(read)
    }
}

impl<R: Read> Read for Entry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(map) = &self.sparse else {
            return self.reader.read_data(buffer);
        };
        let position = self.position;
        let next = map.extents.iter().find(|e| e.offset + e.length > position);
        let (hole, until) = match next {
            Some(extent) if extent.offset <= position => (false, extent.offset + extent.length),
            Some(extent) => (true, extent.offset),
            None => (true, map.size),
        };
        let want = (buffer.len() as u64).min(until - position) as usize;
        let read = if hole {
            buffer[..want].fill(0);
            want
        } else {
            self.reader.read_data(&mut buffer[..want])?
        };
        self.position += read as u64;
        Ok(read)
    }
}

pub(crate) fn read_error(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => ArchiveError::Stream(error),
    }
}

fn parse_block(block: &[u8; BLOCK]) -> Result<Header> {
    let stored = number(&block[field::CHECKSUM])?;
    let (unsigned, signed) = checksums(block);
    if stored != unsigned && stored != signed {
        return Err(ArchiveError::Format("wrong checksum".into()));
    }
    let positive = |range: std::ops::Range<usize>| {
        u64::try_from(number(&block[range])?)
            .map_err(|_| ArchiveError::Format("negative number".into()))
    };
    let mut header = Header::new(
        EntryKind::from_flag(block[field::FLAG]),
        text(&block[field::NAME]),
    );
    header.mode = (number(&block[field::MODE])? & 0o7777) as u32;
    header.uid = positive(field::UID)?;
    header.gid = positive(field::GID)?;
    header.size = positive(field::SIZE)?;
    header.mtime = Mtime::from_secs(number(&block[field::MTIME])?);
    header.link = text(&block[field::LINK]).to_vec();
    let magic = &block[field::MAGIC];
    if magic.starts_with(b"ustar") {
        header.uname = text(&block[field::UNAME]).to_vec();
        header.gname = text(&block[field::GNAME]).to_vec();
        if matches!(header.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            header.dev_major = number(&block[field::DEV_MAJOR])? as u32;
            header.dev_minor = number(&block[field::DEV_MINOR])? as u32;
        }
    }
    // GNU's own format (`ustar ` with a space) keeps other things where the prefix is.
    if magic.starts_with(b"ustar\0") {
        let star = block.ends_with(b"tar\0");
        let prefix = text(&block[field::PREFIX][..if star { 131 } else { 155 }]);
        if !prefix.is_empty() {
            header.path = [prefix, b"/", &header.path].concat();
        }
    }
    Ok(header)
}

/// Lets the records of a PAX header replace what the block says. An empty value deletes a record.
fn apply_records(header: &mut Header, records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<SparseRecords> {
    let bad = |key: &[u8]| {
        let key = String::from_utf8_lossy(key);
        ArchiveError::Format(format!("malformed PAX record `{key}`"))
    };
    let mut sparse = SparseRecords::default();
    for (key, value) in records {
        if let Some(name) = key.strip_prefix(pax::XATTR) {
            header.xattrs.insert(name.to_vec(), value);
            continue;
        }
        if key.starts_with(b"GNU.sparse.") {
            sparse.record(&key, &value)?;
            continue;
        }
        if value.is_empty() {
            continue;
        }
        let unsigned = || pax::decimal::<u64>(&value).ok_or_else(|| bad(&key));
        match key.as_slice() {
            b"path" | b"linkpath" if value.contains(&0) => return Err(bad(&key)),
            b"path" => header.path = value,
            b"linkpath" => header.link = value,
            b"uname" => header.uname = value,
            b"gname" => header.gname = value,
            b"uid" => header.uid = unsigned()?,
            b"gid" => header.gid = unsigned()?,
            b"size" => header.size = unsigned()?,
            b"mtime" => header.mtime = pax::parse_time(&value).ok_or_else(|| bad(&key))?,
            _ => {}
        }
    }
    if let Some(name) = sparse.name.take() {
        header.path = name;
    }
    Ok(sparse)
}
