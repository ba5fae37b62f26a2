//! Images of registries and OCI layouts: which manifest is meant, and what cannot be used.

use oci::{Digest, Platform, media_type};
use serde_json::{Value, json};

use super::{Case, Matrix, REGISTRY};
use crate::workshop::text;

/// Puts images into the registry, and what they consist of into an OCI layout.
pub struct Pusher<'a> {
    matrix: &'a Matrix,
    pub layout: std::path::PathBuf,
}

impl<'a> Pusher<'a> {
    pub fn new(matrix: &'a Matrix) -> Self {
        let layout = matrix.shop.lab.subdirectory("images-layout");
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        std::fs::write(layout.join("oci-layout"), version).unwrap();
        std::fs::write(
            layout.join("index.json"),
            r#"{"schemaVersion":2,"manifests":[]}"#,
        )
        .unwrap();
        Pusher { matrix, layout }
    }

    fn keep(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    fn blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> Value {
        self.matrix.registry.push_blob(repository, bytes);
        self.keep(kind, bytes)
    }

    fn manifest(&self, repository: &str, tag: Option<&str>, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap();
        let digest = Digest::of(&bytes).to_string();
        let name = tag.unwrap_or(&digest);
        self.matrix
            .registry
            .push_manifest(repository, name, kind, &bytes);
        self.keep(kind, &bytes)
    }

    /// An image with one layer per name, each with a file of that name.
    fn image(&self, repository: &str, tag: Option<&str>, platform: &str, layers: &[&str]) -> Value {
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .map(|name| super::hostile::tar(&[(b'0', name, "")]))
            .collect();
        self.image_of(repository, tag, platform, &layers)
    }

    /// An image of these layers.
    pub fn image_of(
        &self,
        repository: &str,
        tag: Option<&str>,
        platform: &str,
        layers: &[Vec<u8>],
    ) -> Value {
        let ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(repository, media_type::OCI_LAYER, layer))
            .collect();
        let mut config = platform_of(platform);
        config["config"] = json!({});
        config["rootfs"] = json!({"type": "layers", "diff_ids": ids});
        let config = config.to_string().into_bytes();
        let config = self.blob(repository, media_type::OCI_CONFIG, &config);
        let mut described = self.manifest(
            repository,
            tag,
            &json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
            }),
        );
        described["platform"] = platform_of(platform);
        described
    }

    fn index(&self, repository: &str, tag: &str, manifests: &[Value]) -> Value {
        self.manifest(
            repository,
            Some(tag),
            &json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}),
        )
    }
}

/// `OS/ARCHITECTURE[/VARIANT]` as manifests and configurations have it.
fn platform_of(text: &str) -> Value {
    let mut parts = text.split('/');
    let mut part = || parts.next().unwrap_or_default();
    let mut platform = json!({"os": part(), "architecture": part()});
    match part() {
        "" => {}
        variant => platform["variant"] = variant.into(),
    }
    platform
}

fn parsed(text: &str) -> Platform {
    let mut parts = text.split('/');
    let mut part = || parts.next().unwrap_or_default();
    Platform::new(part(), part(), part())
}

fn image_case(matrix: &Matrix, name: &str, platform: Option<&str>, attrs: &[(&str, &str)]) -> Case {
    let identifier = format!("docker-image://{REGISTRY}/{name}");
    let shown = format!("{name} {platform:?} {attrs:?}");
    Case::of(&shown, matrix, |llb| match platform {
        Some(platform) => llb.source_for(parsed(platform), &identifier, attrs),
        None => llb.source(&identifier, attrs),
    })
}

const WANTED: &[&str] = &[
    "linux/amd64",
    "linux/amd64/v2",
    "linux/amd64/v3",
    "linux/386",
    "linux/arm64",
    "linux/arm64/v8",
    "linux/arm64/v9",
    "linux/arm",
    "linux/arm/v5",
    "linux/arm/v6",
    "linux/arm/v7",
    "linux/arm/v8",
    "linux/s390x",
    "linux/x86_64",
    "linux/aarch64",
    "Linux/AMD64",
];

#[test]
fn matrix_images_are_chosen_by_platform() {
    let matrix = Matrix::start(&[]);
    let pusher = Pusher::new(&matrix);
    let one = |platform: &str| pusher.image("many", None, platform, &[&platform.replace('/', "-")]);
    let mut attestation = one("unknown/unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    // What it attests comes after it, as nobody writes it, so that the order chooses nothing.
    let many: Vec<Value> = [
        vec![attestation.clone()],
        [
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64",
            "linux/amd64",
            "linux/amd64/v3",
        ]
        .map(one)
        .to_vec(),
    ]
    .concat();
    let index = pusher.index("many", "latest", &many);
    let few = [
        one("linux/arm64/v8"),
        one("linux/arm"),
        one("linux/amd64/v2"),
        attestation.clone(),
    ];
    let few = pusher.index("many", "few", &few);
    pusher.index("many", "attestations", &[attestation]);
    pusher.index("many", "none", &[]);
    let mut unnamed = one("linux/amd64");
    unnamed.as_object_mut().unwrap().remove("platform");
    pusher.index("many", "unnamed", &[unnamed]);
    pusher.image("many", Some("arm"), "linux/arm/v7", &["only-arm"]);
    pusher.image("many", Some("amd"), "linux/amd64", &["lower", "upper"]);
    let mut cases = Vec::new();
    for platform in WANTED {
        for name in ["many:latest", "many:few"] {
            cases.push(image_case(&matrix, name, Some(platform), &[]).in_own_words());
        }
        let digest = index["digest"].as_str().unwrap();
        cases.push(
            Case::of(&format!("layout {platform}"), &matrix, |llb| {
                let name = format!("oci-layout://x/many@{digest}");
                llb.source_for(parsed(platform), &name, &[("oci.store", "many")])
            })
            .flags(&[&format!("--oci-layout=many={}", text(&pusher.layout))])
            .in_own_words(),
        );
    }
    for tag in ["attestations", "none", "unnamed", "arm", "amd"] {
        for platform in [
            None,
            Some("linux/amd64"),
            Some("linux/arm/v7"),
            Some("linux/arm64"),
        ] {
            cases.push(image_case(&matrix, &format!("many:{tag}"), platform, &[]).in_own_words());
        }
    }
    for digest in [&index, &few, &many[1], &many[4]] {
        let name = format!("many@{}", digest["digest"].as_str().unwrap());
        cases.push(image_case(&matrix, &name, Some("linux/amd64"), &[]).in_own_words());
        cases.push(image_case(&matrix, &name, None, &[]).in_own_words());
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_images_by_name_digest_and_option() {
    let matrix = Matrix::start(&[]);
    let pusher = Pusher::new(&matrix);
    let old = pusher.image(
        "named",
        Some("latest"),
        "linux/amd64",
        &["one", "two", "three"],
    );
    let new = pusher.image("named", Some("new"), "linux/amd64", &["one", "else"]);
    let (old, new) = (
        old["digest"].as_str().unwrap(),
        new["digest"].as_str().unwrap(),
    );
    let nobodys = Digest::of(b"nothing").to_string();
    let mut cases = Vec::new();
    for name in [
        "named:latest".to_owned(),
        "named:new".to_owned(),
        "named:nonesuch".to_owned(),
        "nonesuch".to_owned(),
        "NAMED".to_owned(),
        "named:not/a/tag".to_owned(),
        "named@sha256:12".to_owned(),
        format!("named@{old}"),
        format!("named:new@{new}"),
        format!("named:new@{old}"),
        format!("named:nonesuch@{old}"),
        format!("named@{nobodys}"),
    ] {
        cases.push(image_case(&matrix, &name, None, &[]).in_own_words());
    }
    for attrs in [
        [("image.resolvemode", "default")],
        [("image.resolvemode", "pull")],
        [("image.resolvemode", "local")],
        [("image.resolvemode", "bogus")],
        [("image.recordtype", "internal")],
        [("image.recordtype", "frontend")],
        [("image.recordtype", "bogus")],
        [("image.layerlimit", "1")],
        [("image.layerlimit", "2")],
        [("image.layerlimit", "9")],
        [("image.layerlimit", "0")],
        [("image.layerlimit", "x")],
        [("image.checksum", old)],
        [("image.checksum", new)],
        [("image.checksum", "sha256:12")],
        [("image.nonesuch", "x")],
    ] {
        cases.push(image_case(&matrix, "named:latest", None, &attrs).in_own_words());
    }
    let layout = format!("--oci-layout=named={}", text(&pusher.layout));
    for limit in ["1", "2", "0"] {
        let attrs = [("oci.store", "named"), ("oci.layerlimit", limit)];
        let identifier = format!("oci-layout://x/named@{old}");
        let case = Case::of(&format!("layout {attrs:?}"), &matrix, |llb| {
            llb.source(&identifier, &attrs)
        });
        cases.push(case.flags(&[&layout]).in_own_words());
    }
    matrix.compare(&cases);
    // A tag is what it is now.
    pusher.image("named", Some("latest"), "linux/amd64", &["moved"]);
    for mode in ["default", "pull"] {
        matrix.compare(&[image_case(
            &matrix,
            "named:latest",
            None,
            &[("image.resolvemode", mode)],
        )]);
    }
}

#[test]
fn matrix_images_of_other_kinds_and_broken_ones() {
    let matrix = Matrix::start(&[]);
    let pusher = Pusher::new(&matrix);
    let layer = super::hostile::tar(&[(b'0', "file", "")]);
    let blob = |kind: &str, bytes: &[u8]| pusher.blob("odd", kind, bytes);
    let config_of = |ids: &[Digest]| json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let right = config_of(&[Digest::of(&layer)]).to_string();
    let no_layers = config_of(&[]).to_string();
    let twice = config_of(&[Digest::of(&layer), Digest::of(&layer)]).to_string();
    let tar = blob(media_type::OCI_LAYER, &layer);
    let mut cases = Vec::new();
    let mut image = |tag: &str, kind: &str, config: Value, layers: Value| {
        let manifest =
            json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        pusher.manifest("odd", Some(tag), &manifest);
        cases.push(image_case(&matrix, &format!("odd:{tag}"), None, &[]).in_own_words());
    };
    let (oci, docker) = (
        media_type::OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.v2+json",
    );
    let config = |text: &str| blob(media_type::OCI_CONFIG, text.as_bytes());
    let docker_config = blob(
        "application/vnd.docker.container.image.v1+json",
        right.as_bytes(),
    );
    let docker_tar = blob("application/vnd.docker.image.rootfs.diff.tar", &layer);
    image("docker", docker, docker_config, json!([docker_tar]));
    image("empty", oci, config(&no_layers), json!([]));
    image("no-such-layer", oci, config(&no_layers), json!([tar]));
    image("layer-missing", oci, config(&twice), json!([tar]));
    image("twice", oci, config(&twice), json!([tar, tar]));
    image(
        "no-tar",
        oci,
        config(&right),
        json!([blob(media_type::OCI_LAYER, b"hello")]),
    );
    image("config-of-nothing", oci, config("{}"), json!([tar]));
    image("config-no-json", oci, config("hello"), json!([tar]));
    let artifact = blob("application/vnd.example.chart.config.v1+json", b"{}");
    let chart = blob("application/vnd.example.chart.content.v1.tar", &layer);
    image("artifact", oci, artifact, json!([chart]));
    let unnamed = blob("application/octet-stream", &layer);
    image("layer-of-no-kind", oci, config(&right), json!([unnamed]));
    let inner = pusher.image("odd", None, "linux/amd64", &["inner"]);
    let mut inner = pusher.index("odd", "inner", &[inner]);
    inner["platform"] = platform_of("linux/amd64");
    pusher.index("odd", "nested", &[inner]);
    cases.push(image_case(&matrix, "odd:nested", None, &[]).in_own_words());
    matrix.compare(&cases);
}
