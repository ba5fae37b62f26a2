//! Folders of the client as a source.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use diag::{Context, Error, Result};
use jiff::Timestamp;
use llb::{SourceOp, Vertex};
use parking_lot::Mutex;
use progress::VertexStatus;
use session::diffcopy::{Change, ChangeKind};
use session::{Session, SyncRequest};
use solver::RunContext;
use source::local::{DirChanges, DirSync, LocalRequest, LocalSnapshot, PathChange};

use super::context::{BuildContext, Event};
use super::parts::Parts;

/// How often progress is told at most.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Brings a folder of the client; only what changed since the last time travels.
pub async fn pin_local(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    source: &SourceOp,
    context: &RunContext<BuildContext>,
) -> Result<LocalSnapshot> {
    let name = source
        .identifier
        .split_once("://")
        .map_or("", |(_, name)| name);
    let attr = |name: &str| source.attrs.get(name).map_or("", String::as_str);
    if attr("local.metadatatransfer") == "true" {
        return Err(Error::unimplemented(
            "transfers of metadata alone are not supported by this server",
        ));
    }
    let build = context.first()?;
    let session = match attr("local.session") {
        "" => build.session().await?,
        id => build.session_of(id).await?,
    };
    let sync = ClientFolder {
        name: name.to_owned(),
        include: list(source, "local.includepattern")?,
        exclude: list(source, "local.excludepatterns")?,
        follow: list(source, "local.followpaths")?,
        reporter: Arc::new(Reporter {
            context: context.clone(),
            vertex: vertex.digest,
            id: format!("transferring {name}:"),
            started: Timestamp::now(),
            last: Mutex::new(None),
        }),
        session,
    };
    let request = LocalRequest {
        name: name.to_owned(),
        shared_key: format!(
            "{name}:{}:{}",
            attr("local.sharedkeyhint"),
            sync.session.shared_key()
        ),
    };
    parts.locals.snapshot(&request, &sync).await
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
    reporter: Arc<Reporter>,
}

#[async_trait]
impl DirSync for ClientFolder {
    async fn sync(&self, dest: &Path) -> Result<DirChanges> {
        let changes: Arc<Mutex<Vec<PathChange>>> = Arc::default();
        let noted = changes.clone();
        let reporter = self.reporter.clone();
        reporter.report(0, false);
        let mut request = SyncRequest::new(&self.name, dest);
        request.include.clone_from(&self.include);
        request.exclude.clone_from(&self.exclude);
        request.follow_paths.clone_from(&self.follow);
        request.on_change = Some(Arc::new(move |change: Change<'_>| {
            noted.lock().push(PathChange {
                path: change.path.to_vec(),
                removed: matches!(change.kind, ChangeKind::Removed),
            });
        }));
        let told = reporter.clone();
        let stats = self
            .session
            .sync_dir(
                request,
                Some(Arc::new(move |bytes, last| told.report(bytes, last))),
            )
            .await?;
        reporter.report(stats.bytes, true);
        let paths = std::mem::take(&mut *changes.lock());
        Ok(DirChanges {
            count: paths.len() as u64,
            paths: Some(paths),
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
            name: String::new(),
            current: bytes as i64,
            total: 0,
            timestamp: now,
            started: Some(self.started),
            completed: end.then_some(now),
        }));
    }
}
