//! One build's view of its host: where the context, the Dockerfile and the ignore file come from,
//! and what is asked only once however many platforms are built.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use diag::{Context as _, Result};
use llb::{CopyAction, FileActionKind, Graph, SourceOp, VertexMeta};
use oci::{Platform, Reference};
use tokio::sync::OnceCell;

use crate::git::{GitRef, http_source};
use crate::host::{Host, ResolvedImage};
use crate::options::BuildOptions;
use crate::plan::{
    Change, DeferredLocal, Node, NodeOp, Output, Plan, SourceFile, Sources, json_list, named,
};

/// The name of the local directory that is the build context.
const CONTEXT: &str = "context";
/// The name of the local directory that the Dockerfile is in.
const DOCKERFILE: &str = "dockerfile";
/// The ignore file of a context.
pub(crate) const IGNORE_FILE: &str = ".dockerignore";

type ImageCell = Arc<OnceCell<Arc<ResolvedImage>>>;

/// One build's view of its host.
pub(crate) struct Client<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) options: &'a BuildOptions,
    /// The context as a graph; none if it is the client's directory.
    remote: Option<Graph>,
    /// The context's source, if it is one source.
    pub(crate) remote_source: Option<SourceOp>,
    /// The graph the Dockerfile is read from, if it is not in the client's directory.
    dockerfile: Option<Graph>,
    filename: String,
    ignore_file: Mutex<Option<(String, Vec<u8>)>>,
    ignore: OnceCell<Arc<Vec<String>>>,
    images: Mutex<HashMap<String, ImageCell>>,
}

/// The Dockerfile that was read.
pub(crate) struct Entrypoint {
    pub(crate) file: SourceFile,
    /// The vertex that loaded it.
    pub(crate) vertex: Option<oci::Digest>,
}

impl<'a> Client<'a> {
    /// Finds out where the context and the Dockerfile come from.
    pub(crate) async fn new(host: &'a dyn Host, options: &'a BuildOptions) -> Result<Client<'a>> {
        let mut client = Self::for_names(host, options);
        let address = options.context.remote.as_str();
        if let Some(git) = GitRef::parse(address)? {
            client.use_git(git, address);
        } else if address.starts_with("http://") || address.starts_with("https://") {
            client.use_http(address).await?;
        } else {
            client.use_inputs().await?;
        }
        if let (Some(graph), Some(subdir)) = (&client.remote, &options.context.subdir) {
            client.remote = Some(subdirectory(graph, subdir));
        }
        Ok(client)
    }

    /// A view that is good for named contexts only: nobody has asked yet where the context is.
    pub(crate) fn for_names(host: &'a dyn Host, options: &'a BuildOptions) -> Client<'a> {
        Client {
            host,
            options,
            remote: None,
            remote_source: None,
            dockerfile: None,
            filename: options.context.filename.clone(),
            ignore_file: Mutex::new(None),
            ignore: OnceCell::new(),
            images: Mutex::new(HashMap::new()),
        }
    }

    fn use_git(&mut self, mut git: GitRef, address: &str) {
        if self.options.context.commit_times && git.mtime.is_empty() {
            "commit".clone_into(&mut git.mtime);
        }
        let keep =
            git.keep_git_dir == Some(true) || self.options.context.keep_git_dir == Some(true);
        let name = format!("[internal] load git source {}", diag::redact_url(address));
        let source = git.source(keep);
        let graph = source_graph(source.clone(), named(name));
        self.remote_source = Some(source);
        self.dockerfile = Some(graph.clone());
        self.remote = Some(graph);
    }

    async fn use_http(&mut self, address: &str) -> Result<()> {
        const NAME: &str = "context";
        let source = http_source(address, NAME, None);
        let meta = named("[internal] load remote build context");
        let graph = source_graph(source.clone(), meta);
        let solved = self
            .host
            .solve(graph.clone())
            .await
            .context("failed to resolve httpcontext")?;
        let start = self
            .host
            .read_file_start(&solved, NAME, 1024)
            .await
            .context("failed to read downloaded context")?;
        let graph = if is_archive(&start) {
            unpacked(&graph, NAME)
        } else {
            NAME.clone_into(&mut self.filename);
            graph
        };
        self.remote_source = Some(source);
        self.dockerfile = Some(graph.clone());
        self.remote = Some(graph);
        Ok(())
    }

    async fn use_inputs(&mut self) -> Result<()> {
        let mut inputs = self
            .host
            .inputs()
            .await
            .context("failed to get frontend inputs")?;
        if self.options.context.dockerfile_local.is_none() {
            self.dockerfile = inputs.remove(DOCKERFILE);
        }
        self.remote = inputs.remove(CONTEXT);
        Ok(())
    }

    /// Loads the Dockerfile, and the ignore file that belongs to it if there is one.
    pub(crate) async fn read_entrypoint(&self) -> Result<Entrypoint> {
        let forced = self.options.context.dockerfile_local.is_some();
        let graph = match self.dockerfile.as_ref().filter(|_| !forced) {
            Some(graph) => graph.clone(),
            None => self.local_dockerfile(),
        };
        let vertex = graph.root.map(|edge| edge.vertex);
        let solved = self
            .host
            .solve(graph)
            .await
            // Stock solves nothing before it reads.
            .context("failed to read dockerfile")?;
        let mut data = self.host.read_file(&solved, &self.filename).await;
        if data.is_err()
            && let Some(other) = self.lower_case_name()
            && let Ok(found) = self.host.read_file(&solved, &other).await
        {
            data = Ok(found);
        }
        let data = data.context("failed to read dockerfile")?;
        let ignore = format!("{}{IGNORE_FILE}", self.filename);
        if let Ok(found) = self.host.read_file(&solved, &ignore).await {
            *self
                .ignore_file
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some((ignore, found));
        }
        Ok(Entrypoint {
            file: SourceFile {
                name: self.filename.clone(),
                data: data.into(),
            },
            vertex,
        })
    }

    fn local_dockerfile(&self) -> Graph {
        let name = self.options.context.dockerfile_local.as_deref();
        let name = name.unwrap_or(DOCKERFILE);
        let mut files = vec![
            self.filename.clone(),
            format!("{}{IGNORE_FILE}", self.filename),
        ];
        files.extend(self.lower_case_name());
        let mut source = self.local_source(name, name);
        source
            .attrs
            .insert("local.followpaths".to_owned(), json_list(&files));
        source
            .attrs
            .insert("local.differ".to_owned(), "none".to_owned());
        let shown = format!("[internal] load build definition from {}", self.filename);
        source_graph(source, named(shown))
    }

    /// `dockerfile` where `Dockerfile` is asked for.
    fn lower_case_name(&self) -> Option<String> {
        let (dir, name) = match self.filename.rsplit_once('/') {
            Some((dir, name)) => (Some(dir), name),
            None => (None, self.filename.as_str()),
        };
        (name == "Dockerfile").then(|| match dir {
            Some(dir) => pathmatch::clean_path(&format!("{dir}/dockerfile")),
            None => "dockerfile".to_owned(),
        })
    }

    /// A directory of the client.
    pub(crate) fn local_source(&self, name: &str, shared_key: &str) -> SourceOp {
        let session = match self.options.context.local_sessions.get(name) {
            Some(session) => session.clone(),
            None => self.host.session_id(),
        };
        let mut source = SourceOp {
            identifier: format!("local://{name}"),
            ..SourceOp::default()
        };
        let mut set = |key: &str, value: String| source.attrs.insert(key.to_owned(), value);
        if !session.is_empty() {
            set("local.session", session);
        }
        set("local.sharedkeyhint", shared_key.to_owned());
        source
    }

    /// The patterns of what the build context must not have; none for a remote context.
    pub(crate) async fn ignore_patterns(&self) -> Result<Arc<Vec<String>>> {
        if self.remote.is_some() {
            return Ok(Arc::default());
        }
        self.ignore
            .get_or_try_init(|| async { self.load_ignore_patterns().await })
            .await
            .cloned()
    }

    async fn load_ignore_patterns(&self) -> Result<Arc<Vec<String>>> {
        let own = self
            .ignore_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let data = match own {
            Some((_, data)) => data,
            None => {
                let shared_key = format!("{CONTEXT}-{IGNORE_FILE}");
                let name = format!("[internal] load {IGNORE_FILE}");
                self.read_ignore_file(CONTEXT, &shared_key, name).await?
            }
        };
        Ok(Arc::new(pathmatch::read_ignore_file(&data)))
    }

    /// The ignore file of a local directory; empty if there is none.
    pub(crate) async fn read_ignore_file(
        &self,
        local: &str,
        shared_key: &str,
        shown: String,
    ) -> Result<Vec<u8>> {
        let mut source = self.local_source(local, shared_key);
        let follow = json_list(&[IGNORE_FILE.to_owned()]);
        source.attrs.insert("local.followpaths".to_owned(), follow);
        source
            .attrs
            .insert("local.differ".to_owned(), "none".to_owned());
        let solved = self.host.solve(source_graph(source, named(shown))).await?;
        // A context without an ignore file is the usual case.
        Ok(self
            .host
            .read_file(&solved, IGNORE_FILE)
            .await
            .unwrap_or_default())
    }

    /// The build context in a plan, restricted to a set of paths if it is a local directory.
    pub(crate) fn main_context(
        &self,
        plan: &mut Plan,
        excludes: &[String],
        paths: usize,
    ) -> Output {
        if let Some(graph) = &self.remote {
            return plan.add_graph(graph);
        }
        let mut source = self.local_source(CONTEXT, CONTEXT);
        set_excludes(&mut source, excludes);
        plan.add_deferred(DeferredLocal {
            source,
            meta: named("[internal] load build context"),
            paths,
        })
    }

    /// An image's digest and configuration; each is asked for once.
    pub(crate) async fn resolve_image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<Arc<ResolvedImage>> {
        let mode = self.options.resolve_mode.as_str();
        let shown = platform.map(ToString::to_string).unwrap_or_default();
        let cell = self
            .images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(format!("{reference} {shown}"))
            .or_default()
            .clone();
        let resolve = || async {
            let image = self.host.resolve_image(reference, platform, mode, log_name);
            image.await.map(Arc::new)
        };
        cell.get_or_try_init(resolve).await.cloned()
    }
}

/// Excludes patterns from a local source.
pub(crate) fn set_excludes(source: &mut SourceOp, patterns: &[String]) {
    if !patterns.is_empty() {
        let list = json_list(patterns);
        source
            .attrs
            .insert("local.excludepatterns".to_owned(), list);
    }
}

/// A graph of one source.
fn source_graph(source: SourceOp, meta: VertexMeta) -> Graph {
    let mut plan = Plan::default();
    let root = plan.add_source(source, None, meta, None);
    finish(&plan, root)
}

/// The graph with an archive in it unpacked to the root.
fn unpacked(graph: &Graph, name: &str) -> Graph {
    copied(
        graph,
        CopyAction {
            src: format!("/{name}"),
            dest: "/".to_owned(),
            attempt_unpack: true,
            ..CopyAction::default()
        },
    )
}

/// One directory of the graph as a root.
fn subdirectory(graph: &Graph, dir: &str) -> Graph {
    copied(
        graph,
        CopyAction {
            src: pathmatch::clean_path(&format!("/{dir}")),
            dest: "/".to_owned(),
            dir_copy_contents: true,
            ..CopyAction::default()
        },
    )
}

fn copied(graph: &Graph, copy: CopyAction) -> Graph {
    let mut plan = Plan::default();
    let source = plan.add_graph(graph);
    let root = plan.add(Node {
        op: NodeOp::File(
            Output::Scratch,
            vec![Change {
                kind: FileActionKind::Copy(Box::new(copy)),
                source: Some(source),
            }],
        ),
        platform: None,
        meta: VertexMeta::default(),
        lines: None,
    });
    finish(&plan, root)
}

fn finish(plan: &Plan, root: Output) -> Graph {
    let nothing: [BTreeSet<String>; 0] = [];
    plan.finish(
        root,
        &Sources {
            paths: &nothing,
            file: &SourceFile {
                name: String::new(),
                data: Arc::from([]),
            },
            platform: &Platform::host(),
        },
    )
}

/// Whether a file that starts so is a tar archive, plain or compressed.
fn is_archive(start: &[u8]) -> bool {
    const MAGICS: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    MAGICS.iter().any(|magic| start.starts_with(magic)) || is_tar(start)
}

/// Whether the first block is a tar header: its checksum tells.
fn is_tar(start: &[u8]) -> bool {
    let Some(block) = start.get(..512) else {
        return false;
    };
    let field = String::from_utf8_lossy(&block[148..156]).into_owned();
    let Ok(expected) = u64::from_str_radix(field.trim_matches([' ', '\0']), 8) else {
        return false;
    };
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    sum == expected
}
