//! Text that must not be printed by accident.

use std::fmt;

/// A value whose `Debug` and `Display` never show it: credentials, tokens, secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself; the name of the method is what a reviewer looks for.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xxxxx")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xxxxx")
    }
}

/// The URL with the password of its user part replaced by `xxxxx`; other text comes back as it is.
pub fn redact_url(url: &str) -> String {
    let Some(scheme_end) = url.find("://") else {
        return url.to_owned();
    };
    let authority_start = scheme_end + 3;
    let authority_end = url[authority_start..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| authority_start + at);
    let authority = &url[authority_start..authority_end];
    let Some(at) = authority.rfind('@') else {
        return url.to_owned();
    };
    let user = match authority[..at].split_once(':') {
        Some((user, _)) => format!("{user}:xxxxx"),
        None => authority[..at].to_owned(),
    };
    format!(
        "{}{user}{}{}",
        &url[..authority_start],
        &authority[at..],
        &url[authority_end..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden() {
        assert_eq!(
            redact_url("https://me:pw@host/x?y=1"),
            "https://me:xxxxx@host/x?y=1"
        );
        assert_eq!(redact_url("https://token@host/x"), "https://token@host/x");
        assert_eq!(redact_url("git@github.com:a/b"), "git@github.com:a/b");
        assert_eq!(
            format!("{:?} {}", Secret::new("a"), Secret::new("a")),
            "xxxxx xxxxx"
        );
    }
}
