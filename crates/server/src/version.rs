//! What this server says it is.

/// The module path stock clients expect.
pub const PACKAGE: &str = "github.com/moby/buildkit";

/// The version of the API spoken, in the form stock clients compare: a `v` and a semantic version.
/// The suffix says whose server it is.
pub const VERSION: &str = concat!("v0.29.0-cooperage.", env!("CARGO_PKG_VERSION"));

/// The source revision this was built from; `unknown` outside a release build.
pub const REVISION: &str = match option_env!("COOPERAGE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The four words of `buildkitd --version`; drivers read the third.
pub fn version_line() -> String {
    format!("buildkitd {PACKAGE} {VERSION} {REVISION}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_third_word_is_the_version() {
        let line = super::version_line();
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words.len(), 4);
        assert!(words[2].starts_with("v0."));
    }
}
