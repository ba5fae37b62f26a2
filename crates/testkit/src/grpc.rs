//! The build server inside a Docker Engine, at a socket of its own.
//!
//! The Engine offers BuildKit's API on a connection that is taken over from HTTP (`POST /grpc`).
//! Clients that only know sockets reach it through the one made here.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::Engine;

/// Opens `socket` for clients of the Engine's own build server; it is served as long as the test
/// runs.
pub fn serve_build_server(engine: &Engine, socket: &Path) {
    let listener = UnixListener::bind(socket).expect("make a socket");
    let host = engine.host();
    let path = host.strip_prefix("unix://").expect("an Engine at a socket");
    let target = PathBuf::from(path);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let target = target.clone();
            std::thread::spawn(move || {
                if let Some(server) = take_over(&target) {
                    join(&client, &server);
                }
            });
        }
    });
}

fn take_over(target: &Path) -> Option<UnixStream> {
    let mut server = UnixStream::connect(target).ok()?;
    let request = "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\n\
                   Upgrade: h2c\r\nContent-Length: 0\r\n\r\n";
    server.write_all(request.as_bytes()).ok()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        server.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    head.starts_with(b"HTTP/1.1 101").then_some(server)
}

/// Copies both ways until both ends are done.
fn join(client: &UnixStream, server: &UnixStream) {
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(client, server), (server, client)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
}
