//! The client's ssh agent: which keys it has, and its signatures.
//!
//! Format: draft-ietf-sshm-ssh-agent. Clients pass on these two questions and no extensions, so keys that an
//! agent keeps for certain hosts are not seen.

use std::path::Path;
use std::time::Duration;

use diag::{Code, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The largest message, as OpenSSH has it.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// How long an agent may take for an answer. A person may have to agree to a signature.
const ANSWER_MAX: Duration = Duration::from_secs(120);

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Signatures of RSA keys with SHA-256.
pub(super) const RSA_SHA2_256: u32 = 2;

/// Signatures of RSA keys with SHA-512.
pub(super) const RSA_SHA2_512: u32 = 4;

/// A connection to an agent.
pub(super) struct Agent {
    stream: UnixStream,
}

impl Agent {
    /// Connects to a socket.
    pub(super) async fn open(socket: &Path) -> Result<Agent> {
        let stream = UnixStream::connect(socket);
        let stream = stream.await.map_err(|error| failed(&error.to_string()))?;
        Ok(Agent { stream })
    }

    /// The keys and certificates that it has, as they are on the wire.
    pub(super) async fn identities(&mut self) -> Result<Vec<Vec<u8>>> {
        let answer = self.ask(&[REQUEST_IDENTITIES]).await?;
        let mut rest = match answer.split_first() {
            Some((&IDENTITIES_ANSWER, rest)) => rest,
            _ => return Err(failed("it tells no keys")),
        };
        let count = take_number(&mut rest).ok_or_else(|| failed("its answer is too short"))?;
        let mut found = Vec::new();
        for _ in 0..count {
            let blob = take_string(&mut rest);
            let comment = take_string(&mut rest);
            let (Some(blob), Some(_)) = (blob, comment) else {
                return Err(failed("its answer is too short"));
            };
            found.push(blob.to_owned());
        }
        Ok(found)
    }

    /// A signature by a key, as it is on the wire.
    ///
    /// # Errors
    /// Agents that do not want to sign.
    pub(super) async fn sign(&mut self, blob: &[u8], data: &[u8], flags: u32) -> Result<Vec<u8>> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, blob);
        put_string(&mut request, data);
        request.extend(flags.to_be_bytes());
        let answer = self.ask(&request).await?;
        match answer.split_first() {
            Some((&SIGN_RESPONSE, mut rest)) => {
                let signature = take_string(&mut rest);
                let signature = signature.ok_or_else(|| failed("its answer is too short"))?;
                Ok(signature.to_owned())
            }
            _ => Err(failed("it refused to sign")),
        }
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        match tokio::time::timeout(ANSWER_MAX, self.exchange(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(&error.to_string())),
            Err(_) => Err(failed("it does not answer")),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut message = Vec::with_capacity(request.len() + 4);
        put_string(&mut message, request);
        self.stream.write_all(&message).await?;
        let length = usize::try_from(self.stream.read_u32().await?);
        let length = length.ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
        let length = length.ok_or_else(|| std::io::Error::other("its answer is too long"))?;
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// Appends bytes with their length before them.
pub(super) fn put_string(out: &mut Vec<u8>, data: &[u8]) {
    // Longer ones than the length can say are refused by what they are sent to.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.extend(length.to_be_bytes());
    out.extend(data);
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (data, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(data)
}

fn failed(cause: &str) -> Error {
    Error::new(
        Code::Unavailable,
        format!("the client's ssh agent: {cause}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that gives these answers and goes.
    fn agent(answers: Vec<Vec<u8>>) -> Agent {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let length = theirs.read_u32().await.unwrap();
                let mut request = vec![0; length as usize];
                theirs.read_exact(&mut request).await.unwrap();
                theirs.write_all(&answer).await.unwrap();
            }
        });
        Agent { stream: ours }
    }

    fn message(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, content);
        out
    }

    #[tokio::test]
    async fn keys_are_listed() {
        let mut content = vec![IDENTITIES_ANSWER, 0, 0, 0, 1];
        put_string(&mut content, b"key");
        put_string(&mut content, b"comment");
        let mut known = agent(vec![message(&content), message(&[5])]);
        assert_eq!(known.identities().await.unwrap(), [b"key"]);
        let error = known.sign(b"key", b"data", 0).await.unwrap_err();
        assert!(error.to_string().contains("refused to sign"), "{error}");
        let error = known.identities().await.unwrap_err();
        assert!(error.to_string().contains("ssh agent"), "{error}");
    }

    #[tokio::test]
    async fn answers_that_are_none_are_errors() {
        for answer in [
            message(&[]),
            message(&[IDENTITIES_ANSWER, 0, 0]),
            message(&[IDENTITIES_ANSWER, 0, 0, 0, 9, 0, 0, 0, 9, 1]),
            vec![0xff; 4],
        ] {
            let mut known = agent(vec![answer.clone()]);
            assert!(known.identities().await.is_err(), "{answer:?}");
        }
    }
}
