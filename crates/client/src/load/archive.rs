//! An archive for `docker load` that names all layers of an image and holds those that are missing.

use std::collections::HashSet;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use archive::{Header, Writer};
use bytes::{Buf, Bytes};
use diag::Error;
use oci::{Digest, Reference};
use proto::content::ReadContentResponse;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::wanted::{ServerContent, WantedImage};
use crate::layout;

/// Pieces that wait for the Engine.
const PIECES_MAX: usize = 16;
/// Bytes in a piece.
const PIECE_BYTES: usize = 256 << 10;

/// The archive in pieces, its layers read from the server as it is read.
pub(super) fn archive_without(
    image: Arc<WantedImage>,
    omitted: HashSet<Digest>,
    server: ServerContent,
) -> ReceiverStream<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let pieces = Pieces(sender.clone());
        let layers = Layers {
            handle,
            server,
            taker: sender.clone(),
        };
        if let Err(error) = write(&image, &omitted, &layers, pieces) {
            // Nobody listens when the load was broken off.
            let _ = sender.blocking_send(Err(io::Error::other(error.to_string())));
        }
    });
    ReceiverStream::new(receiver)
}

fn write(
    image: &WantedImage,
    omitted: &HashSet<Digest>,
    layers: &Layers,
    pieces: Pieces,
) -> Result<(), Error> {
    let mut tar = Writer::new(BufWriter::with_capacity(PIECE_BYTES, pieces));
    for directory in ["blobs/", "blobs/sha256/"] {
        tar.append(&Header::directory(directory), io::empty())?;
    }
    for (digest, bytes) in &image.small {
        tar.append_bytes(Header::file(layout::blob_path(digest), 0), bytes)?;
    }
    for (digest, layer) in image.layers() {
        if !omitted.contains(&digest) {
            let header = Header::file(layout::blob_path(&digest), layer.size);
            tar.append(&header, layers.open(&digest)?)?;
        }
    }
    let mut index = layout::empty_index();
    match image.names.as_slice() {
        [] => index.manifests.push(image.root.clone()),
        names => layout::put(&mut index, &image.root, names),
    }
    tar.append_bytes(Header::file(layout::INDEX, 0), &json(&index)?)?;
    if let Some(manifest) = docker_manifest(image) {
        tar.append_bytes(Header::file("manifest.json", 0), &json(&manifest)?)?;
    }
    let marker = layout::MARKER_TEXT.as_bytes();
    tar.append_bytes(Header::file(layout::MARKER, 0), marker)?;
    tar.finish()?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::internal(error.to_string()))
}

/// `manifest.json`, by which the classic store finds its way; only for a single manifest.
fn docker_manifest(image: &WantedImage) -> Option<serde_json::Value> {
    let [only] = image.manifests.as_slice() else {
        return None;
    };
    if only.digest != image.root.digest {
        return None;
    }
    let layers = only.layers.iter();
    let layers: Vec<String> = layers
        .map(|layer| layout::blob_path(&layer.descriptor.digest))
        .collect();
    let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    Some(serde_json::json!([{
        "Config": layout::blob_path(&only.config),
        "RepoTags": names,
        "Layers": layers,
    }]))
}

/// Opens layers of the server for blocking code.
struct Layers {
    handle: Handle,
    server: ServerContent,
    /// When who takes the archive is gone, nothing is read any more.
    taker: mpsc::Sender<io::Result<Bytes>>,
}

impl Layers {
    fn open(&self, digest: &Digest) -> Result<LayerReader, Error> {
        let opened = self.handle.block_on(self.server.stream(digest));
        let stream =
            opened.map_err(|status| Error::not_found(format!("{digest}: {}", status.message())))?;
        Ok(LayerReader {
            handle: self.handle.clone(),
            taker: self.taker.clone(),
            stream,
            piece: Bytes::new(),
        })
    }
}

struct LayerReader {
    handle: Handle,
    taker: mpsc::Sender<io::Result<Bytes>>,
    stream: Streaming<ReadContentResponse>,
    piece: Bytes,
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let next = self.handle.block_on(async {
                tokio::select! {
                    next = self.stream.message() => next.map_err(io::Error::other),
                    () = self.taker.closed() => Err(io::ErrorKind::BrokenPipe.into()),
                }
            })?;
            match next {
                Some(message) => self.piece = message.data.into(),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Hands on what is written, from blocking code.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
