//! Names of builders and nodes.

use crate::BuilderError;

/// Checks a name and gives it in lower case, which is how it is stored.
pub fn validate_name(name: &str) -> Result<String, BuilderError> {
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if valid {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(BuilderError::InvalidName(name.to_owned()))
    }
}

const ADJECTIVES: &[&str] = &[
    "amber",
    "ancient",
    "brisk",
    "calm",
    "charred",
    "clever",
    "cosy",
    "daring",
    "eager",
    "fresh",
    "gentle",
    "golden",
    "hearty",
    "hollow",
    "iron",
    "jolly",
    "keen",
    "lively",
    "mellow",
    "merry",
    "nimble",
    "oaken",
    "patient",
    "quiet",
    "ready",
    "rustic",
    "seasoned",
    "sturdy",
    "sunny",
    "swift",
    "tidy",
    "toasted",
    "upright",
    "vivid",
    "warm",
    "watertight",
    "willing",
    "young",
];
const NOUNS: &[&str] = &[
    "adze",
    "auger",
    "barrel",
    "bilge",
    "bung",
    "butt",
    "cask",
    "chime",
    "churn",
    "cooper",
    "croze",
    "drawknife",
    "firkin",
    "gauge",
    "hogshead",
    "hoop",
    "jointer",
    "keg",
    "kilderkin",
    "mallet",
    "pin",
    "pipe",
    "puncheon",
    "rivet",
    "rundlet",
    "spigot",
    "spokeshave",
    "stave",
    "tap",
    "tierce",
    "truss",
    "tun",
    "vat",
    "whisky",
    "willow",
    "windlass",
];

/// A random name that `is_taken` does not know.
pub(crate) fn random_name(is_taken: impl Fn(&str) -> bool) -> Result<String, BuilderError> {
    for attempt in 0..6 {
        let word = |list: &[&str]| list[rand::random_range(0..list.len())].to_owned();
        let mut name = format!("{}_{}", word(ADJECTIVES), word(NOUNS));
        if attempt > 0 {
            name.push_str(&rand::random_range(0..10).to_string());
        }
        if !is_taken(&name) {
            return Ok(name);
        }
    }
    Err(BuilderError::Invalid(
        "failed to generate random name".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_start_with_a_letter_and_are_stored_in_lower_case() {
        assert_eq!(validate_name("My.Builder-1_x").unwrap(), "my.builder-1_x");
        for bad in ["", "1a", "-a", "a/b", "a b", "ä"] {
            assert_eq!(
                validate_name(bad).unwrap_err().to_string(),
                format!(
                    "invalid name {bad}, name needs to start with a letter and may not contain \
                     symbols, except ._-"
                )
            );
        }
        let name = random_name(|_| false).unwrap();
        assert_eq!(validate_name(&name).unwrap(), name);
        assert!(random_name(|_| true).is_err());
    }
}
