//! Values of the configuration that have more than one way of writing.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};
use toml::de::DeValue;

use super::keys::words;
use crate::filters::Filters;

/// An amount of disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskSpace {
    /// Not given.
    #[default]
    Unset,
    /// Bytes.
    Bytes(i64),
    /// Percent of the disk.
    Percent(i64),
}

/// The disk that percentages are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes; 0 when that is not known.
    pub total: i64,
    /// What is free of it, in bytes.
    pub free: i64,
}

impl DiskSpace {
    /// The amount in bytes. A percentage is rounded up to whole gigabytes, as stock does; of a disk
    /// whose size is not known it is 2 GB.
    pub fn bytes(self, disk: Disk) -> i64 {
        match self {
            DiskSpace::Unset => 0,
            DiskSpace::Bytes(bytes) => bytes,
            DiskSpace::Percent(0) => 0,
            DiskSpace::Percent(_) if disk.total == 0 => 2_000_000_000,
            DiskSpace::Percent(percent) => {
                let share = (i128::from(disk.total) * i128::from(percent) / 100) as i64;
                (share / (1 << 30) + 1) * 1_000_000_000
            }
        }
    }

    /// True when nothing was given.
    pub fn is_unset(self) -> bool {
        self == DiskSpace::Unset
    }
}

impl std::str::FromStr for DiskSpace {
    type Err = String;

    /// `30%`, or a number with a unit counted in 1024s: `512MB`, `10g`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid disk space {text}");
        if text.is_empty() {
            return Ok(DiskSpace::Unset);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u32 = percent.parse().map_err(|_| wrong())?;
            return Ok(DiskSpace::Percent(percent.into()));
        }
        let lower = text.to_ascii_lowercase();
        let digits = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let number: f64 = lower[..digits].parse().map_err(|_| wrong())?;
        let shift = match lower[digits..].trim() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(wrong()),
        };
        Ok(DiskSpace::Bytes((number * (1_i64 << shift) as f64) as i64))
    }
}

impl<'de> Deserialize<'de> for DiskSpace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = DiskSpace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, a size such as \"512MB\", or a percentage")
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<DiskSpace, E> {
                match bytes < 0 {
                    true => Err(E::custom("an amount of disk cannot be negative")),
                    false => Ok(DiskSpace::Bytes(bytes)),
                }
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<DiskSpace, E> {
                i64::try_from(bytes)
                    .map(DiskSpace::Bytes)
                    .map_err(|_| E::custom("too large"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DiskSpace, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

/// A length of time: a number of seconds, or text as Go writes durations (`48h`, `1h30m`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// That many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid duration {text}");
        if text.is_empty() {
            return Ok(Span::default());
        }
        if let Ok(seconds) = text.parse::<u64>() {
            return Ok(Span::from_secs(seconds));
        }
        let mut total = 0.0;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let unit = rest
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(rest.len());
            total += number
                * match &rest[..unit] {
                    "ns" => 1e-9,
                    "us" | "µs" | "μs" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return Err(wrong()),
                };
            rest = &rest[unit..];
        }
        Duration::try_from_secs_f64(total)
            .map(Span)
            .map_err(|_| wrong())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Length;
        impl Visitor<'_> for Length {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds, or a duration such as \"48h\"")
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                u64::try_from(seconds)
                    .map(Span::from_secs)
                    .map_err(|_| E::custom("a duration cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                Ok(Span::from_secs(seconds))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Length)
    }
}

/// Reads a whole number; the message for other values speaks of numbers and not of their bits.
pub(super) fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Whole;
    impl Visitor<'_> for Whole {
        type Value = i64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
            i64::try_from(number).map_err(|_| E::custom("too large"))
        }
    }
    let number = deserializer.deserialize_i64(Whole)?;
    T::try_from(number)
        .map_err(|_| de::Error::invalid_value(Unexpected::Signed(number), &"a number in its range"))
}

/// The same where the key need not be there.
pub(super) fn maybe_whole<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    whole(deserializer).map(Some)
}

/// A user's or group's number; -1 is none in particular, as for `chown`.
pub(super) fn owner<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = whole::<_, i64>(deserializer)?;
    let wrong = || de::Error::invalid_value(Unexpected::Signed(number), &"a user's or group's id");
    match number {
        -1 => Ok(None),
        number => u32::try_from(number).map(Some).map_err(|_| wrong()),
    }
}

/// How many things go on at once; what is not positive is any number of them, as with stock.
pub(super) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    whole::<_, i64>(deserializer).map(|number| usize::try_from(number).unwrap_or(0))
}

/// Why the value of a key, which is of the right type, cannot do what it is for.
pub(super) fn useless(keys: &[String], value: &DeValue<'_>) -> Option<String> {
    let texts = match value {
        DeValue::Array(entries) => entries.iter().filter_map(|entry| entry.get_ref().as_str()),
        _ => return None,
    };
    let mut texts = texts.into_iter();
    match words(keys).as_slice() {
        ["dns", "nameservers"] => texts
            .find(|text| {
                let address = text.split('%').next().unwrap_or(text);
                address.parse::<IpAddr>().is_err()
            })
            .map(|text| format!("{text:?} is no address of a name server")),
        ["worker", "oci", "gcpolicy", "filters"] => texts
            .find_map(|text| Filters::parse(&[text]).err())
            .map(|error| format!("the policy will never do anything: {error}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_in_every_form() {
        assert_eq!("512MB".parse(), Ok(DiskSpace::Bytes(512 << 20)));
        assert_eq!("1.5g".parse(), Ok(DiskSpace::Bytes(3 << 29)));
        assert_eq!("30%".parse(), Ok(DiskSpace::Percent(30)));
        assert!("abc".parse::<DiskSpace>().is_err());
        assert!("-5%".parse::<DiskSpace>().is_err());
        assert_eq!("1h30m".parse(), Ok(Span::from_secs(5400)));
        assert_eq!("90".parse(), Ok(Span::from_secs(90)));
        assert!("3 days".parse::<Span>().is_err());
        let disk = Disk {
            total: 100 << 30,
            free: 0,
        };
        assert_eq!(DiskSpace::Percent(10).bytes(disk), 11_000_000_000);
        assert_eq!(DiskSpace::Percent(10).bytes(Disk::default()), 2_000_000_000);
    }
}
