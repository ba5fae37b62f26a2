//! What frontends may ask of the server besides builds: the test kit's frontend asks, either client
//! brings it what it needs.

use std::path::Path;

use testkit::{Engine, GitServer, GitServerOptions, GitWork};

use crate::attested::{self, PREDICATE};
use crate::gateway::{BUILD, Shop};
use crate::matrix::secrets::{Agent, with_libraries};
use crate::workshop::text;

/// Builds a file in the frontend's language, and returns what it wrote down.
fn ask(shop: &Shop, client: &(&'static str, testkit::Tool), lines: &str, more: &[&str]) -> String {
    let (name, client) = client;
    let (context, out) = (shop.context(name, lines), shop.out(name));
    let output = format!("type=local,dest={out}");
    client.ok(&[BUILD, more, &["--output", &output, &context]].concat());
    std::fs::read_to_string(Path::new(&out).join("answer")).unwrap()
}

/// The same for one that is refused: what the client says.
fn refusal(shop: &Shop, client: &(&'static str, testkit::Tool), lines: &str) -> String {
    let (name, client) = client;
    let context = shop.context(name, lines);
    client.fails(&[BUILD, &[&context]].concat()).stderr
}

#[test]
fn a_container_reaches_the_ssh_agent_and_the_secrets_of_the_client() {
    let shop = Shop::open();
    let agent = Agent::start(&shop.shop.lab.subdirectory("agent"));
    let dockerfile = format!("FROM {}/busybox\nCOPY . /\n", shop.registry.address());
    let context = shop.shop.context("tools", &[("Dockerfile", &dockerfile)]);
    with_libraries("/usr/bin/ssh-add", Path::new(&context));
    let tools = format!("{}/tools:1", shop.registry.address());
    let ours = &shop.shop.cooperage;
    ours.ok(&[BUILD, &["--push", "-t", &tools, &context]].concat());
    let secret = shop.shop.lab.directory().join("vault");
    std::fs::write(&secret, "oak").unwrap();
    let secret = format!("--secret=id=vault,src={}", text(&secret));
    let given = format!("--ssh=default={}", agent.socket);
    let lines = format!(
        "image {tools}\nmount ssh /agent.sock default\nmount ssh /other.sock other?\n\
         mount secret /vault vault\nmount cache /cache c\nmount tmpfs /t x\n\
         ask stat -c '%F %a %u:%g' /agent.sock\n\
         ask SSH_AUTH_SOCK=/agent.sock /usr/bin/ssh-add -l | cut -d' ' -f3-\n\
         ask cat /vault; ls /other.sock 2>&1; grep -E ' /(t|vault) ' /proc/mounts | cut -d' ' -f2,3\n"
    );
    let expected = "socket 660 7:8\nmatrix (ED25519)\noakls: /other.sock: No such file or directory\n\
                    /t tmpfs\n/vault tmpfs\n";
    for client in shop.clients() {
        assert_eq!(ask(&shop, &client, &lines, &[&given, &secret]), expected);
        let refused = refusal(&shop, &client, &lines);
        let none = "unset ssh forward key default";
        assert!(refused.contains(none), "{refused}");
    }
    // The file with the key instead of its agent, from which nothing can be removed.
    let client = ("key", ours.clone());
    let given = format!("--ssh=default={}", agent.key);
    let ssh_add = "SSH_AUTH_SOCK=/agent.sock /usr/bin/ssh-add";
    let lines = format!(
        "image {tools}\nmount ssh /agent.sock default\n\
         ask {ssh_add} -D 2>&1; {ssh_add} -l | grep -o '(.*'\n\
         ask {ssh_add} -l | cut -d' ' -f2\n"
    );
    let listed = std::process::Command::new("ssh-keygen")
        .args(["-l", "-f", &agent.key])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let fingerprint = listed.split(' ').nth(1).unwrap();
    let expected = format!("Failed to remove all identities.\n(ED25519)\n{fingerprint}\n");
    assert_eq!(ask(&shop, &client, &lines, &[&given]), expected);
}

#[test]
fn a_container_has_the_platform_network_and_rights_it_was_asked_for() {
    let shop = Shop::with_flags(&[
        "--allow-insecure-entitlement=network.host",
        "--allow-insecure-entitlement=security.insecure",
    ]);
    let look = "ask uname -m; ls /sys/class/net | grep -c . ; grep Seccomp: /proc/self/status\n";
    for client in shop.clients() {
        let foreign = ask(
            &shop,
            &client,
            "platform linux/arm64\nnetwork none\nask uname -m; ls /sys/class/net\nrun uname -m\n",
            &["--platform=linux/arm64"],
        );
        assert_eq!(foreign, "aarch64\nlo\n");
        let sandboxed = ask(&shop, &client, &format!("network none\n{look}"), &[]);
        assert_eq!(sandboxed, "x86_64\n1\nSeccomp:\t2\n");
        let allowed = ["--allow=network.host", "--allow=security.insecure"];
        let lines = "network host\nsecurity insecure\n\
                     ask ls /sys/class/net | grep docker0; grep Seccomp: /proc/self/status\n";
        let free = ask(&shop, &client, lines, &allowed);
        assert_eq!(free, "docker0\nSeccomp:\t0\n");
        for (wish, entitlement) in [
            ("network host\n", "network.host is not allowed"),
            ("security insecure\n", "security.insecure is not allowed"),
        ] {
            let refused = refusal(&shop, &client, &format!("{wish}{look}"));
            assert!(refused.contains(entitlement), "{refused}");
        }
    }
}

/// A repository with a commit, an annotated tag and a plain one; the commit, and its and the tag's
/// object as text.
fn repository(www: &Path) -> (GitWork, String, String, String) {
    let work = GitWork::init(&www.join("r.git"), &[]);
    work.put("f", "1");
    let commit = work.commit("first");
    work.git(&["tag", "-a", "-m", "one", "annotated"]);
    work.git(&["tag", "plain"]);
    let object = format!("{}\n", work.git(&["cat-file", "commit", &commit]));
    let tag = format!("{}\n", work.git(&["cat-file", "tag", "annotated"]));
    (work, commit, object, tag)
}

#[test]
fn what_sources_stand_for_is_told() {
    let shop = Shop::open();
    let www = shop.shop.lab.subdirectory("www");
    let _server = GitServer::start(&www, "0.0.0.0:8418", GitServerOptions::default());
    let (work, commit, object, tag) = repository(&www);
    let tag_name = work.git(&["rev-parse", "annotated"]);
    let git = format!("git://{}:8418/r.git", Engine::GATEWAY);
    let full = format!("git.fullurl=http://{}:8418/r.git", Engine::GATEWAY);
    let image_name = format!("docker-image://{}/busybox:latest", shop.registry.address());
    let web = format!("http://{}/v2/", shop.registry.address());
    let at = shop.registry.address();
    let attested = attested::push(&shop.registry, "attested");
    let lines = format!(
        "meta {git} {full}\nmeta {git}#annotated {full}\nmeta {git}#annotated {full} object\n\
         meta {git}#plain {full} object\nmeta {git}#{commit} {full}\nmeta {git}#nonesuch {full}\n\
         meta {image_name}\nmeta {image_name}-not\nmeta {web} http.filename=x\n\
         meta {web} sha512:more\nmeta context:base\nmeta local://dockerfile\n\
         meta docker-image://{at}/attested:1 noconfig chain:{PREDICATE}\n\
         meta http://moved.test/v2 convert:http://moved.test/*>{web}\n\
         meta {image_name} deny:docker-image://*\n"
    );
    let layout = text(shop.shop.base_layout());
    let image = index_digest(&layout);
    let layout = format!("--build-context=base=oci-layout://{layout}");
    let of_commit = format!("commit {object:?}\n");
    let nothing = "commit \"\"\ntag \"\"\n";
    // The web page is two bytes, `{}`, with and without more behind it.
    let page = oci::Digest::of("{}");
    let more = "9e44f01307d089cdeb01cc94478b209de236b2c66fe8b4fe3a3baef3d13751528\
                ae23e643d2ba47a618d37db0ffd65a2ad1ef8b20e263bf45a7be14af9637647";
    let expected = [
        format!("git refs/heads/main {commit} \"\"\n{nothing}"),
        format!("git refs/tags/annotated {tag_name} \"{commit}\"\n{nothing}"),
        format!("git refs/tags/annotated {tag_name} \"{commit}\"\n{of_commit}tag {tag:?}\n"),
        format!("git refs/tags/plain {commit} \"\"\n{of_commit}tag \"\"\n"),
        format!("git {commit} {commit} \"\"\n{nothing}"),
        "error repository does not contain ref nonesuch, output: \"\"\n".to_owned(),
        format!("image {image} Some(String(\"amd64\"))\n"),
        "error REGISTRY/busybox:latest-not: not found\n".to_owned(),
        format!("http {page} \"x\" None\n"),
        format!("http {page} \"v2\" None\nchecksum sha512:{more} \"more\"\n"),
        format!("image {image} Some(String(\"amd64\"))\n"),
        // Of a folder there is nothing more to tell.
        String::new(),
        attested,
        format!("http {page} \"v2\" None\n"),
        "error could not resolve image due to policy: source \"docker-image://REGISTRY/busybox:latest\" \
         denied by policy: source denied by policy\n"
            .to_owned(),
    ];
    for client in shop.clients() {
        let answer = ask(&shop, &client, &lines, &[&layout]);
        let answer = answer.replace(shop.registry.address(), "REGISTRY");
        let answers: Vec<&str> = answer.split("== ").skip(1).collect();
        assert_eq!(answers.len(), expected.len(), "{answer}");
        for (answer, expected) in answers.into_iter().zip(&expected) {
            let (question, said) = answer.split_once('\n').unwrap();
            // An answer repeats the source; an error does not.
            let said = match said.strip_prefix("source ") {
                Some(said) => said.split_once('\n').unwrap().1,
                None => said,
            };
            assert_eq!(said, expected, "{question}");
        }
        let foreign = format!("platform linux/arm64\nmeta {image_name}\n");
        let arm = ask(&shop, &client, &foreign, &["--platform=linux/arm64"]);
        let expected = format!("image {image} Some(String(\"arm64\"))\n");
        assert!(arm.ends_with(&expected), "{arm}");
    }
}

/// The digest of a layout's only image.
fn index_digest(layout: &str) -> String {
    let index = std::fs::read(Path::new(layout).join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn what_was_built_can_be_looked_into_and_the_server_says_what_it_can() {
    let shop = Shop::open();
    let lines =
        "look /etc\nlook /etc/passwd\nlook nonesuch\nevaluate true\nevaluate exit 5\nserver\n";
    for client in shop.clients() {
        let answer = ask(&shop, &client, lines, &[]);
        let (looked, server) = answer.split_once("frontend ").unwrap();
        assert_eq!(
            looked,
            "== /etc\n\
             stat: \"etc\" 20000000755 0 0:0 \"\"\n\
             list: \"group\" 644 49 0:0 \"\"\n\
             list: \"passwd\" 644 101 0:0 \"\"\n\
             read: error /etc is not a regular file\n\
             == /etc/passwd\n\
             stat: \"passwd\" 644 101 0:0 \"\"\n\
             list: error readdir /etc/passwd: not a directory\n\
             read: \"oot:x:0:\"\n\
             == nonesuch\n\
             stat: error lstat /nonesuch: no such file or directory\n\
             list: error open /nonesuch: no such file or directory\n\
             read: error open /nonesuch: no such file or directory\n\
             evaluated\n\
             evaluated: error process \"/bin/sh -c exit 5\" did not complete successfully: exit code: 5\n"
        );
        for line in [
            "frontend gateway.exec\n",
            "frontend source.metaresolver\n",
            "llb source.imageblob\n",
            "platform linux/amd64\n",
            "platform linux/arm64\n",
        ] {
            let server = format!("frontend {server}");
            assert!(server.contains(line), "{line}: {server}");
        }
    }
}

#[test]
fn a_target_of_bake_is_an_input_of_a_frontend() {
    let shop = Shop::open();
    let context = shop.context("inputs", "inputs\n");
    let out = shop.out("inputs");
    let bake = serde_json::json!({"target": {
        "first": {"context": context, "dockerfile": "Other"},
        "second": {
            "context": context,
            "contexts": {"base": "target:first"},
            "output": [format!("type=local,dest={out}")],
        },
    }});
    let file = shop.shop.lab.directory().join("bake.json");
    std::fs::write(&file, bake.to_string()).unwrap();
    let stock = shop.shop.stock();
    stock.ok(&[
        "bake",
        "--builder=far",
        "--allow=fs=*",
        "-f",
        &text(&file),
        "second",
    ]);
    let answer = std::fs::read_to_string(Path::new(&out).join("answer")).unwrap();
    let digest = index_digest(&text(shop.shop.base_layout()));
    let base = format!("{}/busybox", shop.registry.address());
    let input = answer
        .lines()
        .find(|line| line.starts_with("input 0-first "));
    let input = input.unwrap_or_else(|| panic!("{answer}"));
    let source = input.trim_start_matches("input 0-first docker-image://");
    assert!(
        source.starts_with(&base) && source.ends_with(&digest),
        "{answer}"
    );
}

/// A program of the lab, ended with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn stock_reads_what_to_build_from_repositories_and_web_servers() {
    let shop = Shop::open();
    let www = shop.shop.lab.subdirectory("www");
    let _git = GitServer::start(&www, "0.0.0.0:8418", GitServerOptions::default());
    let work = GitWork::init(&www.join("r.git"), &[]);
    let dockerfile = format!(
        "FROM {}/busybox AS run\nARG WHO\nRUN echo made for $WHO > /made\n\
         FROM scratch\nCOPY --from=run /made /\n",
        shop.registry.address()
    );
    work.put("Dockerfile", &dockerfile);
    let bake = r#"{"target": {"default": {"args": {"WHO": "bake"}}}}"#;
    work.put("docker-bake.json", bake);
    work.commit("first");
    std::fs::write(www.join("Dockerfile.txt"), &dockerfile).unwrap();
    std::fs::write(www.join("bake.json"), bake).unwrap();
    let mut command = shop
        .shop
        .lab
        .command(testkit::Peers::find().busybox("amd64"));
    command.args(["httpd", "-f", "-p", "0.0.0.0:8080", "-h", &text(&www)]);
    let _web = Running(command.spawn().unwrap());
    crate::workshop::wait_until("the web server", || {
        std::net::TcpStream::connect(("127.0.0.1", 8080)).is_ok()
    });
    let at = |path: &str| format!("http://{}:{path}", Engine::GATEWAY);
    let stock = shop.shop.stock().env("BUILDX_BAKE_GIT_SSH", "");
    let made = |name: &str, first: &[&str], last: &[&str]| {
        let out = shop.out(name);
        let output = format!("type=local,dest={out}");
        let output = match first[0] {
            "bake" => format!("--set=*.output={output}"),
            _ => format!("--output={output}"),
        };
        let builder = "--builder=far";
        stock.ok(&[first, &[builder, "--progress=plain", &output], last].concat());
        std::fs::read_to_string(Path::new(&out).join("made")).unwrap()
    };
    let bake = ["bake", "--allow=fs=*"];
    assert_eq!(made("git", &bake, &[&at("8418/r.git")]), "made for bake\n");
    let context = format!("--set=*.context={}", at("8418/r.git"));
    let plain = [context.as_str(), &at("8080/bake.json")];
    assert_eq!(made("file", &bake, &plain), "made for bake\n");
    let empty = shop.shop.context("empty", &[]);
    let file = at("8080/Dockerfile.txt");
    let flags = ["--build-arg=WHO=a file", "-f", &file, &empty];
    assert_eq!(made("url", &["build"], &flags), "made for a file\n");
    let missing = stock.fails(&["bake", "--builder=far", &at("8418/r.git#nonesuch")]);
    assert!(missing.stderr.contains("nonesuch"), "{}", missing.stderr);
}

/// What a program at a terminal has said.
struct Screen {
    said: String,
    output: std::io::PipeReader,
}

impl Screen {
    /// Waits until it has said that after what was waited for before.
    fn until(&mut self, wanted: &str) {
        use std::io::Read;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.said.find(wanted) {
                self.said.drain(..at + wanted.len());
                return;
            }
            let count = self.output.read(&mut buffer).unwrap();
            assert!(count > 0, "it ended before {wanted:?}: {}", self.said);
            self.said += &String::from_utf8_lossy(&buffer[..count]);
        }
    }
}

#[test]
fn stock_debugs_a_failed_step_at_a_terminal() {
    use std::io::Write;
    let shop = Shop::open();
    let dockerfile = format!(
        "FROM {}/busybox\nRUN echo before > /before\nRUN echo left > /left && exit 7\n",
        shop.registry.address()
    );
    let context = shop.shop.context("failing", &[("Dockerfile", &dockerfile)]);
    let stock = testkit::Peers::find().buildx();
    let line = format!(
        "{} debug --builder=far --on=error --invoke=/bin/sh build --progress=plain {context}",
        text(&stock)
    );
    // The limit is for a terminal that nothing comes from any more.
    let tool = testkit::Tool::new("timeout", &shop.shop.lab.subdirectory("home"))
        .env("BUILDX_EXPERIMENTAL", "1")
        .env("DOCKER_HOST", shop.shop.engine.host());
    let (output, theirs) = std::io::pipe().unwrap();
    let mut command = tool.command(&["--foreground", "120", "script", "-qec", &line, "/dev/null"]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs);
    let mut child = Running(command.spawn().unwrap());
    // The command keeps the write end of the pipe.
    drop(command);
    let mut screen = Screen {
        said: String::new(),
        output,
    };
    let mut keys = child.0.stdin.take().unwrap();
    screen.until("exit code: 7");
    // Keys that come before the shell is there may be taken for the debugger's.
    screen.until("list of built-in commands");
    // The terminal shows what is typed: what is waited for is made by the shell.
    writeln!(
        keys,
        "cat /before /left; test -t 0 && echo at a $((6 * 7)) terminal; exit 3"
    )
    .unwrap();
    screen.until("before\r");
    screen.until("left\r");
    screen.until("at a 42 terminal\r");
    screen.until("invoke: exit code: 3");
    // The container begins anew, and without what the failed step left.
    writeln!(keys, "rollback --init").unwrap();
    screen.until("Interactive container was restarted");
    writeln!(
        keys,
        "cat /before; test -e /left || echo gone with $((6 * 7)); exit 4"
    )
    .unwrap();
    screen.until("gone with 42\r");
    screen.until("invoke: exit code: 4");
    writeln!(keys, "exit").unwrap();
    screen.until("failed to solve: process");
    assert!(!child.0.wait().unwrap().success());
}
