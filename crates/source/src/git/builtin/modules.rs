//! Which submodules a repository has, and where they come from.
//!
//! Format: <https://git-scm.com/docs/gitmodules>, <https://git-scm.com/docs/git-config#_syntax>.

use diag::{Error, Result};

/// What `.gitmodules` says of a submodule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Submodule {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) url: String,
    /// Whether it is left out unless somebody asks for it.
    pub(super) is_off: bool,
}

/// Reads `.gitmodules`; what it has that is not about submodules does not count.
pub(super) fn parse_modules(text: &str) -> Vec<Submodule> {
    let mut all: Vec<Submodule> = Vec::new();
    let mut in_module = false;
    let text = text.replace("\\\r\n", "").replace("\\\n", "");
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default().trim();
            let name = section
                .split_once(char::is_whitespace)
                .filter(|(kind, _)| kind.eq_ignore_ascii_case("submodule"))
                .map(|(_, name)| value_of(name));
            in_module = name.is_some();
            if let Some(name) = name {
                all.retain(|known| known.name != name || !known.path.is_empty());
                all.push(Submodule {
                    name,
                    ..Submodule::default()
                });
            }
            continue;
        }
        let (Some(module), Some((key, value))) = (all.last_mut(), line.split_once('=')) else {
            continue;
        };
        if !in_module {
            continue;
        }
        let value = value_of(value);
        match key.trim().to_ascii_lowercase().as_str() {
            "path" => module.path = value,
            "url" => module.url = value,
            "update" => module.is_off = value == "none",
            _ => {}
        }
    }
    all
}

/// A value without comments and quotes.
fn value_of(text: &str) -> String {
    let (mut out, mut quoted) = (String::new(), false);
    let mut chars = text.trim().chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '#' | ';' if !quoted => break,
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                other => out.extend(other),
            },
            c => out.push(c),
        }
    }
    out.trim_end().to_owned()
}

impl Submodule {
    /// Refuses names and addresses by which something else would be reached or overwritten.
    pub(super) fn check(&self) -> Result<()> {
        let inside = !self.name.is_empty()
            && !self.name.starts_with('/')
            && !self.name.split(['/', '\\']).any(|part| part == "..");
        if !inside {
            let text = format!("ignoring suspicious submodule name: {}", self.name);
            return Err(Error::invalid(text));
        }
        if self.url.starts_with('-') || self.url.contains('\n') {
            let text = format!(
                "ignoring '{}' which may be interpreted as an option",
                self.url
            );
            return Err(Error::invalid(text));
        }
        Ok(())
    }

    /// The address, if it is relative seen from the repository that names it.
    pub(super) fn address(&self, parent: &str) -> Result<String> {
        if !self.url.starts_with("./") && !self.url.starts_with("../") {
            return Ok(self.url.clone());
        }
        let mut base = parent.trim_end_matches('/').to_owned();
        let mut rest = self.url.as_str();
        let mut separator = '/';
        loop {
            if let Some(more) = rest.strip_prefix("./") {
                rest = more;
            } else if let Some(more) = rest.strip_prefix("../") {
                rest = more;
                let cut = match (base.rfind('/'), base.rfind(':')) {
                    (Some(at), _) => Some((at, '/')),
                    (None, at) => at.map(|at| (at, ':')),
                };
                let (at, found) = cut
                    .filter(|(at, _)| !base[..*at].ends_with('/'))
                    .ok_or_else(|| {
                        Error::invalid(format!("cannot strip one component off url '{base}'"))
                    })?;
                separator = found;
                base.truncate(at);
            } else {
                break;
            }
        }
        Ok(format!("{base}{separator}{}", rest.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read() {
        let text = "[core]\n\tpath = no\n[submodule \"a b\"]\n\tpath = \"x y\" # here\n\turl = ../b.git\n\
                    ; nothing\n[submodule \"c\"]\n url=https://h/c\n path = c\n update = none\n";
        let all = parse_modules(text);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name.as_str(), all[0].path.as_str()), ("a b", "x y"));
        assert_eq!((all[1].url.as_str(), all[1].is_off), ("https://h/c", true));
    }

    #[test]
    fn relative_addresses_are_seen_from_the_parent() {
        let address = |parent: &str, url: &str| {
            let module = Submodule {
                url: url.into(),
                ..Submodule::default()
            };
            module.address(parent).unwrap()
        };
        assert_eq!(
            address("https://h/a/b.git", "../c.git"),
            "https://h/a/c.git"
        );
        assert_eq!(address("https://h/a/b/", "../../c/"), "https://h/c");
        assert_eq!(address("https://h/a", "./c"), "https://h/a/c");
        assert_eq!(address("git@h:a/b", "../c"), "git@h:a/c");
        assert_eq!(address("git@h:b", "../c"), "git@h:c");
        assert_eq!(address("https://h/a", "ssh://x/y"), "ssh://x/y");
        let out = Submodule {
            url: "../../../c".into(),
            ..Submodule::default()
        };
        assert!(out.address("https://h/a").is_err());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for (name, url, fits) in [
            ("a", "https://h", true),
            ("../a", "https://h", false),
            ("a/../../b", "https://h", false),
            ("/a", "https://h", false),
            ("a", "-u", false),
        ] {
            let module = Submodule {
                name: name.into(),
                url: url.into(),
                ..Submodule::default()
            };
            assert_eq!(module.check().is_ok(), fits, "{name} {url}");
        }
    }
}
