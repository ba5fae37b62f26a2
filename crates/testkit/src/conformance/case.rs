//! What a case says of itself: `case.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One folder of the corpus.
#[derive(Clone, Debug)]
pub struct Case {
    /// The folder's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What `case.toml` says.
    pub spec: Spec,
}

/// The whole of `case.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What the case is about, in a line.
    pub title: String,
    /// Words that group cases.
    #[serde(default)]
    pub tags: Vec<String>,
    /// How to build it.
    #[serde(default)]
    pub build: Build,
    /// What is known of the outcome beside the recording.
    #[serde(default)]
    pub expect: Expect,
    /// What version control does not keep of the context.
    #[serde(default)]
    pub setup: Vec<Setup>,
    /// Git repositories to make of folders.
    #[serde(default)]
    pub git: Vec<Repository>,
    /// How the web server answers for a file, by its path.
    #[serde(default)]
    pub web: BTreeMap<String, WebRule>,
    /// Dockerfiles that are built one by one with the case's context, in place of `ctx/Dockerfile`.
    #[serde(default)]
    pub variant: Vec<Variant>,
}

/// How to build.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Build {
    /// `image` (an OCI archive; the default), `docker`, `local` or `tar`.
    pub output: Option<String>,
    /// More settings for `--output`.
    pub output_opts: Vec<String>,
    /// `-f`.
    pub dockerfile: Option<String>,
    /// The context, `ctx` if unset.
    pub context: Option<String>,
    /// A file given as standard input.
    pub stdin: Option<String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--platform`.
    pub platforms: Vec<String>,
    /// `--build-arg`.
    pub args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--build-context`.
    pub contexts: BTreeMap<String, String>,
    /// `--secret`.
    pub secrets: Vec<String>,
    /// Variables for the client.
    pub env: BTreeMap<String, String>,
    /// Further options as they are.
    pub options: Vec<String>,
    /// `--call` in place of a build.
    pub call: Option<String>,
}

/// What must hold of an outcome, beside its being equal to the recording.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// `ok` (the default) or `error`; checked when recording.
    pub result: Option<String>,
    /// Exit status; checked when recording.
    pub exit: Option<i64>,
    /// Texts the client's output must contain.
    pub contains: Vec<String>,
    /// Texts it must not contain.
    pub lacks: Vec<String>,
    /// Lines of the Dockerfile that an error points at; checked when recording.
    pub lines: Option<Vec<u64>>,
    /// Compare the warnings printed after a build.
    pub warnings: bool,
    /// Compare the whole text of an error.
    pub strict: bool,
    /// Compare the image configuration to the byte; for builds with fixed times.
    pub bytes: bool,
    /// What of the case the Engine's BuildKit does not have or does otherwise. Such a case is recorded
    /// from a newer one only.
    pub newer: Option<String>,
}

/// A change to the copy of a case that is built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    pub path: String,
    #[serde(default, rename = "type")]
    pub kind: SetupKind,
    pub content: Option<String>,
    pub base64: Option<String>,
    pub target: Option<String>,
    pub mode: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<i64>,
    #[serde(default)]
    pub xattrs: BTreeMap<String, String>,
    #[serde(default)]
    pub xattrs_hex: BTreeMap<String, String>,
}

/// What a [`Setup`] makes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SetupKind {
    #[default]
    Keep,
    Dir,
    File,
    Symlink,
    Hardlink,
    Fifo,
    Remove,
}

/// A git repository whose commits are folders of the case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    pub name: String,
    pub head: Option<String>,
    pub commits: Vec<Commit>,
}

/// One commit: the files of `dir` and nothing else.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub dir: String,
    pub message: Option<String>,
    pub branch: Option<String>,
    pub tag: Option<String>,
    pub annotated: Option<String>,
}

/// How the web server answers for a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebRule {
    /// A status in place of the file.
    pub status: Option<u16>,
    /// A redirect.
    pub location: Option<String>,
    /// More headers, or others than usual.
    pub headers: BTreeMap<String, String>,
    /// No `Last-Modified`.
    pub no_last_modified: bool,
}

/// A Dockerfile of several in a case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in `expect.json`.
    pub name: String,
    /// Its text, written to `ctx/Dockerfile`; the case's own Dockerfile if unset.
    pub dockerfile: Option<String>,
    /// How to build it, where it differs from the case.
    #[serde(default)]
    pub build: Build,
}

/// Something to build once: a case, or a variant of it.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The case.
    pub case: Case,
    /// Which of its variants.
    pub variant: Option<String>,
    /// The Dockerfile's text, if the variant has one.
    pub dockerfile: Option<String>,
    /// How to build.
    pub build: Build,
}

impl Case {
    /// Reads the case in a folder; panics with its name if it is wrong.
    pub fn read(path: &Path) -> Case {
        let name = path.file_name().expect("a named folder").to_string_lossy();
        let text = std::fs::read_to_string(path.join("case.toml"))
            .unwrap_or_else(|error| panic!("{name}/case.toml: {error}"));
        let spec =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{name}/case.toml: {error}"));
        Case {
            name: name.into_owned(),
            path: path.to_owned(),
            spec,
        }
    }

    /// What was recorded.
    pub fn recorded(&self) -> Result<serde_json::Value, String> {
        let text = std::fs::read_to_string(self.path.join("expect.json"))
            .map_err(|error| format!("expect.json: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("expect.json: {error}"))
    }

    /// What there is to build of it.
    pub fn units(&self) -> Vec<Unit> {
        if self.spec.variant.is_empty() {
            return vec![Unit {
                case: self.clone(),
                variant: None,
                dockerfile: None,
                build: self.spec.build.clone(),
            }];
        }
        let variants = self.spec.variant.iter().map(|variant| Unit {
            case: self.clone(),
            variant: Some(variant.name.clone()),
            dockerfile: variant.dockerfile.clone(),
            build: self.spec.build.with(&variant.build),
        });
        variants.collect()
    }
}

impl Unit {
    /// `CASE` or `CASE/VARIANT`.
    pub fn name(&self) -> String {
        match &self.variant {
            Some(variant) => format!("{}/{variant}", self.case.name),
            None => self.case.name.clone(),
        }
    }

    /// What was recorded of it.
    pub fn recorded(&self) -> Result<serde_json::Value, String> {
        let mut recorded = self.case.recorded()?;
        match &self.variant {
            Some(variant) => match recorded["variants"].get_mut(variant) {
                Some(found) => Ok(found.take()),
                None => Err(format!("expect.json has no variant `{variant}`")),
            },
            None => Ok(recorded),
        }
    }
}

impl Build {
    /// What is said in `over` counts, else what is said here; tables and lists are joined.
    fn with(&self, over: &Build) -> Build {
        let mut all = self.clone();
        let first = |a: &Option<String>, b: &Option<String>| a.clone().or_else(|| b.clone());
        all.output = first(&over.output, &self.output);
        all.dockerfile = first(&over.dockerfile, &self.dockerfile);
        all.context = first(&over.context, &self.context);
        all.stdin = first(&over.stdin, &self.stdin);
        all.target = first(&over.target, &self.target);
        all.call = first(&over.call, &self.call);
        all.output_opts.extend(over.output_opts.clone());
        all.platforms.extend(over.platforms.clone());
        all.secrets.extend(over.secrets.clone());
        all.options.extend(over.options.clone());
        all.args.extend(over.args.clone());
        all.labels.extend(over.labels.clone());
        all.contexts.extend(over.contexts.clone());
        all.env.extend(over.env.clone());
        all
    }

    /// The kind of output.
    pub fn output(&self) -> &str {
        self.output.as_deref().unwrap_or("image")
    }

    /// True where the times in an image are the build's to choose.
    pub fn has_fixed_times(&self) -> bool {
        self.env.contains_key("SOURCE_DATE_EPOCH") || self.args.contains_key("SOURCE_DATE_EPOCH")
    }
}

/// The cases in a folder, by name.
pub fn cases_below(folder: &Path) -> Vec<Case> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("case.toml").exists())
        .collect();
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}
