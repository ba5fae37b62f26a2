//! What a server tells of itself: traces and metrics.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message;
use proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans, Span, StatusCode,
    TraceService, TraceServiceClient, TraceServiceServer,
};
use proto::prost;
use server::metrics;
use server::trace::{OtlpConfig, Protocol};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::bench::{Bench, Build};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Hands on what a collector was sent.
struct Received(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = request.metadata().get("authorization");
        assert_eq!(header.expect("the configured header"), "Bearer x");
        self.0
            .send(request.into_inner())
            .expect("a test that listens");
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn config(protocol: Protocol) -> OtlpConfig {
    OtlpConfig {
        protocol,
        headers: vec![("Authorization".into(), "Bearer x".into())],
        timeout: Duration::from_secs(10),
    }
}

/// A bench whose server sends traces there.
async fn bench(protocol: Protocol) -> Bench {
    let mut bench = Bench::start().await;
    bench.otlp = Some(config(protocol));
    bench.restart().await;
    bench
}

fn attribute(spans: &ResourceSpans, name: &str) -> String {
    let resource = spans.resource.as_ref().expect("a resource");
    let found = resource.attributes.iter().find(|a| a.key == name);
    format!("{:?}", found.expect(name).value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of a build, with what must be true of all of them.
fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let of = &request.resource_spans[0];
    assert!(attribute(of, "service.name").contains("buildkitd"));
    let spans = of.scope_spans[0].spans.clone();
    let build = &spans[0];
    assert_eq!(build.name, "moby.buildkit.v1.Control/Solve");
    for span in &spans {
        assert_eq!(span.trace_id, build.trace_id);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    for span in &spans[1..] {
        let parent = spans
            .iter()
            .find(|other| other.span_id == span.parent_span_id);
        assert!(parent.is_some(), "{} has no parent", span.name);
    }
    spans
}

pub async fn traces_reach_a_collector_over_grpc_as_part_of_the_clients_trace() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TraceServiceServer::new(Received(sender));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let bench = bench(Protocol::Grpc(address)).await;
    let mut build = Build::new("FROM busybox\nRUN echo traced; false\n").exporter("oci");
    build.traceparent = format!("00-{TRACE}-{PARENT}-01");
    bench.build(&build).await.error();
    let found = spans(received.recv().await.expect("a trace"));
    assert_eq!(hex(&found[0].trace_id), TRACE);
    assert_eq!(hex(&found[0].parent_span_id), PARENT);
    let step = found
        .iter()
        .find(|span| span.name.contains("RUN echo traced"));
    let status = step.expect("a span of the step").status.clone();
    assert_eq!(status.expect("a status").code, StatusCode::Error as i32);

    let again = Build::new("FROM busybox\nCOPY a /\n")
        .file("a", b"1")
        .exporter("oci");
    bench.build(&again).await.ok();
    let found = spans(received.recv().await.expect("a trace"));
    assert_ne!(hex(&found[0].trace_id), TRACE);
    for name in ["COPY a /", "exporting to", "transferring context"] {
        let named = found.iter().any(|span| span.name.contains(name));
        assert!(
            named,
            "{name} in {:?}",
            found.iter().map(|s| &s.name).collect::<Vec<_>>()
        );
    }
}

pub async fn traces_reach_a_collector_over_http_and_clients_send_theirs_through_the_server() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!(
        "http://{}/v1/traces",
        listener.local_addr().expect("an address")
    );
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.expect("a connection");
            let sender = sender.clone();
            let answer = service_fn(move |request: hyper::Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    assert_eq!(request.headers()["authorization"], "Bearer x");
                    let body = request.into_body().collect().await.expect("a body");
                    let spans = ExportTraceServiceRequest::decode(body.to_bytes());
                    sender
                        .send(spans.expect("spans"))
                        .expect("a test that listens");
                    Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::new())))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), answer),
            );
        }
    });
    let bench = bench(Protocol::Http(url)).await;
    bench.build(&Build::new("FROM busybox\n")).await.ok();
    assert!(spans(received.recv().await.expect("a trace")).len() > 3);
    let theirs = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            schema_url: "the client's".into(),
            ..ResourceSpans::default()
        }],
    };
    let mut client = TraceServiceClient::new(bench.channel().await);
    client.export(theirs.clone()).await.expect("taken");
    assert_eq!(received.recv().await, Some(theirs));
}

pub async fn a_collector_that_is_away_stops_no_build() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", port.local_addr().expect("an address"));
    drop(port);
    let mut bench = bench(Protocol::Grpc(address)).await;
    bench.build(&Build::new("FROM busybox\n")).await.ok();
    bench.otlp = None;
    bench.restart().await;
    let mut client = TraceServiceClient::new(bench.channel().await);
    let refused = client.export(ExportTraceServiceRequest::default()).await;
    let refused = refused.expect_err("no collector");
    assert_eq!(refused.message(), "trace collector not configured");
}

pub async fn metrics_count_what_builds_did() {
    let bench = Bench::start().await;
    let build = Build::new("FROM busybox\nRUN true\n");
    bench.build(&build).await.ok();
    bench.build(&build).await.ok();
    bench
        .build(&Build::new("FROM busybox\nRUN false\n"))
        .await
        .error();
    let server = bench.server.clone().expect("a server");
    let text = tokio::task::spawn_blocking(move || metrics::scrape(server.parts()))
        .await
        .expect("no panic")
        .expect("metrics");
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} in\n{text}"))
            .parse()
            .expect("a number")
    };
    assert_eq!(value("buildkit_builds_total{status=\"success\"}"), 2.0);
    assert_eq!(
        value("buildkit_builds_total{status=\"failure\",error_code=\"Unknown\"}"),
        1.0
    );
    let cached = value("buildkit_builds_steps_total{kind=\"cached\"}");
    let completed = value("buildkit_builds_steps_total{kind=\"completed\"}");
    assert!(
        cached > 0.0 && cached < completed,
        "{cached} of {completed}"
    );
    assert_eq!(value("cooperage_cache_hit_ratio"), cached / completed);
    // The step that makes busybox's links, the one that succeeds and the one that fails.
    assert_eq!(value("cooperage_step_start_seconds_count"), 3.0);
    assert_eq!(value("cooperage_builds_running"), 0.0);
    assert!(value("cooperage_cache_bytes{type=\"regular\"}") > 0.0);
    assert!(value("cooperage_content_blobs") > 0.0);
    assert!(value("process_resident_memory_bytes") > 0.0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(
            value.parse::<f64>().is_ok() && !name.contains(' ') || name.contains('"'),
            "{line}"
        );
    }
}
