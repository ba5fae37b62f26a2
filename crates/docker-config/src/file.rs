//! `config.json`.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use diag::Secret;
use serde::Deserialize;

use crate::{Auth, ConfigError};

/// The fields that are used; others are of other programs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConfigFile {
    #[serde(deserialize_with = "or_default")]
    pub(crate) auths: BTreeMap<String, AuthEntry>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cred_helpers: HashMap<String, String>,
    pub(crate) creds_store: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) proxies: HashMap<String, HashMap<String, String>>,
    pub(crate) current_context: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthEntry(xxxxx)")
    }
}

impl AuthEntry {
    pub(crate) fn has_secret(&self) -> bool {
        [
            &self.auth,
            &self.password,
            &self.identitytoken,
            &self.registrytoken,
        ]
        .iter()
        .any(|value| !value.is_empty())
    }
}

/// Takes `null` for nothing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ConfigFile {
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let data = match std::fs::read(path) {
            Ok(data) => data,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(ConfigFile::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if data.iter().all(u8::is_ascii_whitespace) {
            return Ok(ConfigFile::default());
        }
        Self::parse(&data, path)
    }

    /// Adds the `auths` of another file's text, which win.
    pub(crate) fn add_auths_of(&mut self, data: &[u8]) -> Result<(), ConfigError> {
        if !data.is_empty() {
            let extra = Self::parse(data, Path::new("DOCKER_AUTH_CONFIG"))?;
            self.auths.extend(extra.auths);
        }
        Ok(())
    }

    /// What the file says of a host or URL.
    pub(crate) fn auth(&self, key: &str) -> Result<Auth, ConfigError> {
        let entry = self.auths.get(key).or_else(|| {
            let same_host = |(name, _): &(&String, &AuthEntry)| hostname(name) == key;
            self.auths.iter().find(same_host).map(|(_, entry)| entry)
        });
        let Some(entry) = entry else {
            return Ok(Auth::default());
        };
        let (mut username, mut password) = (entry.username.clone(), entry.password.clone());
        if !entry.auth.is_empty() {
            (username, password) =
                decode_auth(&entry.auth).ok_or_else(|| ConfigError::Malformed {
                    path: "config.json".into(),
                    reason: format!("invalid auth configuration for {key}"),
                })?;
        }
        Ok(Auth {
            username,
            password: Secret::new(password),
            identity_token: Secret::new(entry.identitytoken.clone()),
            registry_token: Secret::new(entry.registrytoken.clone()),
        })
    }

    fn parse(data: &[u8], path: &Path) -> Result<Self, ConfigError> {
        serde_json::from_slice(data).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            reason: format!("invalid JSON: {error}"),
        })
    }
}

/// `user:password` in base64.
fn decode_auth(auth: &str) -> Option<(String, String)> {
    let data = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .ok()?;
    let text = String::from_utf8(data).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// The host of a URL as old files have it for a key.
fn hostname(url: &str) -> &str {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let rest = rest.unwrap_or(url);
    rest.split_once('/').map_or(rest, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ConfigFile {
        ConfigFile::parse(text.as_bytes(), Path::new("x")).unwrap()
    }

    #[test]
    fn credentials_are_found_by_key_and_by_host() {
        let file = parse(
            r#"{"auths":{"https://reg.example/v2/":{"auth":"bWU6cDp3"},"t.io":{"identitytoken":"tok"}},
                "credHelpers":null,"HttpHeaders":{"a":"b"}}"#,
        );
        let auth = file.auth("reg.example").unwrap();
        assert_eq!((&auth.username[..], auth.secret()), ("me", "p:w"));
        assert_eq!(file.auth("t.io").unwrap().secret(), "tok");
        assert!(file.auth("other").unwrap().is_anonymous());
    }

    #[test]
    fn secrets_are_not_printed() {
        let file = parse(r#"{"auths":{"a":{"password":"hunter2"}}}"#);
        let shown = format!("{file:?} {:?}", file.auth("a").unwrap());
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn broken_auth_is_named() {
        let error = parse(r#"{"auths":{"a":{"auth":"%%%"}}}"#)
            .auth("a")
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("invalid auth configuration for a")
        );
    }
}
