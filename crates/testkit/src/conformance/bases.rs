//! The three small images that cases start from, as OCI layouts made of Debian's static busybox.
//!
//! `busybox` (amd64 and arm64), `corpus/kitchen:1` (Docker media types, every field of the
//! configuration, a second layer with a deleted file and an opaque folder) and `corpus/onbuild:1`
//! (the same with triggers). All times are 2024-01-01. What is in them beside busybox never changes:
//! recordings are about it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use super::image::Layout;
use super::tree::sha256;
use crate::Peers;

/// Every file of the bases: 2024-01-01T00:00:00Z.
pub const BASE_MTIME: i64 = 1_704_067_200;
const CREATED: &str = "2024-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const OCI: &str = "application/vnd.oci.image.";
const DOCKER: &str = "application/vnd.docker.";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
                      app:x:1000:1000:App User:/home/app:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\napp:x:1000:\nextra:x:2000:app\n\
                     nogroup:x:65534:\n";

/// The layouts on disk and what is in them.
pub struct Bases {
    folder: PathBuf,
    images: Vec<Base>,
    programs: Vec<(String, String)>,
}

/// One image of one platform.
pub struct Base {
    /// `NAME:os/arch`.
    pub name: String,
    /// Digests of its unpacked layers.
    pub diff_ids: Vec<String>,
    /// Its files.
    pub files: Map<String, Value>,
}

impl Bases {
    /// Makes them below `folder`.
    pub fn make(folder: &Path) -> Bases {
        let programs: Vec<(&str, Vec<u8>)> = ["amd64", "arm64"]
            .map(|arch| {
                let path = Peers::find().busybox(arch);
                let bytes = std::fs::read(&path);
                (
                    arch,
                    bytes.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
                )
            })
            .to_vec();
        let layers: Vec<LayerBlob> = programs.iter().map(|(_, bytes)| root(bytes)).collect();
        busybox(&folder.join("busybox"), &layers);
        kitchen(&folder.join("kitchen"), &layers[0], false);
        kitchen(&folder.join("onbuild"), &layers[0], true);
        let mut images: Vec<Base> = Vec::new();
        for name in ["busybox", "kitchen", "onbuild"] {
            let layout = Layout::open(&folder.join(name)).expect("read a base image");
            let (found, _, _) = layout.images().expect("read a base image");
            for image in found {
                if images.iter().all(|known| known.diff_ids != image.diff_ids) {
                    images.push(Base {
                        name: format!("{name}:linux/{}", image.architecture()),
                        diff_ids: image.diff_ids,
                        files: image.files,
                    });
                }
            }
        }
        let programs = programs
            .iter()
            .map(|(arch, bytes)| (sha256(bytes), format!("busybox {arch}")));
        Bases {
            folder: folder.to_owned(),
            programs: programs.collect(),
            images,
        }
    }

    /// The layout of one of them.
    pub fn layout(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The base with the most layers that an image with these layers starts with.
    pub fn below(&self, diff_ids: &[String]) -> Option<&Base> {
        let fitting = self
            .images
            .iter()
            .filter(|base| diff_ids.starts_with(&base.diff_ids));
        fitting.max_by_key(|base| base.diff_ids.len())
    }

    /// The base of that name.
    pub fn named(&self, name: &str) -> Option<&Base> {
        self.images.iter().find(|base| base.name == name)
    }

    /// Names the busybox program in a tree, whose bytes are the machine's.
    pub fn name_programs(&self, files: &mut Map<String, Value>) {
        for facts in files.values_mut() {
            let known = facts["sha256"]
                .as_str()
                .and_then(|digest| self.programs.iter().find(|(program, _)| program == digest));
            if let (Some((_, name)), Some(fields)) = (known, facts.as_object_mut()) {
                fields.insert("sha256".into(), json!(name));
                fields.remove("size");
            }
        }
    }
}

/// Applets of a busybox program of this machine's architecture.
fn applets() -> Vec<String> {
    let output = Command::new(Peers::find().busybox("amd64"))
        .arg("--list")
        .output()
        .expect("run busybox");
    let list = String::from_utf8_lossy(&output.stdout);
    list.lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect()
}

fn root(program: &[u8]) -> LayerBlob {
    let mut layer = LayerTar::default();
    layer.dir("bin", 0o755);
    layer.file("bin/busybox", program, 0o755, (0, 0));
    for applet in applets() {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer.dir("dev", 0o755);
    layer.dir("etc", 0o755);
    layer.file("etc/passwd", PASSWD.as_bytes(), 0o644, (0, 0));
    layer.file("etc/group", GROUP.as_bytes(), 0o644, (0, 0));
    layer.file(
        "etc/base-release",
        b"NAME=corpus-base\nVERSION=1\n",
        0o644,
        (0, 0),
    );
    layer.dir("home", 0o755);
    layer.entry("home/app/", b'5', 0o755, (1000, 1000), b"", "");
    layer.file(
        "home/app/.profile",
        b"# profile of app\n",
        0o644,
        (1000, 1000),
    );
    for (name, mode) in [
        ("proc", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
    ] {
        layer.dir(name, mode);
    }
    layer.link("usr/bin/env", "../../bin/busybox");
    layer.dir("usr/share", 0o755);
    layer.dir("usr/share/data", 0o755);
    layer.file("usr/share/data/one.txt", b"one\n", 0o644, (0, 0));
    layer.file("usr/share/data/two.txt", b"two\n", 0o644, (0, 0));
    layer.dir("usr/share/data/sub", 0o755);
    layer.file("usr/share/data/sub/three.txt", b"three\n", 0o644, (0, 0));
    layer.dir("var", 0o755);
    layer.link("var/run", "/run");
    layer.link("var/lib", "../usr/share");
    layer.dir("var/tmp", 0o1777);
    layer.finish()
}

fn busybox(folder: &Path, layers: &[LayerBlob]) {
    let mut layout = Writer::new(folder);
    let mut manifests = Vec::new();
    for (layer, (arch, variant)) in layers.iter().zip([("amd64", None), ("arm64", Some("v8"))]) {
        let mut platform = json!({"architecture": arch, "os": "linux"});
        if let Some(variant) = variant {
            platform["variant"] = json!(variant);
        }
        let mut config = platform.clone();
        config["created"] = json!(CREATED);
        config["config"] = json!({"Env": [PATH], "Cmd": ["sh"]});
        config["rootfs"] = json!({"type": "layers", "diff_ids": [layer.diff_id]});
        config["history"] = json!([
            {"created": CREATED, "created_by": "busybox rootfs"},
            {"created": CREATED, "created_by": "CMD [\"sh\"]", "empty_layer": true},
        ]);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": format!("{OCI}manifest.v1+json"),
            "config": layout.json(&config, &format!("{OCI}config.v1+json")),
            "layers": [layout.blob(&layer.gzip, &format!("{OCI}layer.v1.tar+gzip"))],
        });
        let mut descriptor = layout.json(&manifest, &format!("{OCI}manifest.v1+json"));
        descriptor["platform"] = platform;
        manifests.push(descriptor);
    }
    let kind = format!("{OCI}index.v1+json");
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
    let index = layout.json(&index, &kind);
    layout.finish(index, "latest");
}

fn kitchen(folder: &Path, first: &LayerBlob, triggers: bool) {
    let mut layer = LayerTar::default();
    layer.dir("etc", 0o755);
    layer.file("etc/.wh.base-release", b"", 0o644, (0, 0));
    layer.dir("opt", 0o755);
    layer.file("opt/kitchen.txt", b"kitchen\n", 0o640, (1000, 2000));
    layer.dir("usr", 0o755);
    layer.dir("usr/share", 0o755);
    layer.dir("usr/share/data", 0o755);
    layer.file("usr/share/data/.wh..wh..opq", b"", 0o644, (0, 0));
    layer.file("usr/share/data/only.txt", b"only\n", 0o644, (0, 0));
    layer.entry("work/", b'5', 0o775, (1000, 1000), b"", "");
    let second = layer.finish();
    let mut layout = Writer::new(folder);
    let mut config = json!({
        "Env": [PATH, "KITCHEN=yes", "STACK=a:b"],
        "Entrypoint": ["/bin/echo", "entry"],
        "Cmd": ["cmd", "args"],
        "WorkingDir": "/work",
        "Labels": {"org.example.kind": "kitchen", "keep": "1"},
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGUSR1",
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_u64, "Retries": 2},
    });
    if triggers {
        config["OnBuild"] = json!([
            "ARG WHO=nobody",
            "COPY *.txt /onbuild/",
            "RUN echo \"hello $WHO\" > /onbuild/who",
            "ENV FROM_ONBUILD=$WHO",
        ]);
    } else {
        config["User"] = json!("app");
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "author": "Kitchen Author",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [first.diff_id, second.diff_id]},
        "history": [
            {"created": CREATED, "created_by": "busybox rootfs"},
            {"created": CREATED, "created_by": "kitchen layer", "author": "Kitchen Author",
             "comment": "second"},
            {"created": CREATED, "created_by": "kitchen config", "empty_layer": true},
        ],
    });
    let layer = format!("{DOCKER}image.rootfs.diff.tar.gzip");
    let manifest_kind = format!("{DOCKER}distribution.manifest.v2+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_kind,
        "config": layout.json(&config, &format!("{DOCKER}container.image.v1+json")),
        "layers": [layout.blob(&first.gzip, &layer), layout.blob(&second.gzip, &layer)],
    });
    let descriptor = layout.json(&manifest, &manifest_kind);
    layout.finish(descriptor, "1");
}

struct Writer {
    folder: PathBuf,
}

impl Writer {
    fn new(folder: &Path) -> Writer {
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("make a layout");
        Writer {
            folder: folder.to_owned(),
        }
    }

    fn blob(&mut self, bytes: &[u8], kind: &str) -> Value {
        let digest = sha256(bytes);
        let path = self.folder.join("blobs/sha256").join(&digest);
        std::fs::write(path, bytes).expect("write a blob");
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    fn json(&mut self, value: &Value, kind: &str) -> Value {
        self.blob(value.to_string().as_bytes(), kind)
    }

    fn finish(&mut self, mut top: Value, tag: &str) {
        top["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format!("{OCI}index.v1+json"),
            "manifests": [top],
        });
        let write = |name: &str, text: String| {
            std::fs::write(self.folder.join(name), text).expect("write a layout");
        };
        write("index.json", index.to_string());
        write(
            "oci-layout",
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        );
    }
}

struct LayerBlob {
    diff_id: String,
    gzip: Vec<u8>,
}

#[derive(Default)]
struct LayerTar {
    bytes: Vec<u8>,
}

impl LayerTar {
    fn dir(&mut self, name: &str, mode: u32) {
        self.entry(&format!("{name}/"), b'5', mode, (0, 0), b"", "");
    }

    fn file(&mut self, name: &str, data: &[u8], mode: u32, owner: (u32, u32)) {
        self.entry(name, b'0', mode, owner, data, "");
    }

    fn link(&mut self, name: &str, target: &str) {
        self.entry(name, b'2', 0o777, (0, 0), b"", target);
    }

    fn entry(
        &mut self,
        name: &str,
        kind: u8,
        mode: u32,
        owner: (u32, u32),
        data: &[u8],
        link: &str,
    ) {
        self.bytes
            .extend(header(name, kind, mode, owner, data.len(), link));
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    fn finish(mut self) -> LayerBlob {
        self.bytes.extend([0; 1024]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&self.bytes).expect("compress in memory");
        LayerBlob {
            diff_id: format!("sha256:{}", sha256(&self.bytes)),
            gzip: gzip.finish().expect("compress in memory"),
        }
    }
}

/// A ustar header of an entry of 2024-01-01.
fn header(
    name: &str,
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    size: usize,
    link: &str,
) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, &format!("{:07o}", owner.0));
    put(116, &format!("{:07o}", owner.1));
    put(124, &format!("{size:011o}"));
    put(136, &format!("{BASE_MTIME:011o}"));
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
