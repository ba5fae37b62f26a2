//! Talking to authorisation servers.
//! Protocol: <https://distribution.github.io/distribution/spec/auth/token/>.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use diag::Secret;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;

use crate::credentials::{HostCredentials, Token, TokenRequest};
use crate::error::RegistryError;
use crate::transport::{Transport, sanitized};

/// Life of a token whose server does not say, in seconds.
const EXPIRES_DEFAULT_S: u64 = 60;

/// The name we give to OAuth servers, the one they know BuildKit by.
const CLIENT_ID: &str = "buildkit-client";

#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

/// Fetches a token with these credentials, or an anonymous one.
pub(crate) async fn fetch(
    transport: &Transport,
    pool: &reqwest::Client,
    wanted: &TokenRequest,
    credentials: Option<&HostCredentials>,
) -> Result<Token, RegistryError> {
    let kind = if credentials.is_some() {
        "oauth"
    } else {
        "anonymous"
    };
    let realm = Url::parse(&wanted.realm).map_err(|error| RegistryError::BadResponse {
        url: wanted.host.clone(),
        reason: format!("invalid token auth challenge realm: {error}"),
    })?;
    let result = match credentials {
        // Docker's own server knows only GET; identity tokens are exchanged with POST.
        Some(c) if c.username.is_empty() => post(transport, pool, &realm, wanted, c).await,
        Some(c) => match get(transport, pool, &realm, wanted, Some(c)).await {
            // Some servers know only POST.
            Err(RegistryError::Status {
                status:
                    StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED,
                ..
            }) => post(transport, pool, &realm, wanted, c).await,
            other => other,
        },
        None => get(transport, pool, &realm, wanted, None).await,
    };
    result.map_err(|error| RegistryError::Token {
        kind,
        cause: Arc::new(if credentials.is_some() {
            error.with_details()
        } else {
            error
        }),
    })
}

async fn get(
    transport: &Transport,
    pool: &reqwest::Client,
    realm: &Url,
    wanted: &TokenRequest,
    credentials: Option<&HostCredentials>,
) -> Result<Token, RegistryError> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if !wanted.service.is_empty() {
            query.append_pair("service", &wanted.service);
        }
        for scope in &wanted.scopes {
            query.append_pair("scope", scope);
        }
    }
    let mut request = Request::new(Method::GET, url);
    if let Some(credentials) = credentials {
        request
            .headers_mut()
            .insert(AUTHORIZATION, basic(credentials));
    }
    answer(transport, pool, request).await
}

async fn post(
    transport: &Transport,
    pool: &reqwest::Client,
    realm: &Url,
    wanted: &TokenRequest,
    credentials: &HostCredentials,
) -> Result<Token, RegistryError> {
    // A URL's query is encoded as forms are.
    let mut form = realm.clone();
    {
        let mut pairs = form.query_pairs_mut();
        pairs.clear();
        if !wanted.scopes.is_empty() {
            pairs.append_pair("scope", &wanted.scopes.join(" "));
        }
        pairs.append_pair("service", &wanted.service);
        pairs.append_pair("client_id", CLIENT_ID);
        if credentials.username.is_empty() {
            pairs.append_pair("grant_type", "refresh_token");
            pairs.append_pair("refresh_token", credentials.secret.expose());
        } else {
            pairs.append_pair("grant_type", "password");
            pairs.append_pair("username", &credentials.username);
            pairs.append_pair("password", credentials.secret.expose());
        }
    }
    let mut request = Request::new(Method::POST, realm.clone());
    request.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"),
    );
    *request.body_mut() = Some(form.query().unwrap_or_default().to_owned().into());
    answer(transport, pool, request).await
}

async fn answer(
    transport: &Transport,
    pool: &reqwest::Client,
    request: Request,
) -> Result<Token, RegistryError> {
    let (method, url) = (request.method().clone(), request.url().clone());
    let response = transport
        .send(pool, request, false)
        .await
        .map_err(|error| error.into_error(method.as_str(), &url))?;
    let status = response.status();
    let bad = |reason: String| RegistryError::BadResponse {
        url: sanitized(&url),
        reason,
    };
    let body = response
        .bytes()
        .await
        .map_err(|error| bad(error.to_string()))?;
    if !status.is_success() && !status.is_redirection() {
        return Err(RegistryError::Status {
            method: method.to_string(),
            url: sanitized(&url),
            status,
            body: body[..body.len().min(64_000)].into(),
        });
    }
    let read: TokenResponse = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("unable to decode token response: {error}")))?;
    let token = match read.access_token.is_empty() {
        true => read.token,
        false => read.access_token,
    };
    if token.is_empty() {
        return Err(bad(
            "authorization server did not include a token in the response".to_owned(),
        ));
    }
    let seconds = match read.expires_in {
        0 => EXPIRES_DEFAULT_S,
        given => given,
    };
    Ok(Token {
        token: Secret::new(token),
        expires_in: Duration::from_secs(seconds),
    })
}

/// The value of an `Authorization` header, marked as a secret.
pub(crate) fn basic(credentials: &HostCredentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.secret.expose());
    secret_value(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
}

/// The value of an `Authorization` header, marked as a secret.
pub(crate) fn bearer(token: &str) -> HeaderValue {
    secret_value(&format!("Bearer {token}"))
}

fn secret_value(text: &str) -> HeaderValue {
    // A token with control characters is none; the registry will say so.
    let mut value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
