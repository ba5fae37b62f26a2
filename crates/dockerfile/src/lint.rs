//! The lint rules of the Dockerfile language: names, texts and configuration are the documented
//! ones (<https://docs.docker.com/reference/build-checks/>). Who finds a violation reports it to a
//! [`Linter`], which drops what is switched off.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::directive::check_comment;
use crate::quote::{parse_bool, quoted};
use crate::source::Lines;

/// The rules, each after its description and with the last part of its page's address, which is empty if
/// there is no page.
macro_rules! rules {
    ($($description:literal $rule:ident at $page:literal,)*) => {
        /// A rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $description] $rule,)*
        }

        impl Rule {
            /// Name, description and page.
            fn facts(self) -> (&'static str, &'static str, &'static str) {
                match self {
                    $(Rule::$rule => (stringify!($rule), $description, $page),)*
                }
            }
        }
    };
}

rules! {
    "Stage names should be lowercase"
    StageNameCasing at "stage-name-casing",
    "The 'as' keyword should match the case of the 'from' keyword"
    FromAsCasing at "from-as-casing",
    "Empty continuation lines will become errors in a future release"
    NoEmptyContinuation at "no-empty-continuation",
    "All commands within the Dockerfile should use the same casing (either upper or lower)"
    ConsistentInstructionCasing at "consistent-instruction-casing",
    "Stage names should be unique"
    DuplicateStageName at "duplicate-stage-name",
    "Reserved words should not be used as stage names"
    ReservedStageName at "reserved-stage-name",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
    JSONArgsRecommended at "json-args-recommended",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
    MaintainerDeprecated at "maintainer-deprecated",
    "FROM command must use declared ARGs"
    UndefinedArgInFrom at "undefined-arg-in-from",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
    WorkdirRelativePath at "workdir-relative-path",
    "Variables should be defined before their use"
    UndefinedVar at "undefined-var",
    "Multiple instructions of the same type should not be used in the same stage"
    MultipleInstructionsDisallowed at "multiple-instructions-disallowed",
    "Legacy key/value format with whitespace separator should not be used"
    LegacyKeyValueFormat at "legacy-key-value-format",
    "Base image platform does not match expected target platform"
    InvalidBaseImagePlatform at "",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
    RedundantTargetPlatform at "redundant-target-platform",
    "Sensitive data should not be used in the ARG or ENV commands"
    SecretsUsedInArgOrEnv at "secrets-used-in-arg-or-env",
    "Default value for global ARG results in an empty or invalid base image name"
    InvalidDefaultArgInFrom at "invalid-default-arg-in-from",
    "FROM --platform flag should not use a constant value"
    FromPlatformFlagConstDisallowed at "from-platform-flag-const-disallowed",
    "Attempting to Copy file that is excluded by .dockerignore"
    CopyIgnoredFile at "copy-ignored-file",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment."
    InvalidDefinitionDescription at "invalid-definition-description",
    "Protocol in EXPOSE instruction should be lowercase"
    ExposeProtoCasing at "expose-proto-casing",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
    ExposeInvalidFormat at "expose-invalid-format",
}

impl Rule {
    /// The rule's name, such as `StageNameCasing`.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// What the rule is about, in a sentence.
    pub fn description(self) -> &'static str {
        self.facts().1
    }

    /// The page about the rule; empty if there is none.
    pub fn url(self) -> String {
        match self.facts().2 {
            "" => String::new(),
            page => format!("https://docs.docker.com/go/dockerfile/rule/{page}/"),
        }
    }

    /// Whether the rule is off unless it is asked for.
    pub(crate) fn is_experimental(self) -> bool {
        self == Rule::InvalidDefinitionDescription
    }
}

/// A violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintWarning {
    /// The rule.
    pub rule: Rule,
    /// What is wrong here.
    pub message: String,
    /// Where.
    pub lines: Lines,
}

impl LintWarning {
    /// `Rule: message (line N)`, as it is shown in a build.
    pub fn short(&self) -> String {
        let name = self.rule.name();
        if self.lines.first > 0 {
            format!("{name}: {} (line {})", self.message, self.lines.first)
        } else {
            format!("{name}: {}", self.message)
        }
    }
}

/// What is switched on and off: `skip=A,B;error=true;experimental=C`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LintConfig {
    /// Every rule is off.
    pub skip_all: bool,
    /// Rules that are off.
    pub skip: BTreeSet<String>,
    /// Every experimental rule is on.
    pub experimental_all: bool,
    /// Experimental rules that are on.
    pub experimental: BTreeSet<String>,
    /// Whether a violation fails the build.
    pub error: bool,
}

impl LintConfig {
    /// Reads the value of a `check` directive; the error is stock's message.
    pub fn parse(text: &str) -> Result<LintConfig, String> {
        let mut config = LintConfig::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for part in text.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {}", quoted(part)));
            };
            let (key, value) = (key.trim(), value.trim());
            let rules = || {
                value
                    .split(',')
                    .map(|rule| rule.trim().to_owned())
                    .collect()
            };
            match (key, value) {
                ("skip", "all") => config.skip_all = true,
                ("skip", _) => config.skip = rules(),
                ("experimental", "all") => config.experimental_all = true,
                ("experimental", _) => config.experimental = rules(),
                ("error", _) => {
                    config.error = parse_bool(value).ok_or_else(|| {
                        format!(
                            "failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
                            quoted(part),
                            quoted(value)
                        )
                    })?;
                }
                _ => return Err(format!("invalid check option {}", quoted(key))),
            }
        }
        Ok(config)
    }

    fn merge(&mut self, other: LintConfig) {
        self.skip_all |= other.skip_all;
        self.experimental_all |= other.experimental_all;
        self.skip.extend(other.skip);
        self.experimental.extend(other.experimental);
    }

    fn allows(&self, rule: Rule) -> bool {
        if rule.is_experimental() {
            self.experimental_all || self.experimental.contains(rule.name())
        } else {
            !self.skip_all && !self.skip.contains(rule.name())
        }
    }
}

/// Collects violations. Clones share what they collect.
#[derive(Clone, Debug)]
pub struct Linter {
    config: LintConfig,
    found: Option<Arc<Mutex<Vec<LintWarning>>>>,
}

impl Linter {
    /// A linter with that configuration.
    pub fn new(config: LintConfig) -> Self {
        Linter {
            config,
            found: Some(Arc::default()),
        }
    }

    /// A linter that drops everything.
    pub fn off() -> Self {
        Linter {
            config: LintConfig::default(),
            found: None,
        }
    }

    /// The same linter with the configuration of a `check=…` comment added, if there is one.
    #[must_use]
    pub fn with_comments(&self, comments: &[String]) -> Self {
        let mut linter = self.clone();
        if let Some(text) = comments.iter().find_map(|comment| check_comment(comment))
            && let Ok(config) = LintConfig::parse(&text)
        {
            linter.config.merge(config);
        }
        linter
    }

    /// Whether a report of that rule is kept, for those whose text costs something to make.
    pub fn wants(&self, rule: Rule) -> bool {
        self.found.is_some() && self.config.allows(rule)
    }

    /// Reports a violation.
    pub fn report(&self, rule: Rule, lines: Lines, message: impl Into<String>) {
        let Some(found) = self.found.as_ref().filter(|_| self.config.allows(rule)) else {
            return;
        };
        found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(LintWarning {
                rule,
                message: message.into(),
                lines,
            });
    }

    /// What was reported, in order.
    pub fn warnings(&self) -> Vec<LintWarning> {
        self.found.as_ref().map_or_else(Vec::new, |found| {
            found.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// The message of the failed build when violations are errors and there are some.
    pub fn error(&self) -> Option<String> {
        if !self.config.error {
            return None;
        }
        let rules: BTreeSet<&str> = self.warnings().iter().map(|w| w.rule.name()).collect();
        if rules.is_empty() {
            return None;
        }
        let rules: Vec<&str> = rules.into_iter().collect();
        Some(format!(
            "lint violation found for rules: {}",
            rules.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_switched_by_configuration_and_comments() {
        let linter = Linter::new(LintConfig::parse("skip=StageNameCasing; error=true").unwrap());
        linter.report(Rule::StageNameCasing, Lines::one(1), "a");
        linter.report(Rule::InvalidDefinitionDescription, Lines::one(1), "b");
        assert_eq!(linter.error(), None);
        let local = linter.with_comments(&["check=skip=UndefinedVar".into()]);
        local.report(Rule::UndefinedVar, Lines::one(2), "c");
        linter.report(Rule::UndefinedVar, Lines::one(3), "d");
        assert_eq!(linter.warnings().len(), 1);
        assert_eq!(linter.warnings()[0].short(), "UndefinedVar: d (line 3)");
        assert_eq!(
            linter.error().unwrap(),
            "lint violation found for rules: UndefinedVar"
        );
    }

    #[test]
    fn wrong_options_are_named() {
        assert_eq!(
            LintConfig::parse("skipp=a"),
            Err("invalid check option \"skipp\"".into())
        );
        assert!(LintConfig::parse("skip").is_err());
        assert!(LintConfig::parse("error=maybe").is_err());
    }
}
