//! Images from layouts made by hand: odd layers, wrong contents, many at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use archive::{Compression, EntryKind, Header, Writer};
use async_trait::async_trait;
use bytes::Bytes;
use content::ContentStore;
use layers::{Backend, LayerStore};
use oci::{Descriptor, Digest, ImageManifest, Reference, media_type};
use parking_lot::Mutex;
use source::image::{BlobStream, ContentProvider, ImageRequest, ImageSource, PulledImage};
use source::oci_layout::{LayoutDir, OciLayout};
use status::{Silent, StatusSink};

/// A layout being put together.
struct Layout {
    dir: tempfile::TempDir,
}

/// A blob with the digest of what is packed in it.
type Packed = (Descriptor, Digest);

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Layout { dir }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        std::fs::write(self.path(descriptor.digest), bytes).unwrap();
        descriptor
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    fn layer(&self, kind: Compression, entries: &[(Header, &[u8])]) -> Packed {
        let mut tar = Writer::new(Vec::new());
        for (header, content) in entries {
            tar.append_bytes(header.clone(), content).unwrap();
        }
        let plain = tar.finish().unwrap();
        let mut packed = archive::compressor(Vec::new(), kind, None, 1).unwrap();
        packed.write_all(&plain).unwrap();
        let packed = packed.finish().unwrap();
        (
            self.blob(layers::layer_media_type(kind), &packed),
            Digest::of(&plain),
        )
    }

    /// An image of layers; returns its name.
    fn image(&self, layers: &[Packed]) -> Reference {
        let diff_ids: Vec<String> = layers.iter().map(|(_, id)| format!("\"{id}\"")).collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: None,
            config: self.blob(media_type::OCI_CONFIG, config.as_bytes()),
            layers: layers.iter().map(|(blob, _)| blob.clone()).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = self.blob(media_type::OCI_MANIFEST, &manifest).digest;
        "example.com/made/by:hand"
            .parse::<Reference>()
            .unwrap()
            .with_digest(digest)
    }

    fn provider(&self) -> OciLayout {
        OciLayout::new(Arc::new(LayoutDir::new(self.dir.path())))
    }
}

struct Site {
    _dir: tempfile::TempDir,
    layers: LayerStore,
    images: ImageSource,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content = ContentStore::open(dir.path().join("content")).unwrap();
        let layers = LayerStore::open(dir.path().join("layers"), Backend::Auto).unwrap();
        Site {
            images: ImageSource::new(content, layers.clone()),
            layers,
            _dir: dir,
        }
    }

    async fn pull(
        &self,
        provider: &dyn ContentProvider,
        name: &Reference,
    ) -> diag::Result<PulledImage> {
        let statuses: Arc<dyn StatusSink> = Arc::new(Silent);
        let request = request(name);
        let resolved = self.images.resolve(provider, &request, &statuses).await?;
        self.images.pull(provider, &resolved, &statuses).await
    }

    fn read(&self, image: &PulledImage, path: &str) -> Option<String> {
        let mounted = self.layers.mount(&image.stack).unwrap();
        std::fs::read_to_string(mounted.path().join(path)).ok()
    }
}

fn request(name: &Reference) -> ImageRequest {
    ImageRequest::new(name.clone(), "linux/amd64".parse().unwrap())
}

fn file(path: &str) -> Header {
    Header::file(path, 0)
}

fn dir(path: &str) -> Header {
    Header::directory(path)
}

fn link(path: &str, to: &str) -> Header {
    let mut header = Header::new(EntryKind::HardLink, path);
    header.link = to.into();
    header
}

#[tokio::test]
async fn layers_of_every_compression_are_stacked() {
    let (layout, site) = (Layout::new(), Site::new());
    let layers = [
        layout.layer(Compression::None, &[(dir("d"), b""), (file("d/a"), b"1")]),
        layout.layer(Compression::Gzip, &[(dir("d"), b""), (file("d/a"), b"2")]),
        layout.layer(
            Compression::Zstd,
            &[(dir("d"), b""), (file("d/.wh.a"), b""), (file("b"), b"3")],
        ),
    ];
    let name = layout.image(&layers);
    let image = site.pull(&layout.provider(), &name).await.unwrap();
    assert_eq!(image.stack.len(), 3);
    assert_eq!(site.read(&image, "d/a"), None);
    assert_eq!(site.read(&image, "b").as_deref(), Some("3"));
    let below = layout.image(&layers[..2]);
    let image = site.pull(&layout.provider(), &below).await.unwrap();
    assert_eq!(site.read(&image, "d/a").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_hard_link_into_a_lower_layer_and_a_missing_folder_entry_are_made_good() {
    let (layout, site) = (Layout::new(), Site::new());
    let mut special = dir("etc");
    special.mode = 0o711;
    let layers = [
        layout.layer(
            Compression::Gzip,
            &[(special, b""), (file("etc/base"), b"below")],
        ),
        layout.layer(Compression::Gzip, &[(link("etc/other", "etc/base"), b"")]),
        layout.layer(Compression::Gzip, &[(file("etc/third"), b"3")]),
    ];
    let name = layout.image(&layers);
    let image = site.pull(&layout.provider(), &name).await.unwrap();
    assert_eq!(site.read(&image, "etc/other").as_deref(), Some("below"));
    assert_eq!(site.read(&image, "etc/third").as_deref(), Some("3"));
    let mounted = site.layers.mount(&image.stack).unwrap();
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode(&mounted.path().join("etc")), 0o711);
}

#[tokio::test]
async fn contents_that_are_not_what_the_image_says_are_refused() {
    let (layout, site) = (Layout::new(), Site::new());
    let good = layout.layer(Compression::Gzip, &[(file("a"), b"1")]);
    let lying = (good.0.clone(), Digest::of("something else"));
    let name = layout.image(&[lying]);
    let Err(error) = site.pull(&layout.provider(), &name).await else {
        panic!("the diff ID is wrong")
    };
    assert!(error.to_string().contains("diff ID"), "{error}");
    assert!(site.layers.list().unwrap().is_empty());

    let name = layout.image(std::slice::from_ref(&good));
    let path = layout.path(good.0.digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[12] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let site = Site::new();
    let Err(error) = site.pull(&layout.provider(), &name).await else {
        panic!("the blob is damaged")
    };
    assert!(
        error.to_string().contains("unexpected commit digest"),
        "{error}"
    );

    std::fs::remove_file(path).unwrap();
    let Err(error) = site.pull(&layout.provider(), &name).await else {
        panic!("the blob is missing")
    };
    assert_eq!(error.code(), diag::Code::NotFound);
}

#[tokio::test]
async fn wishes_of_a_request_are_kept_to() {
    let (layout, site) = (Layout::new(), Site::new());
    let layers = [
        layout.layer(Compression::Gzip, &[(file("a"), b"1")]),
        layout.layer(Compression::Gzip, &[(file("b"), b"1")]),
    ];
    let name = layout.image(&layers);
    let (provider, statuses): (_, Arc<dyn StatusSink>) = (layout.provider(), Arc::new(Silent));
    let mut one = request(&name);
    one.layer_limit = Some(1);
    let resolved = site
        .images
        .resolve(&provider, &one, &statuses)
        .await
        .unwrap();
    assert_eq!(resolved.layers.len(), 1);
    assert_eq!(resolved.chain_id(), Some(layers[0].1));
    one.layer_limit = Some(3);
    assert!(
        site.images
            .resolve(&provider, &one, &statuses)
            .await
            .is_err()
    );
    let mut sure = request(&name);
    sure.checksum = Some(Digest::of("other"));
    let Err(error) = site.images.resolve(&provider, &sure, &statuses).await else {
        panic!("the checksum is wrong")
    };
    assert!(error.to_string().ends_with(&format!(
        "does not match expected checksum {}",
        Digest::of("other")
    )));
    let untagged: Reference = "example.com/x:y".parse().unwrap();
    let Err(error) = site
        .images
        .resolve(&provider, &request(&untagged), &statuses)
        .await
    else {
        panic!("layouts know no tags")
    };
    assert_eq!(
        error.to_string(),
        "reference \"example.com/x:y\" must have digest"
    );
}

/// Counts what is asked of another provider, and can make it stop in the middle of a blob.
struct Counting {
    inner: OciLayout,
    blobs: AtomicUsize,
    small: AtomicUsize,
    stuck: Mutex<Option<Arc<tokio::sync::Notify>>>,
}

impl Counting {
    fn new(inner: OciLayout) -> Self {
        Counting {
            inner,
            blobs: AtomicUsize::new(0),
            small: AtomicUsize::new(0),
            stuck: Mutex::new(None),
        }
    }
}

/// Brings one piece and then nothing.
struct Stuck(Option<Bytes>, Arc<tokio::sync::Notify>);

#[async_trait]
impl BlobStream for Stuck {
    async fn chunk(&mut self) -> diag::Result<Option<Bytes>> {
        match self.0.take() {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                self.1.notify_one();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ContentProvider for Counting {
    async fn resolve(&self, reference: &Reference) -> diag::Result<Descriptor> {
        self.inner.resolve(reference).await
    }

    async fn small(&self, reference: &Reference, descriptor: &Descriptor) -> diag::Result<Bytes> {
        self.small.fetch_add(1, Ordering::SeqCst);
        self.inner.small(reference, descriptor).await
    }

    async fn find(&self, reference: &Reference, digest: Digest) -> diag::Result<Descriptor> {
        self.inner.find(reference, digest).await
    }

    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> diag::Result<Box<dyn BlobStream>> {
        self.blobs.fetch_add(1, Ordering::SeqCst);
        let mut blob = self.inner.blob(reference, descriptor).await?;
        let stuck = self.stuck.lock().clone();
        match stuck {
            None => Ok(blob),
            Some(notify) => Ok(Box::new(Stuck(blob.chunk().await?, notify))),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_builds_that_want_an_image_get_it_once() {
    let (layout, site) = (Layout::new(), Arc::new(Site::new()));
    let big: Vec<u8> = (0..2_000_000u32).map(|n| (n / 7) as u8).collect();
    let layers: Vec<Packed> = (0..5)
        .map(|n| {
            let name = format!("file{n}");
            layout.layer(Compression::Gzip, &[(file(&name), &big)])
        })
        .collect();
    let name = layout.image(&layers);
    let provider = Arc::new(Counting::new(layout.provider()));
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (site, provider, name) = (site.clone(), provider.clone(), name.clone());
        pulls.spawn(async move { site.pull(provider.as_ref(), &name).await.unwrap().stack });
    }
    let stacks = pulls.join_all().await;
    assert!(stacks.iter().all(|stack| *stack == stacks[0]));
    assert_eq!(provider.blobs.load(Ordering::SeqCst), 5);
    assert_eq!(provider.small.load(Ordering::SeqCst), 2);
    assert_eq!(site.layers.list().unwrap().len(), 5);
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing_in_the_way_of_the_next() {
    let (layout, site) = (Layout::new(), Site::new());
    let big = vec![7; 3_000_000];
    let layers = [layout.layer(Compression::None, &[(file("big"), &big)])];
    let name = layout.image(&layers);
    let provider = Counting::new(layout.provider());
    let reached = Arc::new(tokio::sync::Notify::new());
    *provider.stuck.lock() = Some(reached.clone());
    tokio::select! {
        _ = site.pull(&provider, &name) => panic!("it cannot end"),
        () = reached.notified() => {}
    }
    assert!(site.layers.list().unwrap().is_empty());
    *provider.stuck.lock() = None;
    let image = site.pull(&provider, &name).await.unwrap();
    assert_eq!(site.read(&image, "big").unwrap().len(), big.len());
}

/// A layout with a list of what speaks about its manifests.
struct Signed {
    inner: OciLayout,
    referrers: Vec<Descriptor>,
}

#[async_trait]
impl ContentProvider for Signed {
    async fn resolve(&self, reference: &Reference) -> diag::Result<Descriptor> {
        self.inner.resolve(reference).await
    }

    async fn small(&self, reference: &Reference, descriptor: &Descriptor) -> diag::Result<Bytes> {
        self.inner.small(reference, descriptor).await
    }

    async fn find(&self, reference: &Reference, digest: Digest) -> diag::Result<Descriptor> {
        self.inner.find(reference, digest).await
    }

    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> diag::Result<Box<dyn BlobStream>> {
        self.inner.blob(reference, descriptor).await
    }

    async fn referrers(&self, _: &Reference, _: Digest) -> diag::Result<Vec<Descriptor>> {
        Ok(self.referrers.clone())
    }
}

fn json_of(layout: &Layout, kind: &str, value: &serde_json::Value) -> Descriptor {
    layout.blob(kind, value.to_string().as_bytes())
}

#[tokio::test]
async fn what_is_said_about_an_image_is_followed_from_its_index() {
    let (layout, site) = (Layout::new(), Site::new());
    let image = layout.image(&[layout.layer(Compression::None, &[(file("a"), b"a")])]);
    let path = layout.path(image.digest().unwrap());
    let size = std::fs::metadata(path).unwrap().len();
    let mut image = Descriptor::new(media_type::OCI_MANIFEST, image.digest().unwrap(), size);
    image.platform = Some(oci::Platform::new("linux", "amd64", ""));
    let statement = |text: &str| {
        let mut blob = layout.blob("application/vnd.in-toto+json", text.as_bytes());
        let kind = format!("https://x.test/{text}");
        blob.annotations
            .insert("in-toto.io/predicate-type".into(), kind);
        blob
    };
    let (sbom, provenance) = (statement("sbom"), statement("provenance"));
    let config = layout.blob(media_type::OCI_CONFIG, b"{}");
    let manifest = |layers: &[&Descriptor]| serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
    let mut attested = json_of(
        &layout,
        media_type::OCI_MANIFEST,
        &manifest(&[&sbom, &provenance]),
    );
    let annotations = [
        (
            "vnd.docker.reference.type".to_owned(),
            "attestation-manifest".to_owned(),
        ),
        (
            "vnd.docker.reference.digest".to_owned(),
            image.digest.to_string(),
        ),
    ];
    attested.annotations.extend(annotations);
    let bundle = layout.blob("application/vnd.dev.sigstore.bundle.v0.3+json", b"signed");
    let signature = |kind: &str, layers: &[&Descriptor]| {
        let mut signature = json_of(&layout, media_type::OCI_MANIFEST, &manifest(layers));
        signature.artifact_type = Some(kind.to_owned());
        signature
    };
    let cosign = signature("application/vnd.dev.cosign.artifact.sig.v1+json", &[]);
    let sigstore = signature("application/vnd.dev.sigstore.bundle.v0.3+json", &[&bundle]);
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [image, attested]});
    let index = json_of(&layout, media_type::OCI_INDEX, &list);
    let name = "x.test/i"
        .parse::<Reference>()
        .unwrap()
        .with_digest(index.digest);
    let silent: Arc<dyn StatusSink> = Arc::new(Silent);
    let mut provider = Signed {
        inner: layout.provider(),
        referrers: vec![cosign.clone(), config.clone(), sigstore.clone()],
    };
    let wanted = request(&name);
    let resolved = site
        .images
        .resolve(&provider, &wanted, &silent)
        .await
        .unwrap();
    let types = ["https://x.test/sbom".to_owned(), String::new()];
    let chain = site
        .images
        .attestation_chain(&provider, &resolved, &types)
        .await;
    let chain = chain.unwrap().expect("it is in an index");
    assert_eq!(
        (chain.root, chain.image_manifest),
        (index.digest, image.digest)
    );
    assert_eq!(chain.attestation_manifest, Some(attested.digest));
    assert_eq!(chain.signature_manifest, Some(sigstore.digest));
    let blobs: Vec<Digest> = chain.blobs.iter().map(|(blob, _)| blob.digest).collect();
    let along = [&index, &attested, &sigstore, &bundle, &sbom].map(|blob| blob.digest);
    assert_eq!(blobs, along);
    assert!(
        chain
            .blobs
            .iter()
            .all(|(blob, data)| Digest::of(data) == blob.digest)
    );
    provider.referrers = vec![cosign.clone()];
    let chain = site
        .images
        .attestation_chain(&provider, &resolved, &[])
        .await;
    let chain = chain.unwrap().unwrap();
    assert_eq!(chain.signature_manifest, Some(cosign.digest));
    assert_eq!(chain.blobs.len(), 3);
    // One that is in no index has none.
    let alone = name.with_digest(image.digest);
    let alone = site
        .images
        .resolve(&provider, &request(&alone), &silent)
        .await
        .unwrap();
    let none = site
        .images
        .attestation_chain(&provider, &alone, &[])
        .await
        .unwrap();
    assert_eq!(none, None);
}
