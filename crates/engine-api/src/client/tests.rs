use std::convert::Infallible;

use hyper::service::service_fn;
use tokio::net::UnixListener;

use super::*;

/// An Engine of API 1.41 that knows one container.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/_ping" => (200, "OK"),
        "/v1.41/containers/a/json" => (200, r#"{"Id":"1","State":{"Running":true}}"#),
        _ => (404, r#"{"message":"No such container: b"}"#),
    };
    let response = Response::builder()
        .status(status)
        .header("Api-Version", "1.41")
        .body(Full::new(Bytes::from_static(body.as_bytes())));
    Ok(response.unwrap())
}

fn serve(listener: UnixListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
}

fn engine(socket: &Path) -> Engine {
    let host = format!("unix://{}", socket.display());
    Engine::new(EngineEndpoint::parse(&host, None).unwrap())
}

#[tokio::test]
async fn the_older_version_is_spoken_and_errors_are_the_engines_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("d.sock");
    serve(UnixListener::bind(&socket).unwrap());
    let engine = engine(&socket);
    let version = engine.api_version().await.unwrap();
    assert_eq!(version.to_string(), "1.41");
    assert!(engine.container("a").await.unwrap().state.running);
    let error = engine.container("b").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "Error response from daemon: No such container: b"
    );
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let error = engine(Path::new("/nonexistent/d.sock"))
        .ping()
        .await
        .unwrap_err();
    assert!(error.is_unreachable());
    assert_eq!(
        error.to_string(),
        "Cannot connect to the Docker daemon at unix:///nonexistent/d.sock. Is the docker \
             daemon running?"
    );
}
