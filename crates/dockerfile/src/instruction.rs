//! Instructions as types: what a Dockerfile says, not yet what it means in a build. Texts are as
//! written; variables in them are expanded by whoever builds.

use crate::mount::MountSpec;
use crate::source::Lines;

/// A Dockerfile cut into stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dockerfile {
    /// The `ARG` instructions above the first `FROM`.
    pub global_args: Vec<GlobalArgs>,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// The escape character.
    pub escape: char,
}

/// An `ARG` instruction above the first `FROM`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GlobalArgs {
    /// What it declares.
    pub args: Vec<ArgDeclaration>,
    /// Where.
    pub lines: Lines,
}

/// `FROM` and what follows up to the next one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stage {
    /// The name after `AS`, lower case; empty if there is none.
    pub name: String,
    /// What it starts from.
    pub base_name: String,
    /// `--platform`; empty if not given.
    pub platform: String,
    /// The keyword as it is written.
    pub keyword: String,
    /// The text of the `FROM` instruction.
    pub code: String,
    /// Where `FROM` stands.
    pub lines: Lines,
    /// The comments above it.
    pub comments: Vec<String>,
    /// What a comment `NAME text` above it says.
    pub doc_comment: String,
    /// The instructions.
    pub instructions: Vec<Instruction>,
}

/// An instruction of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// The keyword as it is written.
    pub keyword: String,
    /// The whole instruction with continuation lines joined, without its here-documents.
    pub code: String,
    /// Where it stands.
    pub lines: Lines,
    /// The comments above it.
    pub comments: Vec<String>,
    /// What it is.
    pub kind: Kind,
}

/// The kinds of instructions.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `ADD`
    Add(Box<AddInstruction>),
    /// `ARG`
    Arg(Vec<ArgDeclaration>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Box<CopyInstruction>),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `ONBUILD`: the text of the instruction to run later, here-documents included.
    Onbuild(String),
    /// `RUN`
    Run(Box<RunInstruction>),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

/// A name with a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The name.
    pub key: String,
    /// The value.
    pub value: String,
    /// Whether it is written in the old form, `NAME value`.
    pub legacy: bool,
}

/// A name with or without a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The name.
    pub key: String,
    /// The default.
    pub value: Option<String>,
    /// What a comment `NAME text` above it says.
    pub doc_comment: String,
}

/// A command in shell or exec form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The words in exec form; one text in shell form.
    pub words: Vec<String>,
    /// Whether it is in shell form, so that the shell stands in front of it.
    pub shell_form: bool,
    /// Its here-documents.
    pub files: Vec<InlineFile>,
}

/// A here-document of `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InlineFile {
    /// Its end word.
    pub name: String,
    /// Its text, tabs included.
    pub data: String,
    /// Whether tabs at line starts are to be dropped.
    pub chomp: bool,
}

/// Where files come from and go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcesAndDest {
    /// Paths, patterns or addresses.
    pub paths: Vec<String>,
    /// Here-documents.
    pub contents: Vec<SourceContent>,
    /// The destination.
    pub dest: String,
}

/// A here-document of `COPY` or `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceContent {
    /// The name of the file.
    pub path: String,
    /// Its content.
    pub data: Vec<u8>,
    /// Whether variables in it are expanded.
    pub expand: bool,
}

/// `ADD`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddInstruction {
    /// Sources and destination.
    pub files: SourcesAndDest,
    /// `--chown`
    pub chown: String,
    /// `--chmod`
    pub chmod: String,
    /// `--link`
    pub link: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: String,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
}

/// `COPY`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyInstruction {
    /// Sources and destination.
    pub files: SourcesAndDest,
    /// `--from`
    pub from: String,
    /// `--chown`
    pub chown: String,
    /// `--chmod`
    pub chmod: String,
    /// `--link`
    pub link: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--parents`
    pub parents: bool,
}

/// `RUN`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunInstruction {
    /// The command.
    pub command: CommandLine,
    /// `--mount`
    pub mounts: Vec<MountSpec>,
    /// `--network`
    pub network: RunNetwork,
    /// `--security=insecure`
    pub insecure: bool,
    /// `--device`
    pub devices: Vec<Device>,
}

/// `--network` of `RUN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// What the build says.
    #[default]
    Default,
    /// Only a loopback.
    None,
    /// The host's.
    Host,
}

/// `--device` of `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its CDI name.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
}

/// `HEALTHCHECK`; durations are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`.
    pub test: Vec<String>,
    /// `--interval`
    pub interval: i64,
    /// `--timeout`
    pub timeout: i64,
    /// `--start-period`
    pub start_period: i64,
    /// `--start-interval`
    pub start_interval: i64,
    /// `--retries`
    pub retries: i64,
}
