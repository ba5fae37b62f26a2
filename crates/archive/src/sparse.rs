//! Maps of sparse files: which ranges of the file the archive has data for.

use std::io::Read;

use crate::header::{BLOCK, number};
use crate::{ArchiveError, Result, pax};

/// A range of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// A sparse file's size and its extents, ascending, without overlaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseMap {
    pub size: u64,
    pub extents: Vec<Extent>,
}

/// More extents than any sane file has; each costs 16 bytes of memory here.
const EXTENTS_MAX: usize = 1 << 16;

impl SparseMap {
    /// Checks the map against the number of data bytes that the archive holds.
    pub(crate) fn check(self, packed: u64) -> Result<Self> {
        let bad = || ArchiveError::Format("malformed sparse map".into());
        let mut end = 0;
        let mut total: u64 = 0;
        for extent in &self.extents {
            if extent.offset < end {
                return Err(bad());
            }
            end = extent.offset.checked_add(extent.length).ok_or_else(bad)?;
            total = total.checked_add(extent.length).ok_or_else(bad)?;
        }
        if end > self.size || total != packed {
            return Err(bad());
        }
        Ok(self)
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.extents.len() >= EXTENTS_MAX {
            return Err(ArchiveError::Format("too many sparse extents".into()));
        }
        if length > 0 {
            self.extents.push(Extent { offset, length });
        }
        Ok(())
    }
}

/// The old GNU format: the map stands in the header and in blocks after it.
pub(crate) fn read_old_gnu(block: &[u8; BLOCK], input: &mut impl Read) -> Result<SparseMap> {
    let mut map = SparseMap {
        size: unsigned(&block[483..495])?,
        extents: Vec::new(),
    };
    push_fields(&mut map, &block[386..482])?;
    let mut more = block[482] != 0;
    while more {
        let mut next = [0; BLOCK];
        input
            .read_exact(&mut next)
            .map_err(crate::reader::read_error)?;
        push_fields(&mut map, &next[..504])?;
        more = next[504] != 0;
    }
    Ok(map)
}

fn push_fields(map: &mut SparseMap, fields: &[u8]) -> Result<()> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            break;
        }
        map.push(unsigned(&field[..12])?, unsigned(&field[12..])?)?;
    }
    Ok(())
}

fn unsigned(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?)
        .map_err(|_| ArchiveError::Format("negative number in a sparse map".into()))
}

/// What PAX records say about sparseness, formats 0.0, 0.1 and 1.0.
#[derive(Default)]
pub(crate) struct SparseRecords {
    major: Option<u64>,
    size: Option<u64>,
    map: Vec<u64>,
    /// The real name of the file.
    pub name: Option<Vec<u8>>,
}

impl SparseRecords {
    /// Takes a record whose key begins with `GNU.sparse.`.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let bad = || ArchiveError::Format("malformed sparse record".into());
        let number = || pax::decimal::<u64>(value).ok_or_else(bad);
        match key {
            b"GNU.sparse.major" => self.major = Some(number()?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.size = Some(number()?),
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.map.push(number()?),
            b"GNU.sparse.map" => {
                self.map = value
                    .split(|&b| b == b',')
                    .map(|n| pax::decimal(n).ok_or_else(bad))
                    .collect::<Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The map, read from the beginning of the data in format 1.0; the second number is how many
    /// bytes of the data that took.
    pub(crate) fn map(&self, input: &mut impl Read) -> Result<Option<(SparseMap, u64)>> {
        let Some(size) = self.size else {
            return Ok(None);
        };
        let (numbers, used) = match self.major {
            Some(1) => read_numbers(input)?,
            _ => (self.map.clone(), 0),
        };
        if numbers.len() % 2 != 0 {
            return Err(ArchiveError::Format("malformed sparse map".into()));
        }
        let mut map = SparseMap {
            size,
            extents: Vec::new(),
        };
        for pair in numbers.chunks_exact(2) {
            map.push(pair[0], pair[1])?;
        }
        Ok(Some((map, used)))
    }
}

/// Lines of decimal numbers: how many pairs, then the pairs; whole blocks are read.
fn read_numbers(input: &mut impl Read) -> Result<(Vec<u64>, u64)> {
    let bad = || ArchiveError::Format("malformed sparse map".into());
    let mut numbers: Vec<u64> = Vec::new();
    let mut wanted: Option<usize> = None;
    let mut used = 0;
    let mut line = Vec::new();
    loop {
        let mut block = [0; BLOCK];
        input
            .read_exact(&mut block)
            .map_err(crate::reader::read_error)?;
        used += BLOCK as u64;
        for &byte in &block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(bad());
                }
                continue;
            }
            let number: u64 = pax::decimal(&line).ok_or_else(bad)?;
            line.clear();
            match wanted {
                None if number as usize > EXTENTS_MAX => return Err(bad()),
                None => wanted = Some(number as usize * 2),
                Some(_) => numbers.push(number),
            }
            if wanted == Some(numbers.len()) {
                return Ok((numbers, used));
            }
        }
    }
}
