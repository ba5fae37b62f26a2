//! Credential helpers: programs called `docker-credential-<name>`, which are asked and told nothing.
//!
//! A helper gets the word `get`, the server on stdin, and answers with JSON on stdout; what goes wrong it also
//! says on stdout.

use std::io::Write;
use std::process::{Command, Stdio};

use diag::Secret;
use serde::Deserialize;

use crate::{Auth, ConfigError};

/// What helpers say when they have nothing for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A helper.
#[derive(Clone, Debug)]
pub(crate) struct CredentialHelper {
    program: String,
}

/// An answer.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Credentials {
    username: String,
    secret: String,
}

impl CredentialHelper {
    /// The helper of that name, such as `pass` for `docker-credential-pass`.
    pub(crate) fn new(name: &str) -> Self {
        CredentialHelper {
            program: format!("docker-credential-{name}"),
        }
    }

    /// What is kept for a server, if anything.
    pub(crate) fn get(&self, server: &str) -> Result<Option<Auth>, ConfigError> {
        let Some(output) = self.run("get", server.as_bytes())? else {
            return Ok(None);
        };
        // The output may hold a secret: it is not repeated.
        let found: Credentials = serde_json::from_slice(&output)
            .map_err(|error| failed(format!("invalid answer: {error}"), ""))?;
        Ok(Some(found.into()))
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

impl From<Credentials> for Auth {
    fn from(found: Credentials) -> Self {
        let secret = Secret::new(found.secret);
        if found.username == TOKEN_USER {
            return Auth {
                identity_token: secret,
                ..Auth::default()
            };
        }
        Auth {
            username: found.username,
            password: secret,
            ..Auth::default()
        }
    }
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
        assert_eq!(found.identity_token.expose(), "t");
        let script = r#"echo '{"ServerURL":"a.io","Username":"u","Secret":"s"}'"#;
        let found = helper(dir.path(), script).get("a.io").unwrap().unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.expose().as_str()),
            ("u", "s")
        );
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
}
