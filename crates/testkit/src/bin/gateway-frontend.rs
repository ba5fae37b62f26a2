//! A frontend for tests: speaks the gateway protocol on its standard streams, as frontend images do.
//!
//! What it reads is its own small language, a word and the rest of the line:
//!
//! ```text
//! # syntax=…          skipped
//! image NAME          what to start from
//! ask COMMAND         runs in a container of its own; its output becomes the file /answer
//! run COMMAND         a step
//! fail TEXT           returns this error
//! crash               ends without a word to the server
//! hang                never ends
//! garbage             writes to the server what is not the protocol
//! dockerfile NAME     hands the request on to the Dockerfile frontend, with that file
//! ```

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use llb::{
    ExecOp, FileAction, FileActionKind, FileOp, Graph, GraphBuilder, MkFileAction, Mount, Op,
};
use llb::{SourceOp, VertexMeta};
use proto::gateway::exec_message::Input;
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{
    ExecMessage, FdMessage, InitMessage, NewContainerRequest, PingRequest, ReadFileRequest, Ref,
    ReleaseContainerRequest, ResolveImageConfigRequest, ReturnRequest, SolveRequest, WarnRequest,
    result,
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
    ask: Vec<String>,
    run: Vec<String>,
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
            match word {
                "image" => rest.clone_into(&mut wanted.image),
                "ask" => wanted.ask.push(rest.to_owned()),
                "run" => wanted.run.push(rest.to_owned()),
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
        let reference = self.solve(graph).await?;
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
        let request = ResolveImageConfigRequest {
            r#ref: wanted.image.clone(),
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
        let mut answer = String::new();
        if !wanted.ask.is_empty() {
            let graph = single(Op::Source(base.clone()), "[front] base");
            let reference = self.solve(graph).await?;
            answer = self.ask(&reference, &wanted.ask).await?;
        }
        let mut graph = GraphBuilder::new();
        let mut add = |op, inputs, name: &str| graph.add(op, inputs, None, named(name), Vec::new());
        let mut at = add(Op::Source(base), Vec::new(), "[front] base");
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
        at = add(
            Op::File(FileOp {
                actions: vec![file],
            }),
            vec![at],
            "[front] answer",
        );
        for command in &wanted.run {
            let exec = ExecOp {
                args: vec!["/bin/sh".into(), "-c".into(), command.clone()],
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
            at = add(
                Op::Exec(Box::new(exec)),
                vec![at],
                &format!("[front] run {command}"),
            );
        }
        let reference = self.solve(graph.finish(Some(at))).await?;
        Ok(proto::gateway::Result {
            metadata: [("containerimage.config".to_owned(), image.config)].into(),
            result: Some(result::Result::Ref(Ref {
                id: reference,
                def: None,
            })),
            ..proto::gateway::Result::default()
        })
    }

    async fn solve(&mut self, graph: Graph) -> Result<String, Error> {
        let request = SolveRequest {
            definition: Some(llb::to_proto(&graph)),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate: true,
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

    /// Runs commands one after the other in one container; the first process waits for the others.
    async fn ask(&mut self, reference: &str, commands: &[String]) -> Result<String, Error> {
        const CONTAINER: &str = "questions";
        let request = NewContainerRequest {
            container_id: CONTAINER.to_owned(),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                result_id: reference.to_owned(),
                ..pb::Mount::default()
            }],
            ..NewContainerRequest::default()
        };
        self.gateway.new_container(request).await?;
        let (sender, messages) = tokio::sync::mpsc::channel(16);
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let mut replies = self.gateway.exec_process(messages).await?.into_inner();
        let mut answers = String::new();
        let first = "cat > /dev/null".to_owned();
        for (number, command) in std::iter::once(&first).chain(commands).enumerate() {
            let id = number.to_string();
            let init = InitMessage {
                container_id: CONTAINER.to_owned(),
                meta: Some(pb::Meta {
                    args: vec!["/bin/sh".into(), "-c".into(), command.clone()],
                    ..pb::Meta::default()
                }),
                fds: if number == 0 { vec![0] } else { vec![1] },
                ..InitMessage::default()
            };
            sender.send(message(&id, Input::Init(init))).await?;
            while let Some(reply) = replies.message().await? {
                match reply.input {
                    Some(Input::File(file)) => answers += &String::from_utf8_lossy(&file.data),
                    Some(Input::Exit(exit)) if exit.code != 0 => {
                        return Err(format!("{command}: exit code: {}", exit.code).into());
                    }
                    Some(Input::Started(_)) if number == 0 => break,
                    Some(Input::Done(_)) => break,
                    _ => {}
                }
            }
        }
        let end = FdMessage {
            eof: true,
            ..FdMessage::default()
        };
        sender.send(message("0", Input::File(end))).await?;
        let release = ReleaseContainerRequest {
            container_id: CONTAINER.to_owned(),
        };
        self.gateway.release_container(release).await?;
        Ok(answers)
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

fn message(process: &str, input: Input) -> ExecMessage {
    ExecMessage {
        process_id: process.to_owned(),
        input: Some(input),
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
