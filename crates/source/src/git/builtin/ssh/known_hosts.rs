//! Keys by which hosts are known, in the format of OpenSSH's `known_hosts`.
//!
//! Format: the section SSH_KNOWN_HOSTS FILE FORMAT of sshd(8). Lines of authorities that sign keys of hosts
//! are not considered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use super::address::DEFAULT_PORT;

/// The lines of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct HostKeys(Vec<Line>);

#[derive(Clone, Debug)]
struct Line {
    /// Names and patterns, with commas between them, or one name's hash.
    hosts: String,
    is_revoked: bool,
    blob: Vec<u8>,
}

/// What is known of a key that a host has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the host's.
    Known,
    /// The host is known by another key of this type.
    Changed,
    /// No key of this type is known of the host.
    Unknown,
    /// It counts no more.
    Revoked,
}

impl HostKeys {
    /// Reads the lines; those that are none do not count.
    pub(super) fn parse(text: &str) -> HostKeys {
        HostKeys(text.lines().filter_map(Line::parse).collect())
    }

    /// What is known of a key, as it is on the wire, of a host.
    pub(super) fn verdict(&self, host: &str, port: u16, blob: &[u8]) -> Verdict {
        let revoked = |line: &&Line| line.is_revoked && line.blob == blob;
        let mut of_host = self.of(host, port);
        if of_host.any(|line| revoked(&line)) {
            return Verdict::Revoked;
        }
        let verdict = |name: &str| {
            let (mut known, mut changed) = (false, false);
            for line in self.named(name).filter(|line| !line.is_revoked) {
                known |= line.blob == blob;
                changed |= line.blob != blob && key_type(&line.blob) == key_type(blob);
            }
            match (known, changed) {
                (true, _) => Verdict::Known,
                (_, true) => Verdict::Changed,
                _ => Verdict::Unknown,
            }
        };
        match verdict(&full_name(host, port)) {
            // A key of the host itself counts for its other ports.
            Verdict::Unknown if port != DEFAULT_PORT && verdict(host) == Verdict::Known => {
                Verdict::Known
            }
            verdict => verdict,
        }
    }

    /// The types of keys by which a host is known.
    pub(super) fn key_types(&self, host: &str, port: u16) -> Vec<String> {
        let lines = self.of(host, port).filter(|line| !line.is_revoked);
        lines.filter_map(|line| key_type(&line.blob)).collect()
    }

    fn of(&self, host: &str, port: u16) -> impl Iterator<Item = &Line> {
        let full = full_name(host, port);
        let host = host.to_owned();
        self.0
            .iter()
            .filter(move |line| line.names(&full) || line.names(&host))
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Line> {
        self.0.iter().filter(move |line| line.names(name))
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let mut words = line.split_whitespace().peekable();
        let marker = words.next_if(|word| word.starts_with('@'));
        if marker.is_some_and(|marker| marker != "@revoked") {
            return None;
        }
        let (hosts, _type, key) = (words.next()?, words.next()?, words.next()?);
        Some(Line {
            hosts: hosts.to_owned(),
            is_revoked: marker.is_some(),
            blob: BASE64.decode(key).ok()?,
        })
    }

    /// Whether the line is of the host of that name.
    fn names(&self, name: &str) -> bool {
        if let Some(hashed) = self.hosts.strip_prefix("|1|") {
            return is_hash_of(hashed, name).unwrap_or(false);
        }
        let mut found = false;
        for pattern in self.hosts.split(',') {
            match pattern.strip_prefix('!') {
                Some(pattern) if fits(pattern, name) => return false,
                Some(_) => {}
                None => found |= fits(pattern, name),
            }
        }
        found
    }
}

/// The name of a host in such a file: with its port, if that is not the usual one.
pub(super) fn full_name(host: &str, port: u16) -> String {
    match port {
        DEFAULT_PORT => host.to_owned(),
        port => format!("[{host}]:{port}"),
    }
}

/// The first word of a key on the wire, which is its type.
fn key_type(blob: &[u8]) -> Option<String> {
    let (length, rest) = blob.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let name = std::str::from_utf8(rest.get(..length)?).ok()?;
    Some(name.to_owned())
}

/// `salt|hash`, both in base64.
fn is_hash_of(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (BASE64.decode(salt).ok()?, BASE64.decode(hash).ok()?);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    Some(hmac::verify(&key, name.as_bytes(), &hash).is_ok())
}

/// Whether a name fits a pattern with `*` and `?`, whatever the case of letters.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut of) = (0, 0);
    // Where the last `*` stands, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, of));
                at += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&name[of]) => {
                at += 1;
                of += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    of = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str, content: &str) -> Vec<u8> {
        let mut blob = Vec::new();
        for part in [kind, content] {
            blob.extend((part.len() as u32).to_be_bytes());
            blob.extend(part.as_bytes());
        }
        blob
    }

    fn line(hosts: &str, kind: &str, content: &str) -> String {
        format!(
            "{hosts} {kind} {} comment\n",
            BASE64.encode(key(kind, content))
        )
    }

    #[test]
    fn a_key_is_known_changed_or_unknown() {
        let keys = HostKeys::parse(&format!(
            "# nothing\n\nnonsense\n{}{}",
            line("h,[h]:2222", "ssh-ed25519", "a"),
            line("h", "ssh-rsa", "r"),
        ));
        let of = |host: &str, port, kind: &str, content: &str| {
            keys.verdict(host, port, &key(kind, content))
        };
        assert_eq!(of("h", 22, "ssh-ed25519", "a"), Verdict::Known);
        assert_eq!(of("h", 22, "ssh-ed25519", "b"), Verdict::Changed);
        assert_eq!(of("h", 22, "ecdsa", "a"), Verdict::Unknown);
        assert_eq!(of("other", 22, "ssh-ed25519", "a"), Verdict::Unknown);
        assert_eq!(of("h", 2222, "ssh-ed25519", "a"), Verdict::Known);
        assert_eq!(of("h", 2222, "ssh-ed25519", "b"), Verdict::Changed);
        // By the name without the port, but only for the better.
        assert_eq!(of("h", 2222, "ssh-rsa", "r"), Verdict::Known);
        assert_eq!(of("h", 2222, "ssh-rsa", "s"), Verdict::Unknown);
        assert_eq!(keys.key_types("h", 22), ["ssh-ed25519", "ssh-rsa"]);
        assert!(keys.key_types("other", 22).is_empty());
    }

    #[test]
    fn names_are_patterns_and_hashes() {
        let fits = |hosts: &str, host: &str| {
            let keys = HostKeys::parse(&line(hosts, "k", "a"));
            keys.verdict(host, 22, &key("k", "a")) == Verdict::Known
        };
        assert!(fits("*.example.org", "git.example.org"));
        assert!(fits("g?t.*,x", "git.example.org"));
        assert!(!fits("*.example.org,!git.*", "git.example.org"));
        assert!(!fits("*.example.org", "example.org"));
        assert!(fits("GIT", "git"));
        // Made by `ssh-keygen -H` of `example.com`.
        let hashed = "|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak=";
        assert!(fits(hashed, "example.com"));
        assert!(!fits(hashed, "example.org"));
        assert!(!fits("|1|nonsense", "example.org"));
    }

    #[test]
    fn a_revoked_key_is_refused_also_where_it_is_known() {
        let text = line("h", "k", "a");
        let keys = HostKeys::parse(&format!("{text}@revoked {}", line("*", "k", "a")));
        assert_eq!(keys.verdict("h", 22, &key("k", "a")), Verdict::Revoked);
        // An authority's key is not the host's own.
        let keys = HostKeys::parse(&format!("@cert-authority {text}"));
        assert_eq!(keys.verdict("h", 22, &key("k", "a")), Verdict::Unknown);
    }
}
