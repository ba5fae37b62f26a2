//! The `remote` driver over addresses other than a socket of this machine, and an Engine over ssh.

use std::os::unix::fs::PermissionsExt;

use testkit::{SshServer, Tool, write_certificates};

use crate::workshop::{Workshop, server, text};

const DOCKERFILE: &str =
    "FROM scratch\nCOPY busybox /bin/sh\nRUN [\"/bin/sh\", \"-c\", \"echo made > /f\"]\n";

#[test]
fn remote_servers_are_reached_over_tcp_with_certificates_of_both_sides() {
    let shop = Workshop::open();
    let certificates = shop.lab.subdirectory("certificates");
    write_certificates(&certificates, "127.0.0.1");
    let file = |name: &str| text(&certificates.join(name));
    let address = "tcp://127.0.0.1:7443";
    let tls = [
        ["--tlscacert", &file("ca.pem")],
        ["--tlscert", &file("server.pem")],
        ["--tlskey", &file("server.key")],
    ];
    let args = [&["--addr", address], tls.concat().as_slice()].concat();
    let _server = server(&shop.lab).args(&args).start();
    let context = shop.context_with_busybox("tls", &[("Dockerfile", DOCKERFILE)]);
    let options = format!(
        "cacert={},cert={},key={}",
        file("ca.pem"),
        file("cert.pem"),
        file("key.pem")
    );
    for (client, name) in [(&shop.cooperage, "ours"), (&shop.stock(), "stock")] {
        let create = ["create", "--name", name, "--driver", "remote"];
        client.ok(&[&create[..], &["--driver-opt", &options, address]].concat());
        let out = text(&shop.lab.directory().join(name));
        client.ok(&["build", "--builder", name, "-o", &out, &context]);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/f")).unwrap(),
            "made\n"
        );
    }
    // A certificate that another authority signed opens nothing.
    let other = shop.lab.subdirectory("other-certificates");
    write_certificates(&other, "127.0.0.1");
    let options = format!(
        "cacert={},cert={},key={}",
        file("ca.pem"),
        text(&other.join("cert.pem")),
        text(&other.join("key.pem"))
    );
    let create = ["create", "--name", "nobody", "--driver", "remote"];
    let client = &shop.cooperage;
    client.ok(&[&create[..], &["--driver-opt", &options, address]].concat());
    let listed = client.ok(&["ls"]).stdout;
    let status = |name: &str| {
        let node = format!("\\_ {name}0");
        let line = listed.lines().find(|line| line.contains(&node));
        line.unwrap_or_else(|| panic!("{listed}")).to_owned()
    };
    assert!(status("ours").contains(" running"), "{listed}");
    assert!(status("nobody").contains(" inactive"), "{listed}");
    // Who has none at all is told the cause. That is the server's alert, or, if the connection was gone
    // before that was read, what the system says of it.
    let ca = file("ca.pem");
    let buildctl = client.clone().arg("buildctl");
    let asked = ["--addr", address, "--tlscacert", &ca, "debug", "info"];
    let said = buildctl.fails(&asked).stderr;
    assert!(said.starts_with("error: failed to call info: "), "{said}");
    assert!(!said.contains("transport error"), "{said}");
}

#[test]
fn remote_servers_are_reached_in_a_container_that_runs() {
    let shop = Workshop::open();
    let client = &shop.cooperage;
    client.ok(&["create", "--name", "c", "--bootstrap"]);
    let address = "docker-container://buildx_buildkit_c0";
    client.ok(&["create", "--name", "inside", "--driver", "remote", address]);
    let context = shop.context_with_busybox("inside", &[("Dockerfile", DOCKERFILE)]);
    let out = text(&shop.lab.directory().join("out"));
    client.ok(&["build", "--builder", "inside", "-o", &out, &context]);
    assert_eq!(
        std::fs::read_to_string(format!("{out}/f")).unwrap(),
        "made\n"
    );
}

#[test]
fn an_engine_is_reached_over_ssh() {
    let shop = Workshop::open();
    let ssh = SshServer::start(&shop.lab.subdirectory("ssh"));
    let client = with_ssh(&shop, &ssh);
    let host = shop.engine.host();
    let address = ssh.url(host.strip_prefix("unix://").unwrap().as_ref());
    client.ok(&["create", "--name", "far", "--bootstrap", &address]);
    let context = shop.context_with_busybox("ssh", &[("Dockerfile", DOCKERFILE)]);
    let out = text(&shop.lab.directory().join("out"));
    client.ok(&["build", "--builder", "far", "-o", &out, &context]);
    assert_eq!(
        std::fs::read_to_string(format!("{out}/f")).unwrap(),
        "made\n"
    );
    client.ok(&["rm", "far"]);
    assert_eq!(shop.engine.docker(&["ps", "--all", "--quiet"]), "");
}

/// Our client with an `ssh` that knows the server's key and has the agent's, and nothing of root's own.
fn with_ssh(shop: &Workshop, ssh: &SshServer) -> Tool {
    let programs = shop.lab.subdirectory("programs");
    let hosts = programs.join("known_hosts");
    std::fs::write(&hosts, ssh.known_hosts()).unwrap();
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/ssh -F none -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes \"$@\"\n",
        hosts.display()
    );
    let program = programs.join("ssh");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    shop.cooperage
        .clone()
        .env(
            "PATH",
            format!("{}:{path}:/usr/sbin:/sbin", programs.display()),
        )
        .env("SSH_AUTH_SOCK", text(&ssh.agent()))
}
