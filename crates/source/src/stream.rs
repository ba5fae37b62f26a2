//! A layer unpacked while its blob still comes.
//!
//! ```text
//! provider ──chunks──► blob into the content store ──► decompress ──► unpack into a new layer
//!            (async)            (thread)                 (thread)          (thread)
//! ```
//!
//! The queues between are short, so a slow disk slows the network down and memory stays small. If the
//! archive cannot be unpacked without the layers below, the blob is stored all the same.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use archive::{ArchiveError, UnpackStats};
use bytes::{Buf, Bytes};
use content::{BlobWriter, Lease};
use diag::{Error, Result};
use layers::{LayerBlob, LayerHold, LayerId, LayerStore, PackedLayer};
use oci::{Digest, DigestHasher, Reference};
use status::{Line, StatusSink};
use tokio::sync::mpsc;

use crate::image::ContentProvider;
use crate::resolve::blocking;

/// Pieces (of some KB) that may wait for the thread that stores them.
const NETWORK_QUEUE: usize = 64;
/// Pieces that may wait to be decompressed.
const PACKED_QUEUE: usize = 16;
/// Plain pieces that may wait to be unpacked, each of [`PLAIN_PIECE`] bytes.
const PLAIN_QUEUE: usize = 4;
const PLAIN_PIECE: usize = 256 * 1024;
/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What came of it; the blob is stored in either case.
pub(crate) enum Streamed {
    /// The layer.
    Layer(LayerId, LayerHold),
    /// It has to be unpacked from the stored blob, with what is below it.
    NeedsLowers,
}

/// Gets the blob of a layer into the content store (under the lease) and unpacks it meanwhile.
pub(crate) async fn stream_layer(
    layers: &LayerStore,
    provider: &dyn ContentProvider,
    reference: &Reference,
    lease: &Lease,
    packed: &PackedLayer,
    statuses: &Arc<dyn StatusSink>,
) -> Result<Streamed> {
    let descriptor = &packed.descriptor;
    let mut line = Line::start_sized(statuses, descriptor.digest.to_string(), descriptor.size);
    let mut blob = provider.blob(reference, descriptor).await?;
    // The content store takes nothing with another digest.
    blob.leave_digest();
    let (sender, receiver) = mpsc::channel(NETWORK_QUEUE);
    let (layers, lease, wanted) = (layers.clone(), lease.clone(), packed.clone());
    let work = tokio::spawn(blocking(move || {
        store_and_unpack(&layers, &lease, &wanted, receiver)
    }));
    let mut received = 0;
    let mut reported = Instant::now();
    while let Some(chunk) = blob.chunk().await? {
        received += chunk.len() as u64;
        if sender.send(Piece::Data(chunk)).await.is_err() {
            // The thread gave up and says why.
            break;
        }
        if reported.elapsed() >= REPORT_EVERY {
            line.advance_to(received);
            reported = Instant::now();
        }
    }
    let _ = sender.send(Piece::End).await;
    drop(sender);
    line.advance_to(received);
    line.finish();
    let extracting = Line::start(statuses, format!("extracting {}", descriptor.digest));
    let done = work
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
    extracting.finish();
    done
}

/// What the network brings. A queue that ends without `End` was given up.
enum Piece {
    Data(Bytes),
    End,
}

fn store_and_unpack(
    layers: &LayerStore,
    lease: &Lease,
    packed: &PackedLayer,
    mut network: mpsc::Receiver<Piece>,
) -> Result<Streamed> {
    let mut writer = lease.writer()?;
    let layer = layers.new_layer()?;
    let (to_unpack, from_store) = sync_channel(PACKED_QUEUE);
    let (stored, unpacked) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| unpack(from_store, &layer));
        let stored = store(&mut network, &mut writer, to_unpack);
        (stored, unpacking.join())
    });
    stored?;
    let descriptor = &packed.descriptor;
    writer.finish(Some(descriptor.digest), Some(descriptor.size))?;
    let unpacked = unpacked.map_err(|_| Error::internal("unpacking a layer panicked"))?;
    let (stats, diff_id) = match unpacked {
        Err(ArchiveError::NeedsLowers(_)) => return Ok(Streamed::NeedsLowers),
        Err(error) => {
            return Err(Error::from(error)
                .context(format!("failed to extract layer {}", descriptor.digest)));
        }
        Ok(done) => done,
    };
    if let Some(expected) = packed.diff_id.filter(|expected| *expected != diff_id) {
        let error = layers::LayerError::DiffId {
            expected,
            actual: diff_id,
        };
        return Err(error.into());
    }
    if stats.needs_lowers() {
        return Ok(Streamed::NeedsLowers);
    }
    let (id, hold) = layer.commit_held(packed.note.clone())?;
    layers.set_diff_id(id, &diff_id)?;
    let blob = LayerBlob {
        descriptor: descriptor.clone(),
        diff_id,
    };
    layers.set_blob(id, key_of(&descriptor.media_type), &blob)?;
    Ok(Streamed::Layer(id, hold))
}

/// The key for a blob that came from elsewhere: the name of its compression.
fn key_of(media_type: &str) -> &'static str {
    let kind = if media_type.ends_with("gzip") {
        archive::Compression::Gzip
    } else if media_type.ends_with("zstd") {
        archive::Compression::Zstd
    } else {
        archive::Compression::None
    };
    kind.name()
}

/// Stores what comes and hands it on, as long as somebody takes it.
fn store(
    network: &mut mpsc::Receiver<Piece>,
    writer: &mut BlobWriter,
    to_unpack: SyncSender<Bytes>,
) -> Result<()> {
    let mut to_unpack = Some(to_unpack);
    loop {
        match network.blocking_recv() {
            Some(Piece::Data(bytes)) => {
                writer.write_all(&bytes)?;
                // Whoever unpacks may have given up; the blob is wanted all the same.
                if let Some(sender) = &to_unpack
                    && sender.send(bytes).is_err()
                {
                    to_unpack = None;
                }
            }
            Some(Piece::End) => return Ok(()),
            None => return Err(Error::canceled()),
        }
    }
}

type Done = std::result::Result<(UnpackStats, Digest), ArchiveError>;

/// Decompresses in a thread of its own and unpacks what comes out.
fn unpack(packed: Receiver<Bytes>, layer: &layers::NewLayer) -> Done {
    let (sender, receiver) = sync_channel(PLAIN_QUEUE);
    let mut plain = Plain {
        pieces: receiver,
        current: Bytes::new(),
        hasher: DigestHasher::new(),
    };
    let stats = std::thread::scope(|scope| {
        scope.spawn(move || decompress(PackedReader::new(packed), &sender));
        let stats = archive::unpack_layer(&mut plain, layer.path(), None);
        // Given up early: the decompressing thread must not wait for us.
        plain.pieces = sync_channel(0).1;
        stats
    })?;
    Ok((stats, plain.hasher.finish()))
}

fn decompress(packed: PackedReader, plain: &SyncSender<io::Result<Bytes>>) {
    let mut source = match archive::decompressor(packed) {
        Ok(source) => source,
        Err(error) => {
            let error = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            let _ = plain.send(Err(error));
            return;
        }
    };
    loop {
        let mut piece = vec![0; PLAIN_PIECE];
        let read = loop {
            match source.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let (result, last) = match read {
            Ok(0) => (Ok(Bytes::new()), true),
            Ok(count) => {
                piece.truncate(count);
                (Ok(piece.into()), false)
            }
            Err(error) => (Err(error), true),
        };
        // Nobody takes it any more: nor do we take more of the blob.
        if plain.send(result).is_err() || last {
            return;
        }
    }
}

/// The blob as it comes from the thread that stores it.
struct PackedReader {
    pieces: Receiver<Bytes>,
    current: Bytes,
}

impl PackedReader {
    fn new(pieces: Receiver<Bytes>) -> Self {
        PackedReader {
            pieces,
            current: Bytes::new(),
        }
    }
}

impl Read for PackedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.current = piece,
                Err(_) => return Ok(0),
            }
        }
        Ok(take(&mut self.current, buffer))
    }
}

/// The plain archive; an empty piece is its end.
struct Plain {
    pieces: Receiver<io::Result<Bytes>>,
    current: Bytes,
    hasher: DigestHasher,
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            // After the end the other side is gone, which is the end again.
            self.current = self.pieces.recv().unwrap_or_else(|_| Ok(Bytes::new()))?;
            self.hasher.update(&self.current);
        }
        Ok(take(&mut self.current, buffer))
    }
}

fn take(from: &mut Bytes, buffer: &mut [u8]) -> usize {
    let count = from.len().min(buffer.len());
    from.copy_to_slice(&mut buffer[..count]);
    count
}
