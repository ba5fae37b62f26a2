//! Named contexts: what the client put in the place of an image or a stage of that name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use diag::{Context as _, Result};
use dockerfile::quote::quoted;
use llb::{Graph, SourceOp};
use oci::{Digest, ImageConfig, Platform, Reference};

use crate::client::{Client, IGNORE_FILE, set_excludes};
use crate::failure::fail;
use crate::git::{GitRef, http_source};
use crate::host::{Host, OciStore};
use crate::image::read_config;
use crate::options::BuildOptions;
use crate::plan::{DeferredLocal, Output, Plan, SourceFile, Sources, named};
use crate::state::FsState;

/// A named context that was given.
#[derive(Clone, Debug)]
pub(crate) struct NamedContext {
    input: String,
    name: String,
    name_with_platform: String,
    shared_key: String,
    platform: Option<Platform>,
}

/// A named context that was looked into.
#[derive(Clone, Debug)]
pub(crate) struct LoadedContext {
    files: Files,
    shown: String,
    platform: Option<Platform>,
    /// The configuration, if it is an image.
    pub(crate) image: Option<ImageConfig>,
}

/// What stands in the place of the image of another frontend.
#[derive(Clone, Debug)]
pub struct FrontendSource {
    /// Its files.
    pub graph: Graph,
    /// Its configuration, if it is an image.
    pub image: Option<ImageConfig>,
}

/// The named context that the client gave for the image of a frontend, if it gave one.
pub async fn frontend_source(
    host: &dyn Host,
    options: &BuildOptions,
    image: &str,
) -> Result<Option<FrontendSource>> {
    let client = Client::for_names(host, options);
    let Some(context) = NamedContext::find(&client, image, None)? else {
        return Ok(None);
    };
    let loaded = context.load(&client).await?;
    let mut plan = Plan::default();
    let root = loaded.add_to(&mut plan, 0).output;
    let all = [BTreeSet::new()];
    let sources = Sources {
        paths: &all,
        file: &SourceFile {
            name: String::new(),
            data: Arc::from([]),
        },
        platform: &Platform::host(),
    };
    Ok(Some(FrontendSource {
        graph: plan.finish(root, &sources),
        image: loaded.image,
    }))
}

#[derive(Clone, Debug)]
enum Files {
    Scratch,
    Source(SourceOp),
    Local(SourceOp),
    Graph(Graph),
}

impl NamedContext {
    /// The context that was given for an image or stage of that name, for that platform or for all.
    pub(crate) fn find(
        client: &Client<'_>,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<NamedContext>> {
        if matches!(name.to_lowercase().as_str(), "scratch" | "context") {
            return Ok(None);
        }
        let reference: Reference = name
            .parse()
            .map_err(|e: oci::ReferenceError| fail(e.to_string()))
            .with_context(|| format!("invalid context name {name}"))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let wanted = platform
            .cloned()
            .unwrap_or_else(Platform::host)
            .normalized();
        let options = &client.options.context;
        for key in [format!("{name}::{wanted}"), name.to_owned()] {
            if let Some(input) = options.named.get(&key) {
                return Ok(Some(NamedContext {
                    input: input.clone(),
                    name: name.to_owned(),
                    shared_key: options.shared_keys.get(&key).cloned().unwrap_or_default(),
                    name_with_platform: key,
                    platform: platform.cloned(),
                }));
            }
        }
        Ok(None)
    }

    /// Looks into it.
    pub(crate) async fn load(&self, client: &Client<'_>) -> Result<LoadedContext> {
        let Some((scheme, rest)) = self.input.split_once(':') else {
            return Err(fail(format!(
                "invalid context specifier {} for {}",
                self.input, self.name_with_platform
            )));
        };
        let scheme = if scheme.starts_with("git@") {
            "git"
        } else {
            scheme
        };
        match scheme {
            "docker-image" => self.load_image(client, rest.trim_start_matches("//")).await,
            "oci-layout" => {
                self.load_oci_layout(client, rest.trim_start_matches("//"))
                    .await
            }
            "git" => match GitRef::parse(&self.input)? {
                Some(git) => Ok(self.load_git(&git)),
                None => Err(fail(format!("invalid git context {}", self.input))),
            },
            "http" | "https" => match GitRef::parse(&self.input)? {
                Some(git) => Ok(self.load_git(&git)),
                None => {
                    let source = http_source(&self.input, "context", None);
                    let shown = diag::redact_url(&self.input);
                    Ok(self.loaded(Files::Source(source), self.shown(&shown)))
                }
            },
            "local" => self.load_local(client, rest).await,
            "input" => self.load_input(client, rest).await,
            other => Err(fail(format!(
                "unsupported context source {other} for {}",
                self.name_with_platform
            ))),
        }
    }

    fn shown(&self, what: &str) -> String {
        format!("[context {}] {what}", self.name_with_platform)
    }

    fn loaded(&self, files: Files, shown: String) -> LoadedContext {
        LoadedContext {
            files,
            shown,
            platform: None,
            image: None,
        }
    }

    fn load_git(&self, git: &GitRef) -> LoadedContext {
        let shown = format!(
            "[internal] load git source {}",
            diag::redact_url(&self.input)
        );
        self.loaded(
            Files::Source(git.source(git.keep_git_dir == Some(true))),
            shown,
        )
    }

    async fn load_image(&self, client: &Client<'_>, name: &str) -> Result<LoadedContext> {
        if name == "scratch" {
            return Ok(self.loaded(Files::Scratch, String::new()));
        }
        let reference: Reference = name
            .parse()
            .map_err(|e: oci::ReferenceError| fail(e.to_string()))?;
        let reference = reference.with_default_tag();
        let log_name = self.shown(&format!("load metadata for {name}"));
        let image = client
            .resolve_image(&reference, self.platform.as_ref(), &log_name)
            .await?;
        let source = SourceOp {
            identifier: format!(
                "docker-image://{}",
                image.reference.clone().with_default_tag()
            ),
            ..SourceOp::default()
        };
        Ok(LoadedContext {
            platform: self.platform.clone(),
            image: Some(read_config(&image.config)?),
            ..self.loaded(Files::Source(source), self.shown(name))
        })
    }

    async fn load_oci_layout(&self, client: &Client<'_>, spec: &str) -> Result<LoadedContext> {
        let Some((store, digest)) = spec.split_once('@') else {
            return Err(fail(format!(
                "oci-layout reference {} has no digest",
                quoted(spec)
            )));
        };
        let digest: Digest = digest.parse().map_err(|e: oci::DigestError| {
            fail(e.to_string()).context(format!(
                "could not parse oci-layout reference {}",
                quoted(spec)
            ))
        })?;
        let tag_at = store.rfind(':').filter(|at| !store[*at..].contains('/'));
        let store = OciStore {
            session_id: client.host.session_id(),
            store_id: store[..tag_at.unwrap_or(store.len())].to_owned(),
        };
        // The name is only for show: the store's own name may say nothing to people.
        let reference: Reference = self
            .name
            .parse()
            .map_err(|e: oci::ReferenceError| fail(e.to_string()))?;
        let reference = reference.with_digest(digest);
        let log_name = self.shown(&format!("load metadata for {reference}"));
        let image = client
            .host
            .resolve_oci_layout(&reference, &store, self.platform.as_ref(), &log_name)
            .await?;
        let config =
            read_config(&image.config).context("could not parse oci-layout image config")?;
        let source = SourceOp {
            identifier: format!("oci-layout://{reference}"),
            attrs: BTreeMap::from([
                ("oci.session".to_owned(), store.session_id),
                ("oci.store".to_owned(), store.store_id),
            ]),
        };
        Ok(LoadedContext {
            platform: self.platform.clone(),
            image: Some(config),
            ..self.loaded(Files::Source(source), self.shown("OCI load from client"))
        })
    }

    async fn load_local(&self, client: &Client<'_>, local: &str) -> Result<LoadedContext> {
        let key = format!("context:{}", self.name_with_platform);
        let shown = self.shown(&format!("load {IGNORE_FILE}"));
        let ignore_key = format!("{key}-{IGNORE_FILE}");
        let data = client.read_ignore_file(local, &ignore_key, shown).await?;
        let mut source = client.local_source(local, &format!("{key}-{}", self.shared_key));
        set_excludes(&mut source, &pathmatch::read_ignore_file(&data));
        Ok(self.loaded(Files::Local(source), self.shown("load from client")))
    }

    async fn load_input(&self, client: &Client<'_>, name: &str) -> Result<LoadedContext> {
        let Some(graph) = client.host.inputs().await?.remove(name) else {
            return Err(fail(format!(
                "invalid input {name} for {}",
                self.name_with_platform
            )));
        };
        let mut loaded = self.loaded(Files::Graph(graph), String::new());
        if let Some(metadata) = client.options.context.input_metadata.get(name) {
            loaded.image = input_config(metadata)?;
        }
        Ok(loaded)
    }
}

impl LoadedContext {
    /// The source, if it is one from outside that may have a time.
    pub(crate) fn remote_source(&self) -> Option<&SourceOp> {
        match &self.files {
            Files::Source(source) => Some(source),
            _ => None,
        }
    }

    /// Puts the files into a plan. `paths` is the set of paths that will be used of them.
    pub(crate) fn add_to(&self, plan: &mut Plan, paths: usize) -> FsState {
        let output = match &self.files {
            Files::Scratch => Output::Scratch,
            Files::Source(source) => plan.add_source(
                source.clone(),
                self.platform.clone(),
                named(&self.shown),
                None,
            ),
            Files::Local(source) => plan.add_deferred(DeferredLocal {
                source: source.clone(),
                meta: named(&self.shown),
                paths,
            }),
            Files::Graph(graph) => plan.add_graph(graph),
        };
        let mut state = FsState::new(output, self.platform.clone());
        if let Some(image) = &self.image {
            for pair in &image.config.env {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                if !name.is_empty() {
                    state.env.set(name, value);
                }
            }
            state.dir = pathmatch::clean_path(&format!("/{}", image.config.working_dir));
            if !image.architecture.is_empty() && !image.os.is_empty() {
                state.platform = Some(image_platform(image));
            }
        }
        state
    }
}

/// What an image says it runs on.
pub(crate) fn image_platform(image: &ImageConfig) -> Platform {
    Platform {
        os: image.os.clone(),
        architecture: image.architecture.clone(),
        variant: image.variant.clone(),
        os_version: image.os_version.clone(),
        os_features: image.os_features.clone(),
    }
}

/// The image configuration in the metadata that came with an input: a JSON object of base64 texts.
fn input_config(metadata: &str) -> Result<Option<ImageConfig>> {
    let wrong =
        |reason: String| fail(reason).context(format!("failed to parse input metadata {metadata}"));
    let values: BTreeMap<String, String> =
        serde_json::from_str(metadata).map_err(|e| wrong(e.to_string()))?;
    let Some(text) = values.get("containerimage.config") else {
        return Ok(None);
    };
    let data = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| wrong(e.to_string()))?;
    read_config(&data).map(Some)
}
