//! Containers of gateway clients: a build that the test drives asks for them by calls of the gateway.

use std::collections::HashMap;

use proto::gateway::exec_message::Input;
use proto::gateway::{
    ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReadDirRequest, ReadFileRequest,
    ReleaseContainerRequest, ResizeMessage, ReturnRequest, SignalMessage, SolveRequest,
    StatFileRequest, result,
};
use proto::pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::bench::{Bench, Build, Driven};
use crate::frontends::{busybox_with, nothing_is_left};

/// A driven build with busybox solved in it.
struct Yard {
    bench: Bench,
    driven: Driven,
    busybox: String,
}

impl Yard {
    async fn open(build: Build) -> Self {
        let bench = Bench::start().await;
        let mut driven = bench.drive(&build).await;
        let definition = llb::to_proto(&busybox_with("/greeting", 0o644, b"hello"));
        let request = SolveRequest {
            definition: Some(definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate: true,
            ..SolveRequest::default()
        };
        let solved = driven.gateway.solve(request).await.expect("solved");
        let result = solved.into_inner().result.expect("a result").result;
        let Some(result::Result::Ref(reference)) = result else {
            panic!("{result:?}");
        };
        Yard {
            bench,
            driven,
            busybox: reference.id,
        }
    }

    fn layers(&self) -> layers::LayerStore {
        let server = self.bench.server.as_ref().expect("a server");
        server.parts().layers.clone()
    }

    fn root(&self) -> pb::Mount {
        pb::Mount {
            dest: "/".into(),
            result_id: self.busybox.clone(),
            ..pb::Mount::default()
        }
    }

    async fn container(&mut self, id: &str, more: Vec<pb::Mount>) {
        let request = NewContainerRequest {
            container_id: id.into(),
            mounts: std::iter::once(self.root()).chain(more).collect(),
            hostname: "yard".into(),
            extra_hosts: vec![pb::HostIp {
                host: "far".into(),
                ip: "10.1.2.3".into(),
            }],
            ..NewContainerRequest::default()
        };
        self.driven
            .gateway
            .new_container(request)
            .await
            .expect("a container");
    }

    async fn talk(&mut self) -> Talk {
        let (sender, messages) = mpsc::channel(16);
        let replies = self
            .driven
            .gateway
            .exec_process(ReceiverStream::new(messages));
        Talk {
            sender,
            replies: replies.await.expect("a stream").into_inner(),
            heard: HashMap::new(),
        }
    }

    /// Ends the build; everything of it must be gone then.
    async fn close(mut self) {
        let empty = ReturnRequest {
            result: Some(proto::gateway::Result::default()),
            error: None,
        };
        self.driven.gateway.r#return(empty).await.expect("returned");
        self.driven.solve.await.expect("no panic").expect("solved");
        nothing_is_left(&self.bench).await;
    }
}

/// A stream of processes, and what was heard of each.
struct Talk {
    sender: mpsc::Sender<ExecMessage>,
    replies: Streaming<ExecMessage>,
    heard: HashMap<String, Heard>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    started: bool,
    output: String,
    exit: Option<(u32, String)>,
    ended: Vec<u32>,
    done: bool,
}

impl Talk {
    async fn say(&self, process: &str, input: Input) {
        let message = ExecMessage {
            process_id: process.into(),
            input: Some(input),
        };
        self.sender.send(message).await.expect("sent");
    }

    async fn start(&self, process: &str, container: &str, init: InitMessage) {
        let init = InitMessage {
            container_id: container.into(),
            ..init
        };
        self.say(process, Input::Init(init)).await;
    }

    async fn type_in(&self, process: &str, text: &str, eof: bool) {
        let file = FdMessage {
            fd: 0,
            eof,
            data: text.into(),
        };
        self.say(process, Input::File(file)).await;
    }

    /// Listens until a process has been heard to be as wished.
    async fn until(&mut self, process: &str, wished: impl Fn(&Heard) -> bool) -> Heard {
        loop {
            let heard = self.heard.entry(process.to_owned()).or_default();
            if wished(heard) {
                return heard.clone();
            }
            let message = self.replies.message().await.expect("no error");
            let message = message.expect("the stream goes on");
            let heard = self.heard.entry(message.process_id).or_default();
            assert!(!heard.done, "Done comes last");
            match message.input.expect("a message") {
                Input::Started(_) => heard.started = true,
                Input::File(file) => {
                    assert!(heard.started, "Started comes first");
                    heard.output.push_str(&String::from_utf8_lossy(&file.data));
                    if file.eof {
                        heard.ended.push(file.fd);
                    }
                }
                Input::Exit(exit) => {
                    let error = exit.error.unwrap_or_default().message;
                    heard.exit = Some((exit.code, error));
                }
                Input::Done(_) => heard.done = true,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn done(&mut self, process: &str) -> Heard {
        self.until(process, |heard| heard.done).await
    }
}

fn shell(script: &str, fds: &[u32]) -> InitMessage {
    InitMessage {
        meta: Some(pb::Meta {
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            ..pb::Meta::default()
        }),
        fds: fds.to_vec(),
        ..InitMessage::default()
    }
}

pub async fn processes_of_a_container_share_it() {
    let mut yard = Yard::open(Build::new("")).await;
    yard.container("one", Vec::new()).await;
    let mut talk = yard.talk().await;
    let script = "echo up; echo written > /tmp-file; cat; exit 5";
    talk.start("first", "one", shell(script, &[0, 1, 2])).await;
    talk.until("first", |heard| heard.output == "up\n").await;
    let script = "cat /tmp-file /greeting; cat /proc/sys/kernel/hostname; cat /etc/hosts; \
                  tr '\\0' ' ' < /proc/1/cmdline; echo bad >&2";
    talk.start("second", "one", shell(script, &[1, 2])).await;
    let second = talk.done("second").await;
    assert_eq!(second.exit, Some((0, String::new())), "{second:?}");
    for part in [
        "written\nhelloyard\n",
        "10.1.2.3\tfar",
        "/bin/sh -c echo up",
        "bad\n",
    ] {
        assert!(second.output.contains(part), "{part}: {}", second.output);
    }
    let mut ended = second.ended;
    ended.sort_unstable();
    assert_eq!(ended, [1, 2]);
    // Files of the running container can be looked into.
    let gateway = &mut yard.driven.gateway;
    let read = gateway
        .read_file_container(ReadFileRequest {
            r#ref: "one".into(),
            file_path: "/tmp-file".into(),
            ..ReadFileRequest::default()
        })
        .await;
    assert_eq!(read.expect("read").into_inner().data, b"written\n");
    let stat = gateway
        .stat_file_container(StatFileRequest {
            r#ref: "one".into(),
            path: "/greeting".into(),
            mount_index: 0,
        })
        .await;
    assert_eq!(stat.expect("stat").into_inner().stat.expect("one").size, 5);
    let listed = gateway
        .read_dir_container(ReadDirRequest {
            r#ref: "one".into(),
            dir_path: "/".into(),
            include_pattern: "g*".into(),
            mount_index: 0,
        })
        .await;
    assert_eq!(
        listed.expect("list").into_inner().entries[0].path,
        "greeting"
    );
    let outside = gateway
        .stat_file_container(StatFileRequest {
            r#ref: "one".into(),
            path: "/".into(),
            mount_index: 7,
        })
        .await;
    assert!(
        outside
            .expect_err("no such mount")
            .message()
            .contains("out of bounds")
    );
    talk.type_in("first", "typed\n", true).await;
    let first = talk.done("first").await;
    assert_eq!(first.output, "up\ntyped\n");
    assert_eq!(first.exit, Some((5, "exit code: 5".into())));
    yard.close().await;
}

pub async fn a_terminal_is_typed_into_resized_and_signalled() {
    let mut yard = Yard::open(Build::new("")).await;
    yard.container("one", Vec::new()).await;
    let mut talk = yard.talk().await;
    let script = "trap 'echo hung up; exit 9' HUP; tty; echo $TERM; \
                  while read line; do echo \"got $line\"; echo \"size $(stty size 2>/dev/null)\"; done";
    let terminal = InitMessage {
        tty: true,
        ..shell(script, &[0, 1])
    };
    talk.start("t", "one", terminal.clone()).await;
    talk.until("t", |heard| heard.output.contains("xterm\r\n"))
        .await;
    let size = ResizeMessage { rows: 33, cols: 77 };
    talk.say("t", Input::Resize(size)).await;
    // Nothing says what comes first: the new size, or what is typed after it.
    for times in 1.. {
        talk.type_in("t", "word\n", false).await;
        let sizes = |heard: &Heard| heard.output.matches("size 33 77\r\n").count();
        let answers = |heard: &Heard| heard.output.matches("size \r\n").count() + sizes(heard);
        let heard = talk.until("t", |heard| answers(heard) == times).await;
        assert!(heard.output.starts_with("/dev/"), "{}", heard.output);
        assert!(
            heard.output.contains("word\r\ngot word\r\n"),
            "{}",
            heard.output
        );
        if sizes(&heard) > 0 {
            break;
        }
    }
    // A second terminal in the same container has a size of its own.
    talk.start("u", "one", terminal).await;
    talk.until("u", |heard| heard.output.contains("xterm\r\n"))
        .await;
    talk.type_in("u", "x\n", false).await;
    talk.until("u", |heard| heard.output.contains("size \r\n"))
        .await;
    for process in ["u", "t"] {
        let signal = SignalMessage { name: "HUP".into() };
        talk.say(process, Input::Signal(signal)).await;
        // The shell looks at its traps when a line has come, and a line may overtake the signal.
        let ended = loop {
            talk.type_in(process, "z\n", false).await;
            let soon = std::time::Duration::from_secs(1);
            if let Ok(ended) = tokio::time::timeout(soon, talk.done(process)).await {
                break ended;
            }
        };
        assert!(ended.output.contains("hung up\r\n"), "{}", ended.output);
        assert_eq!(ended.exit, Some((9, "exit code: 9".into())));
    }
    yard.close().await;
}

pub async fn mounts_of_a_container_are_those_asked_for() {
    let mut build = Build::new("");
    build.secrets = vec![("key".into(), "s3cret".into())];
    let mut yard = Yard::open(build).await;
    let mount = |dest: &str, kind: pb::MountType| pb::Mount {
        dest: dest.into(),
        mount_type: kind.into(),
        ..pb::Mount::default()
    };
    let mounts = vec![
        mount("/t", pb::MountType::Tmpfs),
        pb::Mount {
            cache_opt: Some(pb::CacheOpt {
                id: "c".into(),
                sharing: 0,
            }),
            ..mount("/cache", pb::MountType::Cache)
        },
        pb::Mount {
            secret_opt: Some(pb::SecretOpt {
                id: "key".into(),
                mode: 0o400,
                ..pb::SecretOpt::default()
            }),
            ..mount("/secret", pb::MountType::Secret)
        },
        pb::Mount {
            result_id: yard.busybox.clone(),
            readonly: true,
            selector: "/greeting".into(),
            ..mount("/ro", pb::MountType::Bind)
        },
        mount("/scratch", pb::MountType::Bind),
    ];
    yard.container("one", mounts).await;
    let mut talk = yard.talk().await;
    let script = "cat /secret /ro; echo x > /ro || echo kept; echo 1 > /scratch/f && \
                  echo 2 > /t/f && echo 3 > /cache/f && cat /scratch/f /t/f /cache/f; \
                  echo $FROM_SECRET; echo new > /greeting";
    let init = InitMessage {
        secretenv: vec![pb::SecretEnv {
            id: "key".into(),
            name: "FROM_SECRET".into(),
            optional: false,
        }],
        ..shell(script, &[1])
    };
    talk.start("p", "one", init).await;
    let ended = talk.done("p").await;
    assert_eq!(ended.output, "s3crethellokept\n1\n2\n3\ns3cret\n");
    assert_eq!(ended.exit, Some((0, String::new())));
    let release = ReleaseContainerRequest {
        container_id: "one".into(),
    };
    let gateway = &mut yard.driven.gateway;
    gateway
        .release_container(release.clone())
        .await
        .expect("released");
    let again = gateway.release_container(release).await;
    assert!(again.expect_err("gone").message().contains("not found"));
    // What was written is gone; what was built is not touched.
    let request = ReadFileRequest {
        r#ref: yard.busybox.clone(),
        file_path: "/greeting".into(),
        ..ReadFileRequest::default()
    };
    let read = gateway.read_file(request).await.expect("read").into_inner();
    assert_eq!(read.data, b"hello");
    yard.close().await;
}

pub async fn what_cannot_run_is_said_and_the_container_goes_on() {
    let mut yard = Yard::open(Build::new("")).await;
    yard.container("one", Vec::new()).await;
    let mut talk = yard.talk().await;
    let mut missing = shell("", &[1, 2]);
    missing.meta = Some(pb::Meta {
        args: vec!["nothing-of-that-name".into()],
        ..pb::Meta::default()
    });
    talk.start("missing", "one", missing).await;
    let (code, text) = talk.done("missing").await.exit.expect("an end");
    assert_eq!(code, 255);
    assert!(text.contains("nothing-of-that-name"), "{text}");
    let mut stranger = shell("true", &[1, 2]);
    if let Some(meta) = &mut stranger.meta {
        meta.user = "ghost".into();
    }
    talk.start("stranger", "one", stranger).await;
    let heard = talk.done("stranger").await;
    assert!(heard.started);
    let (code, text) = heard.exit.expect("an end");
    assert_eq!(code, 255);
    assert!(text.contains("unable to find user ghost"), "{text}");
    talk.start("fine", "one", shell("echo fine", &[1])).await;
    assert_eq!(talk.done("fine").await.output, "fine\n");
    let duplicate = NewContainerRequest {
        container_id: "one".into(),
        mounts: vec![yard.root()],
        ..NewContainerRequest::default()
    };
    let gateway = &mut yard.driven.gateway;
    let error = gateway.new_container(duplicate).await.expect_err("taken");
    assert_eq!(error.message(), "Container one already exists");
    let host = NewContainerRequest {
        container_id: "host".into(),
        mounts: vec![yard.root()],
        network: pb::NetMode::Host.into(),
        ..NewContainerRequest::default()
    };
    let gateway = &mut yard.driven.gateway;
    let error = gateway.new_container(host).await.expect_err("not allowed");
    assert_eq!(error.message(), "network.host is not allowed");
    let unknown = yard.talk().await;
    unknown.start("x", "none", shell("true", &[])).await;
    let mut replies = unknown.replies;
    let error = replies.message().await.expect_err("no such container");
    assert_eq!(error.code(), tonic::Code::NotFound);
    yard.close().await;
}

pub async fn the_files_of_a_failed_step_can_be_looked_into() {
    let mut yard = Yard::open(Build::new("")).await;
    let layers = yard.layers();
    let before = layers.list().expect("layers").len();
    let mut graph = llb::GraphBuilder::new();
    let base = busybox_with("/greeting", 0o644, b"hello");
    let mut below = base.root.expect("a root");
    for digest in &base.order {
        let vertex = base.vertex(digest).expect("a vertex");
        let (op, inputs) = (vertex.op.clone(), vertex.inputs.clone());
        below = graph.add(op, inputs, None, llb::VertexMeta::default(), Vec::new());
    }
    let exec = llb::ExecOp {
        args: ["/bin/sh", "-c", "echo left > /behind; exit 3"]
            .map(str::to_owned)
            .into(),
        cwd: "/".into(),
        mounts: vec![llb::Mount {
            input: Some(0),
            dest: "/".into(),
            output: Some(0),
            ..llb::Mount::default()
        }],
        ..llb::ExecOp::default()
    };
    let meta = llb::VertexMeta::default();
    let root = graph.add(
        llb::Op::Exec(Box::new(exec)),
        vec![below],
        Some(oci::Platform::host()),
        meta,
        Vec::new(),
    );
    let request = SolveRequest {
        definition: Some(llb::to_proto(&graph.finish(Some(root)))),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..SolveRequest::default()
    };
    let failed = yard
        .driven
        .gateway
        .solve(request)
        .await
        .expect_err("it fails");
    assert!(failed.message().ends_with("exit code: 3"));
    let status: proto::rpc::Status = prost::Message::decode(failed.details()).expect("details");
    let solve = status
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("errdefs.Solve+json"))
        .expect("what failed");
    let solve: serde_json::Value = serde_json::from_slice(&solve.value).expect("JSON");
    assert_eq!(solve["op"]["exec"]["meta"]["args"][0], "/bin/sh");
    // Debuggers look for the step by the digest of all of it.
    assert_eq!(solve["op"]["platform"]["OS"], "linux");
    let id = |list: &str| solve[list][0].as_str().expect("an id").to_owned();
    let mut talk = yard.talk().await;
    for (list, expected) in [("mountIDs", "left\n"), ("inputIDs", "none\n")] {
        let request = NewContainerRequest {
            container_id: list.into(),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                result_id: id(list),
                ..pb::Mount::default()
            }],
            ..NewContainerRequest::default()
        };
        let made = yard.driven.gateway.new_container(request).await;
        made.expect("a container");
        let script = "cat /behind 2>/dev/null || echo none";
        talk.start(list, list, shell(script, &[1])).await;
        assert_eq!(talk.done(list).await.output, expected);
    }
    yard.close().await;
    // Nothing leads to what the step left behind any more.
    while layers.list().expect("layers").len() > before {
        tokio::task::yield_now().await;
    }
}

pub async fn a_cancelled_build_takes_its_containers_along() {
    let mut yard = Yard::open(Build::new("")).await;
    yard.container("one", Vec::new()).await;
    yard.container("two", Vec::new()).await;
    let mut talk = yard.talk().await;
    talk.start("p", "one", shell("echo up; sleep 1000", &[1]))
        .await;
    talk.until("p", |heard| heard.output == "up\n").await;
    talk.start("q", "one", shell("echo up; sleep 1000", &[1]))
        .await;
    talk.until("q", |heard| heard.output == "up\n").await;
    yard.driven.solve.abort();
    nothing_is_left(&yard.bench).await;
}
