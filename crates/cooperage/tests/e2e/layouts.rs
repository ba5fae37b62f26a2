//! Results as OCI layouts in a directory: `tar=false`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{Release, Tool};

use crate::workshop::{Workshop, text};

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY note /note\n\
                          CMD [\"/bin/busybox\", \"cat\", \"/note\"]\n";

/// The digests and sizes of all blobs, each checked; and that nothing else is there.
fn blobs(layout: &Path) -> BTreeMap<String, u64> {
    let mut names: Vec<_> = std::fs::read_dir(layout)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // Stock leaves the directory of blobs that came.
    names.retain(|name| name != "ingest");
    assert_eq!(names, ["blobs", "index.json", "oci-layout"]);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let sum = Command::new("sha256sum")
            .arg(entry.path())
            .output()
            .unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(sum.starts_with(&name), "{sum}");
        found.insert(name, entry.metadata().unwrap().len());
    }
    found
}

fn index(layout: &Path) -> serde_json::Value {
    let text = std::fs::read(layout.join("index.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn export(client: &Tool, builder: &str, kind: &str, layout: &Path, context: &str) {
    let output = format!(
        "type={kind},tar=false,name=noted:1,dest={}",
        layout.display()
    );
    client.ok(&["build", "--builder", builder, "-o", &output, context]);
}

#[test]
fn a_layout_is_the_same_from_our_client_and_from_stocks() {
    let shop = Workshop::open();
    let context =
        shop.context_with_busybox("layout", &[("Dockerfile", DOCKERFILE), ("note", "in it")]);
    shop.cooperage.ok(&["create", "--name", "c", "--bootstrap"]);
    let at = |name: &str| -> PathBuf { shop.lab.directory().join(name) };
    let stocks = at("stock");
    // By default stock asks for attestations. It cannot do this with `type=docker`.
    let stock = shop.stock().env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1");
    export(&stock, "c", "oci", &stocks, &context);
    for kind in ["oci", "docker"] {
        let ours = at(&format!("ours-{kind}"));
        export(&shop.cooperage, "c", kind, &ours, &context);
        assert_eq!(blobs(&ours).len(), blobs(&stocks).len(), "{kind}");
        if kind == "oci" {
            assert_eq!(blobs(&ours), blobs(&stocks));
        }
        let described = |layout: &Path| {
            let manifest = index(layout)["manifests"][0].clone();
            let annotations = manifest["annotations"].clone();
            (
                manifest["digest"].clone(),
                manifest["mediaType"].clone(),
                annotations["io.containerd.image.name"].clone(),
                annotations["org.opencontainers.image.ref.name"].clone(),
            )
        };
        if kind == "oci" {
            assert_eq!(described(&ours), described(&stocks));
        }
        // Again into the same directory: nothing is sent twice, and the index has it once.
        export(&shop.cooperage, "c", kind, &ours, &context);
        assert_eq!(index(&ours)["manifests"].as_array().unwrap().len(), 1);
    }
    let base = format!("base=oci-layout://{}:1", text(&at("ours-oci")));
    let next = shop.context(
        "next",
        &[("Dockerfile", "FROM base\nCOPY Dockerfile /next\n")],
    );
    shop.cooperage.ok(&[
        "build",
        "--builder=c",
        "--build-context",
        &base,
        "--load",
        "-t",
        "next",
        &next,
    ]);
    assert_eq!(shop.engine.docker(&["run", "--rm", "next"]), "in it");
}

#[test]
fn a_stock_server_writes_a_layout_for_our_client() {
    let shop = Workshop::with(Release::NewestContainerd);
    let context =
        shop.context_with_busybox("layout", &[("Dockerfile", DOCKERFILE), ("note", "in it")]);
    let layout = shop.lab.directory().join("layout");
    export(&shop.cooperage, "default", "oci", &layout, &context);
    let manifest = index(&layout)["manifests"][0]["digest"].clone();
    let hex = manifest
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    assert!(blobs(&layout).contains_key(&hex));
}
