//! Images out and in again: export, push to a real registry, pull, archives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../../registry/tests/support/docker_registry.rs"]
mod docker_registry;
mod site;

use std::path::Path;
use std::sync::Arc;

use docker_registry::DockerRegistry;
use exporter::{ExportSource, Exported};
use oci::{ImageConfig, ImageIndex, ImageManifest, Reference, media_type};
use source::image::ImageRequest;
use status::{Recorder, StatusSink};

use site::{Site, Taker, amd64, image, registry_client, silent, tree_of};

#[tokio::test]
async fn a_pushed_image_comes_back_as_the_same_files_and_layers() {
    let (peer, site) = (DockerRegistry::plain(), Site::new());
    let stack = site.sample();
    let source = ExportSource::single(image(stack.clone(), "linux/amd64"));
    let name = format!("{}/round/trip", peer.host);
    let recorder = Arc::new(Recorder::default());
    let attrs = [("name", name.as_str()), ("push", "true")];
    let exported = site
        .export("image", &attrs, &source, None, recorder.clone())
        .await
        .unwrap();
    let digest = exported.response["containerimage.digest"].clone();
    assert_eq!(exported.response["image.name"], name);
    let committed = exported.image.unwrap();
    let config_digest = committed.manifests[0].config.digest;
    assert_eq!(
        exported.response["containerimage.config.digest"],
        config_digest.to_string()
    );
    assert_eq!(
        recorder.completed(),
        [
            "exporting layers".to_owned(),
            format!("exporting manifest {digest}"),
            format!("exporting config {config_digest}"),
            "pushing layers".to_owned(),
            format!("pushing manifest for {name}:latest@{digest}"),
        ]
    );

    let other = Site::new();
    let reference: Reference = name.parse().unwrap();
    let request = ImageRequest::new(reference, amd64());
    let client = registry_client();
    let recorder = Arc::new(Recorder::default());
    let statuses: Arc<dyn StatusSink> = recorder.clone();
    let resolved = other
        .images
        .resolve(&client, &request, &statuses)
        .await
        .unwrap();
    assert_eq!(resolved.digest().to_string(), digest);
    let config = resolved.image_config().unwrap();
    assert_eq!(config.history.len(), 3);
    assert!(config.created.is_some());
    let pulled = other
        .images
        .pull(&client, &resolved, &statuses)
        .await
        .unwrap();
    assert_eq!(other.tree(&pulled.stack), site.tree(&stack));
    let completed = recorder.completed();
    assert_eq!(completed[0], format!("resolve {name}:latest"));
    for layer in &resolved.layers {
        let digest = layer.descriptor.digest.to_string();
        assert!(completed.contains(&digest));
        assert!(completed.contains(&format!("extracting {digest}")));
    }
    let again = other
        .images
        .pull(&client, &resolved, &statuses)
        .await
        .unwrap();
    assert_eq!(again.stack, pulled.stack);

    // What was pulled is exported with the blobs it came with, and mounted in the registry.
    let mut from_pulled = image(pulled.stack.clone(), "linux/amd64");
    from_pulled.config = Some(resolved.config.to_vec());
    let again_name = format!("{}/again:v2", peer.host);
    let attrs = [("name", again_name.as_str()), ("push", "true")];
    let exported = other
        .exported("image", &attrs, &ExportSource::single(from_pulled), None)
        .await;
    assert_eq!(exported.response["containerimage.digest"], digest);
    let sources = &exported.image.unwrap().manifests[0].layers[0].sources;
    assert_eq!(sources[&peer.host], ["round/trip"]);
}

#[tokio::test]
async fn several_platforms_become_an_index_from_which_each_is_pulled() {
    let (peer, site) = (DockerRegistry::plain(), Site::new());
    let first = site.sample();
    let second = site.layer(&first, "three", |root| {
        std::fs::write(root.join("arm"), "arm").unwrap();
    });
    let source = ExportSource {
        platforms: vec![
            image(first.clone(), "linux/amd64"),
            image(second.clone(), "linux/arm64"),
        ],
        multi: true,
        ..ExportSource::default()
    };
    let name = format!("{}/multi:1", peer.host);
    let attrs = [
        ("name", name.as_str()),
        ("push", "true"),
        ("annotation-index.of", "all"),
        ("annotation[linux/arm64].of", "arm"),
    ];
    let exported = site.exported("image", &attrs, &source, None).await;
    assert!(
        !exported
            .response
            .contains_key("containerimage.config.digest")
    );
    let committed = exported.image.unwrap();
    let index: ImageIndex =
        serde_json::from_slice(&site.content.read(&committed.descriptor.digest).unwrap()).unwrap();
    assert_eq!(index.annotations["of"], "all");
    let platforms: Vec<String> = index
        .manifests
        .iter()
        .map(|one| one.platform.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);

    let other = Site::new();
    let client = registry_client();
    for (platform, stack) in [("linux/amd64", &first), ("linux/arm64/v8", &second)] {
        let request = ImageRequest::new(name.parse().unwrap(), platform.parse().unwrap());
        let pulled = other.pull(&client, &request).await;
        assert_eq!(other.tree(&pulled), site.tree(stack), "{platform}");
    }
    let request = ImageRequest::new(name.parse().unwrap(), "linux/s390x".parse().unwrap());
    let Err(error) = other.images.resolve(&client, &request, &silent()).await else {
        panic!("there is no such platform")
    };
    assert_eq!(
        error.to_string(),
        format!(
            "no match for platform in manifest {}: not found",
            committed.descriptor.digest
        )
    );
}

#[tokio::test]
async fn a_docker_archive_has_what_docker_load_and_oci_tools_want() {
    let site = Site::new();
    let stack = site.sample();
    let source = ExportSource::single(image(stack.clone(), "linux/amd64"));
    let taker = Taker::new();
    let attrs = [
        ("name", "busy,example.com/x/y:z"),
        ("source-date-epoch", "0"),
    ];
    let exported = site.exported("docker", &attrs, &source, Some(&taker)).await;
    assert_eq!(
        exported.response["image.name"],
        "docker.io/library/busy:latest,example.com/x/y:z"
    );
    assert_eq!(*taker.metadata.lock().unwrap(), exported.response);
    let dir = taker.unpacked();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    let manifest: serde_json::Value = serde_json::from_str(&read("manifest.json")).unwrap();
    assert_eq!(
        manifest[0]["RepoTags"],
        serde_json::json!(["busy:latest", "example.com/x/y:z"])
    );
    assert_eq!(manifest[0]["Layers"].as_array().unwrap().len(), 2);
    let config = read(manifest[0]["Config"].as_str().unwrap());
    let config: ImageConfig = serde_json::from_str(&config).unwrap();
    assert!(
        config
            .history
            .iter()
            .all(|h| h.created.as_deref() == Some("1970-01-01T00:00:00Z"))
    );
    let index: ImageIndex = serde_json::from_str(&read("index.json")).unwrap();
    assert_eq!(index.manifests.len(), 2);
    let notes = &index.manifests[1].annotations;
    assert_eq!(notes["io.containerd.image.name"], "example.com/x/y:z");
    assert_eq!(notes["org.opencontainers.image.ref.name"], "z");
    assert_eq!(
        notes["org.opencontainers.image.created"],
        "1970-01-01T00:00:00Z"
    );
    // The same layout as a source of images.
    let other = Site::new();
    let pulled = other.pull_layout(&dir, index.manifests[0].digest).await;
    assert_eq!(other.tree(&pulled), site.tree(&stack));
}

#[tokio::test]
async fn equal_results_give_equal_archives() {
    let site = Site::new();
    let mut stack = None;
    let mut bytes = Vec::new();
    for _ in 0..2 {
        let stack = stack.get_or_insert_with(|| site.sample()).clone();
        let taker = Taker::new();
        let attrs = [("source-date-epoch", "1700000000"), ("name", "x")];
        let source = ExportSource::single(image(stack, "linux/amd64"));
        site.exported("oci", &attrs, &source, Some(&taker)).await;
        bytes.push(std::fs::read(taker.file()).unwrap());
    }
    assert!(bytes[0] == bytes[1]);
}

#[tokio::test]
async fn a_client_that_has_the_image_is_left_alone() {
    let site = Site::new();
    let mut taker = Taker::new();
    taker.refuses = true;
    let source = ExportSource::single(image(site.sample(), "linux/amd64"));
    let exported = site.exported("docker", &[], &source, Some(&taker)).await;
    assert!(exported.response.contains_key("containerimage.digest"));
}

async fn manifest_of(site: &Site, exported: &Exported) -> ImageManifest {
    let digest = exported.image.as_ref().unwrap().manifests[0]
        .descriptor
        .digest;
    serde_json::from_slice(&site.content.read(&digest).unwrap()).unwrap()
}

#[tokio::test]
async fn compression_is_as_asked_for_and_forced_only_when_told() {
    let site = Site::new();
    let source = ExportSource::single(image(site.sample(), "linux/amd64"));
    let kinds = |manifest: &ImageManifest| {
        let all = manifest.layers.iter().map(|layer| layer.media_type.clone());
        all.collect::<Vec<_>>()
    };
    let first = site.exported("image", &[], &source, None).await;
    let first = manifest_of(&site, &first).await;
    assert_eq!(kinds(&first), [media_type::OCI_LAYER_GZIP; 2]);
    let asked = [("compression", "zstd")];
    let kept = site.exported("image", &asked, &source, None).await;
    assert_eq!(manifest_of(&site, &kept).await.layers, first.layers);
    let forced = [("compression", "zstd"), ("force-compression", "true")];
    let forced = site.exported("image", &forced, &source, None).await;
    let forced_manifest = manifest_of(&site, &forced).await;
    assert_eq!(kinds(&forced_manifest), [media_type::OCI_LAYER_ZSTD; 2]);
    assert_eq!(
        forced_manifest.config.digest, first.config.digest,
        "the archives are the same"
    );
    let docker = [("oci-mediatypes", "false")];
    let docker = site.exported("image", &docker, &source, None).await;
    let docker = manifest_of(&site, &docker).await;
    assert_eq!(docker.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(kinds(&docker), [media_type::DOCKER_LAYER_GZIP; 2]);
}

#[tokio::test]
async fn rewritten_timestamps_reach_into_the_layers() {
    let site = Site::new();
    let source = ExportSource::single(image(site.sample(), "linux/amd64"));
    let taker = Taker::new();
    let attrs = [
        ("source-date-epoch", "1000000000"),
        ("rewrite-timestamp", "true"),
    ];
    let recorder = Arc::new(Recorder::default());
    site.export("oci", &attrs, &source, Some(&taker), recorder.clone())
        .await
        .unwrap();
    let text = "rewriting layers with source-date-epoch 1000000000 (2001-09-09 01:46:40 +0000 UTC)";
    assert!(recorder.completed().contains(&text.to_owned()));
    let other = Site::new();
    let dir = taker.unpacked();
    let index: ImageIndex =
        serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let pulled = other.pull_layout(&dir, index.manifests[0].digest).await;
    let tree = other.tree(&pulled);
    assert!(
        tree.values().all(|text| text.contains(" 1000000000 ")),
        "{tree:#?}"
    );
}

#[tokio::test]
async fn files_go_into_the_clients_folder_or_an_archive() {
    let site = Site::new();
    let stack = site.sample();
    let expected = site.tree(&stack);
    let single = ExportSource::single(image(stack.clone(), "linux/amd64"));
    let taker = Taker::new();
    let recorder = Arc::new(Recorder::default());
    site.export("local", &[], &single, Some(&taker), recorder.clone())
        .await
        .unwrap();
    assert_eq!(*taker.trees.lock().unwrap(), [(None, expected.clone())]);
    assert_eq!(recorder.completed(), ["copying files"]);

    let double = ExportSource {
        platforms: vec![
            image(stack.clone(), "linux/amd64"),
            image(stack.clone(), "linux/arm/v7"),
        ],
        multi: true,
        ..ExportSource::default()
    };
    let taker = Taker::new();
    site.exported("local", &[], &double, Some(&taker)).await;
    let mut folders: Vec<_> = {
        let trees = taker.trees.lock().unwrap();
        trees
            .iter()
            .map(|(folder, _)| folder.clone().unwrap())
            .collect()
    };
    folders.sort();
    assert_eq!(folders, ["linux_amd64", "linux_arm_v7"]);
    let together = [("platform-split", "false")];
    let Err(error) = site
        .export("local", &together, &double, Some(&taker), silent())
        .await
    else {
        panic!("the platforms have the same files")
    };
    assert!(
        error
            .to_string()
            .ends_with("from linux/amd64 with linux/arm/v7 when split option is disabled"),
        "{error}"
    );

    let taker = Taker::new();
    site.exported("tar", &[], &double, Some(&taker)).await;
    let unpacked = taker.unpacked();
    let seconds = tree_of(&unpacked.join("linux_arm_v7"));
    let names: Vec<_> = seconds.keys().cloned().collect();
    let wanted: Vec<_> = expected.keys().cloned().collect();
    assert_eq!(names, wanted);
    assert_eq!(seconds[Path::new("etc/a")], expected[Path::new("etc/a")]);
}

#[tokio::test]
async fn blobs_instead_of_an_archive_go_into_the_clients_store() {
    let site = Site::new();
    let stack = site.sample();
    let taker = Taker::new();
    let source = ExportSource::single(image(stack.clone(), "linux/amd64"));
    let attrs = [("tar", "false")];
    let exported = site.exported("oci", &attrs, &source, Some(&taker)).await;
    let other = Site::new();
    let digest = exported.response["containerimage.digest"].parse().unwrap();
    let pulled = other.pull_layout(taker.dir.path(), digest).await;
    assert_eq!(other.tree(&pulled), site.tree(&stack));
    assert!(site.dir.path().exists());
}
