//! Differences that stand in the ledger of ARCHITECTURE.md.

use regex::Regex;

use super::super::{Built, error_line, same_line};

/// Whether two outcomes differ only in what the ledger says.
pub fn is_known(ours: &Built, stock: &Built) -> bool {
    match (ours, stock) {
        (Ok(ours), Ok(stock)) => {
            let lines = ours.iter().zip(stock);
            ours.len() == stock.len() && lines.fold(true, |all, (a, b)| all & is_known_line(a, b))
        }
        (Err(ours), Err(stock)) => is_known_error(&error_line(ours), &error_line(stock)),
        (Ok(_), Err(stock)) => is_refused_by_stock(&error_line(stock)),
        (Err(_), Ok(_)) => false,
    }
}

fn is_known_line(ours: &str, stock: &str) -> bool {
    // Variables of stock's own tracing.
    let tracing = Regex::new(r"(OTEL_[A-Z_]+|TRACEPARENT)=[^\\]*\\n").unwrap();
    let stock = tracing.replace_all(stock, "");
    // Layers of stock keep no attributes of users.
    let attribute = Regex::new(r" user\.[a-z]+=\[[0-9, ]+\]").unwrap();
    same_line(ours, &stock)
        || (!attribute.is_match(&stock) && same_line(&attribute.replace_all(ours, ""), &stock))
}

/// What stock cannot key. Whoever is not in a file that is not there is unknown, as in an empty one.
fn is_refused_by_stock(stock: &str) -> bool {
    let missing =
        Regex::new(r#"failed to calculate checksum of ref .*: "/etc/(passwd|group)": not found"#);
    missing.unwrap().is_match(stock)
}

/// Failures for the same reason, told of another path or by another step of the same operation.
fn is_known_error(ours: &str, stock: &str) -> bool {
    is_refused_by_stock(stock) || reason(ours).is_some() && reason(ours) == reason(stock)
}

fn reason(error: &str) -> Option<&'static str> {
    let reasons = [
        (": not found", "missing"),
        ("no such file or directory", "missing"),
        ("file exists", "exists"),
        ("not a directory", "no directory"),
        ("is a directory", "directory"),
        ("directory not empty", "not empty"),
    ];
    let found = reasons.iter().find(|(end, _)| error.ends_with(end));
    found.map(|(_, reason)| *reason)
}
