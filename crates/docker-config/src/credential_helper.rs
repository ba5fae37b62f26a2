//! Credential helpers: programs called `docker-credential-<name>`.
//!
//! A helper gets one word (`get`, `store`, `erase`, `list`), its input on stdin, and answers with
//! JSON or text on stdout; what goes wrong it also says on stdout.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use diag::Secret;
use serde::{Deserialize, Serialize};

use crate::{Auth, ConfigError};

/// What helpers say when they have nothing for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A credential helper.
#[derive(Clone, Debug)]
pub struct CredentialHelper {
    program: String,
}

/// Credentials as helpers keep them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperCredentials {
    /// The server they are for.
    pub server: String,
    /// User name, or `<token>`.
    pub username: String,
    /// Password or token.
    pub secret: Secret<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wire {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl CredentialHelper {
    /// The helper of that name, such as `pass` for `docker-credential-pass`.
    pub fn new(name: &str) -> Self {
        CredentialHelper {
            program: format!("docker-credential-{name}"),
        }
    }

    /// What is kept for a server, if anything.
    pub fn get(&self, server: &str) -> Result<Option<HelperCredentials>, ConfigError> {
        let Some(output) = self.run("get", server.as_bytes())? else {
            return Ok(None);
        };
        let wire: Wire = parse(&output)?;
        Ok(Some(HelperCredentials {
            server: server.to_owned(),
            username: wire.username,
            secret: Secret::new(wire.secret),
        }))
    }

    /// Keeps credentials.
    pub fn store(&self, credentials: &HelperCredentials) -> Result<(), ConfigError> {
        let wire = Wire {
            server_url: credentials.server.clone(),
            username: credentials.username.clone(),
            secret: credentials.secret.expose().clone(),
        };
        let input = serde_json::to_vec(&wire).map_err(|error| failed(error, ""))?;
        self.run("store", &input).map(drop)
    }

    /// Forgets a server.
    pub fn erase(&self, server: &str) -> Result<(), ConfigError> {
        self.run("erase", server.as_bytes()).map(drop)
    }

    /// The servers known, with their user names.
    pub fn list(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        self.run("list", b"unused")?
            .map_or_else(|| Ok(BTreeMap::new()), |output| parse(&output))
    }

    /// Runs the helper; nothing when it has nothing for the server.
    fn run(&self, word: &str, input: &[u8]) -> Result<Option<Vec<u8>>, ConfigError> {
        let start = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => failed(
                format!(
                    "exec: {:?}: executable file not found in $PATH",
                    self.program
                ),
                "",
            ),
            _ => failed(error, ""),
        };
        let mut child = Command::new(&self.program)
            .arg(word)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(start)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input tells why on its output.
            let _ = stdin.write_all(input);
        }
        let output = child
            .wait_with_output()
            .map_err(|error| failed(error, ""))?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if text.contains(NOT_FOUND) {
            return Ok(None);
        }
        Err(failed(output.status, &text))
    }
}

impl From<HelperCredentials> for Auth {
    fn from(found: HelperCredentials) -> Self {
        if found.username == TOKEN_USER {
            return Auth {
                identity_token: found.secret,
                ..Auth::default()
            };
        }
        Auth {
            username: found.username,
            password: found.secret,
            ..Auth::default()
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(output: &'a [u8]) -> Result<T, ConfigError> {
    // The output may hold a secret: it is not repeated.
    serde_json::from_slice(output).map_err(|error| failed(format!("invalid answer: {error}"), ""))
}

fn failed(reason: impl ToString, output: &str) -> ConfigError {
    ConfigError::Helper {
        reason: reason.to_string(),
        output: output.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn helper(dir: &std::path::Path, script: &str) -> CredentialHelper {
        let path = dir.join("docker-credential-x");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        CredentialHelper {
            program: path.to_str().unwrap().to_owned(),
        }
    }

    #[test]
    fn tokens_and_passwords_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"read server; test "$1 $server" = "get a.io" && echo '{"ServerURL":"a.io","Username":"<token>","Secret":"t"}'"#;
        let found = helper(dir.path(), script).get("a.io").unwrap().unwrap();
        assert_eq!(Auth::from(found).identity_token.expose(), "t");
    }

    #[test]
    fn unknown_servers_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo credentials not found in native keychain; exit 1";
        assert!(helper(dir.path(), script).get("a.io").unwrap().is_none());
    }

    #[test]
    fn failures_show_what_the_helper_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = helper(dir.path(), "echo locked; exit 3")
            .get("a.io")
            .unwrap_err();
        assert!(error.to_string().ends_with("out: `locked`"), "{error}");
        let error = CredentialHelper::new("does-not-exist")
            .get("a.io")
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("executable file not found in $PATH")
        );
    }

    #[test]
    fn servers_are_listed_and_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let script =
            format!("case $1 in list) echo '{{\"a.io\":\"me\"}}';; *) cat > {path}/$1;; esac");
        let helper = helper(dir.path(), &script);
        assert_eq!(helper.list().unwrap()["a.io"], "me");
        helper
            .store(&HelperCredentials {
                server: "b".into(),
                username: "u".into(),
                secret: Secret::new("s".into()),
            })
            .unwrap();
        let stored = std::fs::read_to_string(dir.path().join("store")).unwrap();
        assert_eq!(stored, r#"{"ServerURL":"b","Username":"u","Secret":"s"}"#);
    }
}
