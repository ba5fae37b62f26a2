//! Packing a layer as a blob.

use std::io::BufWriter;

use archive::{Compression, TarOptions};
use content::Lease;
use oci::{Descriptor, DigestWriter, media_type};

use crate::store::LayerStore;
use crate::{LayerBlob, LayerId, LayerStack, Result};

/// Bytes handed on at once.
const BUFFER_SIZE: usize = 256 << 10;

impl LayerStore {
    /// The blob of the layer at `index` of a stack, computed unless it is there already: archive,
    /// digest of it, compression and digest of that in one pass. Asked for the same twice at the
    /// same time, it is done once. The blob is protected by `lease`.
    ///
    /// The layer is compared with the stack it was made on, whatever stack it is in now, so that a
    /// layer has one blob. Level `None` is the compression's default.
    pub fn compute_blob(
        &self,
        stack: &LayerStack,
        index: usize,
        lease: &Lease,
        compression: Compression,
        level: Option<i32>,
    ) -> Result<LayerBlob> {
        let hold = self.try_hold(stack)?;
        let Some(id) = stack.get(index) else {
            let count = stack.len();
            return Err(crate::LayerError::Index { index, count });
        };
        let key = blob_key(compression, level);
        let _guard = self.blob_locks().lock(format!("{id} {key}"));
        for (known, blob) in self.blobs(id)? {
            if known == key && is_stored(&blob, lease) {
                return Ok(blob);
            }
        }
        let blob = self.pack(id, lease, compression, level)?;
        self.set_blob(id, &key, &blob)?;
        drop(hold);
        Ok(blob)
    }

    /// A blob of the layer that is stored, however packed, the one recorded first preferred;
    /// protected by `lease`.
    pub fn stored_blob(&self, id: LayerId, lease: &Lease) -> Result<Option<LayerBlob>> {
        let blobs = self.blobs(id)?.into_iter().map(|(_, blob)| blob);
        Ok(blobs.into_iter().find(|blob| is_stored(blob, lease)))
    }

    fn pack(
        &self,
        id: LayerId,
        lease: &Lease,
        compression: Compression,
        level: Option<i32>,
    ) -> Result<LayerBlob> {
        let made_on = self.register().made_on(id);
        // The stack may be gone meanwhile; then everything in the layer is written.
        let lower = match &made_on {
            Some(below) if self.contains(below) => self.mount(below).ok(),
            _ => None,
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let blob = lease.writer()?;
        let packed = archive::compressor(blob, compression, level, threads)?;
        let mut out = BufWriter::with_capacity(BUFFER_SIZE, DigestWriter::new(packed));
        let lower_path = lower.as_ref().map(|lower| lower.path());
        let options = TarOptions::default();
        archive::write_layer(&self.layer_path(id), lower_path, &mut out, &options)?;
        let out = out
            .into_inner()
            .map_err(|error| archive::ArchiveError::Stream(error.into_error()))?;
        let (packed, diff_id) = out.finish();
        let (digest, size) = packed.finish()?.finish(None, None)?;
        Ok(LayerBlob {
            descriptor: Descriptor::new(layer_media_type(compression), digest, size),
            diff_id,
        })
    }
}

fn is_stored(blob: &LayerBlob, lease: &Lease) -> bool {
    lease.protect_sized(blob.descriptor.digest, blob.descriptor.size)
}

/// The key under which a blob is recorded: `gzip`, or `gzip:9` with a level asked for.
pub fn blob_key(compression: Compression, level: Option<i32>) -> String {
    match level {
        None => compression.name().to_owned(),
        Some(level) => format!("{}:{level}", compression.name()),
    }
}

/// The media type of a layer's blob in an OCI manifest.
pub fn layer_media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    }
}
