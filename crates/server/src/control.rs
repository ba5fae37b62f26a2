//! The `Control` service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use diag::{Code, Error};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use ops::work::blocking;
use proto::control::control_server::Control;
use proto::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse,
    InfoRequest, InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest,
    SolveResponse, StatusRequest, StatusResponse, UpdateBuildHistoryRequest,
    UpdateBuildHistoryResponse, UsageRecord,
};
use session::SessionHeaders;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::errors::{self, to_status};
use crate::gc::Collector;
use crate::gc_policy::Policy;
use crate::history::StatusLog;
use crate::parts::ServerParts;
use crate::peer::Peer;
use crate::solve::{Ends, solve};
use crate::trace::TraceContext;
use crate::usage;
use crate::worker;

/// How long a status call may come before its build.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3);
/// The header that tells clients the server's time.
const TIMESTAMP: &str = "buildkit-current-timestamp";

type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct ControlService {
    parts: Arc<ServerParts>,
    collector: Collector,
    /// Fires when the server stops.
    stop: CancellationToken,
    /// Builds under way, waited for before the server exits.
    builds: TaskTracker,
}

impl ControlService {
    /// The service over these parts. `stop` ends everything under way; `builds` counts it.
    pub fn new(
        parts: Arc<ServerParts>,
        collector: Collector,
        stop: CancellationToken,
        builds: TaskTracker,
    ) -> Self {
        ControlService {
            parts,
            collector,
            stop,
            builds,
        }
    }
}

/// A stream whose client is told the time first.
fn timed<T>(stream: ReplyStream<T>) -> Response<ReplyStream<T>> {
    let mut response = Response::new(stream);
    if let Ok(now) = Timestamp::now().to_string().parse() {
        response.metadata_mut().insert(TIMESTAMP, now);
    }
    response
}

fn status(error: Error) -> Status {
    to_status(&error)
}

/// What a finished build said, read from the disk as fast as the client takes it.
fn replay(mut said: StatusLog) -> ReplyStream<StatusResponse> {
    let (messages, replies) = mpsc::channel(16);
    tokio::task::spawn_blocking(move || {
        let sent = said.try_for_each(|message| {
            let message = message.map_err(|error| to_status(&error));
            messages.blocking_send(message)
        });
        // A client that went away wants no more.
        drop(sent);
    });
    ReceiverStream::new(replies).boxed()
}

#[tonic::async_trait]
impl Control for ControlService {
    type PruneStream = ReplyStream<UsageRecord>;
    type StatusStream = ReplyStream<StatusResponse>;
    type SessionStream = ReplyStream<BytesMessage>;
    type ListenBuildHistoryStream = ReplyStream<BuildHistoryEvent>;

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let cache = self.parts.cache.clone();
        let records = blocking(move || {
            let age = Duration::from_nanos(u64::try_from(request.age_limit).unwrap_or(0));
            usage::select(cache.records()?, &request.filter, age)
        });
        let records = records.await.map_err(status)?;
        Ok(Response::new(DiskUsageResponse {
            record: records.iter().map(usage::Record::to_proto).collect(),
        }))
    }

    async fn prune(
        &self,
        request: Request<PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let policy = Policy {
            all: request.all,
            filters: request.filter,
            keep_duration: Duration::from_nanos(u64::try_from(request.keep_duration).unwrap_or(0)),
            reserved_space: request.reserved_space,
            max_used_space: request.max_used_space,
            min_free_space: request.min_free_space,
        };
        let cache = self.parts.cache.clone();
        // Without a limit: pruning is one at a time, and must not wait for a client that does not read.
        let (records, replies) = mpsc::unbounded_channel();
        tokio::task::spawn_blocking(move || {
            // A client that went away does not stop what it asked for.
            let pruned = cache.prune(&policy, |record| {
                let _ = records.send(Ok(record.to_proto()));
            });
            if let Err(error) = pruned {
                let _ = records.send(Err(to_status(&error)));
            }
        });
        let replies = UnboundedReceiverStream::new(replies);
        Ok(Response::new(replies.boxed()))
    }

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<SolveResponse>, Status> {
        let ends = Ends {
            hang_up: CancellationToken::new(),
            stop: self.stop.clone(),
        };
        // A client that hangs up drops this call, and its build must still be brought to its end.
        let _hang_up = ends.hang_up.clone().drop_guard();
        let client = TraceContext::from_metadata(request.metadata());
        let build = solve(self.parts.clone(), request.into_inner(), client, ends);
        let build = self.builds.track_future(build);
        let solved = tokio::spawn(build)
            .await
            .unwrap_or_else(|error| Err(Error::internal(format!("a build crashed: {error}"))));
        self.collector.wake();
        if matches!(&solved, Err(error) if error.code() == Code::ResourceExhausted) {
            // Whatever a policy lets go is wanted now.
            self.collector.grown();
        }
        solved
            .map(Response::new)
            .map_err(|error| match self.stop.is_cancelled() {
                true => errors::to_unavailable_status(&error),
                false => status(error),
            })
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        let mut running = self.parts.builds.get(&id).map(|entry| entry.running);
        if running.is_none() {
            let (history, wanted) = (self.parts.history.clone(), id.clone());
            let said = blocking(move || history.status(&wanted))
                .await
                .map_err(status)?;
            if let Some(said) = said {
                return Ok(timed(replay(said)));
            }
            let builds = &self.parts.builds;
            running = builds.wait_for_progress(&id, BUILD_TIMEOUT).await;
        }
        let running = running.ok_or_else(|| Status::not_found(format!("no such job {id}")))?;
        let messages = running
            .progress()
            .follow()
            .flat_map(|status| futures::stream::iter(status.to_proto()).map(Ok));
        Ok(timed(messages.boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let headers = SessionHeaders::from_metadata(request.metadata())
            .map_err(|error| to_status(&error.into()))?;
        let peer = request.extensions().get::<Peer>().copied();
        let shared = headers.local_dirs.clone();
        let opened = blocking(move || Ok(peer.map(|peer| peer.open_dirs(&shared))));
        let dirs = opened.await.map_err(status)?.unwrap_or_default();
        let stream = self
            .parts
            .sessions
            .serve(headers, dirs, request.into_inner())
            .await
            .map_err(|error| to_status(&error.into()))?;
        let stop = self.stop.clone();
        Ok(Response::new(
            stream.take_until(stop.cancelled_owned()).boxed(),
        ))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let filters = request.into_inner().filter;
        let parts = self.parts.clone();
        let record = blocking(move || {
            let wanted = parts.worker.matches(&filters)?;
            Ok(wanted.then(|| parts.worker.to_proto()))
        });
        let record = record.await.map_err(status)?;
        Ok(Response::new(ListWorkersResponse {
            record: record.into_iter().collect(),
        }))
    }

    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            buildkit_version: Some(worker::buildkit_version()),
        }))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let (history, request) = (self.parts.history.clone(), request.into_inner());
        let events = blocking(move || history.listen(request));
        let events = events.await.map_err(status)?;
        let events = events.map(|event| event.map_err(status));
        let stop = self.stop.clone();
        Ok(timed(events.take_until(stop.cancelled_owned()).boxed()))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let (history, request) = (self.parts.history.clone(), request.into_inner());
        let deletes = request.delete;
        if request.finalize {
            history.finalize(&request.r#ref).await;
            return Ok(Response::new(UpdateBuildHistoryResponse {}));
        }
        let update = move || match request.delete {
            true => history.delete(&request.r#ref),
            false => history.pin(&request.r#ref, request.pinned),
        };
        blocking(update).await.map_err(status)?;
        if deletes {
            // Its blobs are nobody's now.
            self.collector.wake();
        }
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}
