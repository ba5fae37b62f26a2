//! `--secret` and `--ssh`.

use diag::{Context, Error};

use crate::csv;

/// Where the value of a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file.
    File(String),
    /// In an environment variable.
    Variable(String),
    /// In the variable named like the secret if there is one, else in the file named so.
    Named,
}

/// A secret steps may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretSpec {
    /// What steps call it.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
}

/// An agent or keys steps may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSpec {
    /// What steps call it; `default` if they do not say.
    pub id: String,
    /// A socket, or files with private keys; empty for the agent of the environment.
    pub paths: Vec<String>,
}

/// The secrets of the flag's values.
pub fn parse_secrets(values: &[String]) -> Result<Vec<SecretSpec>, Error> {
    let given = values.iter().filter(|value| !value.is_empty());
    given.map(|value| parse_secret(value)).collect()
}

/// The agents of the flag's values, each `default|ID[=SOCKET|KEY,…]`.
pub fn parse_ssh(values: &[String]) -> Vec<SshSpec> {
    let given = values.iter().filter(|value| !value.is_empty());
    given
        .map(|value| match value.split_once('=') {
            Some((id, paths)) => SshSpec {
                id: id.to_owned(),
                paths: paths.split(',').map(str::to_owned).collect(),
            },
            None => SshSpec {
                id: value.clone(),
                paths: Vec::new(),
            },
        })
        .collect()
}

fn parse_secret(text: &str) -> Result<SecretSpec, Error> {
    let (mut id, mut file, mut variable, mut kind) = Default::default();
    for field in csv::fields(text).context("failed to parse csv secret")? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Error::invalid(format!(
                "invalid field '{field}' must be a key=value pair"
            )));
        };
        let place: &mut String = match key.to_lowercase().as_str() {
            "type" if value != "file" && value != "env" => {
                return Err(Error::invalid(format!("unsupported secret type {value:?}")));
            }
            "type" => &mut kind,
            "id" => &mut id,
            "source" | "src" => &mut file,
            "env" => &mut variable,
            key => {
                return Err(Error::invalid(format!(
                    "unexpected key '{key}' in '{field}'"
                )));
            }
        };
        *place = value.to_owned();
    }
    if kind == "env" && variable.is_empty() {
        variable = std::mem::take(&mut file);
    }
    if id.is_empty() {
        return Err(Error::invalid("secret missing ID").context("failed to build"));
    }
    // A variable wins over a file when both are named.
    let source = match (file.is_empty(), variable.is_empty()) {
        (_, false) => SecretSource::Variable(variable),
        (false, true) => SecretSource::File(file),
        (true, true) => SecretSource::Named,
    };
    Ok(SecretSpec { id, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str) -> Result<SecretSource, String> {
        let mut specs = parse_secrets(&[value.to_owned()]).map_err(|error| error.to_string())?;
        Ok(specs.remove(0).source)
    }

    #[test]
    fn secrets_are_files_or_variables() {
        let file = |path: &str| Ok(SecretSource::File(path.into()));
        let variable = |name: &str| Ok(SecretSource::Variable(name.into()));
        assert_eq!(secret("id=a,src=/x"), file("/x"));
        assert_eq!(secret("id=a,source=/x,type=file"), file("/x"));
        assert_eq!(secret("id=a,env=B"), variable("B"));
        assert_eq!(secret("id=a,type=env,src=B"), variable("B"));
        assert_eq!(secret("id=a"), Ok(SecretSource::Named));
        for (value, error) in [
            ("a", "invalid field 'a' must be a key=value pair"),
            ("id=a,type=b", "unsupported secret type \"b\""),
            ("id=a,x=b", "unexpected key 'x' in 'x=b'"),
        ] {
            assert_eq!(secret(value), Err(error.to_owned()));
        }
    }

    #[test]
    fn agents_have_an_id_and_paths() {
        let specs = parse_ssh(&["default".to_owned(), "k=a,b".to_owned()]);
        assert_eq!(specs[0].paths.len(), 0);
        assert_eq!((&*specs[1].id, specs[1].paths.len()), ("k", 2));
    }
}
