//! Sources that a server of one executable brings itself, in a builder on a real Engine.

use std::path::{Path, PathBuf};

use testkit::{Engine, GitServer, GitServerOptions, GitWork, SshServer, SshServerOptions, Tool};

use crate::workshop::{Workshop, text};

const PORT: u16 = 8418;

/// A shop with a web server of git repositories, and a builder whose image has no git.
struct Site {
    shop: Workshop,
    server: GitServer,
    www: PathBuf,
}

fn site(options: GitServerOptions) -> Site {
    let shop = Workshop::open();
    let www = shop.lab.subdirectory("www");
    let server = GitServer::start(&www, &format!("0.0.0.0:{PORT}"), options);
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    Site { shop, server, www }
}

impl Site {
    fn address(&self, path: &str) -> String {
        format!("http://{}:{PORT}/{path}", Engine::GATEWAY)
    }

    /// Builds a context with these arguments and returns where its files are.
    fn build(&self, client: &Tool, name: &str, args: &[&str], context: &str) -> PathBuf {
        let out = self.shop.lab.directory().join(name);
        let output = format!("type=local,dest={}", text(&out));
        let first = ["build", "--builder=c", "--progress=plain", "-o", &output];
        client.ok(&[&first[..], args, &[context]].concat());
        out
    }
}

fn read(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_repository_is_a_context_for_a_server_without_git() {
    let site = site(GitServerOptions::default());
    // Relative to the address that git has to clone it by: the one the server will use.
    let part = GitWork::init(&site.www.join("part.git"), &[]);
    part.put("p", "part");
    part.commit("first");
    let work = GitWork::init(&site.www.join("r.git"), &[]);
    work.put("Dockerfile", "FROM scratch\nCOPY . /\n");
    work.put("sub/Dockerfile", "FROM scratch\nCOPY f /sub\n");
    work.put("sub/f", "in sub");
    work.put("a", "1");
    work.git(&[
        "submodule",
        "--quiet",
        "add",
        &site.address("part.git"),
        "part",
    ]);
    work.git(&[
        "config",
        "-f",
        ".gitmodules",
        "submodule.part.url",
        "../part.git",
    ]);
    let first = work.commit("first");
    work.git(&["tag", "-a", "-m", "one", "v1"]);
    work.put("a", "2");
    let second = work.commit("second");
    let repository = site.address("r.git");
    let stock = site.shop.stock();
    for (name, client) in [("ours", &site.shop.cooperage), ("stock", &stock)] {
        let build = |suffix: &str| {
            let name = format!("{name}-{}", suffix.replace(['/', ':', '?', '#'], "-"));
            site.build(client, &name, &[], &format!("{repository}{suffix}"))
        };
        let out = build("");
        assert_eq!(
            (read(&out, "a"), read(&out, "part/p")),
            ("2".into(), "part".into())
        );
        assert!(!out.join(".git").exists());
        assert_eq!(read(&build("#v1"), "a"), "1");
        assert_eq!(read(&build(&format!("#{first}")), "a"), "1");
        assert_eq!(read(&build("#main:sub"), "sub"), "in sub");
        assert_eq!(read(&build("#refs/heads/main"), "a"), "2");
    }
    let ours = &site.shop.cooperage;
    let query = format!("{repository}?ref=v1&submodules=false&checksum={first}&subdir=");
    let query = query.trim_end_matches("&subdir=");
    let out = site.build(ours, "query", &[], query);
    assert_eq!(
        (read(&out, "a"), out.join("part/p").exists()),
        ("1".into(), false)
    );
    let kept = ["--build-arg=BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    let out = site.build(ours, "kept", &kept, &repository);
    assert_eq!(read(&out, ".git/HEAD").trim(), second);
    let wrong = format!("{repository}?ref=v1&checksum=deadbeef");
    let refused = ours.run(&["build", "--builder=c", &wrong]);
    assert!(
        refused.code != 0
            && refused
                .stderr
                .contains("expected checksum to match deadbeef"),
        "{}",
        refused.stderr
    );
    // Nothing travels for a commit that is here.
    site.server.take_seen();
    let again = format!("{repository}#{first}");
    site.build(ours, "again", &["--no-cache"], &again);
    assert_eq!(site.server.take_seen().len(), 0);
}

#[test]
fn a_private_repository_needs_a_token() {
    // x-access-token:oak
    let header = "basic eC1hY2Nlc3MtdG9rZW46b2Fr".to_owned();
    let site = site(GitServerOptions {
        authorization: Some(header.clone()),
        ..GitServerOptions::default()
    });
    let work = GitWork::init(&site.www.join("r.git"), &[]);
    work.put("Dockerfile", "FROM scratch\nCOPY a /\n");
    work.put("a", "1");
    work.commit("first");
    let repository = site.address("r.git");
    let ours = site.shop.cooperage.clone();
    let refused = ours.run(&["build", "--builder=c", &repository]);
    assert!(
        refused.code != 0 && refused.stderr.contains("terminal prompts disabled"),
        "{}",
        refused.stderr
    );
    let host = format!("GIT_AUTH_HEADER.{}:{PORT}", Engine::GATEWAY);
    let host_secret = format!("--secret=id={host},env=HEADER");
    for (name, secret) in [
        ("token", "--secret=id=GIT_AUTH_TOKEN"),
        ("header", "--secret=id=GIT_AUTH_HEADER,env=HEADER"),
        ("host", host_secret.as_str()),
    ] {
        let ours = ours
            .clone()
            .env("GIT_AUTH_TOKEN", "oak")
            .env("HEADER", header.clone());
        let context = format!("{repository}?ref=main&mtime=commit");
        let out = site.build(&ours, name, &[secret, "--no-cache"], &context);
        assert_eq!(read(&out, "a"), "1", "{name}");
    }
    let add = format!(
        "# syntax=docker/dockerfile:1\nFROM scratch\nADD --keep-git-dir=true {repository} /r\n"
    );
    let context = site.shop.context("add", &[("Dockerfile", &add)]);
    let ours = ours.env("GIT_AUTH_TOKEN", "oak");
    let out = site.build(&ours, "added", &["--secret=id=GIT_AUTH_TOKEN"], &context);
    assert_eq!(read(&out, "r/a"), "1");
    assert!(out.join("r/.git/HEAD").exists());
    let config = read(&out, "r/.git/config");
    assert!(
        config.contains(&repository) && !config.contains("oak"),
        "{config}"
    );
}

#[test]
fn a_private_repository_is_reached_over_ssh_with_the_clients_agent_or_keys() {
    let shop = Workshop::open();
    let options = SshServerOptions {
        address: Engine::GATEWAY,
        port: 22,
        ..SshServerOptions::default()
    };
    let ssh = SshServer::start_with(&shop.lab.subdirectory("ssh"), options);
    let part = GitWork::init(&shop.lab.subdirectory("www/part"), &[]);
    part.put("p", "part");
    part.commit("first");
    let work = GitWork::init(&shop.lab.subdirectory("www/r"), &[]);
    work.put("Dockerfile", "FROM scratch\nCOPY . /\n");
    work.put("a", "1");
    work.git(&["submodule", "--quiet", "add", &text(part.path()), "part"]);
    let relative = ["submodule.part.url", "../../part/.git"];
    work.git(&[&["config", "-f", ".gitmodules"][..], &relative].concat());
    work.commit("first");
    let path = work.path().join(".git");
    let short = format!("root@{}:{}", Engine::GATEWAY, path.display());
    let added = format!("FROM scratch\nADD --keep-git-dir {short}#main /r\n");
    let context = shop.context("add", &[("Dockerfile", &added)]);
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let first = ["build", "--builder=c", "--progress=plain", "--no-cache"];
    let rsa = ssh.make_key("rsa", &["-t", "rsa", "-m", "PEM"]);
    ssh.let_in(&rsa, "");
    let stranger = ssh.make_key("stranger", &["-t", "ecdsa"]);
    // Without an agent: files with keys, of which the host takes the last one.
    let by_files = [
        format!("--ssh=default={}", text(&ssh.key())),
        format!("--ssh=default={},{}", text(&stranger), text(&rsa)),
    ];
    // Hints reach our client alone.
    let told = "give the build an agent with `--ssh default`";
    for (name, client, cause) in [
        ("ours", &shop.cooperage, told),
        ("stock", &shop.stock(), "unset ssh forward key default"),
    ] {
        let agent = text(&ssh.agent());
        let with_agent = client.clone().env("SSH_AUTH_SOCK", &agent);
        let build = |name: &str, args: &[&str]| {
            let out = shop.lab.directory().join(name);
            let output = format!("type=local,dest={}", text(&out));
            with_agent.ok(&[&first[..], &["--ssh=default", "-o", &output], args].concat());
            out
        };
        let out = build(&format!("{name}-url"), &[&ssh.url(&path)]);
        assert_eq!(
            (read(&out, "a"), read(&out, "part/p")),
            ("1".into(), "part".into())
        );
        let out = build(&format!("{name}-added"), &[&context]);
        assert_eq!(
            (read(&out, "r/a"), read(&out, "r/part/p")),
            ("1".into(), "part".into())
        );
        assert!(out.join("r/.git/HEAD").exists());
        for (number, given) in by_files.iter().enumerate() {
            let out = shop.lab.directory().join(format!("{name}-files-{number}"));
            let output = format!("type=local,dest={}", text(&out));
            client.ok(&[&first[..], &[given, "-o", &output, &ssh.url(&path)]].concat());
            assert_eq!(read(&out, "a"), "1");
        }
        let refused = client.run(&[&first[..], &[&context]].concat());
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(refused.code != 0 && said.contains(cause), "{said}");
        // The host is reached and has no such repository.
        let nowhere = ssh.url("/nonexistent.git".as_ref());
        let refused = with_agent.run(&[&first[..], &["--ssh=default", &nowhere]].concat());
        let said = format!("{}{}", refused.stdout, refused.stderr);
        let cause = "does not appear to be a git repository";
        assert!(refused.code != 0 && said.contains(cause), "{said}");
    }
}
