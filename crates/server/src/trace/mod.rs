//! Traces of builds: kept with their records, and sent to a collector if one is configured.

mod collector;
mod context;
mod json;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use diag::{Error, Result};
use jiff::Timestamp;
use proto::otlp;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use collector::Collector;
pub use collector::{OtlpConfig, Protocol};
pub use context::TraceContext;
pub(crate) use spans::{BuildFacts, BuildTrace};
use spans::{Span, Value};

use crate::history::TraceSlot;
use crate::version;

/// Who made the spans.
const SCOPE: &str = "cooperage/buildkitd";
/// How many builds' spans may be on their way to a collector; those of further builds are dropped.
const SENDING_MAX: usize = 16;

/// Takes care of the traces of ended builds. Clones share everything.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    collector: Option<Collector>,
    resource: Vec<(String, String)>,
    sending: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Tracer {
    /// One that sends to a collector, if there is a configuration. `env` gives the values of the
    /// environment's variables.
    ///
    /// # Errors
    /// The collector's address is none.
    pub fn new(config: Option<OtlpConfig>, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Ok(Tracer(Arc::new(Inner {
            collector: config.map(Collector::new).transpose()?,
            resource: resource(env),
            sending: Arc::new(Semaphore::new(SENDING_MAX)),
            tasks: TaskTracker::new(),
        })))
    }

    /// Keeps a trace with its build's record, and sends it. Returns at once.
    pub(crate) fn finish(&self, trace: BuildTrace, slot: TraceSlot) {
        let inner = self.0.clone();
        self.0.tasks.spawn(async move {
            let trace = Arc::new(trace);
            let (kept, resource) = (trace.clone(), inner.clone());
            let filled =
                ops::work::blocking(move || slot.fill(&json::blob(&kept, &resource.resource)));
            if let Err(error) = filled.await {
                tracing::error!("keeping a trace: {error}");
            }
            if let Some(collector) = &inner.collector {
                inner.send(collector, &inner.request(&trace)).await;
            }
        });
    }

    /// Waits for what is under way, but not longer than that.
    pub async fn drain(&self, at_most: Duration) {
        self.0.tasks.close();
        if tokio::time::timeout(at_most, self.0.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some traces were not sent in time");
        }
    }
}

impl Inner {
    async fn send(&self, collector: &Collector, request: &otlp::ExportTraceServiceRequest) {
        let Ok(_permit) = self.sending.clone().try_acquire_owned() else {
            tracing::warn!("the trace collector is too slow: a trace is dropped");
            return;
        };
        if let Err(error) = collector.send(request).await {
            tracing::warn!("sending a trace: {error}");
        }
    }

    fn request(&self, trace: &BuildTrace) -> otlp::ExportTraceServiceRequest {
        let attribute =
            |(key, value): &(String, String)| otlp_attribute(key, &Value::Text(value.clone()));
        otlp::ExportTraceServiceRequest {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(otlp::Resource {
                    attributes: self.resource.iter().map(attribute).collect(),
                    dropped_attributes_count: 0,
                }),
                scope_spans: vec![otlp::ScopeSpans {
                    scope: Some(otlp::InstrumentationScope {
                        name: SCOPE.to_owned(),
                        version: version::VERSION.to_owned(),
                        ..Default::default()
                    }),
                    spans: trace
                        .spans
                        .iter()
                        .map(|span| otlp_span(trace, span))
                        .collect(),
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        }
    }
}

/// Clients send their spans through the server, as it may know a collector that they do not.
#[tonic::async_trait]
impl otlp::TraceService for Tracer {
    async fn export(
        &self,
        request: Request<otlp::ExportTraceServiceRequest>,
    ) -> Result<Response<otlp::ExportTraceServiceResponse>, Status> {
        if self.0.collector.is_none() {
            return Err(Status::unavailable("trace collector not configured"));
        }
        let inner = self.0.clone();
        self.0.tasks.spawn(async move {
            if let Some(collector) = &inner.collector {
                inner.send(collector, &request.into_inner()).await;
            }
        });
        Ok(Response::new(otlp::ExportTraceServiceResponse::default()))
    }
}

fn otlp_span(trace: &BuildTrace, span: &Span) -> otlp::Span {
    let nanos = |at: Timestamp| u64::try_from(at.as_nanosecond()).unwrap_or(0);
    let kind = match span.is_entry {
        true => otlp::SpanKind::Server,
        false => otlp::SpanKind::Internal,
    };
    otlp::Span {
        trace_id: trace.trace_id.to_vec(),
        span_id: span.id.to_vec(),
        trace_state: trace.state.clone(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: kind as i32,
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes: span
            .attributes
            .iter()
            .map(|(key, value)| otlp_attribute(key, value))
            .collect(),
        status: span.error.as_ref().map(|error| otlp::Status {
            message: error.clone(),
            code: otlp::StatusCode::Error as i32,
        }),
        // Sampled.
        flags: 1,
        ..otlp::Span::default()
    }
}

fn otlp_attribute(key: &str, value: &Value) -> otlp::KeyValue {
    use otlp::any_value::Value as Wire;
    let value = match value {
        Value::Text(text) => Wire::StringValue(text.clone()),
        Value::Bool(value) => Wire::BoolValue(*value),
        Value::Int(number) => Wire::IntValue(*number),
    };
    otlp::KeyValue {
        key: key.to_owned(),
        value: Some(otlp::AnyValue { value: Some(value) }),
    }
}

/// What spans are of: the service, with what the environment adds.
fn resource(env: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let given = collector::pairs(&env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
    let named = given.iter().find(|(key, _)| key == "service.name");
    let service = env("OTEL_SERVICE_NAME")
        .filter(|name| !name.is_empty())
        .or_else(|| named.map(|(_, name)| name.clone()))
        .unwrap_or_else(|| "buildkitd".to_owned());
    let mut resource = vec![
        ("service.name".to_owned(), service),
        ("service.version".to_owned(), version::VERSION.to_owned()),
    ];
    let rest = given.into_iter().filter(|(key, _)| key != "service.name");
    resource.extend(rest);
    resource
}

/// When a record's times cannot be read, which they always can be.
pub(crate) fn time_of(
    at: Option<&bollard_buildkit_proto::google::protobuf::Timestamp>,
) -> Result<Timestamp> {
    at.and_then(crate::wire::from_timestamp)
        .ok_or_else(|| Error::internal("a build record without its times"))
}
