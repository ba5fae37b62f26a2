//! Blobs of layers: found, computed, packed again in another way, or with their times clamped.
//! Everything here blocks.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::sync::Arc;

use archive::{Compression, EntryKind, Mtime, Reader, Writer};
use content::{ContentStore, Lease};
use diag::{Context, Error, Result};
use layers::{KeyedLocks, LayerBlob, LayerStack, LayerStore, blob_key, layer_media_type};
use oci::{Descriptor, Digest, DigestWriter};

use crate::attrs::LayerCompression;
use crate::image::{ImageLayer, SOURCE_PREFIX};

/// Bytes handed on at once.
const BUFFER_SIZE: usize = 256 * 1024;

/// Finds or makes blobs; clones share what is under way.
#[derive(Clone)]
pub(crate) struct LayerBlobs {
    content: ContentStore,
    layers: LayerStore,
    /// Conversions under way, by what they make.
    busy: Arc<KeyedLocks<String>>,
}

impl LayerBlobs {
    pub(crate) fn new(content: ContentStore, layers: LayerStore) -> Self {
        LayerBlobs {
            content,
            layers,
            busy: Arc::default(),
        }
    }

    /// The layer at `index` of a stack with its blob, which `lease` protects.
    pub(crate) fn layer(
        &self,
        stack: &LayerStack,
        index: usize,
        compression: LayerCompression,
        lease: &Lease,
    ) -> Result<ImageLayer> {
        let missing = || Error::internal(format!("a stack has no layer {index}"));
        let id = stack.get(index).ok_or_else(missing)?;
        let blob = match compression.force {
            false => match self.layers.stored_blob(id, lease)? {
                Some(blob) => blob,
                None => self.compute(stack, index, compression, lease)?,
            },
            true => self.forced(stack, index, compression, lease)?,
        };
        let info = self.layers.info(id)?.ok_or_else(missing)?;
        Ok(ImageLayer {
            descriptor: blob.descriptor,
            diff_id: blob.diff_id,
            description: match info.description.is_empty() {
                true => "created by buildkit".to_owned(),
                false => info.description,
            },
            created_at: Some(info.created_at),
        })
    }

    fn compute(
        &self,
        stack: &LayerStack,
        index: usize,
        compression: LayerCompression,
        lease: &Lease,
    ) -> Result<LayerBlob> {
        let (kind, level) = (compression.kind, compression.level);
        self.layers
            .compute_blob(stack, index, lease, kind, level)
            .context("packing a layer")
    }

    /// A blob of exactly this kind: one that exists, or one that exists packed again so that its
    /// diff ID stays, or a new one.
    fn forced(
        &self,
        stack: &LayerStack,
        index: usize,
        compression: LayerCompression,
        lease: &Lease,
    ) -> Result<LayerBlob> {
        let missing = || Error::internal(format!("a stack has no layer {index}"));
        let id = stack.get(index).ok_or_else(missing)?;
        let _alone = self.busy.lock(format!("{id} {compression:?}"));
        for (_, blob) in self.layers.blobs(id)? {
            if kind_of(&blob.descriptor) == Some(compression.kind)
                && lease.protect_sized(blob.descriptor.digest, blob.descriptor.size)
            {
                return Ok(blob);
            }
        }
        let Some(other) = self.layers.stored_blob(id, lease)? else {
            return self.compute(stack, index, compression, lease);
        };
        let packed = self.convert(&other, compression, lease, |plain, out| {
            std::io::copy(plain, out)
                .map(|_| ())
                .map_err(|error| Error::from(error).context("compressing a layer again"))
        })?;
        if packed.diff_id != other.diff_id {
            return Err(Error::new(
                diag::Code::DataLoss,
                format!("{} has diff ID {}", other.descriptor.digest, packed.diff_id),
            ));
        }
        let key = blob_key(compression.kind, compression.level);
        self.layers.set_blob(id, &key, &packed)?;
        Ok(packed)
    }

    /// The layer with the times of its entries clamped; another diff ID comes of it.
    pub(crate) fn with_times_clamped(
        &self,
        layer: &ImageLayer,
        epoch: i64,
        compression: LayerCompression,
        lease: &Lease,
    ) -> Result<ImageLayer> {
        let blob = LayerBlob {
            descriptor: layer.descriptor.clone(),
            diff_id: layer.diff_id,
        };
        // The kind stays, unless another is forced.
        let kind = match compression.force {
            true => Some(compression.kind),
            false => kind_of(&layer.descriptor),
        };
        let compression = LayerCompression {
            kind: kind.unwrap_or(compression.kind),
            ..compression
        };
        let max = Mtime::from_secs(epoch);
        let made = self.convert(&blob, compression, lease, |plain, out| {
            clamp_times(plain, out, max)
        })?;
        Ok(ImageLayer {
            descriptor: made.descriptor,
            diff_id: made.diff_id,
            ..layer.clone()
        })
    }

    /// Unpacks a blob, changes the archive and packs it.
    fn convert(
        &self,
        blob: &LayerBlob,
        compression: LayerCompression,
        lease: &Lease,
        change: impl FnOnce(&mut dyn Read, &mut dyn Write) -> Result<()>,
    ) -> Result<LayerBlob> {
        let file = self.content.open_blob(&blob.descriptor.digest)?;
        let mut plain = archive::decompressor(file)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let packed = archive::compressor(
            lease.writer()?,
            compression.kind,
            compression.level,
            threads,
        )?;
        let mut out = BufWriter::with_capacity(BUFFER_SIZE, DigestWriter::new(packed));
        change(&mut plain, &mut out)?;
        let out = out
            .into_inner()
            .map_err(|error| Error::from(error.into_error()))?;
        let (packed, diff_id) = out.finish();
        let (digest, size) = packed.finish()?.finish(None, None)?;
        let mut descriptor = Descriptor::new(layer_media_type(compression.kind), digest, size);
        descriptor.annotations = blob.descriptor.annotations.clone();
        // Nobody else has this blob.
        descriptor
            .annotations
            .retain(|key, _| !key.starts_with(SOURCE_PREFIX));
        Ok(LayerBlob {
            descriptor,
            diff_id,
        })
    }
}

/// Copies an archive entry by entry; times later than `max` become `max`.
fn clamp_times(plain: &mut dyn Read, out: &mut dyn Write, max: Mtime) -> Result<()> {
    let mut from = Reader::new(plain);
    let mut to = Writer::new(out);
    while let Some(mut entry) = from.next_entry()? {
        let mut header = entry.header().clone();
        if header.mtime > max {
            header.mtime = max;
        }
        match header.kind {
            EntryKind::Regular => to.append(&header, &mut entry)?,
            _ => to.append(&header, std::io::empty())?,
        }
    }
    to.finish()?;
    Ok(())
}

/// Repositories that have a blob, by registry, from what its source noted down.
pub(crate) fn sources_of(descriptor: &Descriptor) -> BTreeMap<String, Vec<String>> {
    descriptor
        .annotations
        .iter()
        .filter_map(|(key, value)| {
            let host = key.strip_prefix(SOURCE_PREFIX)?;
            let repositories = value.split(',').map(str::to_owned).collect();
            Some((host.to_owned(), repositories))
        })
        .collect()
}

fn kind_of(descriptor: &Descriptor) -> Option<Compression> {
    let name = descriptor.media_type.as_str();
    if name.ends_with("gzip") {
        Some(Compression::Gzip)
    } else if name.ends_with("zstd") {
        Some(Compression::Zstd)
    } else if name.ends_with(".tar") {
        Some(Compression::None)
    } else {
        None
    }
}

/// For base images: how many of these layers are still the base's own.
pub(crate) fn shared_with_base(layers: &[ImageLayer], base: &[Digest]) -> usize {
    layers
        .iter()
        .zip(base)
        .take_while(|(layer, diff_id)| layer.diff_id == **diff_id)
        .count()
}
