//! What generated graphs begin with: images of generated layers, one of archives, a local folder.

use std::path::Path;

use archive::{Compression, EntryKind, Header, Mtime, Writer};
use testkit::Dice;

use super::super::images::Pusher;
use super::super::{Matrix, REGISTRY};
use super::model::{Kind, Model, fresh};
use crate::workshop::text;

/// How many images of generated layers there are.
const IMAGES: u64 = 12;

/// Something to begin with.
#[derive(Clone)]
pub struct Base {
    /// Identifiers and attributes by which it can be had.
    pub sources: Vec<(String, Vec<(&'static str, String)>)>,
    pub model: Model,
    /// Whether it has a shell.
    pub shell: bool,
    /// What is in its layers, for people.
    pub shown: String,
}

/// Everything there is to begin with, and the client's flags for it.
pub struct World {
    pub bases: Vec<Base>,
    pub busybox: Base,
    pub flags: Vec<String>,
    /// Whether the peer knows what is newer than the Engine's BuildKit.
    pub newer: bool,
}

impl World {
    /// What is behind a source, for people.
    pub fn shown(&self, identifier: &str) -> &str {
        let is_meant = |base: &&Base| base.sources.iter().any(|(name, _)| name == identifier);
        self.bases
            .iter()
            .find(is_meant)
            .map_or("", |base| &base.shown)
    }
}

impl World {
    pub fn new(matrix: &Matrix) -> World {
        let pusher = Pusher::new(matrix);
        let mut bases: Vec<Base> = (0..IMAGES).map(|seed| image(&pusher, seed)).collect();
        bases.push(archives(&pusher));
        let folder = matrix.shop.lab.subdirectory("generated-context");
        bases.push(local(&folder));
        let secret = matrix.shop.lab.directory().join("generated-secret");
        std::fs::write(&secret, "of the client\n").unwrap();
        let flags = vec![
            format!("--oci-layout=images={}", text(&pusher.layout)),
            format!("--local=src={}", text(&folder)),
            format!("--secret=id=file,src={}", text(&secret)),
            "--secret=id=MATRIX_SECRET".to_owned(),
        ];
        let mut model = Model::default();
        for (path, kind) in [
            ("/etc/passwd", Kind::File),
            ("/etc/group", Kind::File),
            ("/home/app", Kind::Directory),
            ("/root", Kind::Directory),
            ("/tmp", Kind::Directory),
            ("/var/tmp", Kind::Directory),
        ] {
            model.put(path, kind);
        }
        World {
            bases,
            busybox: Base {
                sources: vec![(format!("docker-image://{}", matrix.base), Vec::new())],
                model,
                shell: true,
                shown: String::new(),
            },
            flags,
            newer: std::env::var_os(super::super::STOCK).is_some(),
        }
    }
}

/// The layers of one image being made.
struct Layers {
    dice: Dice,
    model: Model,
    time: i64,
    lowest: bool,
}

fn image(pusher: &Pusher, seed: u64) -> Base {
    let mut layers = Layers {
        dice: Dice::new(seed),
        model: Model::default(),
        time: 1_300_000_000 + seed as i64 * 10_000,
        lowest: true,
    };
    let count = 1 + layers.dice.below(4);
    let tars: Vec<Vec<u8>> = (0..count).map(|number| layers.layer(number)).collect();
    pushed(pusher, &format!("i{seed}"), &tars, layers.model)
}

fn pushed(pusher: &Pusher, tag: &str, tars: &[Vec<u8>], model: Model) -> Base {
    let described = pusher.image_of("generated", Some(tag), "linux/amd64", tars);
    let digest = described["digest"].as_str().unwrap();
    let store = vec![("oci.store", "images".to_owned())];
    Base {
        sources: vec![
            (
                format!("docker-image://{REGISTRY}/generated:{tag}"),
                Vec::new(),
            ),
            (format!("oci-layout://x/generated@{digest}"), store),
        ],
        model,
        shell: false,
        shown: tars.iter().enumerate().map(layer_shown).collect(),
    }
}

fn layer_shown((number, tar): (usize, &Vec<u8>)) -> String {
    let mut text = format!("    layer {number}\n");
    let mut reader = archive::Reader::new(tar.as_slice());
    while let Some(entry) = reader.next_entry().unwrap() {
        let header = entry.header();
        let (path, link) = (&header.path, &header.link);
        text += &format!(
            "      {:?} {} {:o} {}:{} @{} {}\n",
            header.kind,
            String::from_utf8_lossy(path),
            header.mode,
            header.uid,
            header.gid,
            header.mtime.secs,
            String::from_utf8_lossy(link)
        );
    }
    text
}

impl Layers {
    fn layer(&mut self, number: usize) -> Vec<u8> {
        // What the lowest layer takes away is lost in stock.
        self.lowest = number == 0;
        let mut writer = Writer::new(Vec::new());
        let mut files: Vec<String> = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..4 + self.dice.below(10) {
            let path = match self.dice.one_in(3) {
                true => self.model.existing(&mut self.dice, None),
                false => self.model.place(&mut self.dice),
            };
            let touched = |seen: &String| *seen == path || seen.starts_with(&format!("{path}/"));
            if !self.model.leads_to(&path) || seen.iter().any(touched) {
                continue;
            }
            self.make_parents(&path, &mut seen, &mut writer);
            self.entry(&path, &mut files, &mut writer);
            seen.push(path);
        }
        writer.finish().unwrap()
    }

    fn make_parents(&mut self, path: &str, seen: &mut Vec<String>, writer: &mut Writer<Vec<u8>>) {
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = &path[..at];
            let known = self.model.kind(parent).is_some();
            if seen.iter().any(|seen| seen == parent) || (known && !self.dice.one_in(3)) {
                continue;
            }
            let header = self.header(EntryKind::Directory, parent);
            writer.append_bytes(header, b"").unwrap();
            self.model.put(parent, Kind::Directory);
            seen.push(parent.to_owned());
        }
    }

    fn entry(&mut self, path: &str, files: &mut Vec<String>, writer: &mut Writer<Vec<u8>>) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let known = self.model.kind(path);
        let roll = self.dice.below(14);
        let (kind, link) = match roll {
            0..=2 => (EntryKind::Directory, String::new()),
            3 => (EntryKind::Symlink, self.target()),
            4 if !files.is_empty() => {
                let names: Vec<&str> = files.iter().map(String::as_str).collect();
                (EntryKind::HardLink, self.dice.pick(&names)[1..].to_owned())
            }
            5 => (EntryKind::Fifo, String::new()),
            6 => (EntryKind::CharDevice, String::new()),
            7 | 8 if known.is_some() && !self.lowest => {
                let gone = self.header(EntryKind::Regular, &format!("{parent}/.wh.{name}"));
                writer.append_bytes(gone, b"").unwrap();
                self.model.remove(path);
                return;
            }
            9 if !self.lowest && known.is_none_or(|known| known == Kind::Directory) => {
                let header = self.header(EntryKind::Directory, path);
                writer.append_bytes(header, b"").unwrap();
                let opaque = self.header(EntryKind::Regular, &format!("{path}/.wh..wh..opq"));
                writer.append_bytes(opaque, b"").unwrap();
                self.model.remove(path);
                self.model.put(path, Kind::Directory);
                return;
            }
            _ => (EntryKind::Regular, String::new()),
        };
        let mut header = self.header(kind, path);
        header.link = link.into_bytes();
        if kind == EntryKind::CharDevice {
            (header.dev_major, header.dev_minor) = (1, self.dice.pick(&[3, 5, 7, 8, 9]));
        }
        let content = format!("{path} of {}\n", self.time);
        let content = match kind {
            EntryKind::Regular if !self.dice.one_in(6) => content.as_bytes(),
            _ => b"",
        };
        writer.append_bytes(header, content).unwrap();
        let kind = match kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink => Kind::Link,
            EntryKind::Regular | EntryKind::HardLink => Kind::File,
            _ => Kind::Other,
        };
        files.retain(|file| file != path);
        if kind == Kind::File {
            files.push(path.to_owned());
        }
        self.model.put(path, kind);
    }

    fn target(&mut self) -> String {
        let there = self.model.existing(&mut self.dice, None);
        match self.dice.below(6) {
            0 => fresh(&mut self.dice),
            1 => format!("..{there}"),
            2 => there[1..].to_owned(),
            3 => "../../../../..".to_owned() + &there,
            4 => self
                .dice
                .pick(&[".", "..", "l", "/", "nonesuch"])
                .to_owned(),
            _ => there,
        }
    }

    fn header(&mut self, kind: EntryKind, path: &str) -> Header {
        let dice = &mut self.dice;
        let mut header = match kind {
            EntryKind::Directory => Header::directory(&path[1..]),
            _ => Header::new(kind, &path[1..]),
        };
        let modes: &[u32] = match kind {
            EntryKind::Symlink => &[0o777],
            EntryKind::Directory => &[0o755, 0o755, 0o700, 0o1777, 0o2775, 0o711],
            _ => &[0o644, 0o644, 0o600, 0o4755, 0o2711, 0o777, 0o444],
        };
        header.mode = dice.pick(modes);
        (header.uid, header.gid) = dice.pick(&[(0, 0), (0, 0), (1000, 10), (65534, 5), (70000, 1)]);
        self.time += 1;
        header.mtime = Mtime::from_secs(self.time);
        if matches!(kind, EntryKind::Regular | EntryKind::Directory) {
            if dice.one_in(6) {
                let value = format!("x{}", self.time).into_bytes();
                header.xattrs.insert(b"user.cask".to_vec(), value);
            }
            if kind == EntryKind::Regular && dice.one_in(8) {
                let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let name = b"security.capability".to_vec();
                header.xattrs.insert(name, capability.to_vec());
            }
        }
        header
    }
}

/// Names of the archives in their image; some are none.
const ARCHIVES: &[&str] = &[
    "t.tar",
    "t.tar.gz",
    "t.tar.zst",
    "t.tar.bz2",
    "t.tar.xz",
    "cut.tar",
    "cut.tar.gz",
    "text",
    "empty",
    "zeros",
    "text.gz",
    "named.txt",
];

fn packed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut writer = archive::compressor(Vec::new(), compression, None, 1).unwrap();
    std::io::Write::write_all(&mut writer, bytes).unwrap();
    writer.finish().unwrap()
}

fn archives(pusher: &Pusher) -> Base {
    let mut inner = Layers {
        dice: Dice::new(1000),
        model: Model::default(),
        time: 1_200_000_000,
        lowest: true,
    };
    let tar = inner.layer(0);
    let gzip = packed(&tar, Compression::Gzip);
    let mut writer = Writer::new(Vec::new());
    let mut model = Model::default();
    for (number, name) in ARCHIVES.iter().enumerate() {
        let bytes = match *name {
            "t.tar" | "named.txt" => tar.clone(),
            "t.tar.gz" => gzip.clone(),
            "t.tar.zst" => packed(&tar, Compression::Zstd),
            "t.tar.bz2" => include_bytes!("t.tar.bz2").to_vec(),
            "t.tar.xz" => include_bytes!("t.tar.xz").to_vec(),
            "cut.tar" => tar[..700].to_vec(),
            "cut.tar.gz" => gzip[..gzip.len() / 2].to_vec(),
            "text" => b"hello\n".to_vec(),
            "zeros" => vec![0; 10240],
            "text.gz" => packed(b"hello\n", Compression::Gzip),
            _ => Vec::new(),
        };
        let mut header = Header::new(EntryKind::Regular, format!("ar/{name}"));
        header.mtime = Mtime::from_secs(1_250_000_000 + number as i64);
        writer.append_bytes(header, &bytes).unwrap();
        model.put(&format!("/ar/{name}"), Kind::File);
    }
    pushed(pusher, "archives", &[writer.finish().unwrap()], model)
}

const FOLDER: &str = "mkdir -p a/b/c b 'with space' .hid; echo 1 >a/x.txt; echo 2 >a/y.md; echo 3 >a/b/z; echo 4 >a/b/c/x.txt; \
    echo 5 >z; echo 6 >.hid/z; echo 7 >'with space/s p'; ln -s a/x.txt l; ln -s b a/l; ln -s ../z a/b/up; ln -s /nowhere b/gone; \
    ln a/x.txt b/hard; mkfifo b/pipe; chmod 600 a/y.md; chmod 4755 z; chmod 1770 b; chown 1000:10 a/b/z; \
    find . -depth | while read f; do touch -h -d '2014-01-02 03:04:05' \"$f\"; done";

fn local(folder: &Path) -> Base {
    let made = std::process::Command::new("sh")
        .args(["-ec", FOLDER])
        .current_dir(folder)
        .status();
    assert!(made.unwrap().success());
    archive::xattr::set(&folder.join("a/b/z"), b"user.cask", b"local").unwrap();
    let mut model = Model::default();
    for directory in ["/a/b/c", "/b", "/with space", "/.hid"] {
        model.put(directory, Kind::Directory);
    }
    for file in [
        "/a/x.txt",
        "/a/y.md",
        "/a/b/z",
        "/a/b/c/x.txt",
        "/z",
        "/.hid/z",
        "/with space/s p",
        "/b/hard",
    ] {
        model.put(file, Kind::File);
    }
    for link in ["/l", "/a/l", "/a/b/up", "/b/gone"] {
        model.put(link, Kind::Link);
    }
    let attrs: &[&[(&'static str, &str)]] = &[
        &[],
        &[("local.includepattern", "[\"a\",\"z\"]")],
        &[("local.includepattern", "[\"**/*.txt\",\"l\"]")],
        &[("local.excludepatterns", "[\"a/b\",\"!a/b/c\",\"b/gone\"]")],
        &[("local.excludepatterns", "[\"**/z\",\"**/pipe\"]")],
        &[("local.followpaths", "[\"l\",\"a/b/up\"]")],
        &[("local.followpaths", "[\"a/l\",\"*.none\",\"b/*\"]")],
        &[
            ("local.followpaths", "[\"a\"]"),
            ("local.excludepatterns", "[\"**/*.md\"]"),
        ],
        &[
            ("local.differ", "none"),
            ("local.includepattern", "[\"a/*\"]"),
        ],
    ];
    let source = |attrs: &&[(&'static str, &str)]| {
        let owned = attrs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        ("local://src".to_owned(), owned.collect())
    };
    Base {
        sources: attrs.iter().map(source).collect(),
        model,
        shell: false,
        shown: format!("    {FOLDER}\n"),
    }
}
