//! LLB as Go's `encoding/json` writes BuildKit's structures: 64-bit numbers are numbers, kinds too, some
//! names have underscores, and what is one of several stands in an object of its own.

use proto::pb;
use serde_json::{Map, Value, json};

use super::{
    ACTION, Count, DEFINITION, Field, Kind, OP, USER, Wire, encoded, notes_of, number, split,
};

/// Names that are written otherwise than in protobuf's JSON.
const NAMES: [(&str, &str); 12] = [
    ("allProxy", "all_proxy"),
    ("excludePatterns", "exclude_patterns"),
    ("exportCache", "export_cache"),
    ("ftpProxy", "ftp_proxy"),
    ("httpProxy", "http_proxy"),
    ("httpsProxy", "https_proxy"),
    ("ignoreCache", "ignore_cache"),
    ("includePatterns", "include_patterns"),
    ("noProxy", "no_proxy"),
    ("progressGroup", "progress_group"),
    ("proxyEnv", "proxy_env"),
    ("requiredPaths", "required_paths"),
];

/// The operations of a definition as `{"Op":…,"Digest":…,"OpMetadata":…}`, as `buildctl debug dump-llb`
/// prints them. `None` for bytes that are no operation.
pub fn op_lines(definition: &pb::Definition) -> Option<Vec<Value>> {
    let line = |bytes: &Vec<u8>| {
        let digest = oci::Digest::of(bytes).to_string();
        let notes = definition.metadata.get(&digest);
        let notes = notes.map_or_else(|| json!({}), notes_of);
        Some(json!({"Op": message(bytes, OP)?, "Digest": digest, "OpMetadata": notes}))
    };
    definition.def.iter().map(line).collect()
}

fn message(wire: &[u8], fields: &'static [Field]) -> Option<Value> {
    let found = split(wire)?;
    let (mut object, mut choice) = (Map::new(), Map::new());
    let nested = choice_of(fields);
    let mut placed = false;
    for field in fields {
        // What is one of several has its place where the first of them is declared.
        if field.count == Count::OneOf && !placed {
            object.extend(nested.map(|name| (name.to_owned(), Value::Null)));
            placed = true;
        }
        let values = found.iter().filter(|(number, _)| *number == field.number);
        let values: Vec<Wire<'_>> = values.map(|(_, value)| *value).collect();
        let always = is_always_there(fields, field);
        let Some(value) = value_of(&values, field, always)? else {
            continue;
        };
        match field.count {
            Count::OneOf => choice.extend(chosen(field, value)),
            _ => object.extend([(name_of(field.name).to_owned(), value)]),
        }
    }
    if let Some(name) = nested {
        object.insert(name.to_owned(), Value::Object(choice));
    }
    Some(Value::Object(object))
}

/// The name of the object in which what is one of several stands.
fn choice_of(fields: &'static [Field]) -> Option<&'static str> {
    let named = [(OP, "Op"), (ACTION, "Action"), (USER, "User")];
    let found = named
        .into_iter()
        .find(|(known, _)| std::ptr::eq(*known, fields));
    found.map(|(_, name)| name)
}

/// The numbers of an action are written also if they are 0.
fn is_always_there(fields: &'static [Field], field: &Field) -> bool {
    std::ptr::eq(ACTION, fields) && field.count == Count::One
}

/// Stock's writer passes over links, and over the first user's number.
fn chosen(field: &Field, value: Value) -> Option<(String, Value)> {
    match field.name {
        "symlink" => None,
        "byID" if value == json!(0) => None,
        "byID" => Some(("byId".to_owned(), value)),
        name => Some((name.to_owned(), value)),
    }
}

fn name_of(name: &'static str) -> &'static str {
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map_or(name, |(_, written)| written)
}

/// The outer `None` is an error, the inner one a field that is left out.
fn value_of(values: &[Wire<'_>], field: &Field, always: bool) -> Option<Option<Value>> {
    let Some(last) = values.last() else {
        return Some(always.then(|| json!(0)));
    };
    if let Kind::Map(kind) = field.kind {
        let mut map = std::collections::BTreeMap::new();
        for entry in values {
            let (key, value) = entry_of(*entry, *kind)?;
            map.insert(key, value);
        }
        return Some(Some(json!(map)));
    }
    if field.count == Count::Many {
        let mut all = Vec::new();
        for value in values {
            match (*value, field.kind) {
                // Numbers of a list stand together.
                (Wire::Bytes(mut packed), Kind::Int | Kind::Long) => {
                    while !packed.is_empty() {
                        all.push(json!(number(&mut packed)? as i64));
                    }
                }
                _ => all.push(scalar(*value, field.kind)?),
            }
        }
        return Some(Some(Value::Array(all)));
    }
    let value = scalar(*last, field.kind)?;
    let empty = match &value {
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let left_out = empty && !always && field.count != Count::OneOf;
    Some((!left_out).then_some(value))
}

fn entry_of(entry: Wire<'_>, kind: Kind) -> Option<(String, Value)> {
    let Wire::Bytes(bytes) = entry else {
        return None;
    };
    let (mut key, mut value) = (String::new(), None);
    for (number, part) in split(bytes)? {
        match (number, part) {
            (1, Wire::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
            (2, part) => value = Some(scalar(part, kind)?),
            _ => {}
        }
    }
    let default = || match kind {
        Kind::Bool => json!(false),
        Kind::Message(fields) => message(&[], fields).unwrap_or_else(|| json!({})),
        _ => json!(""),
    };
    Some((key, value.unwrap_or_else(default)))
}

fn scalar(value: Wire<'_>, kind: Kind) -> Option<Value> {
    Some(match (value, kind) {
        (Wire::Bytes(bytes), Kind::Text) => Value::from(String::from_utf8_lossy(bytes)),
        (Wire::Bytes(bytes), Kind::Bytes) => Value::from(encoded(bytes)),
        (Wire::Bytes(bytes), Kind::Message(fields)) => message(bytes, fields)?,
        (Wire::Bytes(bytes), Kind::Definition) => message(bytes, DEFINITION)?,
        (Wire::Number(n), Kind::Bool) => Value::from(n != 0),
        (Wire::Number(n), Kind::Int | Kind::Long | Kind::Enum(_)) => Value::from(n as i64),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proto::prost::Message as _;

    use super::*;

    fn line(op: &pb::Op, notes: Option<pb::OpMetadata>) -> String {
        let bytes = op.encode_to_vec();
        let digest = oci::Digest::of(&bytes).to_string();
        let definition = pb::Definition {
            def: vec![bytes],
            metadata: notes
                .map(|notes| (digest.clone(), notes))
                .into_iter()
                .collect(),
            ..pb::Definition::default()
        };
        let lines = op_lines(&definition).unwrap();
        lines[0].to_string().replace(&digest, "DIGEST")
    }

    #[test]
    fn an_operation_is_written_as_gos_encoder_does() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["a".to_owned(), String::new()],
                proxy_env: Some(pb::ProxyEnv {
                    http_proxy: "p".to_owned(),
                    ..pb::ProxyEnv::default()
                }),
                valid_exit_codes: vec![0, 300],
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                input: -1,
                dest: "/x".to_owned(),
                mount_type: 3,
                cache_opt: Some(pb::CacheOpt::default()),
                ..pb::Mount::default()
            }],
            network: 2,
            ..pb::ExecOp::default()
        };
        let op = pb::Op {
            inputs: vec![pb::Input {
                digest: "sha256:1".to_owned(),
                index: 0,
            }],
            op: Some(pb::op::Op::Exec(exec)),
            constraints: Some(pb::WorkerConstraints::default()),
            ..pb::Op::default()
        };
        let notes = pb::OpMetadata {
            ignore_cache: true,
            ..pb::OpMetadata::default()
        };
        assert_eq!(
            line(&op, Some(notes)),
            r#"{"Op":{"inputs":[{"digest":"sha256:1"}],"Op":{"exec":{"meta":{"args":["a",""],"proxy_env":{"http_proxy":"p"},"validExitCodes":[0,300]},"mounts":[{"input":-1,"dest":"/x","mountType":3,"cacheOpt":{}}],"network":2}},"constraints":{}},"Digest":"DIGEST","OpMetadata":{"ignore_cache":true}}"#
        );
        let broken = pb::Definition {
            def: vec![vec![0x0a, 5, 1]],
            ..pb::Definition::default()
        };
        assert_eq!(op_lines(&broken), None);
    }

    #[test]
    fn what_is_one_of_several_stands_by_itself() {
        let user = |user| Some(pb::UserOpt { user: Some(user) });
        let copy = pb::FileActionCopy {
            dest: "/d".to_owned(),
            owner: Some(pb::ChownOpt {
                user: user(pb::user_opt::User::ById(0)),
                group: user(pb::user_opt::User::ById(7)),
            }),
            include_patterns: vec!["*".to_owned()],
            ..pb::FileActionCopy::default()
        };
        let action = |output, action| pb::FileAction {
            input: 0,
            secondary_input: -1,
            output,
            action: Some(action),
        };
        let file = pb::FileOp {
            actions: vec![
                action(-1, pb::file_action::Action::Copy(copy)),
                action(0, pb::file_action::Action::Symlink(Default::default())),
            ],
        };
        let op = pb::Op {
            op: Some(pb::op::Op::File(file)),
            ..pb::Op::default()
        };
        assert_eq!(
            line(&op, None),
            r#"{"Op":{"Op":{"file":{"actions":[{"input":0,"secondaryInput":-1,"output":-1,"Action":{"copy":{"dest":"/d","owner":{"user":{"User":{}},"group":{"User":{"byId":7}}},"include_patterns":["*"]}}},{"input":0,"secondaryInput":-1,"output":0,"Action":{}}]}}},"Digest":"DIGEST","OpMetadata":{}}"#
        );
    }
}
