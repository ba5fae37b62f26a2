//! Compression of layers: which kinds there are, writing them, and reading by magic number.

use std::io::{self, BufRead, BufReader, Read, Write};

use lzma_rust2::XzReader;

use crate::gzip::GzipWriter;
use crate::{ArchiveError, Result};

/// The most memory that unpacking xz may take, in KiB: a stream names the size of its window itself.
const XZ_MEMORY_MAX_KIB: u32 = 1 << 20;

/// The level of gzip unless another is asked for. The next one takes a quarter more time for a layer of
/// programs and makes it a third of a hundredth smaller.
const GZIP_LEVEL: i32 = 5;
/// The level of zstd unless another is asked for.
const ZSTD_LEVEL: i32 = 3;

/// How a layer's bytes are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, which every tool reads.
    #[default]
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The name used in exporters' attributes: `uncompressed`, `gzip`, `zstd`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    /// The compression of that name, as [`Compression::name`] gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        [Compression::None, Compression::Gzip, Compression::Zstd]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// How a stream that is read is packed; more kinds are read than are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all, or in no known way.
    None,
    /// gzip, of one member or many.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2, of one stream or many.
    Bzip2,
    /// xz, of one stream or many.
    Xz,
}

impl Packing {
    /// The packing of a stream that begins with these bytes; six suffice.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            [b'B', b'Z', b'h', ..] => Packing::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Packing::Xz,
            _ => Packing::None,
        }
    }
}

/// A stream that compresses what is written to it. [`Compressor::finish`] must be called at the end;
/// dropped before, what was written is incomplete.
pub struct Compressor<W: Write>(Kind<W>);

enum Kind<W: Write> {
    None(W),
    Gzip(GzipWriter<W>),
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
}

/// Compresses into `out` with `threads` threads (at least one). Level `None` is the kind's default
/// (gzip 5, zstd 3); gzip has 0 to 9, and as in Go -1 for the default and -2 for the fastest; zstd 1 to
/// 22, and the nearest of them, or the default for less, is taken for any other. The bytes do not depend
/// on the number of threads nor on how they are written.
pub fn compressor<W: Write>(
    out: W,
    kind: Compression,
    level: Option<i32>,
    threads: usize,
) -> Result<Compressor<W>> {
    Ok(Compressor(match kind {
        Compression::None => Kind::None(out),
        Compression::Gzip => {
            let level = match level.unwrap_or(GZIP_LEVEL) {
                -1 => GZIP_LEVEL,
                -2 => 1,
                level @ 0..=9 => level,
                level => {
                    let kind = kind.name();
                    return Err(ArchiveError::Level { kind, level });
                }
            };
            Kind::Gzip(GzipWriter::new(out, level as u32, threads))
        }
        Compression::Zstd => {
            let level = match level.unwrap_or(ZSTD_LEVEL) {
                ..=0 => ZSTD_LEVEL,
                level => level.min(22),
            };
            let mut encoder =
                zstd::stream::write::Encoder::new(out, level).map_err(ArchiveError::Stream)?;
            // Without workers zstd cuts its input elsewhere, so even one thread is a worker.
            encoder
                .multithread(threads.max(1) as u32)
                .and_then(|()| encoder.include_checksum(true))
                .map_err(ArchiveError::Stream)?;
            Kind::Zstd(Box::new(encoder))
        }
    }))
}

impl<W: Write> Compressor<W> {
    /// Writes what is left and gives the stream back.
    pub fn finish(self) -> Result<W> {
        match self.0 {
            Kind::None(mut out) => out.flush().map(|()| out),
            Kind::Gzip(out) => out.finish(),
            Kind::Zstd(encoder) => encoder.finish(),
        }
        .map_err(ArchiveError::Stream)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::None(out) => out.write(bytes),
            Kind::Gzip(out) => out.write(bytes),
            Kind::Zstd(out) => out.write(bytes),
        }
    }

    /// Does nothing: flushing a compressed stream would change its bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that gives the plain bytes of one that may be compressed.
pub struct Decompressor<R: Read>(Packed<R>);

enum Packed<R: Read> {
    None(Started<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Started<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Started<R>>>),
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<Started<R>>>),
    Xz(Box<XzReader<Started<R>>>),
}

type Started<R> = io::Chain<io::Cursor<Vec<u8>>, BufReader<R>>;

/// Reads `input`, telling by its first bytes whether and how it is compressed.
pub fn decompressor<R: Read>(mut input: R) -> Result<Decompressor<R>> {
    let mut start = Vec::new();
    (&mut input)
        .take(6)
        .read_to_end(&mut start)
        .map_err(ArchiveError::Stream)?;
    let packing = Packing::detect(&start);
    let whole = io::Cursor::new(start).chain(BufReader::with_capacity(128 << 10, input));
    Ok(Decompressor(match packing {
        Packing::None => Packed::None(whole),
        Packing::Gzip => Packed::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(whole);
            Packed::Zstd(Box::new(decoder.map_err(ArchiveError::Stream)?))
        }
        Packing::Bzip2 => Packed::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(whole))),
        Packing::Xz => {
            let decoder = XzReader::new_mem_limit(whole, true, XZ_MEMORY_MAX_KIB);
            Packed::Xz(Box::new(decoder))
        }
    }))
}

impl<R: Read> Decompressor<R> {
    /// How the stream is packed.
    pub fn packing(&self) -> Packing {
        match &self.0 {
            Packed::None(_) => Packing::None,
            Packed::Gzip(_) => Packing::Gzip,
            Packed::Zstd(_) => Packing::Zstd,
            Packed::Bzip2(_) => Packing::Bzip2,
            Packed::Xz(_) => Packing::Xz,
        }
    }

    /// Reads to the end and beyond: the compressed stream up to its own end too, so that whoever
    /// hashes that has seen all of it.
    pub fn drain(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink()).map_err(ArchiveError::Stream)?;
        let mut rest: Box<dyn BufRead + '_> = match self.0 {
            Packed::None(input) => Box::new(input),
            Packed::Gzip(decoder) => Box::new(decoder.into_inner()),
            Packed::Zstd(decoder) => Box::new(decoder.finish()),
            Packed::Bzip2(decoder) => Box::new(decoder.into_inner()),
            Packed::Xz(decoder) => Box::new(decoder.into_inner()),
        };
        io::copy(&mut rest, &mut io::sink()).map_err(ArchiveError::Stream)?;
        Ok(())
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Packed::None(input) => input.read(buffer),
            Packed::Gzip(input) => input.read(buffer),
            Packed::Zstd(input) => input.read(buffer),
            Packed::Bzip2(input) => input.read(buffer),
            Packed::Xz(input) => input.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO_BZIP2: &[u8] = &[
        0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0xc1, 0xc0, 0x80, 0xe2, 0x00,
        0x00, 0x01, 0x41, 0x00, 0x00, 0x10, 0x02, 0x44, 0xa0, 0x00, 0x30, 0xcd, 0x00, 0xc3, 0x46,
        0x29, 0x97, 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0xc1, 0xc0, 0x80, 0xe2,
    ];
    const HELLO_XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x68, 0x65, 0x6c,
        0x6c, 0x6f, 0x0a, 0x00, 0x00, 0x00, 0xa5, 0x60, 0x97, 0xf1, 0x94, 0xf6, 0xfd, 0xe0, 0x00,
        0x01, 0x1e, 0x06, 0xc1, 0x2f, 0xa4, 0x1d, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00,
        0x00, 0x04, 0x59, 0x5a,
    ];

    fn sample() -> Vec<u8> {
        // Text with repeats over long distances, and a stretch that does not compress.
        let mut state = 1u64;
        let mut data = Vec::new();
        while data.len() < 3_000_000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            match state >> 62 {
                0 => data.extend_from_slice(&state.to_le_bytes()),
                _ => data.extend_from_slice(format!("line {}\n", state % 1000).as_bytes()),
            }
        }
        data
    }

    fn pack(data: &[u8], kind: Compression, threads: usize, chunk: usize) -> Vec<u8> {
        let mut out = compressor(Vec::new(), kind, None, threads).unwrap();
        for part in data.chunks(chunk) {
            out.write_all(part).unwrap();
            out.flush().unwrap();
        }
        out.finish().unwrap()
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_writes_and_unpack_to_the_original() {
        let data = sample();
        for kind in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let first = pack(&data, kind, 1, usize::MAX);
            for (threads, chunk) in [(1, 1000), (2, 4096), (4, 70_001), (7, 1 << 20)] {
                assert!(
                    first == pack(&data, kind, threads, chunk),
                    "{kind:?} {threads} {chunk}"
                );
            }
            let mut reader = decompressor(&first[..]).unwrap();
            let expected = match kind {
                Compression::None => Packing::None,
                Compression::Gzip => Packing::Gzip,
                Compression::Zstd => Packing::Zstd,
            };
            assert_eq!(reader.packing(), expected);
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            assert!(back == data, "{kind:?}");
        }
    }

    #[test]
    fn empty_and_block_sized_inputs_are_whole_streams() {
        for length in [0, 1, crate::gzip::BLOCK_SIZE, 2 * crate::gzip::BLOCK_SIZE] {
            let data = vec![7; length];
            for kind in [Compression::Gzip, Compression::Zstd] {
                let packed = pack(&data, kind, 2, 4096);
                let mut back = Vec::new();
                decompressor(&packed[..])
                    .unwrap()
                    .read_to_end(&mut back)
                    .unwrap();
                assert!(back == data, "{kind:?} {length}");
            }
        }
    }

    #[test]
    fn concatenated_gzip_members_are_read_as_one() {
        let mut packed = pack(b"one ", Compression::Gzip, 1, 9);
        packed.extend(pack(b"two", Compression::Gzip, 1, 9));
        let mut text = String::new();
        decompressor(&packed[..])
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "one two");
    }

    #[test]
    fn streams_of_bzip2_and_xz_are_read_one_after_another() {
        for (packing, packed) in [(Packing::Bzip2, HELLO_BZIP2), (Packing::Xz, HELLO_XZ)] {
            let twice = packed.repeat(2);
            let mut input = &twice[..];
            let mut reader = decompressor(&mut input).unwrap();
            assert_eq!(reader.packing(), packing);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello\nhello\n");
            reader.drain().unwrap();
            assert!(input.is_empty());
            let mut cut = decompressor(&packed[..packed.len() - 3]).unwrap();
            assert!(cut.read_to_end(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn a_cut_or_foreign_stream_is_an_error() {
        let packed = pack(&sample(), Compression::Gzip, 1, 1 << 20);
        let mut reader = decompressor(&packed[..packed.len() / 2]).unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
        for foreign in [&b"\xfd7zXZ\0\0"[..], b"BZh9\0\0"] {
            let mut reader = decompressor(foreign).unwrap();
            assert!(reader.read_to_end(&mut Vec::new()).is_err());
        }
        assert!(compressor(Vec::new(), Compression::Gzip, Some(10), 1).is_err());
    }

    #[test]
    fn levels_beside_the_range_are_the_nearest_or_the_default() {
        let packed = |kind, level| {
            let mut packer = compressor(Vec::new(), kind, level, 1).unwrap();
            packer.write_all(&sample()).unwrap();
            packer.finish().unwrap()
        };
        for (kind, level, like) in [
            (Compression::Gzip, -1, None),
            (Compression::Gzip, -2, Some(1)),
            (Compression::Zstd, 0, None),
            (Compression::Zstd, -5, None),
            (Compression::Zstd, 23, Some(22)),
        ] {
            assert!(packed(kind, Some(level)) == packed(kind, like), "{kind:?}");
        }
    }

    #[test]
    fn draining_reads_the_packed_stream_to_its_end() {
        let mut packed = pack(b"data", Compression::Zstd, 1, 9);
        packed.extend(pack(b"more", Compression::Zstd, 1, 9));
        let mut input = &packed[..];
        decompressor(&mut input).unwrap().drain().unwrap();
        assert!(input.is_empty());
    }
}
