//! Lines with a length before them, in which git speaks, and the three streams in one of a pack.
//!
//! Format: <https://git-scm.com/docs/protocol-common#_pkt_line_format>.

use std::time::Duration;

use diag::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Where packets come from.
pub(super) type Stream<'a> = Box<dyn AsyncRead + Send + Unpin + 'a>;

/// The end of a list, on the wire.
pub(super) const FLUSH: &[u8] = b"0000";

/// Between command and arguments, on the wire.
pub(super) const DELIMITER: &[u8] = b"0001";

/// How much a packet can hold.
const PACKET_BYTES_MAX: usize = 65520;

/// How long a remote may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// One packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Data(Vec<u8>),
    Flush,
    Delimiter,
    ResponseEnd,
}

impl Packet {
    /// Reads the next one.
    ///
    /// # Errors
    /// Streams that end, and what is no packet.
    pub(super) async fn read(stream: &mut Stream<'_>) -> Result<Packet> {
        let mut length = [0; 4];
        fill(stream, &mut length).await?;
        let digits = std::str::from_utf8(&length).ok();
        let length = digits.and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match length {
            Some(0) => Ok(Packet::Flush),
            Some(1) => Ok(Packet::Delimiter),
            Some(2) => Ok(Packet::ResponseEnd),
            Some(length @ 4..=PACKET_BYTES_MAX) => {
                let mut data = vec![0; length - 4];
                fill(stream, &mut data).await?;
                if let Some(said) = data.strip_prefix(b"ERR ") {
                    let said = String::from_utf8_lossy(said);
                    let text = format!("remote error: {}", said.trim_end());
                    return Err(Error::new(Code::Unknown, text));
                }
                Ok(Packet::Data(data))
            }
            _ => Err(Error::new(
                Code::Unavailable,
                "the remote does not speak git's protocol",
            )),
        }
    }

    /// Reads a line of text; `None` at the end of a list.
    pub(super) async fn read_line(stream: &mut Stream<'_>) -> Result<Option<String>> {
        match Packet::read(stream).await? {
            Packet::Data(data) => {
                let text = String::from_utf8_lossy(&data);
                Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
            }
            _ => Ok(None),
        }
    }
}

/// Appends a line as a packet.
pub(super) fn push_line(out: &mut Vec<u8>, line: &str) {
    out.extend(format!("{:04x}{line}", line.len() + 4).into_bytes());
}

async fn fill(stream: &mut Stream<'_>, buffer: &mut [u8]) -> Result<()> {
    match tokio::time::timeout(SILENCE_MAX, stream.read_exact(buffer)).await {
        Ok(read) => read.map(drop).map_err(broken),
        Err(_) => Err(Error::new(Code::Unavailable, "the remote fell silent")),
    }
}

fn broken(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(Code::Unavailable, "the remote end hung up unexpectedly")
        }
        _ => Error::new(Code::Unavailable, format!("reading from remote: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_are_read_as_written() {
        let mut wire = Vec::new();
        push_line(&mut wire, "command=ls-refs\n");
        wire.extend(DELIMITER);
        wire.extend(FLUSH);
        assert!(wire.starts_with(b"0014command"));
        let mut stream: Stream<'_> = Box::new(wire.as_slice());
        let line = Packet::read_line(&mut stream).await.unwrap();
        assert_eq!(line.as_deref(), Some("command=ls-refs"));
        assert_eq!(Packet::read(&mut stream).await.unwrap(), Packet::Delimiter);
        assert_eq!(Packet::read(&mut stream).await.unwrap(), Packet::Flush);
        let error = Packet::read(&mut stream).await.unwrap_err();
        assert!(error.to_string().contains("hung up"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_packet_is_an_error() {
        for wire in [&b"<htm"[..], b"0003", b"ffff", b"000bERR no\n"] {
            let mut stream: Stream<'_> = Box::new(wire);
            assert!(Packet::read(&mut stream).await.is_err(), "{wire:?}");
        }
    }
}
