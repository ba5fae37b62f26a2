//! What most tests start from: a lab with an Engine, a registry with a base image, and our client; or our
//! server alone with both clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::{
    BaseImage, BuildServer, Engine, EngineOptions, Lab, Peers, Registry, RegistryAccess, Release,
    ServerSetup, Tool, base_image,
};

/// The executable under test: `$COOPERAGE_BIN`, else the one Cargo built for the tests.
pub fn executable() -> PathBuf {
    match std::env::var_os("COOPERAGE_BIN") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_BIN_EXE_cooperage")),
    }
}

/// A lab with an Engine and our client for it.
pub struct Workshop {
    pub lab: Lab,
    pub engine: Engine,
    pub cooperage: Tool,
    base: BaseImage,
}

impl Workshop {
    /// With Debian's Engine.
    pub fn open() -> Workshop {
        Self::with(Release::Debian)
    }

    /// With that Engine.
    pub fn with(release: Release) -> Workshop {
        let lab = Lab::start();
        lab.enter_network();
        let engine = Engine::start(&lab, release);
        Self::furnish(lab, engine)
    }

    /// With that Engine, whose steps may have every right that their client grants them.
    pub fn granting(release: Release) -> Workshop {
        let lab = Lab::start();
        lab.enter_network();
        let options = EngineOptions {
            insecure: vec![format!("{}/24", Engine::GATEWAY)],
            insecure_steps: true,
            ..EngineOptions::default()
        };
        let engine = Engine::start_with(&lab, release, &options);
        Self::furnish(lab, engine)
    }

    /// With Debian's Engine as it comes: it trusts no registry, so builders inherit nothing.
    pub fn untrusting() -> Workshop {
        Self::with_engine(&EngineOptions::default())
    }

    /// With Debian's Engine started in another way.
    pub fn with_engine(options: &EngineOptions) -> Workshop {
        let lab = Lab::start();
        lab.enter_network();
        let engine = Engine::start_with(&lab, Release::Debian, options);
        Self::furnish(lab, engine)
    }

    fn furnish(lab: Lab, engine: Engine) -> Workshop {
        let cooperage =
            Tool::new(executable(), &lab.subdirectory("home")).env("DOCKER_HOST", engine.host());
        let base = base_image(&lab.subdirectory("images"));
        Workshop {
            lab,
            engine,
            cooperage,
            base,
        }
    }

    /// Stock `docker-buildx` for the same Engine and the same builder records.
    pub fn stock(&self) -> Tool {
        Tool::new(Peers::find().buildx(), &self.lab.subdirectory("home"))
            .env("DOCKER_HOST", self.engine.host())
    }

    /// A plain registry that holds the base image as `busybox:latest`, at an address that works
    /// from here and from containers.
    pub fn registry(&self) -> Registry {
        let registry = Registry::start(&self.lab, RegistryAccess::Plain, Engine::GATEWAY, 5000);
        self.base.push(&registry, "busybox", "latest");
        registry
    }

    /// The base image as an OCI image layout.
    pub fn base_layout(&self) -> &Path {
        self.base.layout()
    }

    /// A server configuration under which that registry is spoken to in plain HTTP.
    pub fn plain_http(&self, registry: &Registry) -> PathBuf {
        let path = self.lab.directory().join("buildkitd.toml");
        let text = format!("[registry.\"{}\"]\n  http = true\n", registry.address());
        std::fs::write(&path, text).unwrap();
        path
    }

    /// [`context`] in this lab.
    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> String {
        context(&self.lab, name, files)
    }

    /// [`context_with_busybox`] in this lab.
    pub fn context_with_busybox(&self, name: &str, files: &[(&str, &str)]) -> String {
        context_with_busybox(&self.lab, name, files)
    }
}

/// Our server without an Engine, and both clients, each with that server as its current builder `far`.
pub struct Remote {
    pub server: BuildServer,
    pub ours: Tool,
    pub stock: Tool,
    pub lab: Lab,
}

impl Remote {
    /// With a server as it comes.
    pub fn open() -> Remote {
        Self::with(|_, server| server)
    }

    /// With a server set up in another way.
    pub fn with(set_up: impl FnOnce(&Lab, ServerSetup) -> ServerSetup) -> Remote {
        let lab = Lab::start();
        lab.enter_network();
        let server = set_up(&lab, server(&lab)).start();
        let home = lab.subdirectory("home");
        let ours = Tool::new(executable(), &home);
        let address = server.address();
        ours.ok(&["create", "--use", "--name=far", "--driver=remote", &address]);
        Remote {
            server,
            ours,
            stock: Tool::new(Peers::find().buildx(), &home),
            lab,
        }
    }

    /// Both clients with their names.
    pub fn clients(&self) -> [(&'static str, &Tool); 2] {
        [("ours", &self.ours), ("stock", &self.stock)]
    }
}

/// Makes a context of these files (path and content) and returns its path.
pub fn context(lab: &Lab, name: &str, files: &[(&str, &str)]) -> String {
    let root = lab.subdirectory(&format!("context-{name}"));
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    text(&root)
}

/// A context with Debian's static busybox as `busybox`, for Dockerfiles that start from nothing.
pub fn context_with_busybox(lab: &Lab, name: &str, files: &[(&str, &str)]) -> String {
    let context = context(lab, name, files);
    let busybox = Peers::find().busybox("amd64");
    std::fs::copy(busybox, Path::new(&context).join("busybox")).unwrap();
    context
}

/// Our server with its state in a lab, in the network of the thread that starts it. A second one
/// finds the state of the first.
pub fn server(lab: &Lab) -> ServerSetup {
    ServerSetup::new(&executable(), &lab.subdirectory("server"))
}

/// Waits for something that is sure to come, looking often; panics when it does not.
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    testkit::wait_for(what, Duration::from_secs(120), done);
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
