//! LLB as JSON, by protobuf's own mapping: names in camel case, 64-bit numbers and bytes as text, what has
//! its default value left out.
//!
//! The tables are the messages of `ops.proto`, fields in the order in which they are declared there.

mod go;

use std::collections::BTreeMap;

use base64::Engine as _;
use prost::Message as _;
use proto::pb;
use serde_json::{Map, Value, json};

pub use go::op_lines;

use crate::Graph;
use Kind::{Bool, Bytes, Enum, Int, Long, Message, Text};

/// A graph as BuildKit's `frontend.convertllb` gives it: `def` with every op by digest, `metadata` with the
/// notes on them, `source` with the user's files and places in them. `None` for a graph that holds
/// bytes that are no op.
pub fn graph_json(graph: &Graph) -> Option<Value> {
    let definition = crate::to_proto(graph);
    let mut ops = BTreeMap::new();
    for bytes in &definition.def {
        ops.insert(oci::Digest::of(bytes).to_string(), message(bytes, OP)?);
    }
    let notes = definition.metadata.iter();
    let notes: BTreeMap<&String, Value> = notes.map(|(key, meta)| (key, notes_of(meta))).collect();
    let source = definition.source.unwrap_or_default().encode_to_vec();
    let source = message(&source, SOURCE)?;
    Some(json!({"def": ops, "metadata": notes, "source": source}))
}

/// One op by protobuf's own JSON mapping, of its bytes on the wire; `None` if they are no op.
pub fn op_json(wire: &[u8]) -> Option<Value> {
    message(wire, OP)
}

/// The notes on an op as Go's client library writes them.
fn notes_of(meta: &pb::OpMetadata) -> Value {
    let mut value = Map::new();
    let mut put = |name: &str, note: Value| value.insert(name.to_owned(), note);
    if meta.ignore_cache {
        put("ignore_cache", json!(true));
    }
    if !meta.description.is_empty() {
        let description: BTreeMap<_, _> = meta.description.iter().collect();
        put("description", json!(description));
    }
    if let Some(export) = &meta.export_cache {
        let set = match export.value {
            true => json!({"Value": true}),
            false => json!({}),
        };
        put("export_cache", set);
    }
    if !meta.caps.is_empty() {
        let caps: BTreeMap<_, _> = meta.caps.iter().collect();
        put("caps", json!(caps));
    }
    if let Some(group) = &meta.progress_group {
        let mut shown = Map::new();
        for (name, text) in [("id", &group.id), ("name", &group.name)] {
            if !text.is_empty() {
                shown.insert(name.to_owned(), json!(text));
            }
        }
        if group.weak {
            shown.insert("weak".to_owned(), json!(true));
        }
        put("progress_group", Value::Object(shown));
    }
    Value::Object(value)
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Bool,
    /// 32 bits, with or without a sign.
    Int,
    /// 64 bits.
    Long,
    /// Names by number, from 0.
    Enum(&'static [&'static str]),
    Message(&'static [Field]),
    /// A definition, which may be within one.
    Definition,
    /// Texts to values.
    Map(&'static Kind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    One,
    Many,
    /// One of several, which is there also if it has its default value.
    OneOf,
}

struct Field {
    number: u32,
    name: &'static str,
    kind: Kind,
    count: Count,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::One,
    }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::Many,
    }
}

const fn one_of(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::OneOf,
    }
}

static OP: &[Field] = &[
    many(1, "inputs", Message(INPUT)),
    one_of(2, "exec", Message(EXEC)),
    one_of(3, "source", Message(SOURCE_OP)),
    one_of(4, "file", Message(FILE)),
    one_of(5, "build", Message(BUILD)),
    one_of(6, "merge", Message(MERGE)),
    one_of(7, "diff", Message(DIFF)),
    one(10, "platform", Message(PLATFORM)),
    one(11, "constraints", Message(CONSTRAINTS)),
];
static INPUT: &[Field] = &[one(1, "digest", Text), one(2, "index", Long)];
static PLATFORM: &[Field] = &[
    one(1, "Architecture", Text),
    one(2, "OS", Text),
    one(3, "Variant", Text),
    one(4, "OSVersion", Text),
    many(5, "OSFeatures", Text),
];
static CONSTRAINTS: &[Field] = &[many(1, "filter", Text)];
static EXEC: &[Field] = &[
    one(1, "meta", Message(META)),
    many(2, "mounts", Message(MOUNT)),
    one(3, "network", Enum(&["UNSET", "HOST", "NONE"])),
    one(4, "security", Enum(&["SANDBOX", "INSECURE"])),
    many(5, "secretenv", Message(SECRET_ENV)),
    many(6, "cdiDevices", Message(DEVICE)),
];
static META: &[Field] = &[
    many(1, "args", Text),
    many(2, "env", Text),
    one(3, "cwd", Text),
    one(4, "user", Text),
    one(5, "proxyEnv", Message(PROXY)),
    many(6, "extraHosts", Message(HOST)),
    one(7, "hostname", Text),
    many(9, "ulimit", Message(ULIMIT)),
    one(10, "cgroupParent", Text),
    one(11, "removeMountStubsRecursive", Bool),
    many(12, "validExitCodes", Int),
];
static PROXY: &[Field] = &[
    one(1, "httpProxy", Text),
    one(2, "httpsProxy", Text),
    one(3, "ftpProxy", Text),
    one(4, "noProxy", Text),
    one(5, "allProxy", Text),
];
static HOST: &[Field] = &[one(1, "Host", Text), one(2, "IP", Text)];
static ULIMIT: &[Field] = &[
    one(1, "Name", Text),
    one(2, "Soft", Long),
    one(3, "Hard", Long),
];
static SECRET_ENV: &[Field] = &[
    one(1, "ID", Text),
    one(2, "name", Text),
    one(3, "optional", Bool),
];
static DEVICE: &[Field] = &[one(1, "name", Text), one(2, "optional", Bool)];
static MOUNT: &[Field] = &[
    one(1, "input", Long),
    one(2, "selector", Text),
    one(3, "dest", Text),
    one(4, "output", Long),
    one(5, "readonly", Bool),
    one(
        6,
        "mountType",
        Enum(&["BIND", "SECRET", "SSH", "CACHE", "TMPFS"]),
    ),
    one(19, "TmpfsOpt", Message(TMPFS)),
    one(20, "cacheOpt", Message(CACHE)),
    one(21, "secretOpt", Message(OWNED)),
    one(22, "SSHOpt", Message(OWNED)),
    one(23, "resultID", Text),
    one(24, "contentCache", Enum(&["DEFAULT", "ON", "OFF"])),
];
static TMPFS: &[Field] = &[one(1, "size", Long)];
static CACHE: &[Field] = &[
    one(1, "ID", Text),
    one(2, "sharing", Enum(&["SHARED", "PRIVATE", "LOCKED"])),
];
static OWNED: &[Field] = &[
    one(1, "ID", Text),
    one(2, "uid", Int),
    one(3, "gid", Int),
    one(4, "mode", Int),
    one(5, "optional", Bool),
];
static SOURCE_OP: &[Field] = &[
    one(1, "identifier", Text),
    one(2, "attrs", Kind::Map(&Text)),
];
static BUILD: &[Field] = &[
    one(1, "builder", Long),
    one(2, "inputs", Kind::Map(&Message(NUMBERED))),
    one(3, "def", Kind::Definition),
    one(4, "attrs", Kind::Map(&Text)),
];
static NUMBERED: &[Field] = &[one(1, "input", Long)];
static MERGE: &[Field] = &[many(1, "inputs", Message(NUMBERED))];
static DIFF: &[Field] = &[
    one(1, "lower", Message(NUMBERED)),
    one(2, "upper", Message(NUMBERED)),
];
static FILE: &[Field] = &[many(2, "actions", Message(ACTION))];
static ACTION: &[Field] = &[
    one(1, "input", Long),
    one(2, "secondaryInput", Long),
    one(3, "output", Long),
    one_of(4, "copy", Message(COPY)),
    one_of(5, "mkfile", Message(MAKE_FILE)),
    one_of(6, "mkdir", Message(MAKE_DIR)),
    one_of(7, "rm", Message(REMOVE)),
    one_of(8, "symlink", Message(SYMLINK)),
];
static COPY: &[Field] = &[
    one(1, "src", Text),
    one(2, "dest", Text),
    one(3, "owner", Message(OWNER)),
    one(4, "mode", Int),
    one(5, "followSymlink", Bool),
    one(6, "dirCopyContents", Bool),
    one(7, "attemptUnpackDockerCompatibility", Bool),
    one(8, "createDestPath", Bool),
    one(9, "allowWildcard", Bool),
    one(10, "allowEmptyWildcard", Bool),
    one(11, "timestamp", Long),
    many(12, "includePatterns", Text),
    many(13, "excludePatterns", Text),
    one(14, "alwaysReplaceExistingDestPaths", Bool),
    one(15, "modeStr", Text),
    many(16, "requiredPaths", Text),
];
static MAKE_FILE: &[Field] = &[
    one(1, "path", Text),
    one(2, "mode", Int),
    one(3, "data", Bytes),
    one(4, "owner", Message(OWNER)),
    one(5, "timestamp", Long),
];
static MAKE_DIR: &[Field] = &[
    one(1, "path", Text),
    one(2, "mode", Int),
    one(3, "makeParents", Bool),
    one(4, "owner", Message(OWNER)),
    one(5, "timestamp", Long),
];
static REMOVE: &[Field] = &[
    one(1, "path", Text),
    one(2, "allowNotFound", Bool),
    one(3, "allowWildcard", Bool),
];
static SYMLINK: &[Field] = &[
    one(1, "oldpath", Text),
    one(2, "newpath", Text),
    one(3, "owner", Message(OWNER)),
    one(4, "timestamp", Long),
];
static OWNER: &[Field] = &[
    one(1, "user", Message(USER)),
    one(2, "group", Message(USER)),
];
static USER: &[Field] = &[
    one_of(1, "byName", Message(NAMED_USER)),
    one_of(2, "byID", Int),
];
static NAMED_USER: &[Field] = &[one(1, "name", Text), one(2, "input", Long)];
static SOURCE: &[Field] = &[
    one(1, "locations", Kind::Map(&Message(LOCATIONS))),
    many(2, "infos", Message(SOURCE_INFO)),
];
static LOCATIONS: &[Field] = &[many(1, "locations", Message(LOCATION))];
static LOCATION: &[Field] = &[
    one(1, "sourceIndex", Int),
    many(2, "ranges", Message(RANGE)),
];
static RANGE: &[Field] = &[
    one(1, "start", Message(POSITION)),
    one(2, "end", Message(POSITION)),
];
static POSITION: &[Field] = &[one(1, "line", Int), one(2, "character", Int)];
static SOURCE_INFO: &[Field] = &[
    one(1, "filename", Text),
    one(2, "data", Bytes),
    one(3, "definition", Kind::Definition),
    one(4, "language", Text),
];
static DEFINITION: &[Field] = &[
    many(1, "def", Bytes),
    one(2, "metadata", Kind::Map(&Message(OP_METADATA))),
    one(3, "Source", Message(SOURCE)),
];
static OP_METADATA: &[Field] = &[
    one(1, "ignoreCache", Bool),
    one(2, "description", Kind::Map(&Text)),
    one(4, "exportCache", Message(EXPORT_CACHE)),
    one(5, "caps", Kind::Map(&Bool)),
    one(6, "progressGroup", Message(PROGRESS_GROUP)),
];
static EXPORT_CACHE: &[Field] = &[one(1, "Value", Bool)];
static PROGRESS_GROUP: &[Field] = &[
    one(1, "id", Text),
    one(2, "name", Text),
    one(3, "weak", Bool),
];

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'w> {
    Number(u64),
    Bytes(&'w [u8]),
}

fn message(wire: &[u8], fields: &[Field]) -> Option<Value> {
    let found = split(wire)?;
    let mut object = Map::new();
    for field in fields {
        let values = found.iter().filter(|(number, _)| *number == field.number);
        let values: Vec<Wire<'_>> = values.map(|(_, value)| *value).collect();
        let Some(last) = values.last() else { continue };
        let value = match (field.kind, field.count) {
            (Kind::Map(kind), _) => map(&values, kind)?,
            (kind, Count::Many) => list(&values, kind)?,
            (kind, _) => scalar(*last, kind)?,
        };
        if field.count == Count::OneOf || !is_default(&value, field.kind) {
            object.insert(field.name.to_owned(), value);
        }
    }
    Some(Value::Object(object))
}

/// The fields of a message by number, in the order in which they came.
fn split(mut wire: &[u8]) -> Option<Vec<(u32, Wire<'_>)>> {
    let mut found = Vec::new();
    while !wire.is_empty() {
        let key = number(&mut wire)?;
        let value = match key & 7 {
            0 => Wire::Number(number(&mut wire)?),
            2 => {
                let length = usize::try_from(number(&mut wire)?).ok()?;
                let (bytes, rest) = wire.split_at_checked(length)?;
                wire = rest;
                Wire::Bytes(bytes)
            }
            // No message of LLB has any other.
            _ => return None,
        };
        found.push((u32::try_from(key >> 3).ok()?, value));
    }
    Some(found)
}

/// Takes a number off the front: seven bits a byte, the lowest first.
fn number(wire: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = wire.split_first()?;
        *wire = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn encoded(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn scalar(value: Wire<'_>, kind: Kind) -> Option<Value> {
    Some(match (value, kind) {
        (Wire::Bytes(bytes), Text) => Value::from(String::from_utf8_lossy(bytes)),
        (Wire::Bytes(bytes), Bytes) => Value::from(encoded(bytes)),
        (Wire::Bytes(bytes), Message(fields)) => message(bytes, fields)?,
        (Wire::Bytes(bytes), Kind::Definition) => message(bytes, DEFINITION)?,
        (Wire::Number(n), Bool) => Value::from(n != 0),
        // Signed ones are on the wire with 64 bits.
        (Wire::Number(n), Int) => Value::from(n as i64),
        (Wire::Number(n), Long) => Value::from((n as i64).to_string()),
        (Wire::Number(n), Enum(names)) => {
            let name = usize::try_from(n).ok().and_then(|at| names.get(at));
            name.map_or_else(|| Value::from(n), |name| Value::from(*name))
        }
        _ => return None,
    })
}

fn list(values: &[Wire<'_>], kind: Kind) -> Option<Value> {
    let mut all = Vec::new();
    for value in values {
        match (*value, kind) {
            // Several numbers may be packed into one field.
            (Wire::Bytes(mut packed), Int | Long | Bool | Enum(_)) => {
                while !packed.is_empty() {
                    let number = Wire::Number(number(&mut packed)?);
                    all.push(scalar(number, kind)?);
                }
            }
            (value, kind) => all.push(scalar(value, kind)?),
        }
    }
    Some(Value::Array(all))
}

fn map(values: &[Wire<'_>], kind: &Kind) -> Option<Value> {
    let mut entries = Vec::new();
    for value in values {
        let Wire::Bytes(bytes) = value else {
            return None;
        };
        let entry = split(bytes)?;
        let field = |wanted: u32| {
            let found = entry.iter().rev().find(|(number, _)| *number == wanted);
            found.map(|(_, value)| *value)
        };
        let key = match field(1) {
            Some(Wire::Bytes(key)) => String::from_utf8_lossy(key).into_owned(),
            _ => String::new(),
        };
        let value = match (field(2), kind) {
            (Some(value), kind) => scalar(value, *kind)?,
            (None, Bool) => Value::from(false),
            (None, Message(_)) => Value::Object(Map::new()),
            (None, _) => Value::from(""),
        };
        entries.push((key, value));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(Value::Object(entries.into_iter().collect()))
}

/// Whether a value is left out; messages never are.
fn is_default(value: &Value, kind: Kind) -> bool {
    match (value, kind) {
        (Value::Object(_), Message(_) | Kind::Definition) => false,
        (Value::Object(map), _) => map.is_empty(),
        (Value::Array(list), _) => list.is_empty(),
        (Value::Bool(set), _) => !set,
        (Value::Number(number), _) => number.as_i64() == Some(0),
        (Value::String(text), Long) => text == "0",
        (Value::String(text), Enum(names)) => names.first() == Some(&text.as_str()),
        (Value::String(text), _) => text.is_empty(),
        (Value::Null, _) => true,
    }
}

#[cfg(test)]
mod tests;
