//! Files of web servers.

use super::site::{WEB, Web};
use super::{Case, Matrix};
use crate::workshop::text;

fn case(matrix: &Matrix, path: &str, attrs: &[(&str, &str)]) -> Case {
    Case::of(&format!("{path} {attrs:?}"), matrix, |llb| {
        llb.source(&format!("{WEB}{path}"), attrs)
    })
}

#[test]
fn matrix_http_names_times_and_answers() {
    let matrix = Matrix::start(&[]);
    let _web = Web::start();
    let mut cases: Vec<Case> = [
        "/plain",
        "/dir/plain.txt",
        "/dir/",
        "/",
        "",
        "/bare",
        "/A%20b",
        "/plain?x=1&y=%20",
        "/plain#part",
        "/weak",
        "/bad-time",
        "/named",
        "/named-token",
        "/named-both",
        "/named-path",
        "/named-up",
        "/named-dots",
        "/named-slash",
        "/named-empty",
        "/named-broken",
        "/moved",
        "/moved-for-good",
        "/packed",
        "/empty",
        "/echo",
    ]
    .iter()
    .map(|path| case(&matrix, path, &[]))
    .collect();
    for path in [
        "/round",
        "/private",
        "/forbidden",
        "/gone",
        "/broken",
        "/none",
        "/nonesuch",
    ] {
        cases.push(case(&matrix, path, &[]).in_own_words());
    }
    cases.push(case(&matrix, "/a%2Fb", &[]).in_own_words());
    cases.push(case(&matrix, "/%zz", &[]).in_own_words());
    let dead = Case::of("nobody listens", &matrix, |llb| {
        llb.source("http://127.0.0.1:1/x", &[])
    });
    let nowhere = Case::of("no such host", &matrix, |llb| {
        llb.source("http://nonesuch.invalid/x", &[])
    });
    cases.push(dead.in_own_words());
    cases.push(nowhere.in_own_words());
    matrix.compare(&cases);
}

#[test]
fn matrix_http_options() {
    let matrix = Matrix::start(&[]);
    let _web = Web::start();
    let right = oci::Digest::of(b"plain\n").to_string();
    let wrong = oci::Digest::of(b"other").to_string();
    let mut cases = Vec::new();
    for attrs in [
        &[("http.filename", "cask.txt")][..],
        &[("http.filename", "a/b")],
        &[("http.filename", "../up")],
        &[("http.filename", "..")],
        &[("http.filename", ".")],
        &[("http.filename", "/abs")],
        &[("http.perm", "0644")],
        &[("http.perm", "420")],
        &[("http.perm", "0o755")],
        &[("http.perm", "0x1ed")],
        &[("http.perm", "04755")],
        &[("http.perm", "0")],
        &[("http.perm", "x")],
        &[("http.uid", "1000"), ("http.gid", "10")],
        &[("http.uid", "7")],
        &[("http.gid", "0x8")],
        &[("http.uid", "nobody")],
        &[("http.checksum", &right)],
        &[("http.checksum", &wrong)],
        &[("http.checksum", "sha256:12")],
        &[
            ("http.checksum", &right),
            ("http.filename", "sure"),
            ("http.perm", "0400"),
        ],
        &[("http.nonesuch", "x")],
    ] {
        for path in ["/plain", "/named"] {
            cases.push(case(&matrix, path, attrs).in_own_words());
        }
    }
    for attrs in [
        &[("http.header.accept", "text/oak")][..],
        &[("http.header.Accept", "a/b"), ("http.header.cookie", "c=1")],
        &[("http.header.x-other", "dropped")],
    ] {
        cases.push(case(&matrix, "/echo", attrs));
    }
    cases.push(case(
        &matrix,
        "/agent",
        &[("http.header.user-agent", "cask")],
    ));
    matrix.compare(&cases);
}

#[test]
fn matrix_http_secrets() {
    let matrix = Matrix::start(&[]);
    let _web = Web::start();
    let secrets = matrix.shop.lab.subdirectory("secrets");
    let given = |id: &str, content: &str| {
        let path = secrets.join(id);
        std::fs::write(&path, content).unwrap();
        format!("--secret=id={id},src={}", text(&path))
    };
    let named = [("http.authheadersecret", "door")];
    let (door, wrong) = (given("door", "Bearer oak"), given("window", "Bearer pine"));
    let token = given("HTTP_AUTH_TOKEN_127.0.0.1", "oak");
    let header = given("HTTP_AUTH_HEADER_127.0.0.1", "Bearer oak");
    let cases = vec![
        case(&matrix, "/private", &named).flags(&[&door]),
        case(&matrix, "/private", &named).in_own_words(),
        case(&matrix, "/private", &named)
            .flags(&[&wrong])
            .in_own_words(),
        case(&matrix, "/private", &[("http.authheadersecret", "window")])
            .flags(&[&wrong])
            .in_own_words(),
        case(&matrix, "/private?token", &[]).flags(&[&token]),
        case(&matrix, "/private?header", &[]).flags(&[&header]),
        case(&matrix, "/private?both", &[]).flags(&[&token, &header]),
        case(&matrix, "/private?none", &[])
            .flags(&[&door])
            .in_own_words(),
        case(&matrix, "/plain", &[]).flags(&[&token]),
    ];
    matrix.compare(&cases);
}

#[test]
fn matrix_http_files_that_change() {
    let matrix = Matrix::start(&[]);
    let web = Web::start();
    let first = oci::Digest::of(b"turn 0\n").to_string();
    for _ in 0..3 {
        // Twice the same, so that the second is asked for under conditions.
        for _ in 0..2 {
            matrix.compare(&[
                case(&matrix, "/changing", &[]),
                case(&matrix, "/dated", &[]),
                case(&matrix, "/changing", &[("http.filename", "other")]),
                case(&matrix, "/changing", &[("http.checksum", &first)]).in_own_words(),
            ]);
        }
        web.change();
    }
}

/// The Engine's process has a umask of 022, which BuildKit's own server has not: what that one, 0.32,
/// makes of a file that everybody may write.
#[test]
fn matrix_http_modes_are_not_cut_by_a_umask() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let _web = Web::start();
    let built = matrix.build(&case(&matrix, "/plain", &[("http.perm", "0666")]));
    let expected = "/plain 666 0:0 @1420257906 \"plain\\n\"";
    assert_eq!(built.unwrap(), [expected]);
}
