//! The headers that announce a session, and how lists of paths travel in headers.

use std::collections::{BTreeMap, BTreeSet};

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

use crate::error::SessionError;
use crate::in_place::SharedDir;

const ID: &str = "x-docker-expose-session-uuid";
const NAME: &str = "x-docker-expose-session-name";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const METHOD: &str = "x-docker-expose-session-grpc-method";
/// Ours: a directory that a server on the same machine may read in place.
const LOCAL_DIR: &str = "x-cooperage-session-local-dir";

/// What a client says of its session when it opens it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionHeaders {
    /// The session's id, which builds name.
    pub id: String,
    /// A name for people; stock clients leave it empty.
    pub name: String,
    /// A key that stays the same for the same context directory, so that the server finds the files
    /// it got before.
    pub shared_key: String,
    /// The gRPC methods that are served, such as `/moby.filesync.v1.FileSync/DiffCopy`.
    pub methods: BTreeSet<String>,
    /// Directories that a server on this machine may read in place, by the names it asks with.
    pub local_dirs: BTreeMap<String, SharedDir>,
}

impl SessionHeaders {
    /// Reads them from gRPC metadata.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Self, SessionError> {
        let get = |name| {
            let values = metadata.get_all(name).iter();
            values.filter_map(|value| value.to_str().ok().map(str::to_owned))
        };
        let first = |name| get(name).next().unwrap_or_default();
        let id = first(ID);
        if id.is_empty() {
            return Err(SessionError::Protocol(format!("session without {ID}")));
        }
        Ok(SessionHeaders {
            id,
            name: first(NAME),
            shared_key: first(SHARED_KEY),
            methods: get(METHOD).collect(),
            local_dirs: get(LOCAL_DIR).filter_map(|text| local_dir(&text)).collect(),
        })
    }

    /// As name and value, one pair each method; for `POST /session` of an Engine, which also wants
    /// `Connection: Upgrade` and `Upgrade: h2c`, and for gRPC metadata.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![(ID, self.id.clone()), (SHARED_KEY, self.shared_key.clone())];
        if !self.name.is_empty() {
            pairs.push((NAME, self.name.clone()));
        }
        pairs.extend(self.methods.iter().map(|method| (METHOD, method.clone())));
        let dirs = self.local_dirs.iter().filter_map(|(name, dir)| {
            let path = query_escape(dir.path.to_str()?);
            let (name, device, inode) = (query_escape(name), dir.device, dir.inode);
            Some((LOCAL_DIR, format!("{name}&{path}&{device}&{inode}")))
        });
        pairs.extend(dirs);
        pairs
    }

    /// As gRPC metadata.
    pub fn to_metadata(&self) -> Result<MetadataMap, SessionError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in self.pairs() {
            append(&mut metadata, name, &value)?;
        }
        Ok(metadata)
    }
}

/// A directory to be read in place; one that cannot be understood is as if it were not said.
fn local_dir(text: &str) -> Option<(String, SharedDir)> {
    let parts: Vec<&str> = text.split('&').collect();
    let [name, path, device, inode] = parts.as_slice() else {
        return None;
    };
    let dir = SharedDir {
        path: query_unescape(path.as_bytes()).into(),
        device: device.parse().ok()?,
        inode: inode.parse().ok()?,
    };
    Some((query_unescape(name.as_bytes()), dir))
}

/// Adds a value under a name.
pub(crate) fn append(
    metadata: &mut MetadataMap,
    name: &str,
    value: &str,
) -> Result<(), SessionError> {
    let broken = || SessionError::Protocol(format!("{name}: {value:?} cannot be sent as a header"));
    let key = MetadataKey::<Ascii>::from_bytes(name.as_bytes()).map_err(|_| broken())?;
    let value = MetadataValue::try_from(value).map_err(|_| broken())?;
    metadata.append(key, value);
    Ok(())
}

/// Adds a list under a name; when any value is not plain ASCII all are percent-encoded and
/// `<name>-encoded` says so, as stock peers do.
pub(crate) fn append_list<S: AsRef<str>>(
    metadata: &mut MetadataMap,
    name: &str,
    values: &[S],
) -> Result<(), SessionError> {
    let plain = |value: &S| {
        value
            .as_ref()
            .bytes()
            .all(|byte| (0x20..0x7f).contains(&byte))
    };
    if values.iter().all(plain) {
        for value in values {
            append(metadata, name, value.as_ref())?;
        }
        return Ok(());
    }
    for value in values {
        append(metadata, name, &query_escape(value.as_ref()))?;
    }
    append(metadata, &format!("{name}-encoded"), "1")
}

/// The list under a name, decoded when it was encoded.
pub(crate) fn list(metadata: &MetadataMap, name: &str) -> Vec<String> {
    let encoded = metadata.get(format!("{name}-encoded")).is_some_and(|flag| {
        matches!(
            flag.as_bytes(),
            b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True"
        )
    });
    metadata
        .get_all(name)
        .iter()
        .map(|value| {
            let bytes = value.as_bytes();
            if encoded {
                query_unescape(bytes)
            } else {
                String::from_utf8_lossy(bytes).into_owned()
            }
        })
        .collect()
}

/// The first value under a name, or the empty text.
pub(crate) fn first(metadata: &MetadataMap, name: &str) -> String {
    list(metadata, name).into_iter().next().unwrap_or_default()
}

/// Percent-encoding as in the query of a URL, a space as `+`.
pub(crate) fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The reverse; a broken escape makes the whole value empty, as Go's decoder does.
fn query_unescape(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = bytes
                    .get(at + 1..at + 3)
                    .and_then(|d| std::str::from_utf8(d).ok());
                let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) else {
                    return String::new();
                };
                out.push(byte);
                at += 2;
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_metadata() {
        let headers = SessionHeaders {
            id: "abc".into(),
            name: String::new(),
            shared_key: "k".into(),
            methods: ["/a.b/c".to_owned(), "/d/e".to_owned()].into(),
            local_dirs: BTreeMap::from([(
                "con text".to_owned(),
                SharedDir {
                    path: "/home/d\u{e9} &=".into(),
                    device: 7,
                    inode: u64::MAX,
                },
            )]),
        };
        let metadata = headers.to_metadata().unwrap();
        assert_eq!(SessionHeaders::from_metadata(&metadata).unwrap(), headers);
    }

    #[test]
    fn a_session_without_id_is_refused() {
        assert!(SessionHeaders::from_metadata(&MetadataMap::new()).is_err());
    }

    #[test]
    fn lists_are_encoded_only_when_they_must_be() {
        let mut metadata = MetadataMap::new();
        append_list(&mut metadata, "plain", &["a b%", "!c"]).unwrap();
        append_list(&mut metadata, "odd", &["d\u{e9} %", "e"]).unwrap();
        assert!(metadata.get("plain-encoded").is_none());
        assert_eq!(metadata.get("odd").unwrap(), "d%C3%A9+%25");
        assert_eq!(list(&metadata, "plain"), ["a b%", "!c"]);
        assert_eq!(list(&metadata, "odd"), ["d\u{e9} %", "e"]);
    }
}
