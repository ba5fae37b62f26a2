//! Platform names as containerd reads them.

use dockerfile::quote::quoted;
use oci::Platform;

/// Reads `os[/architecture[/variant]]` or an architecture alone; the error is the message.
pub(crate) fn parse_platform(text: &str) -> Result<Platform, String> {
    if text.contains('*') {
        return Err(format!(
            "{}: wildcards not yet supported: invalid argument",
            quoted(text)
        ));
    }
    if text.splitn(4, '/').count() > 3 {
        return Err(format!(
            "{}: cannot parse platform specifier: invalid argument",
            quoted(text)
        ));
    }
    for (index, part) in text.split('/').enumerate() {
        let word = !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !word {
            return Err(wrong_part(part, text, index == 0));
        }
    }
    text.parse().map_err(|_| {
        format!(
            "{}: unknown operating system or architecture: invalid argument",
            quoted(text)
        )
    })
}

fn wrong_part(part: &str, text: &str, is_os: bool) -> String {
    let (part, text) = (quoted(part), quoted(text));
    if is_os {
        let form =
            quoted(r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$");
        return format!(
            "{part} is an invalid OS component of {text}: OSAndVersion specifier component must match {form}: invalid argument"
        );
    }
    let form = quoted("^[A-Za-z0-9_.-]+$");
    format!(
        "{part} is an invalid component of {text}: platform specifier component must match {form}: invalid argument"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_refused() {
        assert_eq!(
            parse_platform("linux/arm64/v8").map(|p| p.to_string()),
            Ok("linux/arm64".into())
        );
        assert!(parse_platform("linux/").is_err());
        assert!(parse_platform("").is_err());
        assert!(
            parse_platform("nothing")
                .unwrap_err()
                .contains("unknown operating system")
        );
    }
}
