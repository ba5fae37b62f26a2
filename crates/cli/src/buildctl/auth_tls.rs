//! `--registry-auth-tlscontext`: how the hosts are met that give tokens for registries.

use client::spec::csv_fields;
use client::{AuthOptions, Environment};

const FLAG: &str = "--registry-auth-tlscontext";

/// What one value of the flag says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    host: String,
    ca: String,
    cert: String,
    key: String,
    insecure: bool,
}

/// Applies the values of the flag.
///
/// # Errors
///
/// A value that says too little.
pub(super) fn apply(
    values: &[String],
    env: &Environment,
    mut options: AuthOptions,
) -> Result<AuthOptions, diag::Error> {
    for value in values {
        let entry = Entry::parse(value)?;
        if entry.insecure {
            options = options.insecure(&entry.host);
        }
        if !entry.ca.is_empty() {
            options = options.root_cas(&entry.host, vec![env.path(&entry.ca)]);
        }
        if !entry.cert.is_empty() && !entry.key.is_empty() {
            let (cert, key) = (env.path(&entry.cert), env.path(&entry.key));
            options = options.key_pair(&entry.host, cert, key);
        }
    }
    Ok(options)
}

impl Entry {
    fn parse(value: &str) -> Result<Self, diag::Error> {
        let mut entry = Entry::default();
        for field in csv_fields(value)? {
            let Some((key, value)) = field.split_once('=') else {
                return Err(diag::Error::invalid(format!("invalid value {field}")));
            };
            let value = value.to_owned();
            match key.to_lowercase().as_str() {
                "host" => entry.host = value,
                "ca" => entry.ca = value,
                "cert" => entry.cert = value,
                "key" => entry.key = value,
                "insecure" => entry.insecure = driver::parse_bool(&value).unwrap_or(false),
                _ => {}
            }
        }
        let half = entry.cert.is_empty() != entry.key.is_empty();
        let pair = !entry.cert.is_empty() && !entry.key.is_empty();
        let lacks = if entry.host.is_empty() {
            "host=<host>"
        } else if entry.ca.is_empty() && !entry.insecure && !pair {
            "ca=<ca> or cert=<cert>,key=<key> or insecure=true"
        } else if !entry.ca.is_empty() && half {
            "cert=<cert>,key=<key>"
        } else {
            return Ok(entry);
        };
        Err(diag::Error::invalid(format!("{FLAG} requires {lacks}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_trusted_in_one_of_several_ways() {
        let parsed = Entry::parse("host=x.test,Insecure=true").unwrap();
        assert!(parsed.insecure && parsed.host == "x.test");
        let parsed = Entry::parse("host=x.test,ca=/a,cert=/b,key=/c").unwrap();
        assert_eq!(
            (&*parsed.ca, &*parsed.cert, &*parsed.key),
            ("/a", "/b", "/c")
        );
        for (value, reason) in [
            ("x", "invalid value x"),
            ("ca=/a", "--registry-auth-tlscontext requires host=<host>"),
            (
                "host=x",
                "--registry-auth-tlscontext requires ca=<ca> or cert=<cert>,key=<key> or insecure=true",
            ),
            (
                "host=x,ca=/a,cert=/b",
                "--registry-auth-tlscontext requires cert=<cert>,key=<key>",
            ),
        ] {
            assert_eq!(Entry::parse(value).unwrap_err().to_string(), reason);
        }
    }
}
