//! A server in this process, and a client of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use progress::{SolveStatus, Vertex};
use proto::control::control_client::ControlClient;
use proto::control::{Exporter, SolveRequest, SolveResponse, StatusRequest};
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::pb;
use server::config::{Config, Remark, RemarkKind};
use server::listen::Listener;
use server::trace::OtlpConfig;
use server::{Server, ServerOptions};
use session::{ClientSession, ExportTarget, LocalDir, SecretSource};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// A server on a temporary root.
pub struct Bench {
    pub dir: TempDir,
    pub server: Option<Arc<Server>>,
    serving: Option<tokio::task::JoinHandle<()>>,
    socket: PathBuf,
    stop: CancellationToken,
    /// Where traces go; a restarted server has it too.
    pub otlp: Option<OtlpConfig>,
}

/// What a build said and came to.
pub struct Outcome {
    pub result: Result<SolveResponse, tonic::Status>,
    pub vertices: Vec<Vertex>,
    pub logs: String,
    /// What the exporter of a file or directory was given.
    pub out: PathBuf,
}

/// A build to be done.
#[derive(Default)]
pub struct Build {
    pub files: Vec<(String, Vec<u8>)>,
    pub attrs: Vec<(String, String)>,
    pub exporter: String,
    pub secrets: Vec<(String, String)>,
    pub entitlements: Vec<String>,
    pub shared_key: String,
    /// Graphs given along.
    pub inputs: HashMap<String, pb::Definition>,
    /// The header of the trace it is part of.
    pub traceparent: String,
}

impl Build {
    /// A Dockerfile on top of a base with busybox.
    pub fn new(dockerfile: &str) -> Self {
        let base = "FROM scratch AS busybox\nCOPY busybox /bin/busybox\n\
                    RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        Build::default()
            .file("busybox", &busybox)
            .file("Dockerfile", format!("{base}{dockerfile}").as_bytes())
    }

    pub fn file(mut self, name: &str, data: &[u8]) -> Self {
        self.files.push((name.to_owned(), data.to_vec()));
        self
    }

    pub fn exporter(mut self, kind: &str) -> Self {
        self.exporter = kind.to_owned();
        self
    }

    pub fn attr(mut self, name: &str, value: &str) -> Self {
        self.attrs.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl Outcome {
    pub fn error(&self) -> &tonic::Status {
        self.result.as_ref().expect_err("the build fails")
    }

    pub fn vertex(&self, name: &str) -> &Vertex {
        let found = self.vertices.iter().find(|v| v.name.contains(name));
        found.unwrap_or_else(|| panic!("no step {name} among {:#?}", self.names()))
    }

    pub fn names(&self) -> Vec<&str> {
        self.vertices.iter().map(|v| v.name.as_str()).collect()
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.out.join(path)).expect(path)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        if let Err(status) = &self.result {
            panic!("{}\n{}", status.message(), self.logs);
        }
        self
    }
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// A server with more configuration.
    pub async fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("b.sock");
        let mut bench = Bench {
            dir,
            server: None,
            serving: None,
            socket,
            stop: CancellationToken::new(),
            otlp: None,
        };
        bench.open(config).await;
        bench
    }

    pub fn config(&self, more: &str) -> Config {
        let (mut config, remarks) = Config::parse(more, "test.toml").expect("configuration");
        let unknown = |remark: &Remark| matches!(remark.kind, RemarkKind::Unknown(_));
        assert!(!remarks.iter().any(unknown));
        config.root = Some(self.dir.path().join("root"));
        config
    }

    async fn open(&mut self, config: &str) {
        let options = ServerOptions {
            init: Some((
                std::env::current_exe().expect("this program"),
                vec![OsString::from(executor::INIT_ARGUMENT)],
            )),
            otlp: self.otlp.clone(),
        };
        let server = Arc::new(Server::open(self.config(config), options).expect("a server"));
        let listener = Listener::unix(&self.socket).expect("a socket");
        self.stop = CancellationToken::new();
        let (serving, stop) = (server.clone(), self.stop.clone());
        self.serving = Some(tokio::spawn(async move {
            serving.serve(vec![listener], stop).await.expect("serving");
        }));
        self.server = Some(server);
    }

    /// Stops the server and starts another one on the same root.
    pub async fn restart(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            serving.await.expect("no panic");
        }
        self.server = None;
        self.open("").await;
    }

    pub async fn channel(&self) -> Channel {
        let socket = self.socket.clone();
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move {
                    let io = tokio::net::UnixStream::connect(socket).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(io))
                }
            }))
            .await
            .expect("a connection")
    }

    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// The session of a client with these files; it lasts as long as the handle.
    pub async fn session(
        &self,
        build: &Build,
        context: &Path,
        out: &Path,
    ) -> (String, session::SessionHandle) {
        for (name, data) in &build.files {
            let path = context.join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
            std::fs::write(&path, data).expect("a file");
            if name == "busybox" {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(&path, mode).expect("chmod");
            }
        }
        let dirs = ["context", "dockerfile"].map(|n| (n.to_owned(), LocalDir::new(context)));
        let target = match build.exporter.as_str() {
            "local" => ExportTarget::dir(out),
            _ => ExportTarget::file(out),
        };
        let secrets: BTreeMap<String, SecretSource> = build
            .secrets
            .iter()
            .map(|(id, value)| {
                let path = context.with_extension(format!("secret-{id}"));
                std::fs::write(&path, value).expect("a secret");
                (id.clone(), SecretSource::File(path))
            })
            .collect();
        let session = ClientSession::builder()
            .shared_key(&build.shared_key)
            .local_dirs(BTreeMap::from(dirs))
            .secrets(secrets)
            .file_target(0, target)
            .build();
        let handle = session.run(self.control().await).expect("a session");
        (session.id().to_owned(), handle)
    }

    pub fn request(&self, build: &Build, session: &str) -> SolveRequest {
        let exporters = match build.exporter.as_str() {
            "" => Vec::new(),
            kind => vec![Exporter {
                r#type: kind.to_owned(),
                attrs: HashMap::new(),
            }],
        };
        SolveRequest {
            r#ref: format!("{:032x}", rand::random::<u128>()),
            session: session.to_owned(),
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: build.attrs.iter().cloned().collect(),
            exporters,
            entitlements: build.entitlements.clone(),
            frontend_inputs: build.inputs.clone(),
            ..SolveRequest::default()
        }
    }

    /// Does a build to its end.
    pub async fn build(&self, build: &Build) -> Outcome {
        self.build_with(build, |_| {}).await
    }

    /// The same with a request that was changed.
    async fn build_with(&self, build: &Build, change: impl FnOnce(&mut SolveRequest)) -> Outcome {
        let number = rand::random::<u64>();
        let context = self.dir.path().join(format!("context-{number}"));
        let out = self.dir.path().join(format!("out-{number}"));
        let (id, _session) = self.session(build, &context, &out).await;
        let mut request = self.request(build, &id);
        change(&mut request);
        let status = StatusRequest {
            r#ref: request.r#ref.clone(),
        };
        let (mut solving, mut watching) = (self.control().await, self.control().await);
        let mut request = tonic::Request::new(request);
        if let Ok(parent) = build.traceparent.parse()
            && !build.traceparent.is_empty()
        {
            request.metadata_mut().insert("traceparent", parent);
        }
        let (result, statuses) = tokio::join!(solving.solve(request), async move {
            let mut said = Vec::new();
            if let Ok(stream) = watching.status(status).await {
                let mut stream = stream.into_inner();
                while let Some(Ok(message)) = stream.next().await {
                    said.push(SolveStatus::from_proto(message));
                }
            }
            said
        });
        let mut vertices: Vec<Vertex> = Vec::new();
        let mut logs = String::new();
        for status in statuses {
            for vertex in status.vertexes {
                match vertices.iter_mut().find(|v| v.digest == vertex.digest) {
                    Some(known) => *known = vertex,
                    None => vertices.push(vertex),
                }
            }
            for log in status.logs {
                logs.push_str(&String::from_utf8_lossy(&log.data));
            }
        }
        Outcome {
            result: result.map(tonic::Response::into_inner),
            vertices,
            logs,
            out,
        }
    }
}

/// A build that the test drives through the gateway.
pub struct Driven {
    pub gateway: Gateway,
    pub solve: tokio::task::JoinHandle<Result<tonic::Response<SolveResponse>, tonic::Status>>,
    _session: session::SessionHandle,
}

/// The gateway of one build.
pub type Gateway =
    LlbBridgeClient<tonic::service::interceptor::InterceptedService<Channel, BuildId>>;

/// Says which build calls belong to.
#[derive(Clone)]
pub struct BuildId(tonic::metadata::AsciiMetadataValue);

impl tonic::service::Interceptor for BuildId {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        let id = self.0.clone();
        request
            .metadata_mut()
            .insert("buildkit-controlapi-buildid", id);
        Ok(request)
    }
}

impl Bench {
    /// Begins a build that waits for what the test returns.
    pub async fn drive(&self, build: &Build) -> Driven {
        let number = rand::random::<u64>();
        let context = self.dir.path().join(format!("context-{number}"));
        let out = self.dir.path().join(format!("out-{number}"));
        let (id, session) = self.session(build, &context, &out).await;
        let request = SolveRequest {
            frontend: String::new(),
            ..self.request(build, &id)
        };
        let id = BuildId(request.r#ref.parse().expect("an id"));
        let mut control = self.control().await;
        Driven {
            solve: tokio::spawn(async move { control.solve(request).await }),
            gateway: LlbBridgeClient::with_interceptor(self.channel().await, id),
            _session: session,
        }
    }

    /// Does a build by another frontend to its end.
    pub async fn build_by(&self, build: &Build, frontend: &str) -> Outcome {
        self.build_with(build, |request| frontend.clone_into(&mut request.frontend))
            .await
    }

    /// Builds a definition to its end, with the sources that a policy allows.
    pub async fn definition_under(
        &self,
        build: &Build,
        definition: pb::Definition,
        policy: proto::sourcepolicy::Policy,
    ) -> Outcome {
        self.build_with(build, |request| {
            request.frontend.clear();
            request.definition = Some(definition);
            request.source_policy = Some(policy);
        })
        .await
    }

    /// Builds a definition to its end.
    pub async fn definition(&self, build: &Build, definition: pb::Definition) -> Outcome {
        self.build_with(build, |request| {
            request.frontend.clear();
            request.definition = Some(definition);
        })
        .await
    }
}
