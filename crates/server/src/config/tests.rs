//! Files.

use super::*;

#[test]
fn a_file_is_read_and_unknown_keys_are_named_with_their_lines() {
    let text = r#"
root = "/tmp/x"
insecure-entitlements = ["network.host"]
colour = "blue"
[worker.oci]
  max-parallelism = 4
  reservedSpace = "30%"
  [[worker.oci.gcpolicy]]
    keepDuration = "48h"
    filters = ["type==source.local"]
    maxUsedSpace = 512000000
    speed = 1
[registry."docker.io"]
  mirrors = ["127.0.0.1:5555"]
[registry."127.0.0.1:5555"]
  http = true
[history]
  maxAge = 100
"#;
    let (config, unknown) = Config::parse(text, "b.toml").unwrap();
    assert_eq!(config.root.as_deref(), Some(Path::new("/tmp/x")));
    assert_eq!(config.worker.oci.max_parallelism, 4);
    assert_eq!(config.worker.oci.reserved_space, DiskSpace::Percent(30));
    let policy = &config.worker.oci.gcpolicy[0];
    assert_eq!(policy.keep_duration, Span::from_secs(48 * 3600));
    assert_eq!(policy.max_used_space, DiskSpace::Bytes(512_000_000));
    assert_eq!(config.registry["docker.io"].mirrors, ["127.0.0.1:5555"]);
    assert_eq!(config.history.max_entries, 50);
    let shown: Vec<_> = unknown.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "b.toml:4: unknown key `colour` is passed over",
            "b.toml:12: unknown key `worker.oci.gcpolicy.speed` is passed over"
        ]
    );
}

#[test]
fn slips_are_explained_and_keys_without_meaning_named() {
    let text = r#"
debug = true
[worker.oci]
  max-paralelism = 4
  GC = false
  binary = "crun"
  gckeepstorage = "1GB"
  [worker.oci.labels]
    any = "thing"
[Registry."example.com"]
  miror = []
[worker.containerd]
  namespace = "x"
  [worker.containerd.runtime.options]
    any = "thing"
"#;
    let (config, remarks) = Config::parse(text, "b.toml").unwrap();
    assert_eq!(config.worker.oci.gc, Some(false));
    assert_eq!(config.worker.oci.gc_keep_storage, DiskSpace::Bytes(1 << 30));
    assert!(config.registry.contains_key("example.com"));
    let shown: Vec<_> = remarks.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "b.toml:2: `debug` is deprecated, use `log.level = \"debug\"` instead",
            "b.toml:4: unknown key `worker.oci.max-paralelism` is passed over: \
                 did you mean `worker.oci.max-parallelism`?",
            "b.toml:5: `worker.oci.GC` is read as `worker.oci.gc`",
            "b.toml:6: `worker.oci.binary` has no effect: steps need no external runtime",
            "b.toml:7: `worker.oci.gckeepstorage` is deprecated, use `reservedSpace` instead",
            "b.toml:10: `Registry` is read as `registry`",
            "b.toml:11: unknown key `registry.\"example.com\".miror` is passed over: \
                 did you mean `registry.\"example.com\".mirrors`?",
            "b.toml:12: `worker.containerd` has no effect: there is no containerd worker",
        ]
    );
}

/// All of upstream's documented keys with values of the kinds it documents.
#[test]
fn every_documented_key_is_read() {
    let (config, remarks) = Config::parse(
        include_str!("../../tests/corpus/toml/documented.toml"),
        "b.toml",
    )
    .unwrap();
    let unknown: Vec<_> = remarks
        .iter()
        .filter(|remark| !matches!(remark.kind, RemarkKind::NoEffect(_)))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(config.history.max_age, Span::from_secs(172_800));
    assert_eq!(config.grpc.debug_address, "0.0.0.0:6060");
    assert_eq!(config.worker.oci.gcpolicy.len(), 2);
    assert_eq!(config.worker.oci.reserved_space, DiskSpace::Percent(30));
    assert_eq!(config.worker.oci.min_free_space, DiskSpace::Bytes(20 << 30));
    let keypair = &config.registry["docker.io"].keypair[0];
    assert_eq!(keypair.key, Path::new("/etc/config/key.pem"));
}

#[test]
fn broken_files_say_where() {
    let error = Config::parse("root = 5\n", "b.toml")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("b.toml") && error.contains("line 1"),
        "{error}"
    );
    let error = Config::parse("[worker.containerd]\nenabled = true\n", "b.toml").unwrap_err();
    assert!(matches!(error, ConfigError::Unsupported(_)));
}

/// What is said of a file that can be used.
fn said(text: &str) -> Vec<String> {
    let (_, remarks) = Config::parse(text, "b.toml").unwrap();
    remarks.iter().map(ToString::to_string).collect()
}

/// Why a file cannot be used.
fn refused(text: &str) -> String {
    Config::parse(text, "b.toml").unwrap_err().to_string()
}

#[test]
fn values_that_ask_for_nothing_are_not_remarked_on() {
    let nothing = "\
provenanceEnvDir = \"\"
[worker.oci]
rootless = false
noProcessSandbox = false
binary = \"\"
cniPoolSize = 0
[worker.containerd]
enabled = false
";
    assert_eq!(said(nothing), [""; 0]);
    assert_eq!(
        said("[worker.oci]\nrootless = true\n"),
        ["b.toml:2: `worker.oci.rootless` has no effect: the server needs to be root"]
    );
}

#[test]
fn frontends_are_known_by_their_names() {
    let enabled = "[frontend.\"gateway.v0\"]\nenabled = false\nallowedRepositories = [\"x\"]\n";
    assert_eq!(said(enabled), [""; 0]);
    assert_eq!(
        said("[frontend]\ngateway.v0.enabled = false\n"),
        ["b.toml:2: unknown key `frontend.gateway` is passed over: \
          did you mean `frontend.\"gateway.v0\"`?"]
    );
    assert_eq!(
        said("[frontend.\"dockerfile.v0\"]\nallowedRepositories = []\n"),
        ["b.toml:2: unknown key `frontend.\"dockerfile.v0\".allowedRepositories` is passed over"]
    );
}

#[test]
fn values_that_cannot_do_what_they_are_for_are_named() {
    assert_eq!(
        said("[dns]\nnameservers = [\"10.0.0.1\", \"fe80::1%eth0\", \"ns.example\"]\n"),
        ["b.toml:2: `dns.nameservers`: \"ns.example\" is no address of a name server"]
    );
    let filter = said("[[worker.oci.gcpolicy]]\nfilters = [\"type==a\", \"type~\"]\n");
    let expected = "b.toml:2: `worker.oci.gcpolicy.filters`: the policy will never do anything: ";
    assert!(filter[0].starts_with(expected), "{filter:?}");
}

#[test]
fn numbers_are_read_as_stock_reads_them() {
    let (config, _) = Config::parse(
        "[worker.oci]\nmax-parallelism = -1\n[grpc]\nuid = -1\ngid = 7\n",
        "b.toml",
    )
    .unwrap();
    assert_eq!(config.worker.oci.max_parallelism, 0);
    assert_eq!((config.grpc.uid, config.grpc.gid), (None, Some(7)));
    for (text, expected) in [
        (
            "[worker.oci]\nmax-parallelism = \"4\"\n",
            "expected a whole number",
        ),
        ("[history]\nmaxEntries = 1.5\n", "expected a whole number"),
        ("[grpc]\ngid = -2\n", "expected a user's or group's id"),
        ("[worker.oci]\nreservedSpace = -5\n", "cannot be negative"),
        (
            "[worker.oci]\nreservedSpace = \"-5%\"\n",
            "invalid disk space -5%",
        ),
    ] {
        let error = refused(text);
        assert!(
            error.contains(expected) && error.contains("line 2"),
            "{error}"
        );
    }
}

/// What serde and TOML would take for something else, or the last of two for both.
#[test]
fn tables_are_tables_and_each_key_is_there_once() {
    for (text, expected) in [
        (
            "[worker]\noci = []\n",
            "line 2: `worker.oci` is a table: `[worker.oci]`",
        ),
        (
            "[[history]]\nmaxEntries = 1\n",
            "line 1: `history` is a table: `[history]`",
        ),
        (
            "[registry]\nmirrors = []\n",
            "line 2: `registry.mirrors` is a table",
        ),
        (
            "[worker.oci.gcpolicy]\nall = true\n",
            "line 1: `worker.oci.gcpolicy` is a list of tables: `[[worker.oci.gcpolicy]]`",
        ),
        ("root = \"/a\"\nROOT = \"/b\"\n", "`root` is there twice"),
        ("root = \"/a\"\nroot = \"/b\"\n", "line 2"),
        ("[log]\n[log]\n", "line 2"),
    ] {
        let error = refused(text);
        assert!(
            error.starts_with("failed to load config from b.toml: "),
            "{error}"
        );
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn files_of_other_encodings_say_where() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\xef\xbb\xbfroot = \"/a\"\n").unwrap();
    let (config, _) = Config::load(file.path(), true).unwrap();
    assert_eq!(config.root.as_deref(), Some(Path::new("/a")));
    std::fs::write(file.path(), b"# a\nroot = \"\xff\"\n").unwrap();
    let error = Config::load(file.path(), true).unwrap_err().to_string();
    assert!(error.ends_with("line 2: this is not UTF-8"), "{error}");
}
