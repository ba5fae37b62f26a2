//! Source policies from files: which sources a build may use, and what to use instead.
//!
//! They are written as JSON of the wire's message, with the names of its fields. As Go's reader has it,
//! names count without regard to case, those not known are passed over, and kinds are their names or
//! their numbers.

use std::collections::HashMap;

use diag::{Context, Error};
use proto::prost::Message;
use proto::sourcepolicy::{
    AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector, Update,
};
use serde_json::{Map, Value};

use crate::environment::Environment;

/// The variable that names the file of a build's policy.
const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// The policy that the environment names for its builds, if it does.
///
/// # Errors
///
/// The file cannot be read, or is neither JSON nor the wire's message.
pub fn source_policy_of_environment(env: &Environment) -> Result<Option<Policy>, Error> {
    let Some(path) = env.get(VARIABLE).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let data = std::fs::read(env.path(path));
    let data = data.with_context(|| format!("failed to read policy file: {path}"))?;
    match source_policy_of_json(&data) {
        Ok(policy) => Ok(Some(policy)),
        Err(error) => match Policy::decode(data.as_slice()) {
            Ok(policy) => Ok(Some(policy)),
            Err(_) => Err(error.context("failed to parse source policy")),
        },
    }
}

/// A policy written as JSON.
///
/// # Errors
///
/// It is none; a value is of the wrong kind.
pub fn source_policy_of_json(data: &[u8]) -> Result<Policy, Error> {
    let value: Value =
        serde_json::from_slice(data).map_err(|error| Error::invalid(error.to_string()))?;
    if value.is_null() {
        return Ok(Policy::default());
    }
    let policy = Fields::of(&value, "policy")?;
    Ok(Policy {
        version: policy.number("version")?,
        rules: policy.list("rules", rule)?,
    })
}

fn rule(value: &Value) -> Result<Rule, Error> {
    let rule = Fields::of(value, "rule")?;
    let action = |name: &str| PolicyAction::from_str_name(name).map(i32::from);
    let known = |number| PolicyAction::try_from(number).is_ok();
    Ok(Rule {
        action: rule.kind("action", "PolicyAction", action, known)?,
        selector: rule.part("selector", selector)?,
        updates: rule.part("updates", update)?,
    })
}

fn selector(value: &Value) -> Result<Selector, Error> {
    let selector = Fields::of(value, "selector")?;
    let kind = |name: &str| MatchType::from_str_name(name).map(i32::from);
    let known = |number| MatchType::try_from(number).is_ok();
    Ok(Selector {
        identifier: selector.text("identifier")?,
        match_type: selector.kind("match_type", "MatchType", kind, known)?,
        constraints: selector.list("constraints", constraint)?,
    })
}

fn constraint(value: &Value) -> Result<AttrConstraint, Error> {
    let constraint = Fields::of(value, "constraint")?;
    let condition = |name: &str| AttrMatch::from_str_name(name).map(i32::from);
    let known = |number| AttrMatch::try_from(number).is_ok();
    Ok(AttrConstraint {
        key: constraint.text("key")?,
        value: constraint.text("value")?,
        condition: constraint.kind("condition", "AttrMatch", condition, known)?,
    })
}

fn update(value: &Value) -> Result<Update, Error> {
    let update = Fields::of(value, "updates")?;
    let attrs = match update.get("attrs") {
        None => HashMap::new(),
        Some(Value::Object(attrs)) => {
            let text = |(name, value): (&String, &Value)| match value {
                Value::String(text) => Ok((name.clone(), text.clone())),
                other => Err(wrong("attrs", "a text", other)),
            };
            attrs.iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("attrs", "an object", other)),
    };
    Ok(Update {
        identifier: update.text("identifier")?,
        attrs,
    })
}

/// An object whose fields are had by name.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value, what: &str) -> Result<Self, Error> {
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(wrong(what, "an object", other)),
        }
    }

    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        let mut fields = self.0.iter();
        let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).filter(|v| !v.is_null())
    }

    fn text(&self, name: &str) -> Result<String, Error> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(wrong(name, "a text", other)),
        }
    }

    fn number(&self, name: &str) -> Result<i64, Error> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| wrong(name, "a number", value)),
        }
    }

    fn list<T>(
        &self,
        name: &str,
        read: impl Fn(&Value) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(read).collect(),
            Some(other) => Err(wrong(name, "a list", other)),
        }
    }

    fn part<T>(
        &self,
        name: &str,
        read: impl Fn(&Value) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.get(name).map(read).transpose()
    }

    /// A kind by its name or its number; the first of its kinds if it is not given.
    fn kind(
        &self,
        name: &str,
        message: &str,
        named: impl Fn(&str) -> Option<i32>,
        known: impl Fn(i32) -> bool,
    ) -> Result<i32, Error> {
        match self.get(name) {
            None => Ok(0),
            Some(Value::String(text)) => named(text).ok_or_else(|| {
                Error::invalid(format!("unrecognized enum {message} value {text:?}"))
            }),
            Some(value) => {
                let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
                number
                    .filter(|number| known(*number))
                    .ok_or_else(|| Error::invalid(format!("invalid {message} value: {value}")))
            }
        }
    }
}

fn wrong(name: &str, wanted: &str, value: &Value) -> Error {
    Error::invalid(format!("{name} must be {wanted}: {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"{"version": 1, "Rules": [
        {"action": "CONVERT",
         "selector": {"identifier": "docker-image://docker.io/library/busybox:*", "match_type": 0,
                      "constraints": [{"key": "a", "value": "b", "condition": "NOTEQUAL"}]},
         "updates": {"identifier": "docker-image://x.test/b:$1", "attrs": {"image.checksum": "y"}}},
        {"selector": {"identifier": "x", "match_type": "REGEX"}, "later": true}
    ]}"#;

    #[test]
    fn a_policy_is_read_from_json() {
        let policy = source_policy_of_json(POLICY.as_bytes()).unwrap();
        assert_eq!(policy.version, 1);
        let [convert, allow] = policy.rules.as_slice() else {
            panic!("two rules");
        };
        assert_eq!(convert.action(), PolicyAction::Convert);
        let selector = convert.selector.as_ref().unwrap();
        assert_eq!(selector.match_type(), MatchType::Wildcard);
        assert_eq!(selector.constraints[0].condition(), AttrMatch::Notequal);
        let update = convert.updates.as_ref().unwrap();
        assert_eq!(update.identifier, "docker-image://x.test/b:$1");
        assert_eq!(update.attrs["image.checksum"], "y");
        assert_eq!(allow.action(), PolicyAction::Allow);
        let selector = allow.selector.as_ref().unwrap();
        assert_eq!(selector.match_type(), MatchType::Regex);
        assert_eq!(allow.updates, None);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for (text, reason) in [
            ("{", "EOF"),
            ("[]", "policy must be an object"),
            (r#"{"rules": {}}"#, "rules must be a list"),
            (
                r#"{"rules": [{"action": "LOOK"}]}"#,
                "unrecognized enum PolicyAction value \"LOOK\"",
            ),
            (
                r#"{"rules": [{"action": 3}]}"#,
                "invalid PolicyAction value: 3",
            ),
            (
                r#"{"rules": [{"selector": {"match_type": true}}]}"#,
                "invalid MatchType value",
            ),
            (
                r#"{"rules": [{"updates": {"attrs": {"a": 1}}}]}"#,
                "attrs must be a text",
            ),
        ] {
            let error = source_policy_of_json(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_names_a_file_of_either_form() {
        let folder = tempfile::tempdir().unwrap();
        let env = Environment::new([(VARIABLE, "policy")]).in_directory(folder.path());
        let error = source_policy_of_environment(&env).unwrap_err().to_string();
        assert!(error.starts_with("failed to read policy file: "), "{error}");
        let policy = source_policy_of_json(POLICY.as_bytes()).unwrap();
        for data in [POLICY.as_bytes(), &policy.encode_to_vec()] {
            std::fs::write(folder.path().join("policy"), data).unwrap();
            let read = source_policy_of_environment(&env).unwrap();
            assert_eq!(read.as_ref(), Some(&policy));
        }
        std::fs::write(folder.path().join("policy"), "{]").unwrap();
        let error = source_policy_of_environment(&env).unwrap_err().to_string();
        assert!(
            error.starts_with("failed to parse source policy: "),
            "{error}"
        );
        assert_eq!(
            source_policy_of_environment(&Environment::default()).unwrap(),
            None
        );
    }
}
