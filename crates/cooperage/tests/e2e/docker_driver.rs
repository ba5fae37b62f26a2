//! The `docker` driver: our client on the BuildKit inside Docker Engine.

use testkit::Release;

use crate::workshop::Workshop;

#[test]
fn the_engines_own_builder_builds_what_then_runs() {
    for release in [Release::Debian, Release::Newest] {
        let shop = Workshop::with(release);
        let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo made > /made\n\
                          CMD [\"/bin/sh\", \"-c\", \"read x < /made; echo $x\"]\n";
        let context = shop.context_with_busybox("own", &[("Dockerfile", dockerfile)]);
        let build = [
            "build",
            "--builder",
            "default",
            "--progress=plain",
            "-t",
            "made",
            &context,
        ];
        shop.cooperage.ok(&build);
        assert_eq!(shop.engine.docker(&["run", "--rm", "made"]), "made");
        let again = shop.cooperage.ok(&build).stderr;
        assert!(again.contains("CACHED"), "{again}");
    }
}
