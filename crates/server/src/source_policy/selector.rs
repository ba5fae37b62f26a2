//! Which sources a rule is for: by the identifier, whole or as a pattern, and by attributes.

use std::sync::OnceLock;

use diag::{Context, Error, Result};
use llb::SourceOp;
use proto::sourcepolicy::{AttrConstraint, AttrMatch, MatchType};
use regex::Regex;

/// A rule's selector, whose pattern is read when it is needed first.
#[derive(Debug)]
pub(super) struct Selector {
    wanted: proto::sourcepolicy::Selector,
    pattern: OnceLock<Result<Regex>>,
}

impl Selector {
    pub(super) fn new(wanted: proto::sourcepolicy::Selector) -> Self {
        Selector {
            wanted,
            pattern: OnceLock::new(),
        }
    }

    /// The identifier or the pattern of identifiers.
    pub(super) fn identifier(&self) -> &str {
        &self.wanted.identifier
    }

    /// Whether a source is meant.
    ///
    /// # Errors
    ///
    /// A pattern cannot be read; a kind of comparison is not known.
    pub(super) fn matches(&self, source: &SourceOp) -> Result<bool> {
        for constraint in &self.wanted.constraints {
            if !holds(constraint, source)? {
                return Ok(false);
            }
        }
        if self.wanted.identifier == source.identifier {
            return Ok(true);
        }
        match self.kind()? {
            MatchType::Exact => Ok(false),
            MatchType::Regex | MatchType::Wildcard => {
                Ok(self.pattern()?.is_match(&source.identifier))
            }
        }
    }

    /// What a template becomes for an identifier that matches: `$1` and `${1}` stand for what the
    /// pattern's groups, or the asterisks of a wildcard, have matched.
    ///
    /// # Errors
    ///
    /// As for [`Selector::matches`].
    pub(super) fn format(&self, identifier: &str, template: &str) -> Result<String> {
        match self.kind()? {
            MatchType::Exact => Ok(template.to_owned()),
            MatchType::Regex => Ok(self
                .pattern()?
                .replace_all(identifier, template)
                .into_owned()),
            MatchType::Wildcard => {
                let mut made = String::new();
                match self.pattern()?.captures(identifier) {
                    Some(captures) => captures.expand(template, &mut made),
                    None => made.push_str(identifier),
                }
                Ok(made)
            }
        }
    }

    fn kind(&self) -> Result<MatchType> {
        let kind = MatchType::try_from(self.wanted.match_type);
        kind.map_err(|_| Error::invalid(format!("unknown match type: {}", self.wanted.match_type)))
    }

    fn pattern(&self) -> Result<&Regex> {
        let read = || match self.kind()? {
            MatchType::Wildcard => wildcard(&self.wanted.identifier),
            MatchType::Regex | MatchType::Exact => {
                Regex::new(&self.wanted.identifier).map_err(|error| unreadable(&error))
            }
        };
        self.pattern
            .get_or_init(read)
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// Whether an attribute, empty if the source has none of that name, is as it is wanted.
fn holds(constraint: &AttrConstraint, source: &SourceOp) -> Result<bool> {
    let value = source.attrs.get(&constraint.key);
    let value = value.map_or("", String::as_str);
    match AttrMatch::try_from(constraint.condition) {
        Ok(AttrMatch::Equal) => Ok(value == constraint.value),
        Ok(AttrMatch::Notequal) => Ok(value != constraint.value),
        Ok(AttrMatch::Matches) => match Regex::new(&constraint.value) {
            Ok(pattern) => Ok(pattern.is_match(value)),
            Err(error) => Err(Error::invalid(format!(
                "invalid regex {:?}: {}",
                constraint.value,
                unreadable(&error)
            ))),
        },
        Err(_) => Err(Error::invalid(format!(
            "unknown attr condition: {}",
            constraint.condition
        ))),
    }
}

/// A pattern whose asterisks stand for anything, also for nothing.
fn wildcard(text: &str) -> Result<Regex> {
    if text.contains("**") {
        return Err(Error::invalid("invalid wildcard: \"**\""))
            .with_context(|| format!("failed to translate wildcard {text:?} to regexp"));
    }
    let pieces: Vec<String> = text.split('*').map(regex::escape).collect();
    Regex::new(&format!("^{}$", pieces.join("(.*)"))).map_err(|error| unreadable(&error))
}

/// The crate's messages have several lines, of which the last says what is wrong.
fn unreadable(error: &regex::Error) -> Error {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    Error::invalid(format!("error parsing regexp: {reason}"))
}
