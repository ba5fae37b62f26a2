//! Source policies: by `buildctl --source-policy-file` for graphs, and by the variable that stock
//! `docker-buildx` reads for Dockerfiles.
//!
//! Rules that replace what is named exactly are not here: the Engine's BuildKit is too old to replace
//! anything by them.

use serde_json::{Value, json};

use super::dockerfile::{build, with};
use super::site::{WEB, Web};
use super::{Case, Matrix, alike, told};
use crate::workshop::text;

/// Writes a policy; its path.
fn write(matrix: &Matrix, name: &str, rules: &Value) -> String {
    let path = matrix.shop.lab.subdirectory("policies").join(name);
    let policy = json!({"version": 1, "rules": rules});
    std::fs::write(&path, policy.to_string()).unwrap();
    text(&path)
}

fn rule(action: &str, kind: &str, identifier: &str) -> Value {
    json!({"action": action, "selector": {"identifier": identifier, "match_type": kind}})
}

fn converted(kind: &str, from: &str, to: &str, attrs: &Value) -> Value {
    let mut rule = rule("CONVERT", kind, from);
    rule["updates"] = json!({"identifier": to, "attrs": attrs});
    rule
}

fn constrained(mut rule: Value, condition: &str, value: &str) -> Value {
    let constraint = json!({"key": "http.filename", "value": value, "condition": condition});
    rule["selector"]["constraints"] = json!([constraint]);
    rule
}

/// Sources and the rules for them, by name.
fn cases(matrix: &Matrix) -> Vec<Case> {
    let plain = format!("{WEB}/plain");
    let (all, named) = (format!("{WEB}/*"), format!("{WEB}/named"));
    let nothing = json!({});
    let deny = |identifier: &str| rule("DENY", "WILDCARD", identifier);
    let allow = |identifier: &str| rule("ALLOW", "WILDCARD", identifier);
    let to = |kind: &str, from: &str, to: &str| converted(kind, from, to, &nothing);
    let image = format!("docker-image://{}", matrix.base);
    let nonesuch = image.replace(":latest", ":nonesuch");
    let loops = [
        to("WILDCARD", &plain, &named),
        to("WILDCARD", &named, &plain),
    ];
    let renamed = json!({"http.filename": "renamed"});
    let given: &[(&str, &str, Value)] = &[
        ("nothing", &plain, json!([])),
        ("denied", &plain, json!([deny(&all)])),
        (
            "denied exactly",
            &plain,
            json!([rule("DENY", "EXACT", &plain)]),
        ),
        (
            "another is denied",
            &plain,
            json!([rule("DENY", "EXACT", &all)]),
        ),
        (
            "denied by expression",
            &plain,
            json!([rule("DENY", "REGEX", "pl.in$")]),
        ),
        (
            "another expression",
            &plain,
            json!([rule("DENY", "REGEX", "^pl.in$")]),
        ),
        (
            "allowed in the end",
            &plain,
            json!([deny(&all), allow(&plain)]),
        ),
        (
            "denied in the end",
            &plain,
            json!([allow(&plain), deny(&all)]),
        ),
        (
            "another in its place",
            &plain,
            json!([to("WILDCARD", &plain, &named)]),
        ),
        (
            "renamed",
            &plain,
            json!([converted("EXACT", &plain, &plain, &renamed)]),
        ),
        (
            "by what was matched",
            &plain,
            json!([to(
                "WILDCARD",
                "http://*/plain",
                "http://${1}/dir/plain.txt"
            )]),
        ),
        (
            "by a group",
            &plain,
            json!([to("REGEX", "(.*)/(pl)(ain)$", "$1/dir/$2${3}.txt")]),
        ),
        (
            "the new one is denied",
            &plain,
            json!([deny(&named), to("WILDCARD", &plain, &named)]),
        ),
        (
            "saved by the new one",
            &plain,
            json!([deny(&plain), to("WILDCARD", &plain, &named)]),
        ),
        ("round and round", &plain, json!(loops)),
        (
            "nothing to use instead",
            &plain,
            json!([rule("CONVERT", "EXACT", &plain)]),
        ),
        ("a pattern that is none", &plain, json!([deny("http://**")])),
        (
            "an image",
            &nonesuch,
            json!([to("WILDCARD", &nonesuch, &image)]),
        ),
        ("no image", &image, json!([deny("docker-image://*")])),
        (
            "a file for an image",
            &image,
            json!([to("WILDCARD", &image, &plain)]),
        ),
        ("a rule without a name", &plain, json!([{"action": "DENY"}])),
    ];
    let mut all_cases: Vec<Case> = given
        .iter()
        .map(|(name, source, rules)| case(matrix, name, (source, &[]), rules))
        .collect();
    for (condition, value) in [
        ("EQUAL", "x"),
        ("EQUAL", "y"),
        ("NOTEQUAL", "x"),
        ("NOTEQUAL", "y"),
        ("MATCHES", "^[w-z]$"),
        ("MATCHES", "^[a-c]$"),
    ] {
        let rules = json!([constrained(deny(&all), condition, value)]);
        let name = format!("{condition} {value}");
        let source = (plain.as_str(), &[("http.filename", "x")][..]);
        all_cases.push(case(matrix, &name, source, &rules));
    }
    let broken = json!([rule("DENY", "REGEX", "pl[ain")]);
    all_cases.push(case(matrix, "no expression", (&plain, &[]), &broken).in_own_words());
    all_cases
}

fn case(matrix: &Matrix, name: &str, source: (&str, &[(&str, &str)]), rules: &Value) -> Case {
    let path = write(matrix, &format!("{name}.json"), rules);
    let flag = format!("--source-policy-file={path}");
    Case::of(name, matrix, |llb| llb.source(source.0, source.1)).flags(&[&flag])
}

#[test]
fn matrix_source_policies() {
    let matrix = Matrix::start(&[]);
    let _web = Web::start();
    matrix.compare(&cases(&matrix));
    let stock = matrix.shop.stock();
    let far = matrix.server.address();
    stock.ok(&["create", "--name", "far", "--driver", "remote", &far]);
    let context = matrix.shop.context("policies", &[("f", "f\n")]);
    let (image, nothing) = (format!("docker-image://{}", matrix.base), json!({}));
    let other = image.replace(":latest", ":nonesuch");
    let web = format!("{WEB}/*");
    let moved = converted(
        "WILDCARD",
        "http://moved.test/*",
        &format!("{WEB}/$1"),
        &nothing,
    );
    let busybox = "docker-image://docker.io/library/busybox:latest";
    let from = "FROM scratch\nCOPY --from=base /etc/passwd /p\n";
    let mut differences = Vec::new();
    for (name, text, rules) in [
        (
            "the image is denied",
            from,
            json!([rule("DENY", "WILDCARD", "docker-image://*")]),
        ),
        (
            "the image is another",
            from,
            json!([converted("WILDCARD", &image, &other, &nothing)]),
        ),
        (
            "an image of the hub",
            "FROM busybox\nFROM scratch\nCOPY --from=1 /etc/passwd /p\n",
            json!([converted("WILDCARD", busybox, &image, &nothing)]),
        ),
        (
            "a file of the web",
            "FROM scratch\nADD http://moved.test/plain /w/\n",
            json!([moved]),
        ),
        (
            "a file of the web is denied",
            "FROM scratch\nADD http://moved.test/plain /w/\n",
            json!([moved, rule("DENY", "WILDCARD", &web)]),
        ),
        (
            "the context is denied",
            "FROM scratch\nCOPY f /\n",
            json!([rule("DENY", "EXACT", "local://context")]),
        ),
    ] {
        let path = write(&matrix, &format!("{name}.json"), &rules);
        let client = stock
            .clone()
            .env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", path);
        let recipe = with(name, text, &[]);
        let ours = build(&matrix, &client, "far", &context, &recipe);
        let theirs = build(&matrix, &client, "default", &context, &recipe);
        if !alike(&ours, &theirs) {
            differences.push(told(name, &ours, &theirs));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // Our client reads the variable too.
    let denied = write(&matrix, "all", &json!([rule("DENY", "WILDCARD", "*")]));
    let ours = matrix.shop.cooperage.clone();
    let ours = ours.env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", denied);
    let refused = ours.fails(&["build", "--builder=far", &context]).stderr;
    assert!(refused.contains("denied by policy"), "{refused}");
}
