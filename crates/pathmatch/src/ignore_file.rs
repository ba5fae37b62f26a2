//! Reading `.dockerignore` files.

use crate::clean_path;

/// The patterns of an ignore file, one a line, cleaned, leading slashes removed, `!` kept in front.
///
/// A byte order mark is skipped; lines that start with `#` are comments; blank lines are nothing.
pub fn read_ignore_file(data: &[u8]) -> Vec<String> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    String::from_utf8_lossy(data)
        .split('\n')
        .filter(|line| !line.starts_with('#'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", relative(rest.trim())),
            None => relative(line),
        })
        .collect()
}

/// The pattern relative to the context's root.
fn relative(pattern: &str) -> String {
    if pattern.is_empty() {
        return String::new();
    }
    let cleaned = clean_path(pattern);
    match cleaned.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => cleaned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_slashes_are_normalised() {
        let file =
            b"\xef\xbb\xbf# no\n\n test1 \r\n/test2\n/a/file/here\n  # kept\n! /x/../y\nlastfile";
        assert_eq!(
            read_ignore_file(file),
            ["test1", "test2", "a/file/here", "# kept", "!y", "lastfile"]
        );
    }

    #[test]
    fn ignore_files_are_cleaned() {
        let text = b"\xef\xbb\xbf# c\n/a/./b/\n\n  x  \n! /y/\n!\n./z\r\n /\n";
        assert_eq!(read_ignore_file(text), ["a/b", "x", "!y", "!", "z", "/"]);
    }
}
