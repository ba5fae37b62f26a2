//! An image with attestations and their signature, in a registry that lists referrers by a tag.

use oci::{Digest, media_type};
use serde_json::{Value, json};
use testkit::Registry;

/// The type of the attestation.
pub const PREDICATE: &str = "https://cask.test/oak";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

struct Pusher<'a> {
    registry: &'a Registry,
    repository: &'a str,
}

impl Pusher<'_> {
    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        self.registry.push_blob(self.repository, bytes);
        json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()})
    }

    fn manifest(&self, name: Option<&str>, kind: &str, content: &Value) -> Value {
        let bytes = content.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        let name = name.unwrap_or(&digest);
        self.registry
            .push_manifest(self.repository, name, kind, &bytes);
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    /// A manifest of these layers.
    fn layers(&self, config: &[u8], layers: &[&Value]) -> Value {
        let config = self.blob(media_type::OCI_CONFIG, config);
        let content = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
        self.manifest(None, media_type::OCI_MANIFEST, &content)
    }

    fn index(&self, name: &str, manifests: &[&Value]) -> Value {
        let content =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        self.manifest(Some(name), media_type::OCI_INDEX, &content)
    }
}

/// Pushes it as `REPOSITORY:1`; what the test kit's frontend says when it asks for it without its
/// configuration and with everything that is said about it.
pub fn push(registry: &Registry, repository: &str) -> String {
    let pusher = Pusher {
        registry,
        repository,
    };
    let config = br#"{"os":"linux","architecture":"amd64","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let mut image = pusher.layers(config, &[]);
    image["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut statement = pusher.blob("application/vnd.in-toto+json", b"it is oak");
    statement["annotations"] = json!({"in-toto.io/predicate-type": PREDICATE});
    let mut other = pusher.blob("application/vnd.in-toto+json", b"it is old");
    other["annotations"] = json!({"in-toto.io/predicate-type": "https://cask.test/age"});
    let mut attested = pusher.layers(b"{}", &[&statement, &other]);
    attested["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attested["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    });
    let index = pusher.index("1", &[&image, &attested]);
    let bundle = pusher.blob(BUNDLE, b"signed by a cooper");
    let mut signature = pusher.layers(b"{} ", &[&bundle]);
    signature["artifactType"] = BUNDLE.into();
    let text = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    pusher.index(&text(&attested).replace(':', "-"), &[&signature]);
    let mut blobs: Vec<String> = [&index, &attested, &signature, &bundle, &statement]
        .iter()
        .map(|blob| {
            let kind = blob["mediaType"].as_str().unwrap();
            format!("blob {} {kind} true\n", text(blob))
        })
        .collect();
    blobs.sort();
    format!(
        "image {0} None\nchain {0} {1} {2}\nsignature {3}\n{4}",
        text(&index),
        text(&image),
        text(&attested),
        text(&signature),
        blobs.concat()
    )
}
