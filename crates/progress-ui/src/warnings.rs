//! What the builder warned about, as it is told after a build.

use std::fmt::Write as _;

use progress::VertexWarning;

use crate::colors::Color;
use crate::rawjson::warning_value;

/// The warnings without those that say the same about the same place, in the order they came.
pub fn distinct_warnings(warnings: &[VertexWarning]) -> Vec<VertexWarning> {
    let same = |a: &VertexWarning, b: &VertexWarning| {
        a.level == b.level
            && a.short == b.short
            && a.detail == b.detail
            && a.url == b.url
            && a.location == b.location
    };
    let mut distinct: Vec<VertexWarning> = Vec::new();
    for warning in warnings {
        if !distinct.iter().any(|known| same(known, warning)) {
            distinct.push(warning.clone());
        }
    }
    distinct
}

/// The block ` N warnings found (use docker --debug to expand):` with a line for each; with
/// `expand`, everything that is known of each. Empty without warnings.
pub fn warnings_block(warnings: &[VertexWarning], expand: bool, color: bool) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let mut head = match warnings.len() {
        1 => "1 warning found".to_owned(),
        count => format!("{count} warnings found"),
    };
    if !expand {
        head += " (use docker --debug to expand)";
    }
    head += ":\n";
    let mut text = "\n ".to_owned();
    match Color::parse("yellow").filter(|_| color) {
        Some(yellow) => text += &yellow.apply(&head),
        None => text += &head,
    }
    for warning in warnings {
        let _ = writeln!(text, " - {}", warning.short);
        if expand {
            expand_warning(warning, &mut text);
        }
    }
    text
}

/// The warnings as `--metadata-file` has them under `buildx.build.warnings`.
pub fn warnings_json(warnings: &[VertexWarning]) -> serde_json::Value {
    warnings.iter().map(warning_value).collect()
}

fn expand_warning(warning: &VertexWarning, text: &mut String) {
    for line in &warning.detail {
        let _ = writeln!(text, "{line}");
    }
    if !warning.url.is_empty() {
        let _ = writeln!(text, "More info: {}", warning.url);
    }
    if let Some(location) = &warning.location {
        *text += &location.excerpt();
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use oci::Digest;

    use super::*;

    fn warning(short: &str, vertex: &str) -> VertexWarning {
        VertexWarning {
            vertex: Digest::of(vertex),
            level: 1,
            short: short.into(),
            detail: vec!["detail".into()],
            url: "https://docs/x".into(),
            location: None,
        }
    }

    #[test]
    fn warnings_are_told_once_each() {
        let all = [warning("A", "1"), warning("B", "1"), warning("A", "2")];
        let distinct = distinct_warnings(&all);
        assert_eq!(
            warnings_block(&distinct, false, false),
            "\n 2 warnings found (use docker --debug to expand):\n - A\n - B\n"
        );
        assert_eq!(
            warnings_block(&distinct[..1], true, true),
            "\n \x1b[33m1 warning found:\n\x1b[0m - A\ndetail\nMore info: https://docs/x\n\n"
        );
        assert_eq!(warnings_block(&[], false, false), "");
    }
}
