//! The default server image: the running executable, as an image of one layer.
//!
//! No registry and no pull: the image is made as a docker archive while it is sent to the Engine,
//! and its digests depend on nothing but the executable. It holds the executable under its three
//! names, the directories the server expects, and nothing else.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use engine_api::{Engine, EngineError};
use oci::{Digest, DigestHasher, Platform};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::DriverError;
use crate::tarball::{END, Kind, Tarball, TooLong, header, padding};

/// Repository of the image's name in the Engine.
const REPOSITORY: &str = "cooperage/buildkitd";
/// Bytes read or sent at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The image made of one executable.
pub(crate) struct ServerImage {
    /// Its name in the Engine, with the first digits of the executable's digest as part of the tag.
    pub(crate) reference: String,
    platform: Platform,
    executable: File,
    /// The layer's bytes before the executable.
    front: Vec<u8>,
    executable_size: u64,
    diff_id: Digest,
}

impl ServerImage {
    /// Reads the executable and computes the image's name and digests.
    pub(crate) async fn of_executable(path: &Path) -> Result<Self, DriverError> {
        let path = path.to_owned();
        let shown = path.display().to_string();
        let failed = move |source| DriverError::Io {
            context: format!("making the server image of {shown}"),
            source,
        };
        tokio::task::spawn_blocking(move || Self::read(&path))
            .await
            .map_err(std::io::Error::other)
            .and_then(|result| result)
            .map_err(failed)
    }

    fn read(path: &Path) -> std::io::Result<Self> {
        let mut executable = File::open(path)?;
        let executable_size = executable.metadata()?.len();
        let front = front(executable_size).map_err(std::io::Error::other)?;
        let mut layer = DigestHasher::new();
        let mut whole = DigestHasher::new();
        layer.update(&front);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut seen = 0;
        loop {
            let read = executable.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            seen += read as u64;
            layer.update(&chunk[..read]);
            whole.update(&chunk[..read]);
        }
        if seen != executable_size {
            return Err(std::io::Error::other(
                "the executable changed while it was read",
            ));
        }
        layer.update(&vec![0; padding(executable_size)]);
        layer.update(&END);
        let digest = whole.finish().hex();
        Ok(ServerImage {
            reference: format!(
                "{REPOSITORY}:{}-{}",
                env!("CARGO_PKG_VERSION"),
                &digest[..12]
            ),
            platform: Platform::host(),
            executable,
            front,
            executable_size,
            diff_id: layer.finish(),
        })
    }

    /// True when the Engine has this very image under its name.
    pub(crate) async fn is_loaded(&self, engine: &Engine) -> Result<bool, EngineError> {
        match engine.image(&self.reference).await {
            Ok(image) => Ok(image.root_fs.layers == [self.diff_id.to_string()]),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends the image to the Engine.
    pub(crate) async fn load(self, engine: &Engine) -> Result<(), DriverError> {
        let (sender, receiver) = mpsc::channel(4);
        let reading = tokio::task::spawn_blocking(move || {
            if let Err(error) = self.send(&sender) {
                // The reader that is gone has its own error.
                let _ = sender.blocking_send(Err(error));
            }
        });
        let loaded = engine
            .load_images(ReceiverStream::new(receiver), |_| {})
            .await;
        let _ = reading.await;
        Ok(loaded?)
    }

    fn send(mut self, sender: &mpsc::Sender<std::io::Result<Bytes>>) -> std::io::Result<()> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let (before, after) = self.archive().map_err(std::io::Error::other)?;
        sender.blocking_send(Ok(before.into())).map_err(gone)?;
        self.executable.seek(SeekFrom::Start(0))?;
        let mut left = self.executable_size;
        while left > 0 {
            let mut chunk = vec![0; CHUNK_BYTES.min(left as usize)];
            self.executable.read_exact(&mut chunk)?;
            left -= chunk.len() as u64;
            sender.blocking_send(Ok(chunk.into())).map_err(gone)?;
        }
        sender.blocking_send(Ok(after.into())).map_err(gone)
    }

    /// The archive before and after the executable's bytes.
    fn archive(&self) -> Result<(Vec<u8>, Vec<u8>), TooLong> {
        let config = self.config();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let layer_dir = self.diff_id.hex();
        let layer_name = format!("{layer_dir}/layer.tar");
        let manifest = serde_json::json!([{
            "Config": config_name,
            "RepoTags": [self.reference],
            "Layers": [layer_name],
        }]);
        let mut tar = Tarball::default();
        tar.file(&config_name, 0o644, &config)?;
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes())?;
        tar.directory(&format!("{layer_dir}/"), 0o755)?;
        let executable_padding = padding(self.executable_size);
        let layer_size = self.front.len() as u64
            + self.executable_size
            + executable_padding as u64
            + END.len() as u64;
        let mut before = tar.unfinished();
        before.extend(header(&layer_name, 0o644, Kind::File(layer_size))?);
        before.extend(&self.front);
        let mut after = vec![0; executable_padding];
        after.extend(END);
        after.resize(after.len() + padding(layer_size), 0);
        after.extend(END);
        Ok((before, after))
    }

    fn config(&self) -> Vec<u8> {
        serde_json::json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": ["buildkitd"],
                "Volumes": { "/var/lib/buildkit": {} },
            },
            "rootfs": { "type": "layers", "diff_ids": [self.diff_id.to_string()] },
            "history": [{
                "created": "1970-01-01T00:00:00Z",
                "created_by": "cooperage",
            }],
        })
        .to_string()
        .into_bytes()
    }
}

/// The layer up to the executable's first byte.
fn front(executable_size: u64) -> Result<Vec<u8>, TooLong> {
    let mut tar = Tarball::default();
    for name in ["etc/", "etc/buildkit/", "root/", "run/"] {
        tar.directory(name, 0o755)?;
    }
    tar.file("etc/group", 0o644, b"root:x:0:\n")?;
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/sbin/nologin\n",
    )?;
    tar.directory("tmp/", 0o1777)?;
    for name in ["usr/", "usr/bin/", "var/", "var/lib/", "var/lib/buildkit/"] {
        tar.directory(name, 0o755)?;
    }
    tar.symlink("usr/bin/buildctl", "cooperage")?;
    tar.symlink("usr/bin/buildkitd", "cooperage")?;
    let mut bytes = tar.unfinished();
    bytes.extend(header(
        "usr/bin/cooperage",
        0o755,
        Kind::File(executable_size),
    )?);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive_of(executable: &[u8]) -> (String, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exe");
        std::fs::write(&path, executable).unwrap();
        let image = ServerImage::read(&path).unwrap();
        let reference = image.reference.clone();
        let (sender, mut receiver) = mpsc::channel(64);
        image.send(&sender).unwrap();
        drop(sender);
        let mut bytes = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            bytes.extend(piece.unwrap());
        }
        (reference, bytes)
    }

    #[test]
    fn the_archive_depends_on_the_executable_alone_and_its_layer_has_the_digest_it_says() {
        let (reference, bytes) = archive_of(b"an executable");
        assert_eq!(archive_of(b"an executable"), (reference, bytes.clone()));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tar"), bytes).unwrap();
        let unpack = |file: &str| {
            let status = std::process::Command::new("tar")
                .current_dir(dir.path())
                .args(["-xf", file])
                .status()
                .unwrap();
            assert!(status.success());
        };
        unpack("a.tar");
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).unwrap();
        let config = read(manifest[0]["Config"].as_str().unwrap());
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let layer_name = manifest[0]["Layers"][0].as_str().unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            Digest::of(read(layer_name)).to_string()
        );
        unpack(layer_name);
        assert_eq!(read("usr/bin/buildkitd"), b"an executable");
    }
}
