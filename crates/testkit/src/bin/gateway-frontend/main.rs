//! A frontend for tests: speaks the gateway protocol on its standard streams, as frontend images do.
//!
//! What it reads is its own small language, a word and the rest of the line:
//!
//! ```text
//! # syntax=…          skipped
//! image NAME          what to start from
//! platform OS/ARCH    of the image, the container and the steps; this machine's by default
//! mount KIND DEST ID  of the container: ssh, secret, cache, tmpfs
//! network MODE        of the container: none, host
//! security insecure   of the processes in it
//! ask COMMAND         runs in a container of its own; its output becomes the file /answer
//! run COMMAND         a step
//! meta SOURCE WORD…   what the source stands for is put into /answer, by a container or not; see
//!                     `questions.rs` for the words
//! look PATH           what is at a path of the image is put there too
//! evaluate COMMAND    a step that is not run before it is asked for: how it went is put there too
//! server              what the server says of itself is put there too
//! inputs              and the names of the graphs given along
//! fail TEXT           returns this error
//! crash               ends without a word to the server
//! hang                never ends
//! garbage             writes to the server what is not the protocol
//! dockerfile NAME     hands the request on to the Dockerfile frontend, with that file
//! ```

mod container;
mod questions;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use container::Wishes;
use llb::{
    Edge, ExecOp, FileAction, FileActionKind, FileOp, Graph, GraphBuilder, MkFileAction, Mount, Op,
};
use llb::{SourceOp, VertexMeta};
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{
    PingRequest, ReadFileRequest, Ref, ResolveImageConfigRequest, ReturnRequest, SolveRequest,
    WarnRequest, result,
};
use proto::{pb, rpc};
use tokio::net::unix::pipe;
use tonic::transport::{Channel, Endpoint};

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Standard output is the protocol's.
fn log(text: &str) {
    let line = format!("{text}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

async fn run() -> Result<(), Error> {
    let options: HashMap<String, String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, option)| {
            let (name, value) = option.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect();
    let mut frontend = Frontend {
        gateway: connect().await?,
        options,
    };
    let outcome = frontend.build().await;
    let request = match outcome {
        Ok(result) => ReturnRequest {
            result: Some(result),
            error: None,
        },
        Err(error) => ReturnRequest {
            result: None,
            error: Some(rpc::Status {
                code: 2,
                message: error.to_string(),
                details: Vec::new(),
            }),
        },
    };
    frontend.gateway.r#return(request).await?;
    Ok(())
}

async fn connect() -> Result<LlbBridgeClient<Channel>, Error> {
    let duplicate = |fd| -> Result<OwnedFd, Error> { Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?) };
    let input = pipe::Receiver::from_owned_fd(duplicate(rustix::stdio::stdin())?)?;
    let output = pipe::Sender::from_owned_fd(duplicate(rustix::stdio::stdout())?)?;
    let mut once = Some(tokio::io::join(input, output));
    let connector = tower::service_fn(move |_| {
        let streams = once.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(streams?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(LlbBridgeClient::new(
        endpoint.connect_with_connector(connector).await?,
    ))
}

struct Frontend {
    gateway: LlbBridgeClient<Channel>,
    options: HashMap<String, String>,
}

/// What was read.
#[derive(Default)]
struct Wanted {
    image: String,
    container: Wishes,
    ask: Vec<String>,
    run: Vec<String>,
    questions: Vec<Question>,
}

impl Wanted {
    /// Takes a line that is a part of what is wanted; whether it is one.
    fn take(&mut self, word: &str, rest: &str) -> Result<bool, Error> {
        let text = rest.to_owned();
        match word {
            "image" => self.image = text,
            "platform" => {
                let (os, architecture) = rest.split_once('/').ok_or("not a platform")?;
                self.container.platform = Some(pb::Platform {
                    os: os.to_owned(),
                    architecture: architecture.to_owned(),
                    ..pb::Platform::default()
                });
            }
            "mount" => self.container.add_mount(rest)?,
            "network" => {
                self.container.network = match rest {
                    "none" => pb::NetMode::None,
                    "host" => pb::NetMode::Host,
                    other => return Err(format!("unknown network {other}").into()),
                }
            }
            "security" => self.container.security = pb::SecurityMode::Insecure,
            "ask" => self.ask.push(text),
            "run" => self.run.push(text),
            "meta" => self.questions.push(Question::Meta(text)),
            "look" => self.questions.push(Question::Look(text)),
            "evaluate" => self.questions.push(Question::Evaluate(text)),
            "server" => self.questions.push(Question::Server),
            "inputs" => self.questions.push(Question::Inputs),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What is asked besides commands.
enum Question {
    Meta(String),
    Look(String),
    Evaluate(String),
    Server,
    Inputs,
}

impl Frontend {
    async fn build(&mut self) -> Result<proto::gateway::Result, Error> {
        let pong = self.gateway.ping(PingRequest {}).await?.into_inner();
        let caps = pong.frontend_api_caps;
        if !caps
            .iter()
            .any(|cap| cap.id == "gateway.exec" && cap.enabled)
        {
            return Err("this server runs no containers for frontends".into());
        }
        let text = self.read_file().await?;
        let mut wanted = Wanted::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if wanted.take(word, rest)? {
                continue;
            }
            match word {
                "fail" => return Err(rest.into()),
                "crash" => {
                    log("crashing as I was told");
                    std::process::exit(42);
                }
                "hang" => {
                    log("hanging as I was told");
                    std::future::pending::<()>().await;
                }
                "garbage" => {
                    log("babbling as I was told");
                    let babble = [b'?'; 1024];
                    while rustix::io::write(rustix::stdio::stdout(), &babble).is_ok() {}
                    std::future::pending::<()>().await;
                }
                "dockerfile" => return self.hand_on(rest).await,
                "" => {}
                other => return Err(format!("unknown word {other}").into()),
            }
        }
        self.carry_out(wanted).await
    }

    /// The file, which the client has where Dockerfiles are.
    async fn read_file(&mut self) -> Result<String, Error> {
        let source = SourceOp {
            identifier: "local://dockerfile".to_owned(),
            attrs: [(
                "local.session".to_owned(),
                std::env::var("BUILDKIT_SESSION_ID")?,
            )]
            .into(),
        };
        let graph = single(Op::Source(source), "[front] read the file");
        let vertex = graph.root.ok_or("no root")?.vertex.to_string();
        let reference = self.solve(graph, true).await?;
        let name = self.options.get("filename");
        let request = ReadFileRequest {
            r#ref: reference,
            file_path: name.map_or("Dockerfile", String::as_str).to_owned(),
            ..ReadFileRequest::default()
        };
        let data = self.gateway.read_file(request).await?.into_inner().data;
        let warning = WarnRequest {
            digest: vertex,
            level: 1,
            short: b"this language is for tests only".to_vec(),
            ..WarnRequest::default()
        };
        self.gateway.warn(warning).await?;
        Ok(String::from_utf8(data)?)
    }

    async fn carry_out(&mut self, wanted: Wanted) -> Result<proto::gateway::Result, Error> {
        let platform = wanted.container.platform.clone();
        let request = ResolveImageConfigRequest {
            r#ref: wanted.image.clone(),
            platform: platform.clone(),
            log_name: format!("[front] look at {}", wanted.image),
            ..ResolveImageConfigRequest::default()
        };
        let image = self
            .gateway
            .resolve_image_config(request)
            .await?
            .into_inner();
        let base = SourceOp {
            identifier: format!("docker-image://{}@{}", wanted.image, image.digest),
            ..SourceOp::default()
        };
        let answer = self.answer(&base, &wanted).await?;
        let mut graph = Steps::new(&platform);
        let at = graph.add(Op::Source(base), Vec::new(), "[front] base");
        let file = FileAction {
            input: Some(0),
            secondary_input: None,
            output: Some(0),
            kind: FileActionKind::MkFile(MkFileAction {
                path: "/answer".to_owned(),
                mode: 0o644,
                data: answer.into_bytes(),
                ..MkFileAction::default()
            }),
        };
        let file = FileOp {
            actions: vec![file],
        };
        let mut at = graph.add(Op::File(file), vec![at], "[front] answer");
        for command in &wanted.run {
            at = graph.run(at, command);
        }
        let reference = self.solve(graph.graph.finish(Some(at)), true).await?;
        Ok(proto::gateway::Result {
            metadata: [("containerimage.config".to_owned(), image.config)].into(),
            result: Some(result::Result::Ref(Ref {
                id: reference,
                def: None,
            })),
            ..proto::gateway::Result::default()
        })
    }

    /// What commands and questions come to.
    async fn answer(&mut self, base: &SourceOp, wanted: &Wanted) -> Result<String, Error> {
        let platform = &wanted.container.platform;
        let mut graph = Steps::new(platform);
        let root = graph.add(Op::Source(base.clone()), Vec::new(), "[front] base");
        let reference = self.solve(graph.graph.finish(Some(root)), true).await?;
        let mut answer = String::new();
        if !wanted.ask.is_empty() {
            answer = self.ask(&reference, &wanted.container, &wanted.ask).await?;
        }
        for question in &wanted.questions {
            answer += &match question {
                Question::Meta(text) => self.meta(text, platform.clone()).await?,
                Question::Look(path) => self.look(&reference, path).await?,
                Question::Server => self.server().await?,
                Question::Inputs => self.inputs().await?,
                Question::Evaluate(command) => {
                    let mut graph = Steps::new(platform);
                    let at = graph.add(Op::Source(base.clone()), Vec::new(), "[front] base");
                    let at = graph.run(at, command);
                    self.evaluate(graph.graph.finish(Some(at))).await?
                }
            };
        }
        Ok(answer)
    }

    async fn solve(&mut self, graph: Graph, evaluate: bool) -> Result<String, Error> {
        let request = SolveRequest {
            definition: Some(llb::to_proto(&graph)),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate,
            ..SolveRequest::default()
        };
        match self.gateway.solve(request).await?.into_inner().result {
            Some(proto::gateway::Result {
                result: Some(result::Result::Ref(reference)),
                ..
            }) => Ok(reference.id),
            other => Err(format!("unexpected result {other:?}").into()),
        }
    }

    async fn hand_on(&mut self, name: &str) -> Result<proto::gateway::Result, Error> {
        let mut options = self.options.clone();
        options.remove("source");
        options.insert("filename".to_owned(), name.to_owned());
        let request = SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            frontend_opt: options,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..SolveRequest::default()
        };
        let solved = self.gateway.solve(request).await?.into_inner();
        solved.result.ok_or_else(|| "no result".into())
    }
}

/// A graph of steps.
struct Steps {
    graph: GraphBuilder,
    platform: Option<oci::Platform>,
}

impl Steps {
    fn new(platform: &Option<pb::Platform>) -> Self {
        Steps {
            graph: GraphBuilder::new(),
            platform: platform.as_ref().map(llb::platform_from_proto),
        }
    }

    fn add(&mut self, op: Op, inputs: Vec<Edge>, name: &str) -> Edge {
        let platform = self.platform.clone();
        self.graph
            .add(op, inputs, platform, named(name), Vec::new())
    }

    fn run(&mut self, on: Edge, command: &str) -> Edge {
        let exec = ExecOp {
            args: vec!["/bin/sh".into(), "-c".into(), command.to_owned()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            mounts: vec![Mount {
                input: Some(0),
                dest: "/".into(),
                output: Some(0),
                ..Mount::default()
            }],
            ..ExecOp::default()
        };
        let name = format!("[front] run {command}");
        self.add(Op::Exec(Box::new(exec)), vec![on], &name)
    }
}

fn named(name: &str) -> VertexMeta {
    VertexMeta {
        description: [("llb.customname".to_owned(), name.to_owned())].into(),
        ..VertexMeta::default()
    }
}

fn single(op: Op, name: &str) -> Graph {
    let mut graph = GraphBuilder::new();
    let root = graph.add(op, Vec::new(), None, named(name), Vec::new());
    graph.finish(Some(root))
}
