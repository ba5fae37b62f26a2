//! What a file of a web server is called.

use percent_encoding::percent_decode_str;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::HttpRequest;
use crate::file_layer::safe_name;

/// What a file is called: as asked, as the server says, or as the last part of its address.
pub(super) fn file_name(request: &HttpRequest, disposition: Option<&HeaderValue>) -> String {
    if !request.filename.is_empty() {
        return safe_name(&request.filename);
    }
    if let Some(name) = disposition
        .and_then(|value| value.to_str().ok())
        .and_then(disposition_name)
        && !name.ends_with('/')
    {
        return safe_name(&name);
    }
    let url = Url::parse(&request.url).ok();
    let path = url.as_ref().map_or("", |url| url.path());
    let last = path.trim_end_matches('/').rsplit('/').next();
    safe_name(&percent_decode_str(last.unwrap_or_default()).decode_utf8_lossy())
}

/// The `filename` of a `Content-Disposition`; the extended form with a character set comes first. A
/// value whose quotes do not end has none.
fn disposition_name(value: &str) -> Option<String> {
    if has_open_quote(value) {
        return None;
    }
    let mut plain = None;
    for parameter in split_parameters(value).into_iter().skip(1) {
        let Some((key, value)) = parameter.split_once('=') else {
            continue;
        };
        let value = unquoted(value.trim());
        match key.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                let mut parts = value.splitn(3, '\'');
                let (set, _, text) = (parts.next()?, parts.next()?, parts.next()?);
                if set.eq_ignore_ascii_case("utf-8") || set.eq_ignore_ascii_case("us-ascii") {
                    return Some(percent_decode_str(text).decode_utf8_lossy().into_owned());
                }
            }
            "filename" => plain = Some(value),
            _ => {}
        }
    }
    plain.filter(|name| !name.is_empty())
}

fn has_open_quote(value: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for c in value.chars() {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
    }
    quoted
}

/// Splits at semicolons outside of quotes.
fn split_parameters(value: &str) -> Vec<String> {
    let (mut parts, mut quoted, mut escaped) = (vec![String::new()], false, false);
    for c in value.chars() {
        if c == ';' && !quoted {
            parts.push(String::new());
            continue;
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    else {
        return text.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}
