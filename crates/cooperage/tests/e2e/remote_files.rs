//! Dockerfiles and contexts that are not on the client's disk: from the web, from git, from standard
//! input, and from other targets of a bake; by our client and by stock's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::{GitServer, GitServerOptions, GitWork, Peers, Release, Tool};

use crate::workshop::{Remote, Workshop, server, text};

/// Our server with both clients, and a web server; no Engine.
struct Site {
    remote: Remote,
    web: GitServer,
}

impl Site {
    fn open() -> Site {
        let remote = Remote::open();
        let web = remote.lab.subdirectory("web");
        let web = GitServer::start(&web, "127.0.0.1:0", GitServerOptions::default());
        Site { remote, web }
    }

    /// A file of the web server; returns its URL.
    fn file(&self, name: &str, content: &[u8]) -> String {
        let folder = self.remote.lab.subdirectory("web/files");
        std::fs::write(folder.join(name), content).unwrap();
        self.web.url(&format!("files/{name}"))
    }

    /// A folder with the file `a`, as every kind of context: its name, how it is given, and what goes
    /// to standard input.
    fn contexts(&self) -> Vec<(&'static str, String, Option<PathBuf>)> {
        let folder = self.remote.lab.subdirectory("folder");
        std::fs::write(folder.join("a"), "the file a").unwrap();
        let archive = self
            .remote
            .lab
            .subdirectory("web/files")
            .join("context.tar");
        let tar = Command::new("tar")
            .args(["-cf", &text(&archive), "-C", &text(&folder), "a"])
            .status();
        assert!(tar.unwrap().success());
        let work = GitWork::init(&self.remote.lab.subdirectory("web").join("r.git"), &[]);
        work.put("a", "the file a");
        work.commit("first");
        vec![
            ("folder", text(&folder), None),
            ("standard input", "-".to_owned(), Some(archive)),
            ("git", self.web.url("r.git"), None),
            ("archive", self.web.url("files/context.tar"), None),
        ]
    }

    /// Builds and returns the files of the result.
    fn build(&self, client: &Tool, args: &[&str], input: Option<&Path>) -> PathBuf {
        let out = self.remote.lab.directory().join("out");
        let _ = std::fs::remove_dir_all(&out);
        let output = format!("type=local,dest={}", text(&out));
        let first = ["build", "--builder=far", "--progress=plain", "-o", &output];
        let stdin = match input {
            Some(path) => Stdio::from(File::open(path).unwrap()),
            None => Stdio::null(),
        };
        let mut command = client.command(&[&first[..], args].concat());
        let built = command.stdin(stdin).output().unwrap();
        let stderr = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{args:?}\n{stderr}");
        out
    }
}

fn error_of(client: &Tool, args: &[&str]) -> String {
    let failed = client.fails(args);
    let line = failed.stderr.lines().rev().find(|l| l.contains("ERROR: "));
    line.unwrap_or(&failed.stderr).to_owned()
}

#[test]
fn a_dockerfile_of_the_web_goes_with_every_kind_of_context() {
    let site = Site::open();
    let url = site.file("far.Dockerfile", b"FROM scratch\nCOPY a /from-the-web\n");
    for (name, client) in site.remote.clients() {
        for (kind, context, input) in site.contexts() {
            let out = site.build(client, &["-f", &url, &context], input.as_deref());
            let read = std::fs::read_to_string(out.join("from-the-web"));
            assert_eq!(read.unwrap(), "the file a", "{name}: {kind}");
        }
    }
}

#[test]
fn a_dockerfile_from_standard_input_goes_with_contexts_of_the_server() {
    let site = Site::open();
    let file = site.remote.lab.directory().join("Dockerfile");
    std::fs::write(&file, "FROM scratch\nCOPY a /from-standard-input\n").unwrap();
    for (name, client) in site.remote.clients() {
        for (kind, context, input) in site.contexts() {
            if input.is_some() {
                continue;
            }
            let out = site.build(client, &["-f", "-", &context], Some(&file));
            let read = std::fs::read_to_string(out.join("from-standard-input"));
            assert_eq!(read.unwrap(), "the file a", "{name}: {kind}");
        }
    }
}

#[test]
fn a_dockerfile_of_the_web_that_is_not_to_be_had_or_too_large_is_refused() {
    let site = Site::open();
    let mut large = b"FROM scratch\n#".to_vec();
    large.resize((2 << 20) + 1, b'x');
    let large = site.file("large", &large);
    let missing = site.web.url("files/missing");
    let wrong = site.file("wrong", b"FROM scratch\nCOPPY a /\n");
    let gone = format!("failed to load cache key: {missing}: invalid response status 404");
    let context = text(&site.remote.lab.subdirectory("empty"));
    for (name, client) in site.remote.clients() {
        for (url, expected) in [
            (&large, "bigger than allowed max size (2.097MB)"),
            (&missing, &gone),
            (&wrong, "unknown instruction: COPPY (did you mean COPY?)"),
        ] {
            let error = error_of(client, &["build", "--builder=far", "-f", url, &context]);
            assert!(error.contains("failed to solve: "), "{name}: {error}");
            assert!(error.ends_with(expected), "{name}: {error}");
        }
    }
}

#[test]
fn targets_as_contexts_are_for_bake_only() {
    let site = Site::open();
    let context = text(&site.remote.lab.subdirectory("empty"));
    let args = ["build", "--builder=far", "--build-context=a=target:b"];
    let [ours, stocks] = site.remote.clients();
    assert_eq!(
        error_of(ours.1, &[&args[..], &[&context]].concat()),
        error_of(stocks.1, &[&args[..], &[&context]].concat())
    );
}

/// What an image layout in an archive has: the configuration and the manifest's annotations of each
/// platform, without what compression decides.
fn images(archive: &Path) -> Vec<Value> {
    let folder = archive.with_extension("unpacked");
    std::fs::create_dir_all(&folder).unwrap();
    let tar = Command::new("tar")
        .args(["-xf", &text(archive), "-C", &text(&folder)])
        .status();
    assert!(tar.unwrap().success());
    let read =
        |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| {
        let digest = digest.as_str().unwrap().trim_start_matches("sha256:");
        read(folder.join("blobs/sha256").join(digest))
    };
    let mut waiting = vec![read(folder.join("index.json"))];
    let mut found = Vec::new();
    while let Some(value) = waiting.pop() {
        if let Some(manifests) = value["manifests"].as_array() {
            waiting.extend(manifests.iter().map(|m| blob(&m["digest"])));
            continue;
        }
        let config = blob(&value["config"]["digest"]);
        found.push(json!({ "config": config, "annotations": value["annotations"] }));
    }
    found.sort_by_key(|image| image["config"]["architecture"].to_string());
    found
}

const BAKE: &str = r#"
group "default" { targets = ["one", "several"] }
target "common" {
  args = { SOURCE_DATE_EPOCH = "1600000000" }
  attest = ["type=provenance,disabled=true"]
}
target "base" {
  inherits = ["common"]
  context = "base"
}
target "one" {
  inherits = ["common"]
  context = "app"
  contexts = { x = "target:base" }
  output = ["type=oci,rewrite-timestamp=true,dest=OUT/one.tar"]
}
target "plain-base" {
  inherits = ["common"]
  context = "base"
  target = "plain"
  platforms = ["linux/amd64", "linux/arm64"]
}
target "several" {
  inherits = ["common"]
  context = "app"
  target = "several"
  contexts = { x = "target:plain-base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output = ["type=oci,rewrite-timestamp=true,dest=OUT/several.tar"]
}
"#;

const BAKE_BASE: &str = "FROM scratch AS plain\nARG TARGETARCH\nENV FROM_BASE=$TARGETARCH\n\
                         LABEL base=yes\nWORKDIR /w\nCOPY note /note\n\
                         FROM plain\nCOPY busybox /bin/busybox\n\
                         RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo base > /made-in-base\"]\n";
const BAKE_APP: &str = "FROM x AS several\nLABEL app=$FROM_BASE\nCOPY --from=x /note /copied\n\
                        FROM x\nCOPY --from=x /made-in-base here\n\
                        RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo $FROM_BASE > made\"]\n\
                        CMD [\"/bin/busybox\"]\n";

#[test]
fn targets_of_a_bake_are_contexts_of_others_with_the_same_images_as_the_engines() {
    let shop = Workshop::with(Release::NewestContainerd);
    let server = server(&shop.lab).start();
    let address = server.address();
    shop.cooperage
        .ok(&["create", "--name", "far", "--driver", "remote", &address]);
    let files = [
        ("base/Dockerfile", BAKE_BASE),
        ("base/note", "a note"),
        ("app/Dockerfile", BAKE_APP),
    ];
    let context = PathBuf::from(shop.context("bake", &files));
    std::fs::copy(Peers::find().busybox("amd64"), context.join("base/busybox")).unwrap();
    let bake = |builder: &str| {
        let out = shop.lab.subdirectory(&format!("out-{builder}"));
        let file = out.join("docker-bake.hcl");
        std::fs::write(&file, BAKE.replace("OUT", &text(&out))).unwrap();
        let stock = shop.stock().directory(&context);
        stock.ok(&[
            "bake",
            "--builder",
            builder,
            "--allow=fs.write=*",
            "--progress=plain",
            "-f",
            &text(&file),
        ]);
        [
            images(&out.join("one.tar")),
            images(&out.join("several.tar")),
        ]
    };
    let (ours, engines) = (bake("far"), bake("default"));
    assert_eq!((ours[0].len(), ours[1].len()), (1, 2));
    assert_eq!(ours, engines);
}
