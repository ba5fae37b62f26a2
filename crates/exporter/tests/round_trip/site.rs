//! A site: stores with an exporter and a source of images; and a client that takes what is exported.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use content::ContentStore;
use exporter::{
    ClientTarget, ExportContext, ExportSource, Exported, Exporter, ExporterSpec, PlatformImage,
    SentBytes, Tree,
};
use layers::{Backend, LayerNote, LayerStack, LayerStore};
use oci::{Descriptor, Digest, Platform, Reference};
use registry::{Client, RegistryHosts};
use source::image::{ContentProvider, ImageRequest, ImageSource};
use source::oci_layout::{LayoutDir, OciLayout};
use status::{Silent, StatusSink};
use tokio::io::AsyncWrite;

pub struct Site {
    pub dir: tempfile::TempDir,
    pub content: ContentStore,
    pub layers: LayerStore,
    pub exporter: Exporter,
    pub images: ImageSource,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content = ContentStore::open(dir.path().join("content")).unwrap();
        let layers = LayerStore::open(dir.path().join("layers"), Backend::Auto).unwrap();
        Site {
            exporter: Exporter::new(content.clone(), layers.clone()),
            images: ImageSource::new(content.clone(), layers.clone()),
            dir,
            content,
            layers,
        }
    }

    /// Adds a layer made by a function to a stack.
    pub fn layer(&self, below: &LayerStack, note: &str, fill: impl FnOnce(&Path)) -> LayerStack {
        let writable = self.layers.writable(below).unwrap();
        fill(&writable.path());
        writable.commit(LayerNote::new(note)).unwrap()
    }

    /// Two layers with something of everything.
    pub fn sample(&self) -> LayerStack {
        let base = self.layer(&LayerStack::empty(), "base", |root| {
            std::fs::create_dir_all(root.join("etc/deep")).unwrap();
            std::fs::write(root.join("etc/a"), "a").unwrap();
            // Layers cut times, archives round them: this one is the same in both.
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_200_000_000);
            let file = std::fs::File::open(root.join("etc/a")).unwrap();
            file.set_modified(time).unwrap();
            std::fs::write(root.join("etc/gone"), "x").unwrap();
            std::fs::hard_link(root.join("etc/a"), root.join("etc/b")).unwrap();
            std::os::unix::fs::symlink("a", root.join("etc/link")).unwrap();
            let big: Vec<u8> = (0..3_000_000u32)
                .map(|n| (n.wrapping_mul(n) >> 7) as u8)
                .collect();
            std::fs::write(root.join("big"), big).unwrap();
        });
        self.layer(&base, "[2/2] RUN change", |root| {
            std::fs::remove_file(root.join("etc/gone")).unwrap();
            std::fs::write(root.join("etc/new"), "n").unwrap();
            let mode = std::fs::Permissions::from_mode(0o4711);
            std::fs::set_permissions(root.join("etc/new"), mode).unwrap();
            std::os::unix::fs::chown(root.join("etc/new"), Some(5), Some(6)).unwrap();
        })
    }

    pub async fn export(
        &self,
        kind: &str,
        attrs: &[(&str, &str)],
        source: &ExportSource,
        client: Option<&dyn ClientTarget>,
        statuses: Arc<dyn StatusSink>,
    ) -> diag::Result<Exported> {
        let attrs: BTreeMap<String, String> = attrs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let (spec, unknown) = ExporterSpec::parse(kind, &attrs)?;
        assert!(unknown.is_empty(), "{unknown:?}");
        let context = ExportContext {
            client,
            registry: &registry_client(),
            statuses,
        };
        self.exporter.export(&spec, source, context).await
    }

    /// An export that succeeds and whose statuses nobody sees.
    pub async fn exported(
        &self,
        kind: &str,
        attrs: &[(&str, &str)],
        source: &ExportSource,
        client: Option<&dyn ClientTarget>,
    ) -> Exported {
        let exported = self.export(kind, attrs, source, client, silent()).await;
        exported.unwrap()
    }

    /// Resolves and pulls an image; returns its stack.
    pub async fn pull(&self, from: &dyn ContentProvider, request: &ImageRequest) -> LayerStack {
        let images = &self.images;
        let resolved = images.resolve(from, request, &silent()).await.unwrap();
        let pulled = images.pull(from, &resolved, &silent()).await.unwrap();
        pulled.stack
    }

    /// The same out of a folder that is an image layout.
    pub async fn pull_layout(&self, layout: &Path, digest: Digest) -> LayerStack {
        let name: Reference = "docker.io/library/busy".parse().unwrap();
        let request = ImageRequest::new(name.with_digest(digest), amd64());
        let layout = OciLayout::new(Arc::new(LayoutDir::new(layout)));
        self.pull(&layout, &request).await
    }

    /// Names, modes, owners and contents of all files of a stack.
    pub fn tree(&self, stack: &LayerStack) -> BTreeMap<PathBuf, String> {
        let mounted = self.layers.mount(stack).unwrap();
        tree_of(mounted.path())
    }
}

pub fn registry_client() -> Client {
    Client::new(RegistryHosts::default())
}

pub fn silent() -> Arc<dyn StatusSink> {
    Arc::new(Silent)
}

pub fn tree_of(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                folders.push(path.clone());
                "dir".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else {
                let links = if meta.nlink() > 1 { " linked" } else { "" };
                let bytes = std::fs::read(&path).unwrap();
                format!("{}{links}", oci::Digest::of(bytes))
            };
            let text = format!(
                "{:o} {}:{} {} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime()
            );
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    tree
}

pub fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub fn image(stack: LayerStack, platform: &str) -> PlatformImage {
    let parsed: Platform = platform.parse().unwrap();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":[]}},"history":[{{"created_by":"base"}},{{"created_by":"CMD [\"sh\"]","empty_layer":true}},{{"created_by":"RUN change"}}]}}"#,
        parsed.architecture
    );
    PlatformImage {
        id: platform.to_owned(),
        platform: parsed,
        stack,
        config: Some(config.into_bytes()),
        ..PlatformImage::default()
    }
}

/// Takes what is exported into a folder of its own.
pub struct Taker {
    pub dir: tempfile::TempDir,
    pub metadata: Mutex<BTreeMap<String, String>>,
    pub trees: Mutex<Vec<(Option<String>, BTreeMap<PathBuf, String>)>>,
    pub refuses: bool,
}

impl Taker {
    pub fn new() -> Self {
        Taker {
            dir: tempfile::tempdir().unwrap(),
            metadata: Mutex::default(),
            trees: Mutex::default(),
            refuses: false,
        }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// The archive unpacked by GNU tar.
    pub fn unpacked(&self) -> PathBuf {
        let into = self.dir.path().join("unpacked");
        std::fs::create_dir(&into).unwrap();
        let done = std::process::Command::new("tar")
            .args(["--same-owner", "--warning=no-timestamp", "-xpf"])
            .arg(self.file())
            .arg("-C")
            .arg(&into)
            .status()
            .unwrap();
        assert!(done.success());
        into
    }
}

#[async_trait]
impl ClientTarget for Taker {
    async fn send_file(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> diag::Result<Pin<Box<dyn AsyncWrite + Send>>> {
        if self.refuses {
            let code = diag::Code::AlreadyExists;
            return Err(diag::Error::new(code, "it is here"));
        }
        *self.metadata.lock().unwrap() = metadata.clone();
        Ok(Box::pin(tokio::fs::File::create(self.file()).await?))
    }

    async fn send_trees(
        &self,
        trees: Vec<Tree>,
        _delete: bool,
        sent: SentBytes,
    ) -> diag::Result<()> {
        for tree in trees {
            let entry = (tree.folder, tree_of(&tree.root));
            self.trees.lock().unwrap().push(entry);
        }
        sent(7);
        Ok(())
    }

    async fn send_blobs(&self, content: &ContentStore, blobs: Vec<Descriptor>) -> diag::Result<()> {
        let dir = self.dir.path().join("blobs/sha256");
        std::fs::create_dir_all(&dir)?;
        for blob in blobs {
            std::fs::copy(content.path(&blob.digest), dir.join(blob.digest.hex()))?;
        }
        Ok(())
    }
}
