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
