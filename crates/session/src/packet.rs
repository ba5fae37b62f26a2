//! DiffCopy's packets on the wire.
//!
//! The protocol between a sender and a receiver of a tree: the sender sends a STAT for every entry,
//! parents first and names sorted, and an empty STAT at the end; the receiver asks for the content
//! of entry number N with REQ; the sender answers with DATA packets of that number, the last one
//! empty; FIN from the receiver ends it and is answered by FIN; ERR carries a message and ends it.
//!
//! Encoded and decoded by hand because names on disk are bytes (protobuf strings must be UTF-8, and
//! stock peers do not check either), because the order of extended attributes is then fixed, and
//! because these are the messages of which there are hundreds of thousands.

use bytes::{Buf, Bytes, BytesMut};
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use crate::error::SessionError;
use crate::mode;

/// One entry of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Path relative to the root, slash-separated, without `.` or `..`.
    pub path: Vec<u8>,
    /// Go's `os.FileMode`, see [`crate::mode`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of hard links after the first, 0.
    pub size: i64,
    /// Time of the last change, nanoseconds since the epoch.
    pub mod_time: i64,
    /// The target of a symbolic link, or for a regular file the path it is another name of.
    pub linkname: Vec<u8>,
    /// Major number of a device.
    pub devmajor: i64,
    /// Minor number of a device.
    pub devminor: i64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl FileStat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        mode::is_dir(self.mode)
    }

    /// Whether it is another name of a file that came before.
    pub fn is_hard_link(&self) -> bool {
        !self.linkname.is_empty() && !self.is_dir() && !mode::is_symlink(self.mode)
    }
}

/// One message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// An entry.
    Stat(FileStat),
    /// No more entries.
    StatEnd,
    /// The content of that entry is wanted.
    Request(u32),
    /// A piece of content; empty at its end.
    Data(u32, Bytes),
    /// Done.
    Fin,
    /// The peer failed.
    Error(String),
}

const STAT: u64 = 0;
const REQUEST: u64 = 1;
const DATA: u64 = 2;
const FIN: u64 = 3;
const ERROR: u64 = 4;

impl Packet {
    /// The encoded message.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Packet::Stat(stat) => put_stat(stat, &mut out),
            Packet::StatEnd => {}
            Packet::Request(id) => {
                put_int(1, REQUEST, &mut out);
                put_int(3, u64::from(*id), &mut out);
            }
            Packet::Data(id, data) => {
                out.reserve(data.len() + 24);
                put_int(1, DATA, &mut out);
                put_int(3, u64::from(*id), &mut out);
                put_bytes(4, data, &mut out);
            }
            Packet::Fin => put_int(1, FIN, &mut out),
            Packet::Error(message) => {
                put_int(1, ERROR, &mut out);
                put_bytes(4, message.as_bytes(), &mut out);
            }
        }
        out.freeze()
    }

    /// Decodes a message.
    pub fn decode(mut message: Bytes) -> Result<Self, SessionError> {
        let (mut kind, mut id, mut stat, mut data) = (STAT, 0, None, Bytes::new());
        while message.has_remaining() {
            match field(&mut message)? {
                (1, Value::Int(value)) => kind = value,
                (2, Value::Bytes(value)) => stat = Some(decode_stat(value)?),
                (3, Value::Int(value)) => id = value as u32,
                (4, Value::Bytes(value)) => data = value,
                _ => {}
            }
        }
        Ok(match kind {
            STAT => stat.map_or(Packet::StatEnd, Packet::Stat),
            REQUEST => Packet::Request(id),
            DATA => Packet::Data(id, data),
            FIN => Packet::Fin,
            ERROR => Packet::Error(String::from_utf8_lossy(&data).into_owned()),
            other => {
                return Err(SessionError::Protocol(format!(
                    "unknown DiffCopy packet type {other}"
                )));
            }
        })
    }
}

/// One piece of a file read into a fresh buffer, ready to be sent: the message is laid out around the
/// bytes as they are read, so they are not copied again. Returns the message and how much was read.
pub fn encode_data_from(
    id: u32,
    chunk_bytes_max: usize,
    mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
) -> std::io::Result<(Bytes, usize)> {
    let mut head = BytesMut::with_capacity(16);
    put_int(1, DATA, &mut head);
    put_int(3, u64::from(id), &mut head);
    encode_key(4, WireType::LengthDelimited, &mut head);
    // The length is written with a fixed width: a varint may be padded with continuation bytes, but
    // not every decoder takes that, so room is left in front and the head is placed last.
    const ROOM: usize = 24;
    let mut buffer = vec![0; ROOM + chunk_bytes_max];
    let mut len = 0;
    while len < chunk_bytes_max {
        match read(&mut buffer[ROOM + len..])? {
            0 => break,
            more => len += more,
        }
    }
    encode_varint(len as u64, &mut head);
    if len == 0 {
        return Ok((Packet::Data(id, Bytes::new()).encode(), 0));
    }
    let start = ROOM - head.len();
    buffer[start..ROOM].copy_from_slice(&head);
    buffer.truncate(ROOM + len);
    Ok((Bytes::from(buffer).slice(start..), len))
}

fn put_int(tag: u32, value: u64, out: &mut BytesMut) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn put_bytes(tag: u32, value: &[u8], out: &mut BytesMut) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

fn put_stat(stat: &FileStat, out: &mut BytesMut) {
    let mut body = BytesMut::with_capacity(stat.path.len() + stat.linkname.len() + 64);
    encode_stat(stat, &mut body);
    encode_key(2, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(&body);
}

/// Appends the message of an entry.
pub(crate) fn encode_stat(stat: &FileStat, out: &mut BytesMut) {
    put_bytes(1, &stat.path, out);
    put_int(2, u64::from(stat.mode), out);
    put_int(3, u64::from(stat.uid), out);
    put_int(4, u64::from(stat.gid), out);
    put_int(5, stat.size as u64, out);
    put_int(6, stat.mod_time as u64, out);
    put_bytes(7, &stat.linkname, out);
    put_int(8, stat.devmajor as u64, out);
    put_int(9, stat.devminor as u64, out);
    for (name, value) in &stat.xattrs {
        let mut pair = BytesMut::with_capacity(name.len() + value.len() + 12);
        put_bytes(1, name, &mut pair);
        put_bytes(2, value, &mut pair);
        encode_key(10, WireType::LengthDelimited, out);
        encode_varint(pair.len() as u64, out);
        out.extend_from_slice(&pair);
    }
}

fn decode_stat(mut message: Bytes) -> Result<FileStat, SessionError> {
    let mut stat = FileStat::default();
    while message.has_remaining() {
        match field(&mut message)? {
            (1, Value::Bytes(value)) => stat.path = value.into(),
            (2, Value::Int(value)) => stat.mode = value as u32,
            (3, Value::Int(value)) => stat.uid = value as u32,
            (4, Value::Int(value)) => stat.gid = value as u32,
            (5, Value::Int(value)) => stat.size = value as i64,
            (6, Value::Int(value)) => stat.mod_time = value as i64,
            (7, Value::Bytes(value)) => stat.linkname = value.into(),
            (8, Value::Int(value)) => stat.devmajor = value as i64,
            (9, Value::Int(value)) => stat.devminor = value as i64,
            (10, Value::Bytes(pair)) => stat.xattrs.push(decode_xattr(pair)?),
            _ => {}
        }
    }
    stat.xattrs.sort();
    Ok(stat)
}

fn decode_xattr(mut message: Bytes) -> Result<(Vec<u8>, Vec<u8>), SessionError> {
    let mut pair = (Vec::new(), Vec::new());
    while message.has_remaining() {
        match field(&mut message)? {
            (1, Value::Bytes(name)) => pair.0 = name.into(),
            (2, Value::Bytes(value)) => pair.1 = value.into(),
            _ => {}
        }
    }
    Ok(pair)
}

enum Value {
    Int(u64),
    Bytes(Bytes),
    Other,
}

/// Takes the next field off a message.
fn field(message: &mut Bytes) -> Result<(u32, Value), SessionError> {
    let broken = |_| SessionError::Protocol("malformed DiffCopy packet".into());
    let short = || SessionError::Protocol("truncated DiffCopy packet".into());
    let (tag, wire) = decode_key(message).map_err(broken)?;
    let value = match wire {
        WireType::Varint => Value::Int(decode_varint(message).map_err(broken)?),
        WireType::LengthDelimited => {
            let len = decode_varint(message).map_err(broken)?;
            if len > message.len() as u64 {
                return Err(short());
            }
            Value::Bytes(message.split_to(len as usize))
        }
        WireType::ThirtyTwoBit | WireType::SixtyFourBit => {
            let len = if wire == WireType::ThirtyTwoBit { 4 } else { 8 };
            if message.len() < len {
                return Err(short());
            }
            message.advance(len);
            Value::Other
        }
        _ => return Err(SessionError::Protocol("malformed DiffCopy packet".into())),
    };
    Ok((tag, value))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::fsutil;

    use super::*;

    fn stat() -> FileStat {
        FileStat {
            path: b"dir/file".to_vec(),
            mode: 0o644,
            uid: 1000,
            gid: 100,
            size: 1 << 40,
            mod_time: -5,
            linkname: b"x".to_vec(),
            devmajor: 1,
            devminor: 3,
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
        }
    }

    #[test]
    fn stats_are_those_of_the_generated_code() {
        let ours = Packet::Stat(stat()).encode();
        let theirs = fsutil::Packet::decode(ours.clone()).unwrap();
        let theirs_stat = theirs.stat.clone().unwrap();
        assert_eq!(theirs_stat.mod_time, -5);
        assert_eq!(theirs_stat.xattrs["user.a"], [0, 255]);
        assert_eq!(theirs.encode_to_vec(), ours);
        assert_eq!(Packet::decode(ours).unwrap(), Packet::Stat(stat()));
    }

    #[test]
    fn every_packet_survives_the_wire() {
        for packet in [
            Packet::StatEnd,
            Packet::Request(0),
            Packet::Request(70000),
            Packet::Data(0, Bytes::new()),
            Packet::Data(300, Bytes::from_static(b"abc")),
            Packet::Fin,
            Packet::Error("no".into()),
        ] {
            assert_eq!(Packet::decode(packet.encode()).unwrap(), packet);
        }
    }

    #[test]
    fn data_read_in_place_is_the_same_message() {
        let content = [7u8; 300];
        let mut rest = &content[..];
        let (message, len) = encode_data_from(9, 1024, |buffer| {
            let some = rest.len().min(buffer.len()).min(100);
            buffer[..some].copy_from_slice(&rest[..some]);
            rest = &rest[some..];
            Ok(some)
        })
        .unwrap();
        assert_eq!(len, 300);
        assert_eq!(
            message,
            Packet::Data(9, Bytes::copy_from_slice(&content)).encode()
        );
    }

    #[test]
    fn broken_messages_are_errors() {
        for message in [&[0x12u8, 0x50][..], &[0xff; 12], &[0x0a], &[0x08, 0x09]] {
            assert!(
                Packet::decode(Bytes::copy_from_slice(message)).is_err(),
                "{message:?}"
            );
        }
    }

    #[test]
    fn names_that_are_not_utf8_survive() {
        let mut stat = stat();
        stat.path = vec![0xff, b'a'];
        let packet = Packet::Stat(stat);
        assert_eq!(Packet::decode(packet.encode()).unwrap(), packet);
    }
}
