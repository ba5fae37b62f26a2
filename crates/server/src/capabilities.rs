//! What this server can do, in the words clients ask with.

use proto::apicaps::ApiCap;

/// What a gateway frontend may call.
const FRONTEND: &[&str] = &[
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
    "source.metaresolver.image.attestations",
    "statfile",
];

/// What a definition may hold, and what exporters and GC understand.
const LLB: &[&str] = &[
    "constraints",
    "diffop",
    "exec.cgroup",
    "exec.meta.base",
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.removemountstubs.recursive",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.content",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.secretenv",
    "exec.validexitcode",
    "exporter.image.annotations",
    "exporter.multiple",
    "exporter.sourcedateepoch",
    "file.base",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.includeexcludepatterns",
    "file.copy.modestring",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.rm.wildcard",
    "file.symlink.create",
    "gc.freespacefilter",
    "history.filter",
    "mergeop",
    "meta.description",
    "meta.exportcache",
    "meta.ignorecache",
    "platform",
    // Its wire name is misspelt.
    "soruce.http.uidgid",
    "source.buildop.llbfilename",
    "source.git",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    "source.image",
    "source.image.checksum",
    "source.image.layerlimit",
    "source.image.resolvemode",
    "source.imageblob",
    "source.local",
    "source.local.differ",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.includepatterns",
    "source.local.metadatatransfer",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
    "source.ocilayout",
    "source.policy",
    "source.policy.session",
];

/// The calls a gateway frontend may make.
pub fn frontend() -> Vec<ApiCap> {
    enabled(FRONTEND)
}

/// What definitions may hold.
pub fn llb() -> Vec<ApiCap> {
    enabled(LLB)
}

fn enabled(ids: &[&str]) -> Vec<ApiCap> {
    ids.iter()
        .map(|id| ApiCap {
            id: (*id).to_owned(),
            enabled: true,
            ..ApiCap::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stock of the same age has and this server has not, or not yet.
    const WITHHELD_FRONTEND: &[&str] = &["importcaches", "reference.attestations"];
    const WITHHELD_LLB: &[&str] = &[
        "cache.azblob",
        "cache.gha",
        "cache.s3",
        "exec.meta.linux.resources",
        "exec.meta.network.proxy",
        "exporter.image.attestations",
        "exporter.session",
        "passthroughop",
        "source.git.bundle",
        "source.git.checkoutbundle",
        "source.git.signatureverify",
        "source.http.signatureverify",
    ];

    #[test]
    fn capabilities_are_sorted_and_named_once() {
        for list in [FRONTEND, LLB, WITHHELD_FRONTEND, WITHHELD_LLB] {
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn every_capability_of_stock_is_there_or_withheld() {
        let counts = [(FRONTEND, WITHHELD_FRONTEND, 27), (LLB, WITHHELD_LLB, 90)];
        for (given, withheld, stock) in counts {
            assert!(given.iter().all(|name| !withheld.contains(name)));
            assert_eq!(given.len() + withheld.len(), stock);
        }
    }
}
