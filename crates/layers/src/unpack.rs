//! Making layers out of blobs.
//!
//! Layers of an image are unpacked independently of each other, in any order and at the same time. A
//! few cannot be: those whose archive refers to what is below it. They say so, and are unpacked again
//! when what is below them is there.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use archive::{ArchiveError, UnpackStats};
use content::ContentStore;
use oci::{Descriptor, Digest, DigestHasher};
use parking_lot::Mutex;

use crate::blob::blob_key;
use crate::store::LayerStore;
use crate::{LayerBlob, LayerError, LayerHold, LayerId, LayerNote, LayerStack, Result};

/// A layer's blob in a content store, as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// Digest of the archive in it as the image's configuration says; checked if given.
    pub diff_id: Option<Digest>,
    /// For the layer that comes out.
    pub note: LayerNote,
}

/// What came of unpacking a layer.
pub enum Unpacked {
    /// The layer, protected from removal as long as the hold lives.
    Layer(LayerId, LayerHold),
    /// It refers to what is below it; unpack it again with that.
    NeedsLowers,
}

impl LayerStore {
    /// Unpacks a blob into a layer, or finds the layer that was made of the same archive before.
    /// The same asked for twice at the same time is done once.
    ///
    /// Without `below` only layers that do not need what is below them can be unpacked.
    pub fn unpack_blob(
        &self,
        content: &ContentStore,
        packed: &PackedLayer,
        below: Option<&LayerStack>,
    ) -> Result<Unpacked> {
        let _guard = self
            .blob_locks()
            .lock(format!("unpack {}", packed.descriptor.digest));
        if let Some(diff_id) = &packed.diff_id
            && let Some(found) = self.find_unpacked(diff_id, below)?
        {
            self.note_blob(content, found.0, packed, diff_id)?;
            return Ok(Unpacked::Layer(found.0, found.1));
        }
        let lowers = below
            .filter(|below| !below.is_empty())
            .map(|below| self.mount(below))
            .transpose()?;
        let layer = self.new_layer()?;
        let lower_path = lowers.as_ref().map(|lowers| lowers.path());
        let unpacked = unpack(content, packed, |reader| {
            archive::unpack_layer(reader, layer.path(), lower_path)
        });
        let (stats, diff_id) = match unpacked {
            Err(LayerError::Archive(ArchiveError::NeedsLowers(_))) if below.is_none() => {
                return Ok(Unpacked::NeedsLowers);
            }
            other => other?,
        };
        if below.is_none() && stats.needs_lowers() {
            return Ok(Unpacked::NeedsLowers);
        }
        let (id, hold) = layer.commit_held(packed.note.clone())?;
        self.note_unpacked(id, packed, below, &stats, &diff_id)?;
        Ok(Unpacked::Layer(id, hold))
    }

    /// Unpacks all layers of an image whose blobs are stored, bottom first, several at a time.
    pub fn unpack_image(
        &self,
        content: &ContentStore,
        layers: &[PackedLayer],
    ) -> Result<(LayerStack, LayerHold)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Unpacked>>>> =
            layers.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..threads.min(layers.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = layers.get(index) else {
                            return;
                        };
                        // Below the first there is nothing, and that is known.
                        let bottom = LayerStack::empty();
                        let below = (index == 0).then_some(&bottom);
                        let result = self.unpack_blob(content, layer, below);
                        *results[index].lock() = Some(result);
                    }
                });
            }
        });
        let mut ids: Vec<LayerId> = Vec::new();
        let mut holds = Vec::new();
        for (layer, result) in layers.iter().zip(results) {
            let mut unpacked = match result.into_inner() {
                Some(result) => result?,
                None => Unpacked::NeedsLowers,
            };
            if matches!(unpacked, Unpacked::NeedsLowers) {
                let below = ids.iter().copied().collect();
                unpacked = self.unpack_blob(content, layer, Some(&below))?;
            }
            if let Unpacked::Layer(id, hold) = unpacked {
                ids.push(id);
                holds.push(hold);
            }
        }
        let stack = LayerStack::from(ids);
        let hold = self.hold(&stack);
        Ok((stack, hold))
    }

    fn find_unpacked(
        &self,
        diff_id: &Digest,
        below: Option<&LayerStack>,
    ) -> Result<Option<(LayerId, LayerHold)>> {
        let mut found = self.find_by_diff_id(diff_id)?;
        if let (None, Some(below)) = (found, below) {
            found = self.find_by_chain(&chain(below, diff_id))?;
        }
        let Some(id) = found else {
            return Ok(None);
        };
        // It may be removed at this moment.
        Ok(self.try_hold(&id.into()).ok().map(|hold| (id, hold)))
    }

    fn note_unpacked(
        &self,
        id: LayerId,
        packed: &PackedLayer,
        below: Option<&LayerStack>,
        stats: &UnpackStats,
        diff_id: &Digest,
    ) -> Result<()> {
        match below {
            Some(below) if stats.used_lowers || stats.implied_directories > 0 => {
                self.set_chain(id, &chain(below, diff_id))?;
            }
            _ => self.set_diff_id(id, diff_id)?,
        }
        self.set_blob(id, &packed_key(packed), &blob_of(packed, diff_id))
    }

    /// The same archive may have come packed in another way.
    fn note_blob(
        &self,
        content: &ContentStore,
        id: LayerId,
        packed: &PackedLayer,
        diff_id: &Digest,
    ) -> Result<()> {
        let key = packed_key(packed);
        let known = self
            .blobs(id)?
            .into_iter()
            .any(|(known, blob)| known == key && content.size(&blob.descriptor.digest).is_some());
        match known || content.size(&packed.descriptor.digest).is_none() {
            true => Ok(()),
            false => self.set_blob(id, &key, &blob_of(packed, diff_id)),
        }
    }
}

fn blob_of(packed: &PackedLayer, diff_id: &Digest) -> LayerBlob {
    LayerBlob {
        descriptor: packed.descriptor.clone(),
        diff_id: *diff_id,
    }
}

/// The key of a blob that came from elsewhere, by its media type.
fn packed_key(packed: &PackedLayer) -> String {
    let media_type = packed.descriptor.media_type.as_str();
    let compression = if media_type.ends_with("gzip") {
        archive::Compression::Gzip
    } else if media_type.ends_with("zstd") {
        archive::Compression::Zstd
    } else {
        archive::Compression::None
    };
    blob_key(compression, None)
}

/// Names a layer that depends on what is below it.
fn chain(below: &LayerStack, diff_id: &Digest) -> Digest {
    let mut hasher = DigestHasher::new();
    for id in below.iter() {
        hasher.field(id.to_string().as_bytes());
    }
    hasher.field(diff_id.as_bytes());
    hasher.finish()
}

/// Runs a blob through decompression (in a thread of its own) and `unpack`, hashing what comes out.
fn unpack(
    content: &ContentStore,
    packed: &PackedLayer,
    unpack: impl FnOnce(&mut dyn Read) -> archive::Result<UnpackStats>,
) -> Result<(UnpackStats, Digest)> {
    let file = content.open_blob(&packed.descriptor.digest)?;
    let mut source = archive::decompressor(file)?;
    let (sender, receiver) = sync_channel(8);
    let mut plain = Chunks {
        receiver,
        current: Vec::new(),
        position: 0,
        hasher: DigestHasher::new(),
    };
    let stats = std::thread::scope(|scope| {
        let read = move || {
            loop {
                let mut chunk = vec![0; 256 << 10];
                let result = fill(&mut source, &mut chunk).map(|length| {
                    chunk.truncate(length);
                    chunk
                });
                let last = result.as_ref().map_or(true, Vec::is_empty);
                if sender.send(result).is_err() || last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("decompress".into())
            .spawn_scoped(scope, read);
        thread.map_err(ArchiveError::Stream)?;
        let stats = unpack(&mut plain);
        // Given up early: the reading thread must not wait for us.
        plain.close();
        stats
    })?;
    let actual = plain.hasher.finish();
    match packed.diff_id {
        Some(expected) if expected != actual => Err(LayerError::DiffId { expected, actual }),
        _ => Ok((stats, actual)),
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The other end of the decompressing thread; an empty chunk is the end.
struct Chunks {
    receiver: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    position: usize,
    hasher: DigestHasher,
}

impl Chunks {
    fn close(&mut self) {
        self.receiver = sync_channel(0).1;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() {
            // After the end the other side is gone, which is the end again.
            self.current = self.receiver.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            self.position = 0;
            self.hasher.update(&self.current);
        }
        let rest = &self.current[self.position..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length;
        Ok(length)
    }
}
