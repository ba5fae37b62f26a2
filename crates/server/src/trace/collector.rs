//! Sending spans to a collector by OTLP, over gRPC or as protobuf over HTTP.
//!
//! Source: <https://opentelemetry.io/docs/specs/otlp/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/> for the environment.

use std::time::Duration;

use diag::{Error, Result};
use percent_encoding::percent_decode_str;
use prost::Message;
use proto::otlp::{ExportTraceServiceRequest, TraceServiceClient};
use proto::prost;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};

/// How long one attempt may take unless configured otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often something is sent before it is given up.
const ATTEMPTS: u32 = 3;
/// The wait after the first attempt; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(500);

/// Where spans go, and what they are said to be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Where to.
    pub protocol: Protocol,
    /// Added to each request: credentials mostly.
    pub headers: Vec<(String, String)>,
    /// How long one attempt may take.
    pub timeout: Duration,
}

/// The form in which spans travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, to an address such as `http://collector:4317`.
    Grpc(String),
    /// Protobuf over HTTP, to a URL such as `http://collector:4318/v1/traces`.
    Http(String),
}

impl OtlpConfig {
    /// What OpenTelemetry's variables ask for; `None` if they ask for nothing. `env` gives a
    /// variable's value.
    ///
    /// # Errors
    /// They ask for something that is not offered, or cannot be read.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let of_traces = |name: &str| {
            let specific = env(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
            specific.or_else(|| env(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let exporter = env("OTEL_TRACES_EXPORTER");
        let disabled = env("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        match exporter.as_deref() {
            _ if disabled => return Ok(None),
            Some("none") => return Ok(None),
            None if of_traces("ENDPOINT").is_none() => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => {
                let text = format!("unsupported opentelemetry exporter {other:?}: otlp is known");
                return Err(Error::unimplemented(text));
            }
        }
        let own = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let shared = env("OTEL_EXPORTER_OTLP_ENDPOINT");
        let protocol = match of_traces("PROTOCOL").as_deref() {
            None | Some("grpc") => {
                let address = own.or(shared);
                let address = address.unwrap_or_else(|| "http://localhost:4317".to_owned());
                Protocol::Grpc(match address.contains("://") {
                    true => address,
                    false => format!("http://{address}"),
                })
            }
            Some("http/protobuf") => {
                let base = shared.unwrap_or_else(|| "http://localhost:4318".to_owned());
                let joined = format!("{}/v1/traces", base.trim_end_matches('/'));
                Protocol::Http(own.unwrap_or(joined))
            }
            Some(other) => {
                let text = format!("unsupported otlp protocol {other}");
                return Err(Error::unimplemented(text));
            }
        };
        let timeout = match of_traces("TIMEOUT") {
            None => TIMEOUT,
            Some(text) => text.parse().map(Duration::from_millis).map_err(|_| {
                Error::invalid(format!(
                    "OTEL_EXPORTER_OTLP_TIMEOUT={text}: no milliseconds"
                ))
            })?,
        };
        Ok(Some(OtlpConfig {
            protocol,
            headers: pairs(&of_traces("HEADERS").unwrap_or_default()),
            timeout,
        }))
    }
}

/// `key=value` pairs joined by commas, values percent-encoded.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| {
            (
                key.trim().to_owned(),
                percent_decode_str(value.trim())
                    .decode_utf8_lossy()
                    .into_owned(),
            )
        })
        .collect()
}

/// A collector. Clones share the connection.
#[derive(Clone)]
pub(super) struct Collector {
    config: OtlpConfig,
    channel: Option<Channel>,
}

impl Collector {
    /// Nothing is connected yet. Must run within a runtime.
    pub(super) fn new(config: OtlpConfig) -> Result<Self> {
        let channel = match &config.protocol {
            Protocol::Grpc(address) => {
                let endpoint = Endpoint::from_shared(address.clone())
                    .map_err(|error| Error::invalid(format!("{address}: {error}")))?;
                if endpoint.uri().scheme_str() != Some("http") {
                    return Err(Error::unimplemented(format!(
                        "traces over gRPC to {address}: only http:// is offered; https:// works with \
                         OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
                    )));
                }
                let endpoint = endpoint
                    .timeout(config.timeout)
                    .connect_timeout(config.timeout);
                Some(endpoint.connect_lazy())
            }
            Protocol::Http(_) => None,
        };
        Ok(Collector { config, channel })
    }

    /// Sends spans, several times if need be.
    pub(super) async fn send(&self, request: &ExportTraceServiceRequest) -> Result<()> {
        let mut wait = BACKOFF;
        let mut attempt = 1;
        loop {
            let sent = match &self.config.protocol {
                Protocol::Grpc(_) => self.send_grpc(request.clone()).await,
                Protocol::Http(url) => self.send_http(url, request).await,
            };
            match sent {
                Err(_) if attempt < ATTEMPTS => tokio::time::sleep(wait).await,
                sent => return sent,
            }
            wait *= 2;
            attempt += 1;
        }
    }

    async fn send_grpc(&self, request: ExportTraceServiceRequest) -> Result<()> {
        let Some(channel) = self.channel.clone() else {
            return Err(Error::internal("no channel"));
        };
        let mut request = tonic::Request::new(request);
        for (key, value) in &self.config.headers {
            let key = AsciiMetadataKey::from_bytes(key.to_lowercase().as_bytes());
            let value = AsciiMetadataValue::try_from(value.as_str());
            if let (Ok(key), Ok(value)) = (key, value) {
                request.metadata_mut().insert(key, value);
            }
        }
        let sent = TraceServiceClient::new(channel).export(request).await;
        sent.map(drop).map_err(|status| {
            let code = diag::Code::from_number(status.code() as i32);
            Error::new(code, status.message().to_owned())
        })
    }

    async fn send_http(&self, url: &str, request: &ExportTraceServiceRequest) -> Result<()> {
        let mut post = registry::web_client()
            .map_err(Error::from)?
            .post(url)
            .timeout(self.config.timeout)
            .header("content-type", "application/x-protobuf")
            .body(request.encode_to_vec());
        for (key, value) in &self.config.headers {
            post = post.header(key, value);
        }
        let unavailable = |text: String| Error::new(diag::Code::Unavailable, text);
        let answer = post.send().await;
        let answer = answer.map_err(|error| unavailable(registry::innermost(&error)))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(unavailable(format!("{url} answered {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<OtlpConfig>> {
        OtlpConfig::from_env(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_as_opentelemetry_says() {
        let to = |variables: &[_]| read(variables).unwrap().unwrap().protocol;
        assert_eq!(read(&[]).unwrap(), None);
        let shared = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:2/x");
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(to(&[shared]), Protocol::Grpc("http://c:1/".into()));
        assert_eq!(to(&[shared, own]), Protocol::Grpc("http://t:2/x".into()));
        assert_eq!(
            to(&[shared, http]),
            Protocol::Http("http://c:1/v1/traces".into())
        );
        assert_eq!(
            to(&[shared, own, http]),
            Protocol::Http("http://t:2/x".into())
        );
        let asked = ("OTEL_TRACES_EXPORTER", "otlp");
        assert_eq!(to(&[asked]), Protocol::Grpc("http://localhost:4317".into()));
        assert_eq!(
            read(&[shared, ("OTEL_TRACES_EXPORTER", "none")]).unwrap(),
            None
        );
        assert_eq!(
            read(&[shared, ("OTEL_SDK_DISABLED", "true")]).unwrap(),
            None
        );
        assert!(read(&[("OTEL_TRACES_EXPORTER", "jaeger")]).is_err());
        assert!(read(&[shared, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).is_err());
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d=e=f");
        let config = read(&[shared, headers, ("OTEL_EXPORTER_OTLP_TIMEOUT", "50")]);
        let config = config.unwrap().unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(config.headers, [pair("a", "b c"), pair("d", "e=f")]);
        assert_eq!(config.timeout, Duration::from_millis(50));
    }
}
