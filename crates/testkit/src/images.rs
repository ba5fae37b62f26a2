//! A small base image of Debian's static busybox, for amd64 and arm64, made on the spot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use oci::{Descriptor, Digest, Platform, media_type};
use serde_json::json;

use crate::{Engine, Peers, Registry};

/// Applets that become links in `/bin`.
const APPLETS: &str = "sh ash cat cp chmod chown date dd df du echo env false find grep head id ln \
    ls md5sum mkdir mkfifo mknod mount mv printf ps pwd readlink rm rmdir sed seq sha256sum sleep \
    sort stat sync tail tar tee test touch tr true truncate umount uname wc wget which yes nslookup \
    hostname ip ping cut xargs awk kill nc tty stty ulimit getent dirname basename expr od";

/// An image in pieces: an OCI image layout on disk.
pub struct BaseImage {
    directory: PathBuf,
    /// The index with both platforms.
    pub index: Descriptor,
    manifests: Vec<(Descriptor, Vec<Descriptor>)>,
}

/// Makes the image below `directory`; equal input gives equal digests.
pub fn base_image(directory: &Path) -> BaseImage {
    let directory = directory.join("base-image");
    fs::create_dir_all(directory.join("blobs/sha256")).expect("make the layout");
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let layer = layer(&directory, architecture);
        let config = store(
            &directory,
            media_type::OCI_CONFIG,
            &json!({
                "created": "2024-01-01T00:00:00Z",
                "architecture": architecture,
                "os": "linux",
                "config": {
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                    "Cmd": ["sh"],
                },
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
                "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "busybox"}],
            })
            .to_string()
            .into_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": config,
            "layers": [layer],
        });
        let mut descriptor = store(
            &directory,
            media_type::OCI_MANIFEST,
            &manifest.to_string().into_bytes(),
        );
        descriptor.platform = Some(Platform::new("linux", architecture, ""));
        manifests.push((descriptor, vec![config, layer]));
    }
    let list: Vec<&Descriptor> = manifests.iter().map(|(manifest, _)| manifest).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": list});
    let index = store(
        &directory,
        media_type::OCI_INDEX,
        &index.to_string().into_bytes(),
    );
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    fs::write(directory.join("oci-layout"), layout).expect("write oci-layout");
    let mut named = index.clone();
    named
        .annotations
        .insert("org.opencontainers.image.ref.name".into(), "latest".into());
    let top = json!({"schemaVersion": 2, "manifests": [named]}).to_string();
    fs::write(directory.join("index.json"), top).expect("write index.json");
    BaseImage {
        directory,
        index,
        manifests,
    }
}

impl BaseImage {
    /// The OCI image layout.
    pub fn layout(&self) -> &Path {
        &self.directory
    }

    fn blob(&self, digest: &Digest) -> Vec<u8> {
        fs::read(self.directory.join("blobs/sha256").join(digest.hex())).expect("read a blob")
    }

    /// Pushes it to a plain registry as `repository:tag`. The calling thread must be in the lab's
    /// network.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) {
        for (manifest, parts) in &self.manifests {
            for part in parts {
                registry.push_blob(repository, &self.blob(&part.digest));
            }
            let bytes = self.blob(&manifest.digest);
            let name = manifest.digest.to_string();
            registry.push_manifest(repository, &name, &manifest.media_type, &bytes);
        }
        let bytes = self.blob(&self.index.digest);
        registry.push_manifest(repository, tag, &self.index.media_type, &bytes);
    }

    /// Loads the amd64 image into an Engine as `name` (with tag).
    pub fn load(&self, engine: &Engine, name: &str) {
        let (_, parts) = &self.manifests[0];
        let path = |part: &Descriptor| format!("blobs/sha256/{}", part.digest.hex());
        let manifest = json!([{
            "Config": path(&parts[0]), "RepoTags": [name], "Layers": [path(&parts[1])],
        }]);
        let list = self.directory.join("manifest.json");
        fs::write(&list, manifest.to_string()).expect("write manifest.json");
        let archive = self.directory.with_extension("tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&self.directory)
            .arg("-cf")
            .arg(&archive)
            .args(["manifest.json", &path(&parts[0]), &path(&parts[1])]));
        engine.docker(&["load", "-q", "-i", archive.to_str().expect("a UTF-8 path")]);
    }
}

/// The root file system as a plain tar.
fn layer(directory: &Path, architecture: &str) -> Descriptor {
    let root = directory.join(format!("root-{architecture}"));
    for name in [
        "bin", "etc", "tmp", "root", "home/app", "var/tmp", "proc", "sys", "dev",
    ] {
        fs::create_dir_all(root.join(name)).expect("make the root");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    let busybox = Peers::find().busybox(architecture);
    fs::copy(&busybox, root.join("bin/busybox"))
        .unwrap_or_else(|error| panic!("{}: {error}", busybox.display()));
    for applet in APPLETS.split_whitespace() {
        let _ = symlink("busybox", root.join("bin").join(applet));
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n\
                  app:x:1000:1000:app:/home/app:/bin/sh\n";
    let group = "root:x:0:\ndaemon:x:1:\nwheel:x:10:app\napp:x:1000:\n";
    fs::write(root.join("etc/passwd"), passwd).expect("write passwd");
    fs::write(root.join("etc/group"), group).expect("write group");
    let archive = directory.join(format!("{architecture}.tar"));
    run(Command::new("tar")
        .args([
            "--sort=name",
            "--mtime=@1704067200",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ])
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .args([
            "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var",
        ]));
    let bytes = fs::read(&archive).expect("read the layer");
    fs::remove_file(archive).expect("remove the layer's tar");
    fs::remove_dir_all(root).expect("remove the root");
    store(directory, media_type::OCI_LAYER, &bytes)
}

fn store(directory: &Path, media_type: &str, bytes: &[u8]) -> Descriptor {
    let descriptor = Descriptor::of(media_type, bytes);
    fs::write(
        directory.join("blobs/sha256").join(descriptor.digest.hex()),
        bytes,
    )
    .expect("write a blob");
    descriptor
}

fn run(command: &mut Command) {
    let status = command.status().expect("run a program");
    assert!(status.success(), "{command:?}: {status}");
}
