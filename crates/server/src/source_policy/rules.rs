//! Source policies of requests: rules that allow, deny or replace the sources of a build.
//!
//! Within a policy the last rule that matches decides whether a source is allowed. A rule that
//! replaces something ends the round, and everything is looked at again from the first policy, until
//! a round changes nothing. What no rule matches is allowed.

use std::sync::Arc;

use diag::{Code, Context, Error, Result};
use llb::SourceOp;
use proto::sourcepolicy::{Policy, PolicyAction, Rule, Update};

use super::selector::Selector;

/// How often one source is replaced.
const CHANGES_MAX: usize = 20;

/// Policies in the order in which they are looked at; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(Vec<Arc<Vec<ReadRule>>>);

#[derive(Debug)]
struct ReadRule {
    action: i32,
    selector: Selector,
    update: Option<Update>,
}

impl Rules {
    /// The rules of policies as they came over the wire.
    ///
    /// # Errors
    ///
    /// A rule that does not say what it is for. Patterns that cannot be read are errors only when they
    /// are compared with a source.
    pub(crate) fn read(policies: &[Policy]) -> Result<Self> {
        let read = |policy: &Policy| {
            let rules = policy.rules.iter().map(ReadRule::read);
            Ok(Arc::new(rules.collect::<Result<_>>()?))
        };
        let policies = policies.iter().filter(|policy| !policy.rules.is_empty());
        Ok(Rules(policies.map(read).collect::<Result<_>>()?))
    }

    /// These rules, and then others.
    pub(crate) fn then(&self, others: &Rules) -> Rules {
        Rules(self.0.iter().chain(&others.0).cloned().collect())
    }

    /// True if there is no rule.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes a source as the rules want it.
    ///
    /// # Errors
    ///
    /// The source, or what it became, is denied; it is replaced again and again; a rule makes no sense.
    pub(crate) fn apply(&self, source: &mut SourceOp) -> Result<()> {
        for _ in 0..=CHANGES_MAX {
            if !self.round(source)? {
                return Ok(());
            }
        }
        Err(Error::invalid("too many operations").context("too many mutations on a single source"))
    }

    /// Looks at all policies until one replaces something; true if one did.
    fn round(&self, source: &mut SourceOp) -> Result<bool> {
        for policy in &self.0 {
            if judge(policy, source)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl ReadRule {
    fn read(rule: &Rule) -> Result<Self> {
        let selector = rule.selector.clone();
        let selector = selector.ok_or_else(|| Error::invalid("invalid nil selector in policy"))?;
        Ok(ReadRule {
            action: rule.action,
            selector: Selector::new(selector),
            update: rule.updates.clone(),
        })
    }

    /// Replaces what the rule names; true if that changed something.
    fn convert(&self, source: &mut SourceOp) -> Result<bool> {
        let update = self.update.as_ref();
        let update =
            update.ok_or_else(|| Error::invalid("missing destination for convert rule"))?;
        let template = match update.identifier.as_str() {
            "" => self.selector.identifier(),
            identifier => identifier,
        };
        let identifier = self.selector.format(&source.identifier, template);
        let identifier = identifier.context("error formatting destination")?;
        let mut changed = false;
        if !identifier.is_empty() && identifier != source.identifier {
            source.identifier = identifier;
            changed = true;
        }
        for (name, value) in &update.attrs {
            let before = source.attrs.insert(name.clone(), value.clone());
            changed |= before.as_ref() != Some(value);
        }
        Ok(changed)
    }
}

/// What one policy makes of a source; true if it replaced something.
fn judge(policy: &[ReadRule], source: &mut SourceOp) -> Result<bool> {
    let mut denied = false;
    for rule in policy {
        let matched = rule.selector.matches(source);
        if !matched.context("error matching source policy")? {
            continue;
        }
        match PolicyAction::try_from(rule.action) {
            Ok(PolicyAction::Allow) => denied = false,
            Ok(PolicyAction::Deny) => denied = true,
            Ok(PolicyAction::Convert) => {
                let changed = rule.convert(source);
                if changed.context("error mutating source policy")? {
                    return Ok(true);
                }
            }
            Err(_) => {
                return Err(Error::invalid(format!(
                    "source policy: rule {} {}: unknown type {:?}",
                    rule.action,
                    rule.selector.identifier(),
                    diag::redact_url(&source.identifier)
                )));
            }
        }
    }
    match denied {
        false => Ok(false),
        true => Err(
            Error::new(Code::PermissionDenied, "source denied by policy").context(format!(
                "source {:?} denied by policy",
                diag::redact_url(&source.identifier)
            )),
        ),
    }
}

#[cfg(test)]
mod tests;
