//! What a process writes, on its way to whoever watches: read from pipes, clipped by size and speed
//! as stock clips it, and passed on in pieces.

use std::os::fd::OwnedFd;
use std::time::Instant;

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How much a step may write before the rest is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all; `None` for any number.
    pub size_bytes_max: Option<u64>,
    /// Bytes a second, where the size is limited; `None` for any number.
    pub bytes_per_second_max: Option<u64>,
}

impl Default for LogLimits {
    fn default() -> Self {
        LogLimits {
            size_bytes_max: Some(2 << 20),
            bytes_per_second_max: Some(200 << 10),
        }
    }
}

impl LogLimits {
    /// The limits of `BUILDKIT_STEP_LOG_MAX_SIZE` and `BUILDKIT_STEP_LOG_MAX_SPEED`, -1 for none.
    pub fn from_env() -> Self {
        let read = |name: &str, default: Option<u64>| match std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
        {
            Some(number) => u64::try_from(number).ok(),
            None => default,
        };
        let default = LogLimits::default();
        LogLimits {
            size_bytes_max: read("BUILDKIT_STEP_LOG_MAX_SIZE", default.size_bytes_max),
            bytes_per_second_max: read("BUILDKIT_STEP_LOG_MAX_SPEED", default.bytes_per_second_max),
        }
    }
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// 1 for standard output, 2 for standard error.
    pub stream: i64,
    /// When it was read.
    pub timestamp: Timestamp,
    /// The bytes.
    pub data: Vec<u8>,
}

/// How many bytes of what was clipped are shown after all when the step fails.
const TAIL_BYTES_MAX: usize = 256 << 10;

/// Clips one stream.
#[derive(Debug)]
pub struct Clipper {
    limits: LogLimits,
    started: Instant,
    seen: u64,
    clipping: bool,
    /// The last output since clipping began.
    tail: Option<std::collections::VecDeque<u8>>,
}

impl Clipper {
    /// Nothing was written yet.
    pub fn new(limits: LogLimits) -> Self {
        Clipper {
            limits,
            started: Instant::now(),
            seen: 0,
            clipping: false,
            tail: None,
        }
    }

    /// What is passed on of a piece.
    pub fn pass(&mut self, data: &[u8]) -> Vec<u8> {
        let (allowed, reason) = self.allowance(data.len() as u64);
        let allowed = allowed as usize;
        if self.tail.is_none() && allowed < data.len() {
            self.tail = Some(std::collections::VecDeque::new());
        }
        if let Some(tail) = &mut self.tail {
            tail.extend(data);
            let excess = tail.len().saturating_sub(TAIL_BYTES_MAX);
            tail.drain(..excess);
        }
        let mut out = data[..allowed].to_vec();
        if allowed == data.len() {
            self.clipping = false;
        } else if !self.clipping {
            self.clipping = true;
            out.extend(format!("\n[output clipped, log limit {reason} reached]\n").bytes());
        }
        out
    }

    /// The last output, if any was clipped: shown when the step fails.
    pub fn into_tail(self) -> Vec<u8> {
        self.tail.map(Vec::from).unwrap_or_default()
    }

    /// How many of that many further bytes may pass, and the limit that holds.
    fn allowance(&mut self, len: u64) -> (u64, String) {
        let before = self.seen;
        self.seen += len;
        let by_speed = self.limits.bytes_per_second_max.map(|speed| {
            let seconds = self.started.elapsed().as_secs_f64().ceil().max(1.0) as u64;
            (seconds * speed, format!("{}/s", size_text(speed)))
        });
        let by_size = self
            .limits
            .size_bytes_max
            .map(|size| (size, size_text(size)));
        let limit = match (by_speed, by_size) {
            // Stock leaves the speed alone too where the size does not matter.
            (_, None) => None,
            (Some(speed), Some(size)) if speed.0 <= size.0 => Some(speed),
            (_, size) => size,
        };
        match limit {
            None => (len, String::new()),
            Some((max, text)) => (max.saturating_sub(before).min(len), text),
        }
    }
}

/// `2MiB`, `200KiB`: as stock words its limits.
fn size_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Reads a pipe to its end, passing on pieces; returns what is to be shown if the step fails.
pub async fn forward(
    fd: OwnedFd,
    stream: i64,
    limits: LogLimits,
    mut emit: impl FnMut(LogChunk),
) -> std::io::Result<Vec<u8>> {
    let mut reader = pipe::Receiver::from_owned_fd(fd)?;
    let mut clipper = Clipper::new(limits);
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Ok(clipper.into_tail());
        }
        let data = clipper.pass(&buffer[..read]);
        if !data.is_empty() {
            emit(LogChunk {
                stream,
                timestamp: Timestamp::now(),
                data,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_past_the_limit_is_left_out_and_said_so_once() {
        let limits = LogLimits {
            size_bytes_max: Some(10),
            bytes_per_second_max: None,
        };
        let mut clipper = Clipper::new(limits);
        assert_eq!(clipper.pass(b"12345678"), b"12345678");
        assert_eq!(
            clipper.pass(b"abcdef"),
            b"ab\n[output clipped, log limit 10B reached]\n"
        );
        assert_eq!(clipper.pass(b"more"), b"");
        assert_eq!(clipper.into_tail(), b"abcdefmore");
    }

    #[test]
    fn without_a_limit_of_size_there_is_none_of_speed() {
        let limits = LogLimits {
            size_bytes_max: None,
            bytes_per_second_max: Some(1),
        };
        assert_eq!(Clipper::new(limits).pass(b"12345678"), b"12345678");
        let limits = LogLimits {
            size_bytes_max: Some(1 << 20),
            bytes_per_second_max: Some(1),
        };
        let clipped = Clipper::new(limits).pass(&[b'x'; 1 << 20]);
        let clipped = String::from_utf8(clipped).unwrap();
        assert!(clipped.ends_with("x\n[output clipped, log limit 1B/s reached]\n"));
    }

    #[test]
    fn limits_are_worded_as_stock_words_them() {
        assert_eq!(size_text(2 << 20), "2MiB");
        assert_eq!(size_text(200 << 10), "200KiB");
    }
}
