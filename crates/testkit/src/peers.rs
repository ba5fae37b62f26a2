//! Stock programs from Debian's newer suites, unpacked beside the system.

use std::path::{Path, PathBuf};

/// Where `cargo xtask peers` unpacked them.
#[derive(Clone, Debug)]
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// Those under `$COOPERAGE_PEERS`, else under `target/peers` of the workspace.
    ///
    /// Panics when they are not there.
    pub fn find() -> Peers {
        let root = match std::env::var_os("COOPERAGE_PEERS") {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers"),
        };
        assert!(
            root.join("done").exists(),
            "no stock programs in {}: run `cargo xtask peers`",
            root.display()
        );
        Peers { root }
    }

    /// The root of the amd64 packages: `usr/bin`, `usr/sbin`, ….
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Stock `docker-buildx`, the newest.
    pub fn buildx(&self) -> PathBuf {
        self.root
            .join("usr/libexec/docker/cli-plugins/docker-buildx")
    }

    /// Debian's static busybox for a GOARCH name (`amd64` or `arm64`).
    pub fn busybox(&self, architecture: &str) -> PathBuf {
        self.root.join(format!("busybox-{architecture}"))
    }
}
