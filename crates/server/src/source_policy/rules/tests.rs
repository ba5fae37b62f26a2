use proto::sourcepolicy::{AttrConstraint, AttrMatch, MatchType, Selector};

use super::*;

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:1.34";

fn rule(action: PolicyAction, kind: MatchType, identifier: &str) -> Rule {
    Rule {
        action: action.into(),
        selector: Some(Selector {
            identifier: identifier.to_owned(),
            match_type: kind.into(),
            constraints: Vec::new(),
        }),
        updates: None,
    }
}

fn allow(identifier: &str) -> Rule {
    rule(PolicyAction::Allow, MatchType::Wildcard, identifier)
}

fn deny(identifier: &str) -> Rule {
    rule(PolicyAction::Deny, MatchType::Wildcard, identifier)
}

fn convert(kind: MatchType, from: &str, to: &str) -> Rule {
    Rule {
        updates: Some(Update {
            identifier: to.to_owned(),
            attrs: Default::default(),
        }),
        ..rule(PolicyAction::Convert, kind, from)
    }
}

fn with_constraint(mut rule: Rule, condition: AttrMatch, value: &str) -> Rule {
    let selector = rule.selector.as_mut().expect("a selector");
    selector.constraints.push(AttrConstraint {
        key: "colour".to_owned(),
        value: value.to_owned(),
        condition: condition.into(),
    });
    rule
}

fn source(identifier: &str) -> SourceOp {
    SourceOp {
        identifier: identifier.to_owned(),
        attrs: [("colour".to_owned(), "blue".to_owned())].into(),
    }
}

/// What the rules of one policy make of an identifier.
fn outcome(rules: Vec<Rule>, identifier: &str) -> Result<String, String> {
    outcome_of(vec![rules], identifier)
}

fn outcome_of(policies: Vec<Vec<Rule>>, identifier: &str) -> Result<String, String> {
    let wire = policies
        .into_iter()
        .map(|rules| Policy { version: 1, rules });
    let rules = Rules::read(&wire.collect::<Vec<_>>()).map_err(|error| error.to_string())?;
    let mut source = source(identifier);
    match rules.apply(&mut source) {
        Ok(()) => Ok(source.identifier),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_last_rule_that_matches_decides() {
    let denied = format!("source {BUSYBOX:?} denied by policy: source denied by policy");
    for (rules, allowed) in [
        (vec![], true),
        (vec![deny("docker-image://*")], false),
        (vec![deny("docker-image://*"), allow(BUSYBOX)], true),
        (vec![allow(BUSYBOX), deny("docker-image://*")], false),
        (vec![deny("docker-image://*busybox")], true),
        (vec![deny("git://*")], true),
    ] {
        let wanted = match allowed {
            true => Ok(BUSYBOX.to_owned()),
            false => Err(denied.clone()),
        };
        assert_eq!(outcome(rules.clone(), BUSYBOX), wanted, "{rules:?}");
    }
}

#[test]
fn one_policy_does_not_allow_what_another_denies() {
    let policies = vec![vec![deny(BUSYBOX)], vec![allow(BUSYBOX)]];
    assert!(outcome_of(policies, BUSYBOX).is_err());
}

#[test]
fn identifiers_are_compared_whole_or_as_patterns() {
    use MatchType::{Exact, Regex, Wildcard};
    for (kind, pattern, matches) in [
        (Exact, BUSYBOX, true),
        (Exact, "docker-image://docker.io/library/busybox:*", false),
        (Wildcard, "docker-image://docker.io/library/busybox:*", true),
        (Wildcard, "docker-image://*/busybox:*", true),
        (
            Wildcard,
            "docker-image://docker.io/library/busybo.:1.34",
            false,
        ),
        (Wildcard, "busybox", false),
        (Regex, "busybox", true),
        (Regex, "^docker-image://.*:[0-9.]+$", true),
        (Regex, "^busybox", false),
        // What is equal matches whatever it would mean as a pattern.
        (Regex, BUSYBOX, true),
    ] {
        let denied = outcome(vec![rule(PolicyAction::Deny, kind, pattern)], BUSYBOX).is_err();
        assert_eq!(denied, matches, "{kind:?} {pattern}");
    }
}

#[test]
fn attributes_are_compared_before_identifiers() {
    use AttrMatch::{Equal, Matches, Notequal};
    for (condition, value, holds) in [
        (Equal, "blue", true),
        (Equal, "red", false),
        (Notequal, "red", true),
        (Notequal, "blue", false),
        (Matches, "^bl", true),
        (Matches, "red|green", false),
    ] {
        let rules = vec![with_constraint(deny(BUSYBOX), condition, value)];
        assert_eq!(
            outcome(rules, BUSYBOX).is_err(),
            holds,
            "{condition:?} {value}"
        );
    }
    let absent = vec![with_constraint(deny("*"), Equal, "")];
    let rules = Rules::read(&[Policy {
        version: 1,
        rules: absent,
    }])
    .unwrap();
    let mut bare = SourceOp::default();
    assert!(rules.apply(&mut bare).is_err(), "absent is empty");
}

#[test]
fn what_was_matched_goes_into_the_new_identifier() {
    use MatchType::{Exact, Regex, Wildcard};
    let alpine = "docker-image://docker.io/library/alpine";
    for (kind, from, to, made) in [
        (
            Exact,
            BUSYBOX,
            "docker-image://x:$1",
            "docker-image://x:$1".to_owned(),
        ),
        (
            Wildcard,
            "docker-image://docker.io/library/busybox:*",
            "docker-image://docker.io/library/alpine:${1}-slim",
            format!("{alpine}:1.34-slim"),
        ),
        (
            Wildcard,
            "docker-image://*/library/*:*",
            "docker-image://$1/mirror/$2:$3",
            "docker-image://docker.io/mirror/busybox:1.34".to_owned(),
        ),
        (
            Regex,
            "library/([a-z]+):",
            "mirror/$1:v",
            "docker-image://docker.io/mirror/busybox:v1.34".to_owned(),
        ),
    ] {
        let rules = vec![convert(kind, from, to)];
        assert_eq!(outcome(rules, BUSYBOX), Ok(made), "{from} to {to}");
    }
}

#[test]
fn what_a_source_becomes_is_judged_again() {
    let to = "docker-image://docker.io/library/alpine:1";
    let replace = || convert(MatchType::Exact, BUSYBOX, to);
    let error = outcome(vec![deny(to), replace()], BUSYBOX).unwrap_err();
    assert!(error.contains("alpine"), "{error}");
    let error = outcome_of(vec![vec![replace()], vec![deny(to)]], BUSYBOX).unwrap_err();
    assert!(error.contains("alpine"), "{error}");
    // What is denied can be saved by being replaced.
    let saved = outcome(vec![deny(BUSYBOX), replace()], BUSYBOX);
    assert_eq!(saved.as_deref(), Ok(to));
}

#[test]
fn attributes_are_set_and_an_unchanged_source_is_not_looked_at_again() {
    let mut set = convert(MatchType::Exact, BUSYBOX, BUSYBOX);
    let update = set.updates.as_mut().expect("an update");
    update
        .attrs
        .insert("image.checksum".into(), "sha256:0".into());
    let policy = Policy {
        version: 1,
        rules: vec![set],
    };
    let mut source = source(BUSYBOX);
    Rules::read(&[policy]).unwrap().apply(&mut source).unwrap();
    assert_eq!(source.identifier, BUSYBOX);
    assert_eq!(source.attrs["image.checksum"], "sha256:0");
    assert_eq!(source.attrs["colour"], "blue");
}

#[test]
fn replacing_without_end_is_given_up() {
    let endless = convert(MatchType::Regex, "^(.*)$", "${1}x");
    let error = outcome(vec![endless], BUSYBOX).unwrap_err();
    assert_eq!(
        error,
        "too many mutations on a single source: too many operations"
    );
    let twenty = convert(MatchType::Regex, "^(a{1,20})$", "${1}a");
    assert_eq!(outcome(vec![twenty], "a"), Ok("a".repeat(21)));
}

#[test]
fn rules_without_a_meaning_are_errors_when_they_are_needed() {
    let nothing = Rule::default();
    assert_eq!(
        outcome(vec![nothing], BUSYBOX).unwrap_err(),
        "invalid nil selector in policy"
    );
    let open = || rule(PolicyAction::Deny, MatchType::Regex, "busybox[");
    assert_eq!(
        outcome(vec![open()], BUSYBOX).unwrap_err(),
        "error matching source policy: error parsing regexp: unclosed character class"
    );
    assert_eq!(
        outcome(vec![deny("docker-image://**")], BUSYBOX).unwrap_err(),
        "error matching source policy: failed to translate wildcard \"docker-image://**\" to regexp: \
         invalid wildcard: \"**\""
    );
    let condition = with_constraint(deny("*"), AttrMatch::Matches, "(");
    assert!(
        outcome(vec![condition], BUSYBOX).unwrap_err().starts_with(
            "error matching source policy: invalid regex \"(\": error parsing regexp: "
        )
    );
    let target = rule(PolicyAction::Convert, MatchType::Exact, BUSYBOX);
    assert_eq!(
        outcome(vec![target], BUSYBOX).unwrap_err(),
        "error mutating source policy: missing destination for convert rule"
    );
    let mut unknown = deny(BUSYBOX);
    unknown.action = 7;
    assert_eq!(
        outcome(vec![unknown], BUSYBOX).unwrap_err(),
        format!("source policy: rule 7 {BUSYBOX}: unknown type {BUSYBOX:?}")
    );
    // A rule for others is not read.
    let other = with_constraint(open(), AttrMatch::Equal, "red");
    assert!(outcome(vec![other], BUSYBOX).is_ok());
}
