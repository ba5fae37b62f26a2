//! Stock clients on our server, and builder records that pass between stock's client and ours.

use std::path::Path;

use crate::workshop::{Workshop, server};

fn example(shop: &Workshop) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/site");
    let context = shop.context_with_busybox("example", &[]);
    for name in ["Dockerfile", "make-pages.sh", "pages"] {
        let status = std::process::Command::new("cp")
            .arg("-r")
            .arg(example.join(name))
            .arg(&context)
            .status()
            .unwrap();
        assert!(status.success());
    }
    context
}

#[test]
fn stock_client_builds_and_loads_on_our_server() {
    let shop = Workshop::open();
    let server = server(&shop.lab).start();
    let stock = shop.stock();
    stock.ok(&[
        "create",
        "--name",
        "far",
        "--driver",
        "remote",
        &server.address(),
    ]);
    let context = example(&shop);
    let build = stock.ok(&[
        "build",
        "--builder",
        "far",
        "--progress",
        "plain",
        "--load",
        "-t",
        "site",
        &context,
    ]);
    assert!(build.stderr.contains("made hoops.html"), "{}", build.stderr);
    let printed = shop.engine.docker(&["run", "--rm", "site"]);
    assert!(printed.starts_with("2 pages:"), "{printed}");
    let again = stock.ok(&[
        "build",
        "--builder",
        "far",
        "--progress",
        "plain",
        "--load",
        "-t",
        "site",
        &context,
    ]);
    assert!(
        !again.stderr.contains("made hoops.html"),
        "{}",
        again.stderr
    );
}

#[test]
fn stock_client_shows_our_errors_as_its_own() {
    let shop = Workshop::open();
    let server = server(&shop.lab).start();
    let stock = shop.stock();
    stock.ok(&[
        "create",
        "--name",
        "far",
        "--driver",
        "remote",
        &server.address(),
    ]);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nRUN exit 7\n";
    let context = shop.context_with_busybox("fails", &[("Dockerfile", dockerfile)]);
    let build = stock.fails(&["build", "--builder", "far", "--progress", "plain", &context]);
    for expected in [
        "process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7",
        "Dockerfile:3",
        ">>> RUN exit 7",
    ] {
        assert!(
            build.stderr.contains(expected),
            "{expected}\n{}",
            build.stderr
        );
    }
}

#[test]
fn builders_of_stock_are_listed_used_and_removed_by_ours_and_the_reverse() {
    let shop = Workshop::open();
    let (ours, stock) = (shop.cooperage.clone(), shop.stock());
    ours.ok(&["create", "--name", "first", "--bootstrap"]);
    let image = shop.engine.docker(&[
        "inspect",
        "--format={{.Config.Image}}",
        "buildx_buildkit_first0",
    ]);
    let option = format!("image={image}");
    let context = example(&shop);
    for (maker, user) in [(&stock, &ours), (&ours, &stock)] {
        maker.ok(&[
            "create",
            "--name",
            "cask",
            "--driver-opt",
            &option,
            "--bootstrap",
        ]);
        let listed = user.ok(&["ls"]).stdout;
        assert!(listed.contains("cask"), "{listed}");
        let inspected = user.ok(&["inspect", "cask"]).stdout;
        assert!(inspected.contains("docker-container"), "{inspected}");
        assert!(inspected.contains("running"), "{inspected}");
        user.ok(&[
            "build",
            "--builder",
            "cask",
            "--load",
            "-t",
            "site",
            &context,
        ]);
        assert!(
            shop.engine
                .docker(&["run", "--rm", "site"])
                .starts_with("2 pages:")
        );
        user.ok(&["rm", "cask"]);
        let listed = maker.ok(&["ls"]).stdout;
        assert!(!listed.contains("cask"), "{listed}");
        assert!(!shop.engine.docker(&["ps", "-a"]).contains("cask"));
        assert!(!shop.engine.docker(&["volume", "ls"]).contains("cask"));
    }
}
