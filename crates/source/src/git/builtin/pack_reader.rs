//! Reading entries of a pack.

use std::fs::File;
use std::os::unix::fs::FileExt;

use diag::{Error, Result};
use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::object::{Format, Hasher, Kind, Oid};
use super::pack::OBJECT_BYTES_MAX;

/// How much is read of the file at once when the whole pack is read.
const BUFFER_BYTES: usize = 128 << 10;

/// How much is read at once of a single entry.
const ENTRY_BYTES: usize = 8 << 10;

/// The beginning of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where the entry begins.
    pub(super) offset: u64,
    /// Where its compressed content begins.
    pub(super) content: u64,
    /// Size of what is compressed.
    pub(super) size: u64,
    pub(super) shape: Shape,
}

/// How an object is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Whole(Kind),
    /// As a difference to what is at that offset.
    OffsetDelta(u64),
    /// As a difference to the object of that name.
    NameDelta(Oid),
}

/// Reads a pack, by position, so that several may read one file.
pub(super) struct PackReader<'a> {
    file: &'a File,
    /// Offset of the end of the buffer.
    read_to: u64,
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
    hasher: Option<(Hasher, Format)>,
    crc: Crc,
}

impl<'a> PackReader<'a> {
    /// Reads from an offset on; with a format the checksum of all that is read is made.
    pub(super) fn new(file: &'a File, offset: u64, sum: Option<Format>) -> Self {
        let size = if sum.is_some() {
            BUFFER_BYTES
        } else {
            ENTRY_BYTES
        };
        PackReader {
            file,
            read_to: offset,
            buffer: vec![0; size],
            used: 0,
            filled: 0,
            hasher: sum.map(|format| (format.hasher(), format)),
            crc: Crc::new(),
        }
    }

    /// Begins the checksum of an entry.
    pub(super) fn start_crc(&mut self) {
        self.crc = Crc::new();
    }

    pub(super) fn crc(&self) -> u32 {
        self.crc.sum()
    }

    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        for byte in out {
            *byte = self.byte()?;
        }
        Ok(())
    }

    /// Reads the beginning of an entry.
    pub(super) fn header(&mut self, format: Format) -> Result<Header> {
        let offset = self.offset();
        let mut byte = self.byte()?;
        let number = byte >> 4 & 7;
        let mut size = u64::from(byte & 0xf);
        let mut shift = 4;
        while byte & 0x80 != 0 {
            byte = self.byte()?;
            if shift > 56 {
                return Err(malformed());
            }
            size |= u64::from(byte & 0x7f) << shift;
            shift += 7;
        }
        let shape = match number {
            6 => Shape::OffsetDelta(self.base_offset(offset)?),
            7 => {
                let mut name = vec![0; format.len()];
                self.read_exact(&mut name)?;
                Shape::NameDelta(Oid::from_bytes(&name)?)
            }
            number => Shape::Whole(Kind::from_number(number).ok_or_else(malformed)?),
        };
        Ok(Header {
            offset,
            content: self.offset(),
            size,
            shape,
        })
    }

    /// Decompresses what follows and gives it on in pieces; it must have that size.
    pub(super) fn inflate(
        &mut self,
        size: u64,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut decompress = Decompress::new(true);
        let mut out = vec![0; size.clamp(1, 64 << 10) as usize];
        loop {
            if self.used == self.filled && !self.fill()? {
                return Err(cut_off());
            }
            let (read_before, made_before) = (decompress.total_in(), decompress.total_out());
            let status = decompress
                .decompress(
                    &self.buffer[self.used..self.filled],
                    &mut out,
                    FlushDecompress::None,
                )
                .map_err(|_| malformed())?;
            let read = (decompress.total_in() - read_before) as usize;
            let made = (decompress.total_out() - made_before) as usize;
            self.consume(read);
            if decompress.total_out() > size {
                return Err(malformed());
            }
            take(&out[..made])?;
            match status {
                Status::StreamEnd if decompress.total_out() == size => return Ok(()),
                Status::StreamEnd => return Err(malformed()),
                _ if read == 0 && made == 0 && self.used < self.filled => return Err(malformed()),
                _ => {}
            }
        }
    }

    /// Ends the checksum of the whole pack and compares it with what stands at its end.
    pub(super) fn checksum(&mut self) -> Result<Oid> {
        let (hasher, format) = self.hasher.take().ok_or_else(malformed)?;
        let expected = hasher.finish()?;
        let mut found = vec![0; format.len()];
        self.read_exact(&mut found)?;
        if expected.as_bytes() != found || self.used != self.filled || self.fill()? {
            return Err(Error::invalid("the checksum of a pack does not fit"));
        }
        Ok(expected)
    }

    fn offset(&self) -> u64 {
        self.read_to - (self.filled - self.used) as u64
    }

    /// The distance to an earlier entry, which has a form of its own.
    fn base_offset(&mut self, offset: u64) -> Result<u64> {
        let mut byte = self.byte()?;
        let mut distance = u64::from(byte & 0x7f);
        while byte & 0x80 != 0 {
            byte = self.byte()?;
            if distance > u64::MAX >> 8 {
                return Err(malformed());
            }
            distance = (distance + 1) << 7 | u64::from(byte & 0x7f);
        }
        match offset.checked_sub(distance) {
            Some(base) if distance > 0 => Ok(base),
            _ => Err(malformed()),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        if self.used == self.filled && !self.fill()? {
            return Err(cut_off());
        }
        let byte = self.buffer[self.used];
        self.consume(1);
        Ok(byte)
    }

    fn consume(&mut self, count: usize) {
        let piece = &self.buffer[self.used..self.used + count];
        self.crc.update(piece);
        if let Some((hasher, _)) = &mut self.hasher {
            hasher.update(piece);
        }
        self.used += count;
    }

    /// Reads more; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        self.filled = self.file.read_at(&mut self.buffer, self.read_to)?;
        self.used = 0;
        self.read_to += self.filled as u64;
        Ok(self.filled > 0)
    }
}

/// The decompressed content of an entry: an object, or what is different.
pub(super) fn read_entry(file: &File, header: &Header) -> Result<Vec<u8>> {
    if header.size > OBJECT_BYTES_MAX {
        let text = format!("an object of {} bytes is too big", header.size);
        return Err(Error::new(diag::Code::ResourceExhausted, text));
    }
    let mut out = Vec::with_capacity(header.size as usize);
    PackReader::new(file, header.content, None).inflate(header.size, |piece| {
        out.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(out)
}

fn malformed() -> Error {
    Error::invalid("a malformed pack")
}

fn cut_off() -> Error {
    Error::invalid("a pack that is cut off")
}
