//! What this server says it is.

/// The module path stock clients expect.
pub const PACKAGE: &str = "github.com/moby/buildkit";

/// The BuildKit release whose API is spoken, in the form stock clients compare: a `v` and a semantic
/// version, with whose server it is as build metadata.
///
/// Stock clients show it; which features they use they decide by capabilities, and what that release
/// has and this server has not (limits of steps' resources, bundles of git, passthrough vertices,
/// proxy networks) is not among those it announces.
pub const VERSION: &str = concat!("v0.31.0+cooperage.", env!("CARGO_PKG_VERSION"));

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
    use super::*;

    #[test]
    fn the_third_word_is_the_version() {
        let line = version_line();
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words.len(), 4);
        assert_eq!(words[2], VERSION);
    }

    #[test]
    fn the_version_is_one_that_clients_can_compare() {
        // The grammar of semver.org, with the `v` that Go wants.
        let identifier = r"[0-9A-Za-z-]+";
        let grammar =
            format!(r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)\+{identifier}(\.{identifier})*$");
        assert!(
            regex::Regex::new(&grammar).unwrap().is_match(VERSION),
            "{VERSION}"
        );
    }
}
