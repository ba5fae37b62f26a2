//! gzip by several threads.
//!
//! The input is cut into blocks of fixed size. Each is deflated by itself, knowing the end of the
//! block before it as dictionary and ending at a byte boundary (sync flush), so the pieces laid one
//! after the other are one ordinary deflate stream. Cutting does not depend on who compresses, so
//! the bytes are the same for any number of threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Bytes of input in a block.
pub(crate) const BLOCK_SIZE: usize = 512 << 10;
/// How far back deflate can refer.
const WINDOW: usize = 32 << 10;

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
            let packed = deflate(&mut deflater(self.level), &block, &dictionary, last)?;
            return self.out.write_all(&packed);
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

fn deflater(level: u32) -> Compress {
    Compress::new(Compression::new(level), false)
}

/// Starts threads that end when the returned sender is dropped.
fn start_workers(level: u32, threads: usize) -> io::Result<Sender<Job>> {
    let (sender, receiver) = channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..threads {
        let receiver = receiver.clone();
        let work = move || {
            let mut state = deflater(level);
            loop {
                let next = receiver
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv();
                let Ok(job) = next else { return };
                let packed = deflate(&mut state, &job.block, &job.dictionary, job.last);
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
