//! `dial-stdio`: the server's socket on our standard streams. Drivers run it in the server's
//! container for every connection, so it starts no runtime; each direction has a thread and never
//! waits for the other.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes moved at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Copies until the server closes.
pub(super) fn run(address: &str, patience: Duration) -> Result<(), diag::Error> {
    let path = match address.split_once("://") {
        Some(("unix", path)) => path,
        Some((scheme, _)) => {
            return Err(diag::Error::invalid(format!(
                "invalid address {address} (expected unix://, got {scheme}://)"
            )));
        }
        None => {
            return Err(diag::Error::invalid(format!("invalid address {address}")));
        }
    };
    let server = dial(path, patience)
        .map_err(|error| diag::Error::from(error).context(format!("dial unix {path}")))?;
    let mut to_server = server.try_clone()?;
    let mut from_server = server;
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // An error here shows in the other direction, which decides.
            let _ = copy(&mut std::io::stdin().lock(), &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        })?;
    copy(&mut from_server, &mut std::io::stdout().lock())?;
    Ok(())
}

/// A server that is just starting refuses connections for a moment.
fn dial(path: &str, patience: Duration) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        match UnixStream::connect(path) {
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&chunk[..read])?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_socket_files_are_dialled() {
        let error = run("tcp://x", Duration::ZERO).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid address tcp://x (expected unix://, got tcp://)"
        );
        assert!(run("/x", Duration::ZERO).is_err());
        assert!(run("unix:///nonexistent/x", Duration::ZERO).is_err());
    }
}
