//! Folders of the client as a source.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use diag::{Context, Error, Result};
use jiff::Timestamp;
use llb::{SourceOp, Vertex};
use parking_lot::Mutex;
use pathmatch::PatternMatcher;
use progress::VertexStatus;
use session::diffcopy::{Listing, Wanted};
use session::{Session, SyncRequest};
use solver::RunContext;
use source::local::{DirChanges, DirSync, LocalRequest, LocalSnapshot};

use super::context::{BuildContext, Event};
use super::parts::Parts;

/// How often progress is told at most.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// What the line of a transfer is called.
const TRANSFERRING: &str = "transferring";

/// Brings a folder of the client; only what changed since the last time travels.
pub async fn pin_local(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    source: &SourceOp,
    context: &RunContext<BuildContext>,
) -> Result<LocalSnapshot> {
    let (session_id, name) = folder(source);
    let attr = |name: &str| source.attrs.get(name).map_or("", String::as_str);
    let metadata_only = metadata_only(source)?;
    let build = context.first()?;
    let session = match session_id {
        "" => build.session().await?,
        // A client that is gone is as good as any other that wants the same.
        id => match build.session_of(id).await {
            Ok(session) => session,
            Err(_) => build.session().await?,
        },
    };
    let sync = ClientFolder {
        name: name.clone(),
        include: list(source, "local.includepattern")?,
        exclude: list(source, "local.excludepatterns")?,
        follow: list(source, "local.followpaths")?,
        fetch_all: attr("local.differ") == "none",
        metadata_only,
        reporter: Arc::new(Reporter {
            context: context.clone(),
            vertex: vertex.digest,
            id: format!("{TRANSFERRING} {name}:"),
            started: Timestamp::now(),
            last: Mutex::new(None),
        }),
        session,
    };
    let request = LocalRequest {
        name: name.clone(),
        shared_key: format!(
            "{name}:{}:{}{}",
            attr("local.sharedkeyhint"),
            sync.session.shared_key(),
            if sync.metadata_only.is_some() {
                ":metadata"
            } else {
                ""
            }
        ),
    };
    parts.locals.snapshot(&request, &sync).await
}

/// Session (empty for any) and name of the folder that a source means.
fn folder(source: &SourceOp) -> (&str, String) {
    let name = source.identifier.split_once("://");
    let name = name.map_or("", |(_, name)| name);
    let session = source.attrs.get("local.session");
    let session = session.map_or("", String::as_str);
    match session.split_once(':') {
        Some((prefix, session)) => (session, format!("{prefix}-{name}")),
        None => (session, name.to_owned()),
    }
}

/// Of which paths more than metadata is wanted; `None` if everything is.
fn metadata_only(source: &SourceOp) -> Result<Option<Wanted>> {
    let name = "local.metadatatransfer";
    let value = source.attrs.get(name).map_or("false", String::as_str);
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => {}
        "0" | "f" | "F" | "FALSE" | "false" | "False" => return Ok(None),
        other => {
            return Err(Error::invalid(format!(
                "invalid value for {name} {other:?}: invalid syntax"
            )));
        }
    }
    let exceptions = list(source, "local.metadatatransferexclude")?;
    let matcher =
        PatternMatcher::new(&exceptions).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(Some(Arc::new(move |path: &[u8]| matcher.matches(path))))
}

/// A list that the wire has as JSON.
fn list(source: &SourceOp, name: &str) -> Result<Vec<String>> {
    match source.attrs.get(name).map(String::as_str) {
        None | Some("") => Ok(Vec::new()),
        Some(text) => serde_json::from_str::<Option<Vec<String>>>(text)
            .map(Option::unwrap_or_default)
            .map_err(|error| Error::invalid(error.to_string()))
            .with_context(|| format!("{name} of {}", source.identifier)),
    }
}

/// A folder of the client, and who is told of the transfer.
struct ClientFolder {
    session: Session,
    name: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
    fetch_all: bool,
    metadata_only: Option<Wanted>,
    reporter: Arc<Reporter>,
}

#[async_trait]
impl DirSync for ClientFolder {
    async fn sync(&self, dest: &Path, known: Option<Arc<Listing>>) -> Result<DirChanges> {
        let reporter = self.reporter.clone();
        reporter.report(0, false);
        let mut request = SyncRequest::new(&self.name, dest);
        request.include.clone_from(&self.include);
        request.exclude.clone_from(&self.exclude);
        request.follow_paths.clone_from(&self.follow);
        request.fetch_all = self.fetch_all;
        request.metadata_only.clone_from(&self.metadata_only);
        let listing: Arc<Mutex<Option<Listing>>> = Arc::default();
        // The notes of what files are stand in no listing that comes of a transfer.
        if self.metadata_only.is_none() {
            let noted = listing.clone();
            request.known = known;
            request.on_listing = Some(Arc::new(move |listing| *noted.lock() = Some(listing)));
        }
        let told = reporter.clone();
        let stats = self
            .session
            .sync_dir(
                request,
                Some(Arc::new(move |bytes, last| told.report(bytes, last))),
            )
            .await?;
        reporter.report(stats.bytes, true);
        let listing = listing.lock().take();
        Ok(DirChanges {
            count: stats.changed + stats.removed,
            listing,
        })
    }
}

/// Tells how many bytes came.
struct Reporter {
    context: RunContext<BuildContext>,
    vertex: oci::Digest,
    id: String,
    started: Timestamp,
    /// When it was told last, and whether that was the end.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Reporter {
    fn report(&self, bytes: u64, end: bool) {
        {
            let mut last = self.last.lock();
            match *last {
                Some((_, true)) => return,
                Some((at, false)) if !end && at.elapsed() < REPORT_INTERVAL => return,
                _ => *last = Some((Instant::now(), end)),
            }
        }
        let now = Timestamp::now();
        self.context.emit(Event::Status(VertexStatus {
            id: self.id.clone(),
            vertex: self.vertex,
            name: TRANSFERRING.to_owned(),
            current: bytes as i64,
            total: 0,
            timestamp: now,
            started: Some(self.started),
            completed: end.then_some(now),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(attrs: &[(&str, &str)]) -> SourceOp {
        SourceOp {
            identifier: "local://context".into(),
            attrs: attrs
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }

    #[test]
    fn a_session_may_have_a_prefix_for_the_folder() {
        let of = |session: &str| {
            let source = source(&[("local.session", session)]);
            let (session, name) = folder(&source);
            (session.to_owned(), name)
        };
        assert_eq!(of(""), (String::new(), "context".into()));
        assert_eq!(of("abc"), ("abc".into(), "context".into()));
        assert_eq!(of("x:abc"), ("abc".into(), "x-context".into()));
    }

    #[test]
    fn what_comes_besides_metadata_is_said_by_patterns() {
        assert!(metadata_only(&source(&[])).unwrap().is_none());
        let attrs = [
            ("local.metadatatransfer", "true"),
            ("local.metadatatransferexclude", r#"["**/*.go","keep"]"#),
        ];
        let wanted = metadata_only(&source(&attrs)).unwrap().unwrap();
        for (path, fits) in [("a/b.go", true), ("keep/x", true), ("a/b", false)] {
            assert_eq!(wanted(path.as_bytes()), fits, "{path}");
        }
        assert!(metadata_only(&source(&[("local.metadatatransfer", "maybe")])).is_err());
    }
}
