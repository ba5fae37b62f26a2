//! Frontend images: `# syntax=…` with a frontend of the test kit, by our client and by stock's.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{BuildServer, Registry, Tool, program};

use crate::cancel::{running, word};
use crate::workshop::{Workshop, server, text, wait_until};

/// A server, and a registry with a base image and the frontend.
pub struct Shop {
    pub shop: Workshop,
    pub registry: Registry,
    _server: BuildServer,
}

impl Shop {
    pub fn open() -> Shop {
        Self::with_flags(&[])
    }

    /// With more flags for the server.
    pub fn with_flags(flags: &[&str]) -> Shop {
        let shop = Workshop::open();
        let registry = shop.registry();
        let config = text(&shop.plain_http(&registry));
        let flags = [&["--config", &config], flags].concat();
        let server = server(&shop.lab).args(&flags).start();
        shop.cooperage.ok(&[
            "create",
            "--name",
            "far",
            "--driver",
            "remote",
            &server.address(),
        ]);
        let dockerfile = "FROM scratch\nCOPY gateway-frontend /frontend\n\
                          LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.contexts,moby.buildkit.frontend.inputs\n\
                          ENTRYPOINT [\"/frontend\"]\n";
        let context = shop.context("frontend", &[("Dockerfile", dockerfile)]);
        let copy = Path::new(&context).join("gateway-frontend");
        std::fs::copy(program("gateway-frontend"), copy).unwrap();
        let name = format!("{}/frontend:1", registry.address());
        shop.cooperage
            .ok(&["build", "--builder", "far", "--push", "-t", &name, &context]);
        Shop {
            shop,
            registry,
            _server: server,
        }
    }

    /// A context whose file is in the frontend's language.
    pub fn context(&self, name: &str, lines: &str) -> String {
        let at = self.registry.address();
        let file = format!("# syntax={at}/frontend:1\nimage {at}/busybox:latest\n{lines}");
        let hello = format!("FROM {at}/busybox\nARG WHO\nRUN echo hello $WHO > /hello\n");
        self.shop
            .context(name, &[("Dockerfile", &file), ("Other", &hello)])
    }

    /// Both clients, by name.
    pub fn clients(&self) -> [(&'static str, Tool); 2] {
        [
            ("ours", self.shop.cooperage.clone()),
            ("stock", self.shop.stock()),
        ]
    }

    pub fn out(&self, name: &str) -> String {
        text(&self.shop.lab.subdirectory(&format!("out-{name}")))
    }
}

pub const BUILD: &[&str] = &["build", "--builder", "far", "--progress", "plain"];

#[test]
fn a_frontend_image_builds_for_either_client() {
    let shop = Shop::open();
    for (name, client) in shop.clients() {
        let lines = format!(
            "ask echo asked by {name}; hostname\nask echo again > /x; cat /x\nrun echo ran {name} | tee /ran\n"
        );
        let (context, out) = (shop.context(name, &lines), shop.out(name));
        let output = format!("type=local,dest={out}");
        let build = client.ok(&[BUILD, &["--output", &output, &context]].concat());
        let read = |file: &str| std::fs::read_to_string(Path::new(&out).join(file)).unwrap();
        assert_eq!(
            read("answer"),
            format!("asked by {name}\nbuildkitsandbox\nagain\n")
        );
        assert_eq!(read("ran"), format!("ran {name}\n"));
        for expected in [
            "[front] read the file",
            "[front] look at",
            "this language is for tests only",
        ] {
            assert!(
                build.stderr.contains(expected),
                "{expected}: {}",
                build.stderr
            );
        }
    }
}

#[test]
fn a_frontend_image_hands_on_to_the_dockerfile_frontend_with_its_options() {
    let shop = Shop::open();
    for (name, client) in shop.clients() {
        let context = shop.context(name, "dockerfile Other\n");
        let out = shop.out(name);
        let (output, who) = (format!("type=local,dest={out}"), format!("WHO={name}"));
        client.ok(&[BUILD, &["--build-arg", &who, "--output", &output, &context]].concat());
        let hello = std::fs::read_to_string(Path::new(&out).join("hello")).unwrap();
        assert_eq!(hello, format!("hello {name}\n"));
    }
}

#[test]
fn a_cancelled_frontend_image_takes_its_containers_along() {
    let shop = Shop::open();
    for (number, (name, client)) in shop.clients().into_iter().enumerate() {
        let word = word(number);
        let context = shop.context(name, &format!("ask sleep {word}\n"));
        let mut build = client.command(&[BUILD, &[&context]].concat());
        let mut build = build.stderr(Stdio::null()).spawn().unwrap();
        wait_until("a container", || running(&word) > 0);
        let pid = Pid::from_raw(build.id() as i32).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(build.wait().unwrap().code(), Some(130), "{name}");
        wait_until("the end of the container", || running(&word) == 0);
    }
}

#[test]
fn what_goes_wrong_in_a_frontend_image_is_shown_with_the_line_that_asked_for_it() {
    let shop = Shop::open();
    for (name, client) in shop.clients() {
        for (lines, expected) in [
            // In its own words; what it cannot say itself is said with its name.
            ("fail so it was told\n", "failed to solve: so it was told\n"),
            ("crash\n", "/frontend:1: exit code: 42"),
            ("ask exit 7\n", "exit 7: exit code: 7"),
            (
                "run exit 8\n",
                "did not complete successfully: exit code: 8",
            ),
        ] {
            let context = shop.context(name, lines);
            let build = client.fails(&[BUILD, &[&context]].concat());
            let first = ">>> # syntax=";
            for part in [expected, "Dockerfile:1", first] {
                assert!(
                    build.stderr.contains(part),
                    "{name}, {lines}: {part}\n{}",
                    build.stderr
                );
            }
            if lines.starts_with("crash") {
                assert!(
                    build.stderr.contains("crashing as I was told"),
                    "{}",
                    build.stderr
                );
            }
        }
    }
}

#[test]
fn a_frontend_image_that_hangs_or_babbles_is_ended() {
    let shop = Shop::open();
    for (name, client) in shop.clients() {
        let context = shop.context(name, "garbage\n");
        let build = client.fails(&[BUILD, &[&context]].concat());
        let expected = "frontend grpc server closed unexpectedly";
        assert!(build.stderr.contains(expected), "{}", build.stderr);
        let context = shop.context(name, "hang\n");
        let tag = format!("TAG={}-{name}", shop.shop.lab.name());
        let log = shop.shop.lab.directory().join(format!("hangs-{name}"));
        let mut build = client
            .command(&[BUILD, &["--build-arg", &tag, &context]].concat())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        wait_until("a frontend that runs", || {
            std::fs::read_to_string(&log)
                .unwrap()
                .contains("hanging as I was told")
        });
        assert!(is_running(&tag));
        let interrupt = Command::new("kill")
            .args(["-INT", &build.id().to_string()])
            .status();
        assert!(interrupt.unwrap().success());
        assert!(!build.wait().unwrap().success());
        wait_until("the end of the frontend", || !is_running(&tag));
    }
}

/// Whether a frontend runs that was given this build argument.
fn is_running(argument: &str) -> bool {
    let environments = std::fs::read_dir("/proc").unwrap().flatten();
    let mut environments =
        environments.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.any(|environment| {
        let text = String::from_utf8_lossy(&environment);
        text.contains("BUILDKIT_FRONTEND_OPT_0=") && text.contains(argument)
    })
}

#[test]
fn an_option_asks_for_a_frontend_too_and_the_official_one_is_built_in() {
    let shop = Shop::open();
    let at = shop.registry.address().to_owned();
    let context = shop.shop.context(
        "plain",
        &[(
            "Dockerfile",
            &format!("image {at}/busybox:latest\nrun echo x > /x\n"),
        )],
    );
    for (name, client) in shop.clients() {
        let out = shop.out(name);
        let output = format!("type=local,dest={out}");
        let syntax = format!("BUILDKIT_SYNTAX={at}/frontend:1");
        client.ok(&[
            BUILD,
            &["--build-arg", &syntax, "--output", &output, &context],
        ]
        .concat());
        assert!(Path::new(&out).join("x").exists());
        // The official one is the server's own, whatever registry can be reached.
        let dockerfile = format!("FROM {at}/busybox\nRUN true\n");
        let official = shop
            .shop
            .context(&format!("official-{name}"), &[("Dockerfile", &dockerfile)]);
        let syntax = "BUILDKIT_SYNTAX=docker/dockerfile:1";
        client.ok(&[BUILD, &["--build-arg", syntax, &official]].concat());
    }
}
