//! gzip by several threads.
//!
//! The input is cut into blocks of fixed size. Each is deflated by itself, knowing the end of the
//! block before it as dictionary and ending at a byte boundary (sync flush), so the pieces laid one
//! after the other are one ordinary deflate stream. Cutting does not depend on who compresses, so
//! the bytes are the same for any number of threads.
//!
//! A block that deflate would make hardly smaller, such as one out of an archive that is compressed
//! itself, is not deflated but stored: see [`is_dense`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Bytes of input in a block.
pub(crate) const BLOCK_SIZE: usize = 512 << 10;
/// How far back deflate can refer.
const WINDOW: usize = 32 << 10;

/// Deflate's blocks without compression have at most so many bytes.
const STORED_MAX: usize = u16::MAX as usize;
/// The bytes of each part of a block that is deflated to see whether anything in it repeats; as far
/// as deflate looks back.
const SAMPLE_SIZE: usize = WINDOW;

/// No name, no time, unknown system: what Go's gzip writes.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

pub(crate) struct GzipWriter<W: Write> {
    out: W,
    level: u32,
    threads: usize,
    begun: bool,
    block: Vec<u8>,
    /// The end of the block before.
    dictionary: Vec<u8>,
    crc: Crc,
    /// Made when a second block shows that there is work for them.
    workers: Option<Sender<Job>>,
    /// Results in order of their blocks.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
}

struct Job {
    block: Vec<u8>,
    dictionary: Vec<u8>,
    last: bool,
    done: SyncSender<io::Result<Vec<u8>>>,
}

impl<W: Write> GzipWriter<W> {
    pub(crate) fn new(out: W, level: u32, threads: usize) -> Self {
        GzipWriter {
            out,
            level,
            threads: threads.max(1),
            begun: false,
            block: Vec::new(),
            dictionary: Vec::new(),
            crc: Crc::new(),
            workers: None,
            pending: VecDeque::new(),
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.submit(true)?;
        while self.collect()? {}
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Hands the present block over for compression.
    fn submit(&mut self, last: bool) -> io::Result<()> {
        if !self.begun {
            self.out.write_all(&HEADER)?;
            self.begun = true;
        }
        let block = std::mem::take(&mut self.block);
        self.crc.update(&block);
        let tail = block[block.len().saturating_sub(WINDOW)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        if self.threads == 1 || (last && self.workers.is_none()) {
            let mut packer = Packer::new(self.level);
            return self.out.write_all(&packer.pack(&block, &dictionary, last)?);
        }
        while self.pending.len() >= 2 * self.threads {
            self.collect()?;
        }
        let (done, result) = sync_channel(1);
        let job = Job {
            block,
            dictionary,
            last,
            done,
        };
        self.pending.push_back(result);
        let (level, threads) = (self.level, self.threads);
        let workers = match &mut self.workers {
            Some(workers) => workers,
            none => none.insert(start_workers(level, threads)?),
        };
        workers.send(job).map_err(|_| gone())
    }

    /// Writes the oldest pending block; false if there is none.
    fn collect(&mut self) -> io::Result<bool> {
        let Some(result) = self.pending.pop_front() else {
            return Ok(false);
        };
        let packed = result.recv().map_err(|_| gone())??;
        self.out.write_all(&packed)?;
        Ok(true)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK_SIZE {
            self.submit(false)?;
        }
        if self.block.capacity() == 0 && (self.begun || bytes.len() >= BLOCK_SIZE) {
            self.block.reserve_exact(BLOCK_SIZE);
        }
        let taken = bytes.len().min(BLOCK_SIZE - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::other("a compression thread ended early")
}

/// Packs blocks, one after the other.
struct Packer {
    level: u32,
    state: Compress,
    /// For samples; made when there is one.
    sampler: Option<Compress>,
}

impl Packer {
    fn new(level: u32) -> Self {
        Packer {
            level,
            state: deflater(level),
            sampler: None,
        }
    }

    fn pack(&mut self, block: &[u8], dictionary: &[u8], last: bool) -> io::Result<Vec<u8>> {
        // Level 0 stores everything anyway.
        if self.level > 0 && is_dense(block, &mut self.sampler)? {
            return Ok(stored(block, last));
        }
        deflate(&mut self.state, block, dictionary, last)
    }
}

fn deflater(level: u32) -> Compress {
    Compress::new(Compression::new(level), false)
}

/// Whether deflate would save next to nothing: all bytes are about equally frequent, and in two samples
/// nothing repeats. To find that out takes a tenth of the time of deflating. Short blocks are never
/// dense: there is not enough to judge by, and nothing to win.
fn is_dense(block: &[u8], sampler: &mut Option<Compress>) -> io::Result<bool> {
    if block.len() < 4 * SAMPLE_SIZE {
        return Ok(false);
    }
    let mut counts = [0_u64; 256];
    for byte in block {
        counts[usize::from(*byte)] += 1;
    }
    // Two bytes taken by chance are equal once in 239 times at most: so there are more than 7.9 bits in
    // each, and at most one part in eighty is to be saved by shorter codes. In whole numbers, so that
    // every machine decides the same.
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    let length = block.len() as u64;
    if squares * 239 > length * length {
        return Ok(false);
    }
    let sampler = sampler.get_or_insert_with(|| deflater(1));
    for start in [block.len() / 4, block.len() / 4 * 3 - SAMPLE_SIZE] {
        let sample = &block[start..start + SAMPLE_SIZE];
        if deflate(sampler, sample, &[], true)?.len() < sample.len() / 100 * 99 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The block as it is, in deflate's form.
fn stored(block: &[u8], last: bool) -> Vec<u8> {
    let pieces = block.len().div_ceil(STORED_MAX);
    let mut packed = Vec::with_capacity(block.len() + 5 * pieces);
    for (at, piece) in block.chunks(STORED_MAX).enumerate() {
        let is_end = last && at + 1 == pieces;
        let length = piece.len() as u16;
        packed.push(u8::from(is_end));
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(&(!length).to_le_bytes());
        packed.extend_from_slice(piece);
    }
    packed
}

/// Starts threads that end when the returned sender is dropped.
fn start_workers(level: u32, threads: usize) -> io::Result<Sender<Job>> {
    let (sender, receiver) = channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..threads {
        let receiver = receiver.clone();
        let work = move || {
            let mut packer = Packer::new(level);
            loop {
                let next = receiver
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv();
                let Ok(job) = next else { return };
                let packed = packer.pack(&job.block, &job.dictionary, job.last);
                // Nobody waits any more when the writer was dropped.
                let _ = job.done.send(packed);
            }
        };
        std::thread::Builder::new()
            .name("gzip".into())
            .spawn(work)?;
    }
    Ok(sender)
}

fn deflate(
    state: &mut Compress,
    block: &[u8],
    dictionary: &[u8],
    last: bool,
) -> io::Result<Vec<u8>> {
    state.reset();
    if !dictionary.is_empty() {
        state.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let flush = match last {
        true => FlushCompress::Finish,
        false => FlushCompress::Sync,
    };
    let mut packed = Vec::with_capacity(block.len() / 2 + 1024);
    loop {
        let consumed = state.total_in() as usize;
        let status = state
            .compress_vec(&block[consumed..], &mut packed, flush)
            .map_err(io::Error::other)?;
        let room = packed.len() < packed.capacity();
        match status {
            Status::StreamEnd => return Ok(packed),
            // All input taken and room left in the output: the flush is complete.
            _ if !last && room && state.total_in() as usize == block.len() => return Ok(packed),
            _ => packed.reserve(block.len() / 4 + 1024),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Bytes that look like those of compressed data.
    fn dense(length: usize, mut state: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            bytes.extend_from_slice(&(state >> 16).to_le_bytes()[..4]);
        }
        bytes.truncate(length);
        bytes
    }

    fn pack(data: &[u8], level: u32, threads: usize) -> Vec<u8> {
        let mut out = GzipWriter::new(Vec::new(), level, threads);
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn unpack(packed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut reader = flate2::read::GzDecoder::new(packed);
        reader.read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn what_cannot_be_made_smaller_is_stored_and_everything_around_it_deflated() {
        let text = b"staves and hoops ".repeat(BLOCK_SIZE / 10);
        let noise = dense(3 * BLOCK_SIZE, 1);
        let mixed = [&text, &noise[..], &text, &noise[..BLOCK_SIZE + 7]].concat();
        for data in [&noise, &mixed, &noise[..BLOCK_SIZE].to_vec()] {
            let packed = pack(data, 6, 1);
            assert!(unpack(&packed) == *data);
            assert!(packed == pack(data, 6, 3));
        }
        let size = pack(&noise, 6, 2).len();
        assert!(size > noise.len() && size < noise.len() + 200, "{size}");
        let size = pack(&mixed, 6, 2).len();
        assert!(size < noise.len() / 3 * 4 + 3 * BLOCK_SIZE, "{size}");
    }

    #[test]
    fn only_blocks_in_which_nothing_is_to_be_saved_are_dense() {
        let noise = dense(BLOCK_SIZE, 1);
        let is_dense = |block: &[u8]| super::is_dense(block, &mut None).unwrap();
        assert!(is_dense(&noise));
        // All bytes are as frequent as in noise, but in order.
        let counted: Vec<u8> = (0..BLOCK_SIZE).map(|at| at as u8).collect();
        assert!(!is_dense(&counted));
        // Noise that repeats within deflate's reach.
        assert!(!is_dense(&dense(10_000, 2).repeat(BLOCK_SIZE / 10_000)));
        // Seven bits of noise in each byte, and half noise, half nothing.
        let sevenfold: Vec<u8> = noise.iter().map(|byte| byte & 0x7f).collect();
        assert!(!is_dense(&sevenfold));
        let mut half = noise.clone();
        half[..BLOCK_SIZE / 2].fill(0);
        assert!(!is_dense(&half));
        assert!(!is_dense(&noise[..1000]) && !is_dense(&[]));
    }
}
