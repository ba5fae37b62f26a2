use super::*;

fn options(attrs: &[(&str, &str)]) -> Result<BuildOptions> {
    let attrs = attrs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    BuildOptions::from_attrs(&attrs)
}

#[test]
fn attributes_become_typed_options() {
    let read = options(&[
        ("platform", "linux/amd64,linux/arm64/v8"),
        ("add-hosts", "a=1.2.3.4,B=::1"),
        ("ulimit", "nofile=10:20,core=-1"),
        ("shm-size", "1048576"),
        ("no-cache", "one,Two"),
        ("force-network-mode", "host"),
        ("build-arg:X", "y"),
        ("label:a", "b"),
        ("context:base::linux/amd64", "docker-image://x"),
        ("contextkey", "ctx1"),
        ("ctx1", "https://x/y.git"),
        ("what", "is this"),
    ])
    .unwrap();
    assert_eq!(read.platforms.len(), 2);
    assert_eq!(read.platforms[1].to_string(), "linux/arm64");
    assert!(read.multi_platform && read.ignores_cache("two") && !read.ignores_cache("x"));
    assert_eq!(read.extra_hosts[1], ("b".into(), "::1".into()));
    assert_eq!((read.ulimits[0].soft, read.ulimits[1].hard), (10, -1));
    assert_eq!(read.network, NetMode::Host);
    assert_eq!(read.context.remote, "https://x/y.git");
    assert_eq!(read.context.named["base::linux/amd64"], "docker-image://x");
    assert_eq!(read.unknown, ["what"]);
}

#[test]
fn wrong_attributes_are_told_as_stock_tells_them() {
    for (key, value, message) in [
        (
            "platform",
            "a/b/c/d",
            "failed to parse target platform a/b/c/d: \"a/b/c/d\": cannot parse platform specifier: invalid argument",
        ),
        (
            "multi-platform",
            "x",
            "invalid boolean value for multi-platform: x",
        ),
        ("image-resolve-mode", "x", "invalid image-resolve-mode: x"),
        ("force-network-mode", "x", "invalid netmode x"),
        (
            "add-hosts",
            "x",
            "failed to parse additional hosts: invalid key-value pair x",
        ),
        (
            "add-hosts",
            "x=y",
            "failed to parse additional hosts: failed to parse IP y",
        ),
        (
            "shm-size",
            "x",
            "failed to parse shm size: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "ulimit",
            "x=1",
            "failed to parse ulimit: invalid ulimit type: x",
        ),
        (
            "ulimit",
            "core=2:1",
            "failed to parse ulimit: ulimit soft limit must be less than or equal to hard limit: 2 > 1",
        ),
        (
            "memory",
            "5",
            "the limit `memory` for build steps is not supported",
        ),
        ("frontend.caps", "x+y", "unsupported frontend capability x"),
    ] {
        assert_eq!(options(&[(key, value)]).unwrap_err().to_string(), message);
    }
}
