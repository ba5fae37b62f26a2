//! `HEALTHCHECK`.

use crate::flags::{FlagKind, Flags};
use crate::instruction::Healthcheck;
use crate::parser::Node;
use crate::quote::{duration, parse_duration, quoted};

pub(super) fn healthcheck(node: &Node) -> Result<Healthcheck, String> {
    let Some((kind, command)) = node.arguments.words.split_first() else {
        return Err("HEALTHCHECK requires at least one argument".to_owned());
    };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !command.is_empty() {
            return Err("HEALTHCHECK NONE takes no arguments".to_owned());
        }
        return Ok(Healthcheck {
            test: vec![kind],
            ..Healthcheck::default()
        });
    }
    let names = [
        "interval",
        "retries",
        "start-interval",
        "start-period",
        "timeout",
    ];
    let mut flags = Flags::parse(&node.flags, &names.map(|name| (name, FlagKind::Text)))?;
    if kind != "CMD" {
        return Err(format!(
            "Unknown type {} in HEALTHCHECK (try CMD)",
            quoted(&kind)
        ));
    }
    if command.is_empty() {
        return Err("Missing command after HEALTHCHECK CMD".to_owned());
    }
    let first = if node.arguments.json {
        "CMD"
    } else {
        "CMD-SHELL"
    };
    let mut test = vec![first.to_owned()];
    test.extend(command.iter().cloned());
    let mut interval = |name: &str| health_interval(name, &flags.text(name));
    Ok(Healthcheck {
        test,
        interval: interval("interval")?,
        timeout: interval("timeout")?,
        start_period: interval("start-period")?,
        start_interval: interval("start-interval")?,
        retries: health_retries(&flags.text("retries"))?,
    })
}

fn health_interval(name: &str, text: &str) -> Result<i64, String> {
    const SHORTEST: i64 = 1_000_000;
    if text.is_empty() {
        return Ok(0);
    }
    let value = parse_duration(text)?;
    if value != 0 && value < SHORTEST {
        return Err(format!(
            "Interval {} cannot be less than {}",
            quoted(name),
            duration(SHORTEST)
        ));
    }
    Ok(value)
}

fn health_retries(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let failed = |what: &str| format!("strconv.ParseInt: parsing {}: {what}", quoted(text));
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(failed("invalid syntax"));
    }
    let value: i32 = text.parse().map_err(|_| failed("value out of range"))?;
    if value < 0 {
        return Err(format!("--retries cannot be negative ({value})"));
    }
    Ok(i64::from(value))
}
