//! The debug address: metrics over plain HTTP. What stock serves there beside them are profiles and
//! caches of a Go program, which this one has not; asked for, it says so.

use std::convert::Infallible;
use std::sync::Arc;

use diag::{Context, Error, Result};
use futures::StreamExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ops::work::blocking;

use crate::config::GrpcConfig;
use crate::listen::{Listener, listen};
use crate::metrics;
use crate::parts::ServerParts;

/// Where somebody may ask for metrics.
pub struct DebugListener(Listener);

impl DebugListener {
    /// Listens on `host:port`, `tcp://…` or `unix://…`. Must run within a runtime.
    pub fn bind(address: &str) -> Result<Self> {
        let address = match address.contains("://") {
            true => address.to_owned(),
            false => format!("tcp://{address}"),
        };
        if !address.starts_with("tcp://") && !address.starts_with("unix://") {
            return Err(Error::invalid(format!(
                "debug address {address} not supported: tcp and unix are"
            )));
        }
        let only = listen(&address, &GrpcConfig::default(), None)
            .with_context(|| format!("debug address: failed to listen on {address}"))?
            .pop()
            .ok_or_else(|| Error::internal("no listener"))?;
        Ok(DebugListener(only))
    }

    /// Answers until it is dropped.
    pub async fn serve(self, parts: Arc<ServerParts>) {
        tracing::info!("metrics at {}", self.0.address);
        let mut connections = std::pin::pin!(self.0.connections());
        while let Some(connection) = connections.next().await {
            let (Ok(connection), parts) = (connection, parts.clone()) else {
                continue;
            };
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, parts.clone()));
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .serve_connection(TokioIo::new(connection), answer);
                if let Err(error) = served.await {
                    tracing::debug!("debug address: {error}");
                }
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    parts: Arc<ServerParts>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "only GET is answered here\n".to_owned();
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    Ok(match path {
        "/metrics" => match blocking(move || metrics::scrape(&parts)).await {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, text);
                let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/" => plain(StatusCode::OK, "metrics are at /metrics\n".to_owned()),
        path if path.starts_with("/debug/") => {
            let text = format!(
                "{path} is not served: this is no Go program, it has no pprof, expvar or trace pages. \
                 Metrics are at /metrics.\n"
            );
            plain(StatusCode::NOT_FOUND, text)
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "metrics are at /metrics\n".to_owned(),
        ),
    })
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
