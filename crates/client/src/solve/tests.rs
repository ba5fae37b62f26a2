use std::pin::Pin;

use progress_ui::Statuses;
use proto::control::control_server::{Control, ControlServer};
use proto::control::*;
use tokio::sync::Mutex;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response as Answer, Status};

use super::*;

type StatusSender = tokio::sync::mpsc::Sender<Result<StatusResponse, Status>>;

/// What the fake server does with a solve.
#[derive(Clone)]
enum Script {
    Succeed,
    Fail(Status),
    Hang,
}

/// A build server that follows a script.
struct Fake {
    script: Script,
    statuses: Mutex<Option<StatusSender>>,
    opened: tokio::sync::Notify,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn unused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Control for Fake {
    type StatusStream = ReceiverStream<Result<StatusResponse, Status>>;
    type SessionStream = Streamed<BytesMessage>;
    type ListenBuildHistoryStream = Streamed<BuildHistoryEvent>;
    type PruneStream = Streamed<UsageRecord>;

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Answer<SolveResponse>, Status> {
        let name = request.into_inner().r#ref;
        let statuses = loop {
            if let Some(statuses) = self.statuses.lock().await.take() {
                break statuses;
            }
            self.opened.notified().await;
        };
        let message = StatusResponse {
            vertexes: vec![Vertex {
                name,
                started: Some(Default::default()),
                ..Vertex::default()
            }],
            ..StatusResponse::default()
        };
        statuses.send(Ok(message)).await.unwrap();
        match self.script.clone() {
            Script::Succeed => Ok(Answer::new(SolveResponse {
                exporter_response: [("containerimage.digest".to_owned(), "d".to_owned())].into(),
            })),
            Script::Fail(status) => Err(status),
            Script::Hang => std::future::pending().await,
        }
    }

    async fn status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Answer<Self::StatusStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        *self.statuses.lock().await = Some(sender);
        self.opened.notify_one();
        Ok(Answer::new(ReceiverStream::new(receiver)))
    }

    async fn disk_usage(
        &self,
        _: Request<DiskUsageRequest>,
    ) -> Result<Answer<DiskUsageResponse>, Status> {
        unused()
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Answer<Self::PruneStream>, Status> {
        unused()
    }

    async fn session(
        &self,
        _: Request<tonic::Streaming<BytesMessage>>,
    ) -> Result<Answer<Self::SessionStream>, Status> {
        unused()
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Answer<ListWorkersResponse>, Status> {
        unused()
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Answer<InfoResponse>, Status> {
        unused()
    }

    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Answer<Self::ListenBuildHistoryStream>, Status> {
        unused()
    }

    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Answer<UpdateBuildHistoryResponse>, Status> {
        unused()
    }
}

async fn serve(script: Script) -> Channel {
    let fake = Fake {
        script,
        statuses: Mutex::new(None),
        opened: tokio::sync::Notify::new(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(ControlServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

async fn run(
    script: Script,
    cancel: CancellationToken,
) -> (Result<Response, SolveFailure>, Statuses) {
    let channel = serve(script).await;
    let (progress, receiver) = Progress::channel();
    let request = SolveRequest {
        r#ref: "reference".to_owned(),
        ..SolveRequest::default()
    };
    let result = solve(channel, request, false, &progress, &cancel).await;
    (result, receiver)
}

#[tokio::test]
async fn a_build_gives_its_response_and_its_progress() {
    let (result, statuses) = run(Script::Succeed, CancellationToken::new()).await;
    assert_eq!(result.unwrap()["containerimage.digest"], "d");
    let names: Vec<String> = statuses.map(|s| s.vertexes[0].name.clone()).collect();
    assert_eq!(names, ["reference"]);
}

#[tokio::test]
async fn a_failed_build_says_what_failed() {
    let script = Script::Fail(crate::status_error::tests::failed_run());
    let (result, statuses) = run(script, CancellationToken::new()).await;
    let failure = result.unwrap_err();
    assert_eq!(
        failure.error.to_string(),
        "failed to solve: process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7"
    );
    assert_eq!(failure.error.locations().len(), 1);
    assert!(!failure.connection_lost);
    assert_eq!(statuses.count(), 1);
}

#[tokio::test]
async fn a_cancelled_build_shows_its_progress_to_the_end() {
    let cancel = CancellationToken::new();
    let channel = serve(Script::Hang).await;
    let (progress, statuses) = Progress::channel();
    let task = tokio::spawn({
        let cancel = cancel.clone();
        let request = SolveRequest::default();
        async move { solve(channel, request, false, &progress, &cancel).await }
    });
    // The first status says that the server has the build.
    let (first, mut statuses) = tokio::task::spawn_blocking(move || {
        let mut statuses = statuses;
        (statuses.next(), statuses)
    })
    .await
    .unwrap();
    assert!(first.is_some());
    cancel.cancel();
    let error = task.await.unwrap().unwrap_err().error;
    assert_eq!(
        error.to_string(),
        "failed to solve: Canceled: context canceled"
    );
    assert!(error.is_canceled());
    assert!(statuses.next().is_none(), "the stream ended with the call");
}

#[tokio::test]
async fn a_lost_connection_is_told_from_a_failed_build() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect_lazy();
    let (progress, _statuses) = Progress::channel();
    let result = solve(
        channel,
        SolveRequest::default(),
        false,
        &progress,
        &CancellationToken::new(),
    )
    .await;
    assert!(result.unwrap_err().connection_lost);
}

#[test]
fn a_connection_that_breaks_off_is_no_internal_error_of_the_server() {
    let mut broken = tonic::Status::internal("h2 protocol error: http2 error");
    let said_by_the_server = failure(&broken);
    assert!(!said_by_the_server.connection_lost);
    assert_eq!(said_by_the_server.error.code(), diag::Code::Internal);
    broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
    let lost = failure(&broken);
    assert!(lost.connection_lost);
    assert_eq!(lost.error.code(), diag::Code::Unavailable);
}
