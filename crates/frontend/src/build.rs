//! One request from beginning to end.

use std::collections::BTreeMap;

use diag::{Code, Error, Result, SourceLocation};
use dockerfile::lint::{LintWarning, Linter};
use llb::Graph;
use oci::{ImageConfig, Platform, Reference};

use crate::client::{Client, Entrypoint};
use crate::convert::{Converted, convert, lint_config};
use crate::host::{Host, Warning};
use crate::options::BuildOptions;
use crate::plan::go_json;
use crate::request;

/// What a request came to.
#[derive(Clone, Debug, Default)]
pub struct FrontendResult {
    /// What is to be built, by platform, in the order asked for. Empty when the request was for
    /// something other than a build.
    pub refs: Vec<PlatformRef>,
    /// Whether the outcome is one image and not a set by platform.
    pub single: bool,
    /// What goes along with the outcome, under the names exporters know: `containerimage.config`
    /// (`containerimage.config/linux/arm64` in a set), `containerimage.base.config`,
    /// `source.date.epoch`, `refs.platforms`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The frontend that the file asks for, if it is not this one: the request is for it, and all
    /// else here is empty.
    pub forward: Option<Forward>,
}

/// A request that another frontend is to answer.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The image of the frontend.
    pub image: String,
    /// The image and what follows it: the frontend gets it as its option `cmdline`.
    pub cmdline: String,
    /// Where the file asks for it; `None` when an option did.
    pub location: Option<SourceLocation>,
}

impl Forward {
    /// The error of the other frontend with what asked for it.
    pub fn blame(&self, error: Error) -> Error {
        if !error.locations().is_empty() {
            return error;
        }
        match &self.location {
            Some(location) => error.at(location.clone()),
            None => error.context(format!(
                "failed with build-arg:BUILDKIT_SYNTAX = {}",
                self.cmdline
            )),
        }
    }
}

/// What is to be built for a platform.
#[derive(Clone, Debug)]
pub struct PlatformRef {
    /// The platform's name, such as `linux/arm64`.
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// The build.
    pub graph: Graph,
    /// The image's configuration; its layers and times are for the exporter to add.
    pub config: ImageConfig,
}

/// Answers a request: reads the Dockerfile and lowers it for every platform, or does what
/// `requestid` asks for.
///
/// Errors have stock's texts. What is wrong with the user's files has the code `Unknown`, because
/// clients print any other code in front of the text.
pub async fn build(host: &dyn Host, options: BuildOptions) -> Result<FrontendResult> {
    answer(host, options)
        .await
        .map_err(|error| match error.code() {
            Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::PermissionDenied => error.with_code(Code::Unknown),
            _ => error,
        })
}

async fn answer(host: &dyn Host, options: BuildOptions) -> Result<FrontendResult> {
    refuse_unsupported(&options)?;
    let client = Client::new(host, &options).await?;
    let entrypoint = client.read_entrypoint().await?;
    match asked_frontend(&options, &entrypoint) {
        Some(asked) if is_this_frontend(&asked.image) => {
            let outcome = read_and_convert(&client, &options, &entrypoint).await;
            outcome.map_err(|error| asked.blame(error))
        }
        Some(other) => Ok(FrontendResult {
            forward: Some(other),
            ..FrontendResult::default()
        }),
        None => read_and_convert(&client, &options, &entrypoint).await,
    }
}

async fn read_and_convert(
    client: &Client<'_>,
    options: &BuildOptions,
    entrypoint: &Entrypoint,
) -> Result<FrontendResult> {
    if let Some(name) = &options.request {
        let metadata = request::answer(client, entrypoint, name).await?;
        return Ok(FrontendResult {
            single: true,
            metadata,
            ..FrontendResult::default()
        });
    }
    let lint = Linter::new(lint_config(options, &entrypoint.file.data)?);
    let wanted: Vec<Option<&Platform>> = match options.platforms.as_slice() {
        [] => vec![None],
        platforms => platforms.iter().map(Some).collect(),
    };
    // Warnings are the same for every platform, so only the first one gives any.
    let off = Linter::off();
    let linters = std::iter::once(&lint).chain(std::iter::repeat(&off));
    let conversions = wanted
        .iter()
        .zip(linters)
        .map(|(platform, lint)| convert(client, &entrypoint.file, *platform, lint, false));
    let outcomes = futures::future::join_all(conversions).await;
    warn(client, entrypoint, lint.warnings()).await;
    let mut result = FrontendResult {
        single: !options.multi_platform,
        ..FrontendResult::default()
    };
    for (platform, outcome) in wanted.into_iter().zip(outcomes) {
        let converted = outcome?;
        if let Some(error) = converted.refused {
            return Err(error);
        }
        result.add(platform, converted)?;
    }
    result.finish()
}

/// Shows violations of lint rules.
pub(crate) async fn warn(client: &Client<'_>, entrypoint: &Entrypoint, warnings: Vec<LintWarning>) {
    for warning in warnings {
        let ranges = match warning.lines.first {
            0 => Vec::new(),
            _ => warning.lines.ranges(),
        };
        let location = entrypoint.file.at_ranges(ranges);
        client
            .host
            .warn(Warning {
                vertex: entrypoint.vertex,
                level: 1,
                short: warning.short(),
                detail: vec![warning.rule.description().to_owned()],
                url: warning.rule.url(),
                location: Some(location),
            })
            .await;
    }
}

impl FrontendResult {
    fn add(&mut self, platform: Option<&Platform>, converted: Converted) -> Result<()> {
        let platform = platform
            .cloned()
            .unwrap_or_else(Platform::host)
            .normalized();
        let id = platform.to_string();
        let suffix = if self.single {
            String::new()
        } else {
            format!("/{id}")
        };
        let mut put = |name: &str, value: Vec<u8>| {
            self.metadata.insert(format!("{name}{suffix}"), value);
        };
        put("containerimage.config", to_json(&converted.image)?);
        if let Some(base) = &converted.base_image {
            put("containerimage.base.config", to_json(base)?);
        }
        if let Some(epoch) = converted.epoch {
            put("source.date.epoch", epoch.to_string().into_bytes());
        }
        self.refs.push(PlatformRef {
            id,
            platform,
            graph: converted.graph,
            config: converted.image,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<FrontendResult> {
        let platforms: Vec<serde_json::Value> = self
            .refs
            .iter()
            .map(|built| serde_json::json!({"ID": built.id, "Platform": built.platform}))
            .collect();
        let platforms = to_json(&serde_json::json!({ "Platforms": platforms }))?;
        self.metadata.insert("refs.platforms".to_owned(), platforms);
        Ok(self)
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let text = serde_json::to_string(value).map_err(|e| Error::internal(e.to_string()))?;
    Ok(go_json(&text).into_bytes())
}

fn refuse_unsupported(options: &BuildOptions) -> Result<()> {
    if options.wants_sbom {
        return Err(Error::unimplemented(
            "SBOM attestations are not supported; build without `--sbom` or `--attest type=sbom`",
        ));
    }
    Ok(())
}

/// The frontend that is asked for by name.
fn asked_frontend(options: &BuildOptions, entrypoint: &Entrypoint) -> Option<Forward> {
    if options.forwarded {
        return None;
    }
    let (image, cmdline, location) = match &options.syntax {
        Some(command) => {
            let image = command.split_whitespace().next().unwrap_or_default();
            (image.to_owned(), command.clone(), None)
        }
        None => {
            let syntax = dockerfile::detect_syntax(&entrypoint.file.data)?;
            let location = entrypoint.file.at_ranges(vec![syntax.range]);
            (syntax.image, syntax.command, Some(location))
        }
    };
    Some(Forward {
        image,
        cmdline,
        location,
    })
}

fn is_this_frontend(image: &str) -> bool {
    let Ok(reference) = image.parse::<Reference>() else {
        return false;
    };
    matches!(
        reference.name().as_str(),
        "docker.io/docker/dockerfile" | "docker.io/docker/dockerfile-upstream"
    )
}
