//! The blob of what a build said: its status messages one after the other, each with its length
//! before it as four bytes, little end first. The form is stock's (`application/vnd.buildkit.status.v0`),
//! whose clients export it as it is.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::sync::Arc;

use content::Lease;
use diag::{Code, Error, Result};
use progress::SolveStatus;
use prost::Message;
use proto::control::{Descriptor, StatusResponse};

/// The media type stock gives the blob.
const MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// The longest message that is believed when it is read; what we write is far below.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Writes the blob, one message at a time. Blocks on the disk.
pub(super) fn write(lease: &Lease, events: &[Arc<SolveStatus>]) -> Result<Descriptor> {
    let mut writer = BufWriter::new(lease.writer()?);
    for message in events.iter().flat_map(|event| event.to_proto()) {
        let bytes = message.encode_to_vec();
        let length = u32::try_from(bytes.len())
            .map_err(|_| Error::internal("a status message is longer than 4 GiB"))?;
        writer.write_all(&length.to_le_bytes())?;
        writer.write_all(&bytes)?;
    }
    let writer = writer
        .into_inner()
        .map_err(|error| Error::from(error.into_error()))?;
    let (digest, size) = writer.finish(None, None)?;
    Ok(Descriptor {
        media_type: MEDIA_TYPE.to_owned(),
        digest: digest.to_string(),
        size: size as i64,
        annotations: Default::default(),
    })
}

/// Reads the blob, one message at a time; reading blocks on the disk. Ends after the first error.
pub struct StatusLog(Option<BufReader<File>>);

impl StatusLog {
    /// The messages in this file.
    pub fn of(file: File) -> Self {
        StatusLog(Some(BufReader::new(file)))
    }

    /// A build that said nothing.
    pub fn empty() -> Self {
        StatusLog(None)
    }

    fn read_message(&mut self) -> Result<Option<StatusResponse>> {
        let Some(file) = &mut self.0 else {
            return Ok(None);
        };
        let mut length = [0; 4];
        let damaged = |what: String| Error::new(Code::DataLoss, format!("build history: {what}"));
        match file.read(&mut length[..1])? {
            0 => return Ok(None),
            _ => file.read_exact(&mut length[1..]),
        }
        .map_err(|error| damaged(error.to_string()))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(damaged(format!("a status message of {length} bytes")));
        }
        let mut bytes = Vec::new();
        let read = file.take(length as u64).read_to_end(&mut bytes)?;
        if read < length {
            return Err(damaged(ErrorKind::UnexpectedEof.to_string()));
        }
        StatusResponse::decode(bytes.as_slice())
            .map(Some)
            .map_err(|error| damaged(error.to_string()))
    }
}

impl Iterator for StatusLog {
    type Item = Result<StatusResponse>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = self.read_message().transpose();
        if !matches!(message, Some(Ok(_))) {
            self.0 = None;
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn log_of(bytes: &[u8]) -> StatusLog {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        StatusLog::of(file)
    }

    #[test]
    fn a_damaged_log_ends_with_an_error() {
        assert_eq!(log_of(b"").count(), 0);
        for bytes in [
            &b"\x01"[..],
            &b"\x05\0\0\0abc"[..],
            &b"\xff\xff\xff\xff"[..],
            &b"\x01\0\0\0\xff"[..],
        ] {
            let all: Vec<_> = log_of(bytes).collect();
            assert_eq!(all.len(), 1, "{bytes:?}");
            assert_eq!(all[0].as_ref().unwrap_err().code(), Code::DataLoss);
        }
    }
}
