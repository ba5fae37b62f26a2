//! Where files come from.

use super::{Case, Matrix};
use crate::workshop::text;

#[test]
fn matrix_sources() {
    let matrix = Matrix::start(&[]);
    let context = matrix.shop.context(
        "local",
        &[
            ("a/one", "1"),
            ("a/two", "2"),
            ("b/three", "3"),
            ("top", "4"),
            ("skip.log", "5"),
        ],
    );
    std::os::unix::fs::symlink("a/one", format!("{context}/link")).unwrap();
    let layout = text(matrix.shop.base_layout());
    let local = format!("--local=src={context}");
    let index = std::fs::read(format!("{layout}/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let mut cases = Vec::new();
    for (name, attrs) in [
        ("all", &[][..]),
        ("include", &[("local.includepattern", "[\"a\",\"top\"]")]),
        (
            "exclude",
            &[("local.excludepatterns", "[\"*.log\",\"a/two\"]")],
        ),
        ("follow", &[("local.followpaths", "[\"link\"]")]),
        (
            "follow a pattern",
            &[("local.followpaths", "[\"l*\",\"b\"]")],
        ),
        ("differ none", &[("local.differ", "none")]),
        ("differ metadata", &[("local.differ", "metadata")]),
        ("shared key", &[("local.sharedkeyhint", "k")]),
        ("bad patterns", &[("local.includepattern", "nonsense")]),
    ] {
        cases.push(
            Case::of(&format!("local {name}"), &matrix, |llb| {
                // Times and owners of a local source are the folder's.
                let local = llb.source("local://src", attrs);
                llb.copy(local, None, super::file::dockerfile("/", "/"))
            })
            .flags(&[&local]),
        );
    }
    cases.push(
        Case::of("local that is not given", &matrix, |llb| {
            llb.source("local://nonesuch", &[])
        })
        .flags(&[&local]),
    );
    cases.push(Case::of("a scheme nobody knows", &matrix, |llb| {
        llb.source("gopher://x", &[])
    }));
    cases.push(Case::of("image", &matrix, |llb| llb.base()));
    cases.push(Case::of("image that is not there", &matrix, |llb| {
        llb.source(
            &format!("docker-image://{}/nonesuch:latest", super::REGISTRY),
            &[],
        )
    }));
    let oci = format!("--oci-layout=base={layout}");
    cases.push(
        Case::of("oci-layout", &matrix, |llb| {
            llb.source(
                &format!("oci-layout://matrix/base@{digest}"),
                &[("oci.store", "base")],
            )
        })
        .flags(&[&oci]),
    );
    cases.push(
        Case::of("oci-layout that is not given", &matrix, |llb| {
            llb.source(
                // One that nobody has: a server may keep those it has seen.
                &format!("oci-layout://matrix/base@sha256:{}", "0".repeat(64)),
                &[("oci.store", "other")],
            )
        })
        .flags(&[&oci]),
    );
    cases.push(
        Case::of("oci-layout without digest", &matrix, |llb| {
            llb.source("oci-layout://matrix/base:latest", &[("oci.store", "base")])
        })
        .flags(&[&oci]),
    );
    let cases: Vec<Case> = cases.into_iter().map(Case::in_own_words).collect();
    matrix.compare(&cases);
}

#[test]
fn matrix_a_blob_of_a_registry_or_a_layout_is_a_file() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let layout = text(matrix.shop.base_layout());
    let index = std::fs::read(format!("{layout}/index.json")).unwrap();
    let read = |digest: &serde_json::Value| -> serde_json::Value {
        let digest = digest.as_str().unwrap().replace(':', "/");
        let bytes = std::fs::read(format!("{layout}/blobs/{digest}")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let platforms = read(&index["manifests"][0]["digest"]);
    let manifest = read(&platforms["manifests"][0]["digest"]);
    let digest = |part: &serde_json::Value| part["digest"].as_str().unwrap().to_owned();
    let (config, layer) = (digest(&manifest["config"]), digest(&manifest["layers"][0]));
    let content = std::fs::read_to_string(format!("{layout}/blobs/{}", config.replace(':', "/")));
    let content = format!("{:?}", content.unwrap());
    let size = &manifest["layers"][0]["size"];
    let flag = format!("--oci-layout=base={layout}");
    let file = &[
        ("http.filename", "a/config.json"),
        ("http.perm", "0640"),
        ("http.uid", "7"),
        ("http.gid", "8"),
    ];
    let registry = format!("docker-image+blob://{}/busybox", super::REGISTRY);
    let from_layout = "oci-layout+blob://matrix/base";
    let stored = &[&file[..], &[("oci.store", "base")]].concat();
    let blob = |name: &str, identifier: String, attrs: &[(&str, &str)]| {
        let case = Case::of(name, &matrix, |llb| llb.source(&identifier, attrs));
        matrix.build(&case.flags(&[&flag]))
    };
    let named = vec![format!("/config.json 640 7:8 @0 {content}")];
    let hex = layer.trim_start_matches("sha256:");
    let unnamed = vec![format!("/{hex} 600 0:0 @0 {size} bytes, {layer}")];
    for (place, attrs, store) in [
        (&registry[..], &file[..], &[][..]),
        (from_layout, &stored[..], &[("oci.store", "base")]),
    ] {
        assert_eq!(
            blob("named", format!("{place}@{config}"), attrs).unwrap(),
            named
        );
        assert_eq!(
            blob("unnamed", format!("{place}@{layer}"), store).unwrap(),
            unnamed
        );
        let missing = format!("{place}@sha256:{}", "0".repeat(64));
        let error = blob("missing", missing, store).unwrap_err();
        assert!(error.contains("not found"), "{error}");
        let error = blob("without digest", format!("{place}:latest"), store).unwrap_err();
        assert!(error.contains("invalid reference digest"), "{error}");
    }
    let homeless = blob("homeless", format!("{from_layout}@{config}"), &[]).unwrap_err();
    assert!(homeless.contains("requires store id"), "{homeless}");
    // A file of a step as any other.
    let mounted = Case::of("mounted", &matrix, |llb| {
        let blob = llb.source(&format!("{registry}@{config}"), file);
        let mount = llb::Mount {
            dest: "/in".into(),
            readonly: true,
            ..llb::Mount::default()
        };
        let step = llb.step("stat -c '%a %u' /in/config.json >/out/seen");
        llb.run(step.bind(blob, mount))
    });
    let mounted = matrix.build(&mounted).unwrap();
    assert!(mounted[0].ends_with("\"640 7\\n\""), "{mounted:?}");
}
