//! `RUN --mount=…` and `RUN --device=…`.

use crate::csv;
use crate::instruction::Device;
use crate::quote::{parse_bool, quoted};
use crate::suggest::with_suggestion;

/// `--mount` as written. Its fields may have variables, so it becomes a [`Mount`] only where those
/// are known; `from` must not have any, because the stages a build needs depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSpec {
    /// The text after `--mount=`.
    pub text: String,
    /// The value of `from`; empty if there is none.
    pub from: String,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountType {
    /// Files of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// An empty file system in memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// A socket to the client's ssh agent.
    Ssh,
}

/// Who may use a cache mount at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Nobody else sees it.
    Private,
    /// One after the other.
    Locked,
}

/// A mount with its variables expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// What it is.
    pub kind: MountType,
    /// The stage, image or context; empty for the build context.
    pub from: String,
    /// The path within.
    pub source: String,
    /// Where it is seen.
    pub target: String,
    /// Whether it cannot be written to.
    pub readonly: bool,
    /// Bytes a tmpfs may hold; 0 for no limit.
    pub size: i64,
    /// `id`
    pub id: String,
    /// `sharing`, if given.
    pub sharing: Option<Sharing>,
    /// `required`
    pub required: bool,
    /// `env`, if given.
    pub env: Option<String>,
    /// `mode`, if given.
    pub mode: Option<u32>,
    /// `uid`, if given.
    pub uid: Option<u32>,
    /// `gid`, if given.
    pub gid: Option<u32>,
}

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
    ("tmpfs", MountType::Tmpfs),
];

const SHARINGS: [(&str, Sharing); 3] = [
    ("locked", Sharing::Locked),
    ("private", Sharing::Private),
    ("shared", Sharing::Shared),
];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountType {
    /// Its name, such as `bind`.
    pub fn name(self) -> &'static str {
        TYPES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("bind", |(name, _)| name)
    }
}

impl MountSpec {
    /// Looks only at what must be known before the build: quoting, and `from`.
    pub(crate) fn parse(text: &str) -> Result<MountSpec, String> {
        let mut from = String::new();
        for field in split_fields(text)? {
            let Some((key, value)) = field.split_once('=') else {
                continue;
            };
            if !key.eq_ignore_ascii_case("from") {
                continue;
            }
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                return Err(
                    "'from' doesn't support variable expansion, define alias stage instead"
                        .to_owned(),
                );
            }
            from = value.to_owned();
        }
        Ok(MountSpec {
            text: text.to_owned(),
            from,
        })
    }

    /// The mount, every value passed through `expand`. Errors are stock's messages, or those of
    /// `expand`.
    pub fn resolve(
        &self,
        mut expand: impl FnMut(&str) -> Result<String, String>,
    ) -> Result<Mount, String> {
        let mut mount = Mount::default();
        let mut readonly = None;
        for field in split_fields(&self.text)? {
            match field.split_once('=') {
                None => mount.set_word(&field, &mut readonly)?,
                Some((key, value)) => {
                    let value = expand(value)?;
                    mount.set(&key.to_lowercase(), value, &field, &mut readonly)?;
                }
            }
        }
        mount.readonly =
            readonly.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
        mount.check()?;
        Ok(mount)
    }
}

impl Mount {
    fn set_word(&mut self, field: &str, readonly: &mut Option<bool>) -> Result<(), String> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => *readonly = Some(true),
            "readwrite" | "rw" => *readonly = Some(false),
            key @ "required" => {
                self.only_for(key, &[MountType::Secret, MountType::Ssh])?;
                self.required = true;
            }
            _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
        }
        Ok(())
    }

    fn set(
        &mut self,
        key: &str,
        value: String,
        field: &str,
        readonly: &mut Option<bool>,
    ) -> Result<(), String> {
        let boolean =
            || parse_bool(&value).ok_or_else(|| format!("invalid value for {key}: {value}"));
        match key {
            "type" => self.kind = choice(&value, &TYPES, "mount type")?,
            "from" => self.from = value,
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "readonly" | "ro" => *readonly = Some(boolean()?),
            "readwrite" | "rw" => *readonly = Some(!boolean()?),
            "required" => {
                let on = boolean();
                self.only_for(key, &[MountType::Secret, MountType::Ssh])?;
                self.required = on?;
            }
            "size" => {
                self.only_for(key, &[MountType::Tmpfs])?;
                self.size = crate::size::parse(&value)
                    .map_err(|_| format!("invalid value for {key}: {value}"))?;
            }
            "id" => self.id = value,
            "sharing" => self.sharing = Some(choice(&value, &SHARINGS, "sharing value")?),
            "mode" => self.mode = Some(number(key, &value, 8)?),
            "uid" => self.uid = Some(number(key, &value, 10)?),
            "gid" => self.gid = Some(number(key, &value, 10)?),
            "env" => self.env = Some(value),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(with_suggestion(message, key, KEYS, true));
            }
        }
        Ok(())
    }

    fn only_for(&self, key: &str, kinds: &[MountType]) -> Result<(), String> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        let kind = self.kind.name();
        Err(format!("unexpected key '{key}' for mount type '{kind}'"))
    }

    fn check(&self) -> Result<(), String> {
        let kind = self.kind.name();
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            for (key, given) in [
                ("mode", self.mode.is_some()),
                ("uid", self.uid.is_some()),
                ("gid", self.gid.is_some()),
            ] {
                if given {
                    return Err(format!("{key} not allowed for \"{kind}\" type mounts"));
                }
            }
        }
        if self.kind == MountType::Secret {
            if !self.from.is_empty() {
                return Err("secret mount should not have a from".to_owned());
            }
            if self.sharing.is_some() {
                return Err("secret mount should not define sharing".to_owned());
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return Err("both source and id can't be set".to_owned());
            }
        }
        if self.sharing.is_some() && self.kind != MountType::Cache {
            return Err(format!("invalid cache sharing set for {kind} mount"));
        }
        Ok(())
    }
}

/// Reads the value of `--device`.
pub(crate) fn parse_device(text: &str) -> Result<Device, String> {
    let fields = csv::fields(text).map_err(|e| format!("failed to parse csv devices: {e}"))?;
    let mut device = Device::default();
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                device.required =
                    parse_bool(value).ok_or_else(|| format!("invalid value for {key}: {value}"))?;
            }
            ("name", Some(value)) => {
                if !device.name.is_empty() {
                    return Err(format!("device name already set to {}", device.name));
                }
                device.name = value.to_owned();
            }
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
            (key, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(with_suggestion(message, key, ["name", "required"], true));
            }
        }
    }
    Ok(device)
}

fn split_fields(text: &str) -> Result<Vec<String>, String> {
    csv::fields(text).map_err(|e| format!("failed to parse csv mounts: {e}"))
}

fn choice<T: Copy>(value: &str, choices: &[(&'static str, T)], what: &str) -> Result<T, String> {
    let wanted = value.to_lowercase();
    match choices.iter().find(|(name, _)| *name == wanted) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let message = format!("unsupported {what} {}", quoted(value));
            let names = choices.iter().map(|(name, _)| *name);
            Err(with_suggestion(message, value, names, true))
        }
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, String> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| u32::from_str_radix(value, radix).ok())
        .flatten()
        .ok_or_else(|| format!("invalid value {value} for {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        MountSpec::parse(text)?.resolve(|value| Ok(value.replace("$v", "expanded")))
    }

    #[test]
    fn mounts_of_every_kind() {
        let bind = mount("from=s,src=/a,dst=/$v,rw").unwrap();
        assert_eq!(
            (bind.kind, bind.readonly, bind.target.as_str()),
            (MountType::Bind, false, "/expanded")
        );
        let cache = mount("type=cache,target=/c,sharing=locked,mode=0750,uid=1").unwrap();
        assert_eq!(
            (cache.sharing, cache.mode, cache.readonly),
            (Some(Sharing::Locked), Some(0o750), false)
        );
        let secret = mount("type=secret,id=t,env=T,required").unwrap();
        assert!(secret.required && secret.readonly && secret.env.as_deref() == Some("T"));
        assert_eq!(mount("type=tmpfs,target=/t,size=1m").unwrap().size, 1 << 20);
    }

    #[test]
    fn wrong_mounts_are_told_as_stock_tells_them() {
        for (text, message) in [
            (
                "type=chache,target=/",
                "unsupported mount type \"chache\" (did you mean cache?)",
            ),
            (
                "from=$x",
                "'from' doesn't support variable expansion, define alias stage instead",
            ),
            (
                "typ=bind",
                "unexpected key 'typ' in 'typ=bind' (did you mean type?)",
            ),
            ("What", "invalid field 'What' must be a key=value pair"),
            (
                "target=/,mode=0",
                "mode not allowed for \"bind\" type mounts",
            ),
            (
                "type=secret",
                "invalid secret mount. one of source, target required",
            ),
            ("type=secret,id=a,src=b", "both source and id can't be set"),
            ("size=1", "unexpected key 'size' for mount type 'bind'"),
            ("type=cache,target=/,uid=x", "invalid value x for uid"),
            (
                "type=ssh,sharing=shared",
                "invalid cache sharing set for ssh mount",
            ),
        ] {
            assert_eq!(mount(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn devices_have_a_name_and_may_be_required() {
        let device = parse_device("vendor.com/d=x,required").unwrap();
        assert_eq!(
            (device.name.as_str(), device.required),
            ("vendor.com/d=x", true)
        );
        assert_eq!(
            parse_device("a/b=c,name=d"),
            Err("device name already set to a/b=c".into())
        );
    }
}
