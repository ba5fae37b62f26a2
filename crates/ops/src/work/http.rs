//! Files of web servers as a source: attributes, and secrets of the client for servers that ask
//! who one is.

use std::collections::BTreeMap;

use async_trait::async_trait;
use diag::{Code, Error, Result, Secret};
use llb::SourceOp;
use solver::{KeyPart, RunContext};
use source::http::{HttpAuthorization, HttpPin, HttpRequest};
use tokio::io::AsyncRead;

use super::context::BuildContext;

/// Headers that a definition may set; others are dropped.
const HEADERS: [&str; 2] = ["accept", "user-agent"];

/// Reads the attributes of a source of the web; those not known do not count.
pub fn http_request(source: &SourceOp) -> Result<HttpRequest> {
    let mut request = HttpRequest {
        url: source.identifier.clone(),
        ..HttpRequest::default()
    };
    let mut headers = BTreeMap::new();
    for (name, value) in &source.attrs {
        match name.as_str() {
            "http.checksum" => {
                let digest = value.parse();
                request.checksum = Some(
                    digest.map_err(|error: oci::DigestError| Error::invalid(error.to_string()))?,
                );
            }
            "http.filename" => request.filename.clone_from(value),
            "http.perm" => {
                let mode = number(name, value)?;
                if mode & !0o777 != 0 {
                    return Err(Error::invalid(format!("unsupported file mode {value}")));
                }
                request.mode = Some(mode);
            }
            "http.uid" => request.uid = number(name, value)?,
            "http.gid" => request.gid = number(name, value)?,
            "http.authheadersecret" => request.auth_secret.clone_from(value),
            name if name.starts_with("http.sig.") => {
                return Err(Error::unimplemented(
                    "signatures of files from the web are not verified by this server",
                ));
            }
            name => {
                let header = name.strip_prefix("http.header.").unwrap_or_default();
                let header = header.to_ascii_lowercase();
                if HEADERS.contains(&header.as_str()) {
                    headers.insert(header, value.clone());
                }
            }
        }
    }
    request.headers = headers;
    Ok(request)
}

/// What tells the outcome of a request apart.
pub fn http_parts(request: &HttpRequest, pin: &HttpPin) -> Vec<KeyPart> {
    let mut parts = vec![
        KeyPart::new("op", "source"),
        KeyPart::new("http", pin.digest.to_string()),
        KeyPart::new("filename", pin.filename.clone()),
        KeyPart::new("mode", request.mode.unwrap_or_default().to_string()),
        KeyPart::new("owner", format!("{}:{}", request.uid, request.gid)),
    ];
    if let Some(time) = &pin.last_modified {
        parts.push(KeyPart::new("last modified", time.clone()));
    }
    if !request.auth_secret.is_empty() {
        parts.push(KeyPart::new("secret", request.auth_secret.clone()));
    }
    for (name, value) in &request.headers {
        parts.push(KeyPart::new(format!("header {name}"), value.clone()));
    }
    parts
}

/// The client's secrets for a web server.
pub struct ClientSecrets<'a> {
    request: &'a HttpRequest,
    context: &'a RunContext<BuildContext>,
}

impl<'a> ClientSecrets<'a> {
    /// The secrets for a request, of whoever wants it.
    pub fn new(request: &'a HttpRequest, context: &'a RunContext<BuildContext>) -> Self {
        ClientSecrets { request, context }
    }

    async fn secret(&self, name: &str) -> Result<Option<String>> {
        let session = self.context.first()?.session().await?;
        let Some(data) = session.secret(name).await? else {
            return Ok(None);
        };
        let text = String::from_utf8(data.expose().clone());
        text.map(Some)
            .map_err(|_| Error::invalid(format!("secret {name} is no text")))
    }
}

#[async_trait]
impl HttpAuthorization for ClientSecrets<'_> {
    async fn authorization(&self) -> Result<Option<Secret<String>>> {
        let named = &self.request.auth_secret;
        if !named.is_empty() {
            let missing = || Error::new(Code::NotFound, format!("secret {named}: not found"));
            let value = match self.secret(named).await {
                Ok(value) => value.ok_or_else(missing),
                Err(error) => Err(error),
            };
            let failed = |error: Error| {
                error.context(format!("failed to retrieve HTTP auth secret {named}"))
            };
            return Ok(Some(Secret::new(value.map_err(failed)?)));
        }
        let Some(host) = host_name(&self.request.url) else {
            return Ok(None);
        };
        // Builds without a client, and clients without secrets, are nothing unusual.
        if let Ok(Some(token)) = self.secret(&format!("HTTP_AUTH_TOKEN_{host}")).await {
            let value = format!("Bearer {}", token.trim_end());
            return Ok(Some(Secret::new(value)));
        }
        let header = self.secret(&format!("HTTP_AUTH_HEADER_{host}")).await;
        Ok(header.ok().flatten().map(Secret::new))
    }

    async fn upload(&self, path: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let session = self.context.first()?.session().await?;
        Ok(Box::new(session.upload(path).await?))
    }
}

/// The host of an address without its port.
fn host_name(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    if let Some(address) = host.strip_prefix('[') {
        return address.split(']').next();
    }
    host.split(':').next().filter(|host| !host.is_empty())
}

/// A number as Go writes it: decimal, or with the prefix of another base.
pub(super) fn number(name: &str, text: &str) -> Result<u32> {
    let lower = text.to_ascii_lowercase();
    let parsed = if let Some(digits) = lower.strip_prefix("0x") {
        u32::from_str_radix(digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        u32::from_str_radix(digits, 2)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        u32::from_str_radix(digits, 8)
    } else if lower.len() > 1 && lower.starts_with('0') {
        u32::from_str_radix(&lower[1..], 8)
    } else {
        lower.parse()
    };
    parsed.map_err(|_| Error::invalid(format!("invalid {name} {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_go_reads_them() {
        let attrs = [
            ("http.perm", "0644"),
            ("http.uid", "10"),
            ("http.gid", "0x10"),
            ("http.filename", "f"),
            ("http.header.Accept", "a/b"),
            ("http.header.Cookie", "no"),
        ];
        let source = SourceOp {
            identifier: "https://h/x".into(),
            attrs: attrs.map(|(n, v)| (n.into(), v.into())).into(),
        };
        let request = http_request(&source).unwrap();
        assert_eq!(request.mode, Some(0o644));
        assert_eq!((request.uid, request.gid), (10, 16));
        assert_eq!(request.url, "https://h/x");
        assert_eq!(request.headers.len(), 1);
        assert_eq!(request.headers["accept"], "a/b");
        let mut wrong = source.clone();
        wrong.attrs.insert("http.perm".into(), "04755".into());
        assert!(http_request(&wrong).is_err());
        let mut wrong = source;
        wrong.attrs.insert("http.uid".into(), "x".into());
        assert!(http_request(&wrong).is_err());
    }

    #[test]
    fn hosts_have_no_port_and_no_user() {
        assert_eq!(host_name("https://u:p@h:8/x"), Some("h"));
        assert_eq!(host_name("http://[::1]:80"), Some("::1"));
        assert_eq!(host_name("http://"), None);
    }
}
