//! `os/architecture[/variant]`, with containerd's normalisation.
//! Source: <https://github.com/containerd/platforms>.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a binary runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name.
    pub architecture: String,
    /// GOOS name.
    pub os: String,
    /// Version of the operating system, for Windows.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Features of the operating system, for Windows.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// GOARM or similar; empty for the architecture's usual one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Why a text is not a platform, in containerd's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// A single word that is neither.
    #[error("{0:?}: unknown operating system or architecture: invalid argument")]
    Unknown(String),
    /// Too many parts.
    #[error("{0:?}: cannot parse platform specifier: invalid argument")]
    Parts(String),
    /// The first part is no word.
    #[error(
        "{part:?} is an invalid OS component of {text:?}: OSAndVersion specifier component must match {OS_PATTERN:?}: invalid argument"
    )]
    Os {
        /// The first part.
        part: String,
        /// The whole.
        text: String,
    },
    /// Another part is no word.
    #[error(
        "{part:?} is an invalid component of {text:?}: platform specifier component must match {PART_PATTERN:?}: invalid argument"
    )]
    Part {
        /// The part.
        part: String,
        /// The whole.
        text: String,
    },
}

/// As containerd prints its patterns in errors; here words are looked at by hand.
const OS_PATTERN: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";
const PART_PATTERN: &str = r"^[A-Za-z0-9_.-]+$";

const OSES: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// A platform of these three words, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        }
        .normalized()
    }

    /// What this process runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::new("linux", architecture, "")
    }

    /// The same platform in the form containerd compares by: `x86_64` is `amd64`, `arm64/v8` is
    /// `arm64`, `arm` is `arm/v7`.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// How well an image of platform `other` serves somebody who wants this one: `None` when it
    /// does not run, else smaller is better (0 is the very platform).
    pub fn match_rank(&self, other: &Platform) -> Option<u32> {
        let (want, have) = (self.clone().normalized(), other.clone().normalized());
        if want.os != have.os {
            return None;
        }
        want.compatible_variants()
            .iter()
            .position(|(architecture, variant)| {
                *architecture == have.architecture && *variant == have.variant
            })
            .map(|rank| rank as u32)
    }

    /// The architectures and variants that run here, best first.
    fn compatible_variants(&self) -> Vec<(String, String)> {
        let of = |variants: &[&str]| {
            variants
                .iter()
                .map(|v| (self.architecture.clone(), (*v).to_owned()))
                .collect()
        };
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("arm", "v8") => of(&["v8", "v7", "v6", "v5"]),
            ("arm", "v7") => of(&["v7", "v6", "v5"]),
            ("arm", "v6") => of(&["v6", "v5"]),
            ("amd64", "v4") => of(&["v4", "v3", "v2", ""]),
            ("amd64", "v3") => of(&["v3", "v2", ""]),
            ("amd64", "v2") => of(&["v2", ""]),
            ("arm64", variant) => {
                let mut all: Vec<(String, String)> = if variant.is_empty() {
                    of(&[""])
                } else {
                    of(&[variant, ""])
                };
                all.extend(["v8", "v7", "v6", "v5"].map(|v| ("arm".to_owned(), v.to_owned())));
                all
            }
            (_, variant) => of(&[variant]),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let os = if self.os.is_empty() {
            "unknown"
        } else {
            &self.os
        };
        write!(f, "{os}")?;
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os`, `architecture`, `os/architecture` or `os/architecture/variant`; a single word
    /// is completed from this machine's own platform.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError::Unknown(text.to_owned());
        let word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        // What comes after a third slash belongs to the fourth part, which is no word then.
        let parts: Vec<&str> = text.trim().splitn(4, '/').collect();
        if let Some(index) = parts.iter().position(|part| !word(part)) {
            let (part, text) = (parts[index].to_owned(), text.to_owned());
            return Err(match index {
                0 => PlatformError::Os { part, text },
                _ => PlatformError::Part { part, text },
            });
        }
        match parts.as_slice() {
            ["local"] => Ok(Platform::host()),
            [one] => {
                let platform = Platform::new(one, "", "");
                if OSES.contains(&platform.os.as_str()) {
                    let host = Platform::host();
                    return Ok(Platform::new(
                        &platform.os,
                        &host.architecture,
                        &host.variant,
                    ));
                }
                let platform = Platform::new("linux", one, "");
                if ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    return Ok(platform);
                }
                Err(bad())
            }
            [os, architecture] => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, variant)),
            _ => Err(PlatformError::Parts(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_parts_are_told_as_containerd_does() {
        let told = |text: &str| text.parse::<Platform>().unwrap_err().to_string();
        assert_eq!(
            told("a/b/c/d"),
            "\"a/b/c/d\": cannot parse platform specifier: invalid argument"
        );
        assert_eq!(
            told("a/b/c/d/e"),
            "\"d/e\" is an invalid component of \"a/b/c/d/e\": platform specifier component must \
             match \"^[A-Za-z0-9_.-]+$\": invalid argument"
        );
    }

    #[test]
    fn platforms_are_read_normalised_and_printed() {
        for (text, printed) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/amd64/v2", "linux/amd64/v2"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), printed);
        }
        assert!("".parse::<Platform>().is_err());
        assert!("bogus".parse::<Platform>().is_err());
        assert!("a/b/c/d".parse::<Platform>().is_err());
    }

    #[test]
    fn a_better_variant_ranks_before_a_plainer_one() {
        let want: Platform = "linux/arm/v7".parse().unwrap();
        let rank = |text: &str| want.match_rank(&text.parse().unwrap());
        assert_eq!(rank("linux/arm/v7"), Some(0));
        assert!(rank("linux/arm/v6") > Some(0));
        assert_eq!(rank("linux/arm64"), None);
    }
}
