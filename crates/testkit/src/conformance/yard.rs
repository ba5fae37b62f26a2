//! Labs in which cases are built: with our server, with the Engine, or with both.

use std::path::{Path, PathBuf};

use super::bench::{Bench, Builder};
use super::servers::REGISTRY_PORT;
use crate::{BuildServer, Engine, EngineOptions, Lab, Peers, Release, ServerSetup, Tool};

/// A lab with a bench and builders. The thread that opens it is in its network from then on, and so
/// are the threads it starts.
pub struct Yard {
    /// Where cases are built and compared.
    pub bench: Bench,
    server: Option<BuildServer>,
    stock_server: Option<BuildServer>,
    engine: Option<Engine>,
    lab: Lab,
}

impl Yard {
    /// With our server.
    pub fn with_server(executable: &Path) -> Yard {
        Self::open(Some(executable), None, false)
    }

    /// With the newest Engine, whose images are kept by containerd.
    pub fn with_engine() -> Yard {
        Self::open(None, None, true)
    }

    /// With both.
    pub fn with_both(executable: &Path) -> Yard {
        Self::open(Some(executable), None, true)
    }

    /// With another BuildKit's `buildkitd`, and with ours where an executable is given.
    pub fn with_buildkit(buildkitd: &Path, executable: Option<&Path>) -> Yard {
        Self::open(executable, Some(buildkitd), false)
    }

    fn open(executable: Option<&Path>, buildkitd: Option<&Path>, engine: bool) -> Yard {
        let lab = Lab::start();
        lab.enter_network();
        let bench = Bench::open(&lab.subdirectory("bench"));
        let configuration = bench.server_configuration();
        let configuration = configuration.to_str().expect("a path in UTF-8");
        let start = |setup: ServerSetup| {
            let setup = setup.in_lab(&lab);
            setup.args(&["--config", configuration]).start()
        };
        let server =
            executable.map(|path| start(ServerSetup::new(path, &lab.subdirectory("server"))));
        let stock_server = buildkitd
            .map(|path| start(ServerSetup::stock(path, &lab.subdirectory("stock-server"))));
        let mirror = format!("http://127.0.0.1:{REGISTRY_PORT}");
        let engine = engine.then(|| {
            let options = EngineOptions {
                insecure: vec!["127.0.0.0/8".to_owned()],
                mirrors: vec![mirror.clone()],
                ..EngineOptions::default()
            };
            Engine::start_with(&lab, Release::NewestContainerd, &options)
        });
        Yard {
            bench,
            server,
            stock_server,
            engine,
            lab,
        }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.lab.subdirectory(&format!("home-{name}"))
    }

    /// Our client on our server.
    pub fn ours(&self, executable: &Path) -> Builder {
        let client = Tool::new(executable, &self.home("ours"));
        remote(
            client,
            self.server.as_ref().expect("a yard with our server"),
        )
    }

    /// The stock client on our server.
    pub fn stock(&self) -> Builder {
        let client = Tool::new(Peers::find().buildx(), &self.home("stock"));
        remote(
            client,
            self.server.as_ref().expect("a yard with our server"),
        )
    }

    /// The stock client on the other BuildKit.
    pub fn buildkit(&self) -> Builder {
        let client = Tool::new(Peers::find().buildx(), &self.home("buildkit"));
        let server = self.stock_server.as_ref();
        remote(client, server.expect("a yard with another BuildKit"))
    }

    /// The stock client on the Engine's own builder.
    pub fn engine(&self) -> Builder {
        let engine = self.engine.as_ref().expect("a yard with an Engine");
        let client = Tool::new(Peers::find().buildx(), &self.home("engine"));
        Builder {
            client: client.env("DOCKER_HOST", engine.host()),
            name: "default".into(),
        }
    }
}

fn remote(client: Tool, server: &BuildServer) -> Builder {
    let name = "corpus";
    client.ok(&[
        "create",
        "--name",
        name,
        "--driver",
        "remote",
        &server.address(),
    ]);
    Builder {
        client,
        name: name.into(),
    }
}
