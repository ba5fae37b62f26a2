use super::*;
use crate::request::BuildFlags;

struct Place {
    dir: TempDir,
    env: Environment,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let env = Environment::default().in_directory(dir.path());
        Place { dir, env }
    }

    fn file(&self, path: &str) -> &Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "FROM scratch\n").unwrap();
        self
    }

    fn load(&self, context: &str, file: &str, stdin: &[u8]) -> Result<Inputs, String> {
        self.load_with(context, file, &[], stdin)
    }

    fn load_with(
        &self,
        context: &str,
        file: &str,
        contexts: &[&str],
        stdin: &[u8],
    ) -> Result<Inputs, String> {
        let flags = BuildFlags {
            context: context.into(),
            file: file.into(),
            build_contexts: contexts.iter().map(|c| (*c).to_owned()).collect(),
            ..BuildFlags::default()
        };
        let request = BuildRequest::from_flags(&flags, &self.env).unwrap();
        Inputs::load(&request, &self.env, stdin).map_err(|error| error.to_string())
    }
}

#[test]
fn a_directory_is_served_with_its_dockerfile() {
    let place = Place::new();
    place.file("app/Dockerfile").file("other/x.Dockerfile");
    let inputs = place.load("app", "", b"").unwrap();
    let app = place.dir.path().canonicalize().unwrap().join("app");
    assert_eq!(inputs.local_dirs["context"], app);
    assert_eq!(inputs.local_dirs["dockerfile"], app);
    assert_eq!(inputs.attributes["filename"], "Dockerfile");
    assert_eq!(inputs.shared_key, "app");
    let inputs = place.load("app", "other/x.Dockerfile", b"").unwrap();
    assert!(inputs.local_dirs["dockerfile"].ends_with("other"));
    assert_eq!(inputs.attributes["filename"], "x.Dockerfile");
    assert_eq!(inputs.dockerfile_source, "other/x.Dockerfile");
}

#[test]
fn a_lowercase_dockerfile_is_found() {
    let place = Place::new();
    place.file("dockerfile");
    let inputs = place.load(".", "", b"").unwrap();
    assert_eq!(inputs.attributes["filename"], "dockerfile");
    place.file("Dockerfile");
    let inputs = place.load(".", "", b"").unwrap();
    assert_eq!(inputs.attributes["filename"], "Dockerfile");
}

#[test]
fn standard_input_is_a_dockerfile_or_an_archive() {
    let place = Place::new();
    let inputs = place.load("-", "", b"FROM scratch\n").unwrap();
    let dockerfile = inputs.local_dirs["dockerfile"].join("Dockerfile");
    assert_eq!(fs::read(&dockerfile).unwrap(), b"FROM scratch\n");
    assert_eq!(
        fs::read_dir(&inputs.local_dirs["context"]).unwrap().count(),
        0
    );
    assert_eq!(inputs.attributes["dockerfilekey"], "dockerfile");
    drop(inputs);
    assert!(
        !dockerfile.exists(),
        "temporary directories go with the inputs"
    );

    let archive = [&[0x1f, 0x8b, 0x08][..], &[7; 5000]].concat();
    let inputs = place.load("-", "sub/Dockerfile", &archive).unwrap();
    let mut sent = Vec::new();
    (&*inputs.uploads[0].file).read_to_end(&mut sent).unwrap();
    assert_eq!(sent, archive);
    assert_eq!(inputs.uploads[0].attribute, "context");
    assert_eq!(inputs.attributes["filename"], "sub/Dockerfile");

    let place = Place::new();
    place.file("x");
    let inputs = place.load(".", "-", b"FROM scratch\n").unwrap();
    assert_eq!(inputs.dockerfile_source, "stdin");
    assert!(inputs.local_dirs["context"].join("x").exists());
}

#[test]
fn remote_contexts_are_the_servers() {
    let place = Place::new();
    place.file("Dockerfile");
    let url = "https://example.com/repo.git?ref=a#b";
    let inputs = place.load(url, "", b"").unwrap();
    assert_eq!(inputs.attributes["context"], url);
    assert!(inputs.local_dirs.is_empty());
    assert_eq!(
        inputs.capabilities,
        ["moby.buildkit.frontend.gitquerystring"]
    );
    let file = place.dir.path().join("Dockerfile");
    let inputs = place
        .load("https://h/x.tar", file.to_str().unwrap(), b"")
        .unwrap();
    assert_eq!(inputs.attributes["dockerfilekey"], "dockerfile");
    assert_eq!(inputs.local_dirs.len(), 1);
}

#[test]
fn a_dockerfile_from_a_url_is_served_once_its_text_is_known() {
    let place = Place::new();
    let url = "https://h/x/my.Dockerfile";
    let archive = [0x1f, 0x8b, 8, 0];
    for context in [".", "-", "https://h/x.git", "https://h/x.tar"] {
        let mut inputs = place.load(context, url, &archive).unwrap();
        assert_eq!(inputs.attributes["filename"], "Dockerfile");
        assert_eq!(inputs.attributes["dockerfilekey"], "dockerfile");
        assert_eq!(inputs.dockerfile_url.as_deref(), Some(url));
        assert!(!inputs.local_dirs.contains_key("dockerfile"));
        inputs.set_dockerfile(b"FROM a\n").unwrap();
        assert_eq!(inputs.dockerfile_url, None);
        let file = inputs.local_dirs["dockerfile"].join("Dockerfile");
        assert_eq!(std::fs::read(file).unwrap(), b"FROM a\n");
    }
    assert_eq!(
        place.load("-", url, b"FROM a\n").unwrap_err(),
        "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"
    );
}

#[test]
fn a_dockerfile_from_standard_input_goes_with_contexts_of_the_server() {
    let place = Place::new();
    for context in ["https://h/x.git", "https://h/x.tar"] {
        let inputs = place.load(context, "-", b"FROM a\n").unwrap();
        assert_eq!(inputs.attributes["context"], context);
        assert_eq!(inputs.attributes["dockerfilekey"], "dockerfile");
        let file = inputs.local_dirs["dockerfile"].join("Dockerfile");
        assert_eq!(std::fs::read(file).unwrap(), b"FROM a\n");
    }
}

#[test]
fn what_is_missing_is_named_in_the_known_words() {
    let place = Place::new();
    place.file("file");
    for (context, file, words) in [
        ("x", "", "unable to prepare context: path \"x\" not found"),
        (
            "file",
            "",
            "unable to prepare context: path \"file\" not found",
        ),
        (
            "-",
            "-",
            "invalid argument: can't use stdin for both build context and dockerfile",
        ),
        (
            ".",
            "nodir/Dockerfile",
            "resolve : lstat nodir: no such file or directory",
        ),
        (
            "",
            "",
            "please specify build context (e.g. \".\" for the current directory)",
        ),
    ] {
        assert_eq!(place.load(context, file, b"").unwrap_err(), words);
    }
    assert_eq!(
        place.load("-", "Dockerfile", b"FROM a\n").unwrap_err(),
        "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"
    );
}

#[test]
fn named_contexts_are_served_or_passed_on() {
    let place = Place::new();
    place.file("Dockerfile").file("lib/a");
    let contexts = [
        "lib=lib",
        "context=lib",
        "base=docker-image://alpine",
        "src=https://h/x.git",
    ];
    let inputs = place.load_with(".", "", &contexts, b"").unwrap();
    assert_eq!(inputs.attributes["context:lib"], "local:lib");
    assert_eq!(inputs.attributes["sharedkey:localdir:lib"], "lib");
    assert_eq!(inputs.attributes["context:context"], "local:_context");
    assert_eq!(inputs.attributes["context:base"], "docker-image://alpine");
    assert_eq!(inputs.attributes["context:src"], "https://h/x.git");
    assert_eq!(inputs.local_dirs.len(), 4);
    assert_eq!(
        place.load_with(".", "", &["a=nope"], b"").unwrap_err(),
        "failed to get build context a: stat nope: no such file or directory"
    );
    assert_eq!(
        place.load_with(".", "", &["a=target:b"], b"").unwrap_err(),
        "failed to find target b for context a"
    );
}
