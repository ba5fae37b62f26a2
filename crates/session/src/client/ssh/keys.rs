//! An agent of the client's own for private keys in files.
//!
//! Keys are read once, when the session is made; they stay in this process. What asks over the wire
//! (draft-ietf-sshm-ssh-agent) learns the public halves and has things signed; every other request is
//! answered with a failure, so the keys are the same for as long as the session lasts. Files that need
//! a passphrase are not read: nobody is there to be asked.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use russh::keys::signature::Signer;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::Signature;
use russh::keys::{HashAlg, PrivateKey, decode_secret_key};

use super::{AGENT_FAILURE, REQUEST_IDENTITIES, SIGN_REQUEST};
use crate::error::{SessionError, io_text};

/// As much of a file as is read.
const FILE_BYTES_MAX: u64 = 100 << 10;

/// What files in OpenSSH's own format begin with, in base64.
const OPENSSH_MAGIC: &str = "b3BlbnNzaC1rZXktdjEA";

const IDENTITIES_ANSWER: u8 = 12;
const SIGN_RESPONSE: u8 = 14;

/// Flag of a request: an RSA key signs with SHA-256.
const RSA_SHA2_256: u32 = 2;
/// Flag of a request: an RSA key signs with SHA-512.
const RSA_SHA2_512: u32 = 4;

/// Why a file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error("{op} {}: {}", .path.display(), io_text(.source))]
    File {
        /// What was tried: `open` or `read`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It has nothing between `-----BEGIN …-----` and `-----END …-----`.
    #[error("ssh: no key found")]
    NotFound,
    /// Its key is encrypted.
    #[error("ssh: this private key is passphrase protected")]
    Passphrase,
    /// It has something else than a private key of a known format.
    #[error("ssh: unsupported key type {0:?}")]
    Format(String),
    /// It is not what it says to be.
    #[error("ssh: invalid openssh private key format")]
    Magic,
    /// Its key is none of RSA, ECDSA and Ed25519.
    #[error("ssh: unhandled key type")]
    Kind,
    /// Its key cannot be read or does not sign.
    #[error("ssh: {0}")]
    Broken(String),
}

/// Private keys that sign for whoever may ask.
#[derive(Default)]
pub(super) struct Keyring {
    /// With their public halves as they are on the wire, which are all different.
    keys: Vec<(Vec<u8>, PrivateKey)>,
}

impl Keyring {
    /// Adds the key of a file; one that is there already takes the new one's place.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), SessionError> {
        let failed = |step, reason| SessionError::Key {
            step,
            path: path.to_owned(),
            reason,
        };
        let of_file = |op, source| {
            let path = path.to_owned();
            failed(op, KeyError::File { op, path, source })
        };
        let file = File::open(path).map_err(|error| of_file("open", error))?;
        let mut content = Vec::new();
        let read = file.take(FILE_BYTES_MAX).read_to_end(&mut content);
        read.map_err(|error| of_file("read", error))?;
        let key = parse(&content).map_err(|reason| failed("parse", reason))?;
        let blob = key.public_key().to_bytes().map_err(broken);
        let blob = blob.map_err(|reason| failed("parse", reason))?;
        match self.keys.iter_mut().find(|(known, _)| *known == blob) {
            Some(known) => known.1 = key,
            None => self.keys.push((blob, key)),
        }
        Ok(())
    }

    /// Whether it has no key.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The answer to a request, each without its length.
    pub(super) fn answer(&self, request: &[u8]) -> Vec<u8> {
        let answer = match request.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => Some(self.identities()),
            Some((&SIGN_REQUEST, content)) => self.sign(content),
            _ => None,
        };
        answer.unwrap_or_else(|| vec![AGENT_FAILURE])
    }

    fn identities(&self) -> Vec<u8> {
        let mut answer = vec![IDENTITIES_ANSWER];
        answer.extend((self.keys.len() as u32).to_be_bytes());
        for (blob, _) in &self.keys {
            put_string(&mut answer, blob);
            // What a file calls its key stays here.
            put_string(&mut answer, b"");
        }
        answer
    }

    fn sign(&self, mut content: &[u8]) -> Option<Vec<u8>> {
        let wanted = take_string(&mut content)?;
        let data = take_string(&mut content)?;
        let flags = u32::from_be_bytes(content.try_into().ok()?);
        let (_, key) = self.keys.iter().find(|(blob, _)| blob == wanted)?;
        let signature = sign(key, data, flags)?;
        let mut encoded = Vec::new();
        signature.encode(&mut encoded).ok()?;
        let mut answer = vec![SIGN_RESPONSE];
        put_string(&mut answer, &encoded);
        Some(answer)
    }
}

/// Says how many keys there are and nothing of them.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

/// The private key of a file's content.
fn parse(content: &[u8]) -> Result<PrivateKey, KeyError> {
    let text = String::from_utf8_lossy(content);
    let block = find_block(&text).ok_or(KeyError::NotFound)?;
    if block.encrypted {
        return Err(KeyError::Passphrase);
    }
    match block.label {
        "OPENSSH PRIVATE KEY" if !block.body.starts_with(OPENSSH_MAGIC) => {
            return Err(KeyError::Magic);
        }
        "OPENSSH PRIVATE KEY" | "RSA PRIVATE KEY" | "PRIVATE KEY" | "EC PRIVATE KEY" => {}
        label => return Err(KeyError::Format(label.to_owned())),
    }
    let (label, body) = (block.label, &block.body);
    let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    let key = decode_secret_key(&pem, None).map_err(|error| match error {
        russh::keys::Error::KeyIsEncrypted => KeyError::Passphrase,
        error => broken(error),
    })?;
    let data = key.key_data();
    if !(data.is_rsa() || data.is_ecdsa() || data.is_ed25519()) {
        return Err(KeyError::Kind);
    }
    // Numbers that do not belong together are found when they are used.
    let flags = if data.is_rsa() { RSA_SHA2_512 } else { 0 };
    match sign(&key, b"", flags) {
        Some(_) => Ok(key),
        None => Err(broken("the key does not sign")),
    }
}

/// The first thing in PEM of a text.
struct Block<'a> {
    label: &'a str,
    encrypted: bool,
    /// In base64, without ends of lines.
    body: String,
}

fn find_block(text: &str) -> Option<Block<'_>> {
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let label = line.strip_prefix("-----BEGIN ");
        let Some(label) = label.and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        if let Some(block) = read_block(label, lines.clone()) {
            return Some(block);
        }
    }
    None
}

fn read_block<'a>(label: &'a str, lines: impl Iterator<Item = &'a str>) -> Option<Block<'a>> {
    let (mut encrypted, mut body) = (false, String::new());
    for line in lines {
        if let Some(end) = line.strip_prefix("-----END ") {
            let whole = end.strip_suffix("-----") == Some(label);
            return whole.then_some(Block {
                label,
                encrypted,
                body,
            });
        }
        if let Some((name, value)) = line.split_once(':') {
            encrypted |= name == "Proc-Type" && value.contains("ENCRYPTED");
            continue;
        }
        let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
        if !line.chars().all(is_base64) {
            return None;
        }
        body.push_str(line);
    }
    None
}

/// Flags say how RSA keys sign; there are none for other keys.
fn sign(key: &PrivateKey, data: &[u8], flags: u32) -> Option<Signature> {
    let pair = key.key_data();
    match (pair.rsa(), flags) {
        (Some(rsa), 0) => (rsa, None).try_sign(data).ok(),
        (Some(rsa), RSA_SHA2_256) => (rsa, Some(HashAlg::Sha256)).try_sign(data).ok(),
        (Some(rsa), RSA_SHA2_512) => (rsa, Some(HashAlg::Sha512)).try_sign(data).ok(),
        (None, 0) => pair.try_sign(data).ok(),
        _ => None,
    }
}

fn broken(error: impl fmt::Display) -> KeyError {
    KeyError::Broken(error.to_string())
}

fn put_string(out: &mut Vec<u8>, data: &[u8]) {
    // A file is read up to far less than the length can say, and so are requests.
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (data, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(data)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use russh::keys::encode_pkcs8_pem;
    use russh::keys::signature::Verifier;
    use russh::keys::ssh_encoding::Decode;

    use super::*;

    /// Has `ssh-keygen` make a key, or with `-p` write it anew.
    fn make_key(directory: &Path, name: &str, args: &[&str]) -> PathBuf {
        let path = directory.join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-C", "someone", "-f"])
            .arg(&path)
            .args(args)
            .stdin(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "ssh-keygen {args:?}");
        path
    }

    /// What the file beside a private key says is its public half, as it is on the wire.
    fn public(path: &Path) -> Vec<u8> {
        let text = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        let key = russh::keys::PublicKey::from_openssh(&text).unwrap();
        key.to_bytes().unwrap()
    }

    fn request(blob: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, blob);
        put_string(&mut request, data);
        request.extend(flags.to_be_bytes());
        request
    }

    /// The algorithm of an answer's signature, which is the key's.
    fn verified(answer: &[u8], blob: &[u8], data: &[u8]) -> String {
        let (&number, mut rest) = answer.split_first().unwrap();
        assert_eq!(number, SIGN_RESPONSE);
        let mut encoded = take_string(&mut rest).unwrap();
        assert!(rest.is_empty());
        let signature = Signature::decode(&mut encoded).unwrap();
        let key = russh::keys::key::parse_public_key(blob).unwrap();
        key.key_data().verify(data, &signature).unwrap();
        signature.algorithm().to_string()
    }

    #[test]
    fn keys_of_every_kind_and_format_sign() {
        let dir = tempfile::tempdir().unwrap();
        let kinds: [(&str, &[&str], &[(u32, &str)]); 5] = [
            ("ed25519", &[], &[(0, "ssh-ed25519")]),
            ("ecdsa", &["-b", "256"], &[(0, "ecdsa-sha2-nistp256")]),
            ("ecdsa", &["-b", "384"], &[(0, "ecdsa-sha2-nistp384")]),
            ("ecdsa", &["-b", "521"], &[(0, "ecdsa-sha2-nistp521")]),
            (
                "rsa",
                &["-b", "2048"],
                &[(0, "ssh-rsa"), (2, "rsa-sha2-256"), (4, "rsa-sha2-512")],
            ),
        ];
        for (kind, size, algorithms) in kinds {
            let name = format!("{kind}{}", size.last().unwrap_or(&""));
            let args = [&["-t", kind, "-N", ""], size].concat();
            let path = make_key(dir.path(), &name, &args);
            // Ed25519 is always in OpenSSH's own format, whatever is asked for.
            for format in ["RFC4716", "PEM", "PKCS8"] {
                make_key(dir.path(), &name, &["-p", "-N", "", "-m", format]);
                let name = format!("{name} as {format}");
                let mut keys = Keyring::default();
                keys.add(&path).unwrap();
                let blob = public(&path);
                let mut expected = vec![IDENTITIES_ANSWER, 0, 0, 0, 1];
                put_string(&mut expected, &blob);
                put_string(&mut expected, b"");
                assert_eq!(keys.answer(&[REQUEST_IDENTITIES]), expected, "{name}");
                for (flags, algorithm) in algorithms {
                    let answer = keys.answer(&request(&blob, b"data", *flags));
                    assert_eq!(verified(&answer, &blob, b"data"), *algorithm, "{name}");
                }
            }
        }
    }

    #[test]
    fn an_ed25519_key_is_read_as_pkcs8_with_text_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_key(dir.path(), "key", &["-t", "ed25519", "-N", ""]);
        let key = parse(&std::fs::read(&path).unwrap()).unwrap();
        let mut pem = Vec::new();
        encode_pkcs8_pem(&key, &mut pem).unwrap();
        let pem = String::from_utf8(pem).unwrap().replace('\n', " \r\n");
        let text = format!("subject: mine\n-----BEGIN X-----\nno end\n{pem}behind");
        let again = parse(text.as_bytes()).unwrap();
        assert_eq!(again.public_key().key_data(), key.public_key().key_data());
    }

    #[test]
    fn nothing_but_listing_and_signing_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_key(dir.path(), "key", &["-t", "ed25519", "-N", ""]);
        let other = make_key(dir.path(), "other", &["-t", "ecdsa", "-N", ""]);
        let mut keys = Keyring::default();
        for path in [&path, &other, &path] {
            keys.add(path).unwrap();
        }
        let listed = keys.answer(&[REQUEST_IDENTITIES]);
        assert_eq!(listed[..5], [IDENTITIES_ANSWER, 0, 0, 0, 2]);
        let blob = public(&path);
        let sign = request(&blob, b"data", 0);
        for refused in [
            &[][..],
            // Add, remove, remove all, lock, unlock, and an extension.
            &[17],
            &[18],
            &[19],
            &[22],
            &[23],
            &[27],
            &sign[..sign.len() - 1],
            &[&sign[..], &[0]].concat(),
            &request(&blob, b"data", RSA_SHA2_512),
            &request(b"unknown", b"data", 0),
            &[SIGN_REQUEST, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(keys.answer(refused), [AGENT_FAILURE], "{refused:?}");
        }
        assert_eq!(keys.answer(&[REQUEST_IDENTITIES]), listed);
        assert_eq!(format!("{keys:?}"), "Keyring(2 keys)");
    }

    #[test]
    fn files_without_a_usable_key_are_errors_in_the_words_of_stock() {
        let dir = tempfile::tempdir().unwrap();
        let locked = ["-t", "ecdsa", "-N", "secret", "-m"];
        let make =
            |name: &str, format| make_key(dir.path(), name, &[&locked[..], &[format]].concat());
        let put = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let passphrase = "ssh: this private key is passphrase protected";
        let key = make_key(dir.path(), "key", &["-t", "ed25519", "-N", ""]);
        let late = " \n".repeat(60 << 10) + &std::fs::read_to_string(&key).unwrap();
        for (path, expected) in [
            (make("a", "RFC4716"), passphrase),
            (make("b", "PEM"), passphrase),
            (
                make("c", "PKCS8"),
                "ssh: unsupported key type \"ENCRYPTED PRIVATE KEY\"",
            ),
            (key.with_extension("pub"), "ssh: no key found"),
            (put("empty", ""), "ssh: no key found"),
            (put("late", &late), "ssh: no key found"),
            (
                put("half", pem("PRIVATE KEY").trim_end_matches("Y-----\n")),
                "ssh: no key found",
            ),
            (
                put("cert", &pem("CERTIFICATE")),
                "ssh: unsupported key type \"CERTIFICATE\"",
            ),
            (
                put("magic", &pem("OPENSSH PRIVATE KEY")),
                "ssh: invalid openssh private key format",
            ),
        ] {
            let error = Keyring::default().add(&path).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("failed to parse {}: {expected}", path.display())
            );
        }
        for label in ["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY"] {
            assert!(matches!(
                parse(pem(label).as_bytes()),
                Err(KeyError::Broken(_))
            ));
        }
        let shown = dir.path().display();
        let error = Keyring::default().add(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("failed to read {shown}: read {shown}: is a directory")
        );
    }
}
