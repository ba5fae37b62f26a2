//! The two servers of the corpus on 127.0.0.1: a read-only registry with the base images, which
//! builders use as the mirror of docker.io, and a web server with the files and git repositories of
//! cases (`/CASE/…`, `/CASE/git/NAME.git`).

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::bases::Bases;
use super::case::WebRule;
use super::tree::sha256;
use crate::web::{Answer, Request, serve};

/// Where the registry listens.
pub const REGISTRY_PORT: u16 = 5555;
/// Where the web server listens.
pub const WEB_PORT: u16 = 5556;

/// What the web server serves of a case: prepared folders, one for each build under way.
struct Served {
    folders: Vec<PathBuf>,
    rules: BTreeMap<String, WebRule>,
}

/// The running servers; they end with the process.
#[derive(Clone)]
pub struct Servers {
    served: Arc<Mutex<BTreeMap<String, Served>>>,
}

impl Servers {
    /// Starts both in the calling thread's network.
    pub fn start(bases: &Bases) -> Servers {
        let layouts: Vec<(String, PathBuf)> = [
            ("library/busybox", "busybox"),
            ("corpus/kitchen", "kitchen"),
            ("corpus/onbuild", "onbuild"),
        ]
        .map(|(name, layout)| (name.to_owned(), bases.layout(layout)))
        .to_vec();
        serve(REGISTRY_PORT, move |request| registry(&layouts, request));
        let served: Arc<Mutex<BTreeMap<String, Served>>> = Arc::default();
        let shared = served.clone();
        serve(WEB_PORT, move |request| {
            let (case, rest) = request
                .path
                .trim_start_matches('/')
                .split_once('/')
                .unwrap_or(("", ""));
            let (folder, rule) = {
                let served = shared
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                let case = served.get(case);
                let folder = case.and_then(|case| case.folders.last().cloned());
                (
                    folder,
                    case.and_then(|case| case.rules.get(rest).cloned())
                        .unwrap_or_default(),
                )
            };
            match folder {
                Some(folder) if !rest.split('/').any(|part| part == "..") => {
                    web(&folder, rest, &rule, request)
                }
                _ => Answer::new(404, "not found\n"),
            }
        });
        Servers { served }
    }

    /// Serves a prepared folder under a case's name until [`Self::remove`].
    pub fn add(&self, case: &str, folder: &Path, rules: &BTreeMap<String, WebRule>) {
        let mut served = self
            .served
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let entry = served.entry(case.to_owned()).or_insert_with(|| Served {
            folders: Vec::new(),
            rules: rules.clone(),
        });
        entry.folders.push(folder.to_owned());
    }

    /// Ends what [`Self::add`] began.
    pub fn remove(&self, case: &str, folder: &Path) {
        let mut served = self
            .served
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(entry) = served.get_mut(case) {
            entry.folders.retain(|known| known != folder);
        }
    }
}

fn registry(layouts: &[(String, PathBuf)], request: &Request) -> Answer {
    let json = "application/json";
    let path = request.path.trim_end_matches('/');
    if path == "/v2" {
        return Answer::new(200, "{}").header("Content-Type", json);
    }
    let unknown = |code: &str| {
        Answer::new(404, format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#))
            .header("Content-Type", json)
    };
    let found = layouts.iter().find_map(|(name, layout)| {
        let rest = path.strip_prefix("/v2/")?.strip_prefix(name.as_str())?;
        let (kind, reference) = rest.strip_prefix('/')?.split_once('/')?;
        Some((layout, kind.to_owned(), reference.to_owned()))
    });
    let Some((layout, kind, reference)) = found else {
        return unknown("NAME_UNKNOWN");
    };
    let Some(digest) = digest_of(layout, &reference) else {
        return unknown("MANIFEST_UNKNOWN");
    };
    let Ok(body) = std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))) else {
        return unknown("MANIFEST_UNKNOWN");
    };
    let media_type = match kind.as_str() {
        "manifests" => serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|manifest| manifest["mediaType"].as_str().map(str::to_owned)),
        _ => None,
    };
    ranged(request, body)
        .header(
            "Content-Type",
            media_type.unwrap_or_else(|| "application/octet-stream".into()),
        )
        .header("Docker-Content-Digest", digest.clone())
        .header("ETag", format!("\"{digest}\""))
}

/// The whole body, or the part that `Range: bytes=A-[B]` asks for.
fn ranged(request: &Request, body: Vec<u8>) -> Answer {
    let range = request
        .header("range")
        .strip_prefix("bytes=")
        .and_then(|range| {
            let (first, last) = range.split_once('-')?;
            let first: usize = first.parse().ok()?;
            let last = last.parse().unwrap_or(body.len().checked_sub(1)?);
            (first <= last && last < body.len()).then_some((first, last))
        });
    match range {
        Some((first, last)) => Answer::new(206, &body[first..=last]).header(
            "Content-Range",
            format!("bytes {first}-{last}/{}", body.len()),
        ),
        None => Answer::new(200, body),
    }
}

fn digest_of(layout: &Path, reference: &str) -> Option<String> {
    if reference.starts_with("sha256:") {
        return Some(reference.to_owned());
    }
    let index = std::fs::read(layout.join("index.json")).ok()?;
    let index: Value = serde_json::from_slice(&index).ok()?;
    let tag = "org.opencontainers.image.ref.name";
    let entry = index["manifests"]
        .as_array()?
        .iter()
        .find(|entry| entry["annotations"][tag] == reference)?;
    entry["digest"].as_str().map(str::to_owned)
}

fn web(folder: &Path, path: &str, rule: &WebRule, request: &Request) -> Answer {
    if let Some(repository) = path.strip_prefix("git/") {
        return git(folder, repository, request);
    }
    if let Some(location) = &rule.location {
        return Answer::new(rule.status.unwrap_or(302), "status page\n")
            .header("Location", location);
    }
    if let Some(status) = rule.status {
        return Answer::new(status, "status page\n");
    }
    let file = folder.join("http").join(path);
    let (Ok(body), Ok(meta)) = (std::fs::read(&file), file.metadata()) else {
        return Answer::new(404, "not found\n");
    };
    let etag = format!("\"{}\"", &sha256(&body)[..32]);
    let mut answer = if request.header("if-none-match") == etag {
        Answer::new(304, "")
    } else {
        Answer::new(200, body)
    };
    let named = |name: &str| {
        rule.headers
            .keys()
            .any(|key| key.eq_ignore_ascii_case(name))
    };
    if !named("content-type") {
        answer = answer.header("Content-Type", "application/octet-stream");
    }
    if !named("etag") {
        answer = answer.header("ETag", etag);
    }
    if !rule.no_last_modified {
        answer = answer.header("Last-Modified", http_date(meta.mtime()));
    }
    for (name, value) in &rule.headers {
        answer = answer.header(name, value);
    }
    answer
}

/// Passes a request of git's smart protocol on to `git http-backend`.
fn git(folder: &Path, repository: &str, request: &Request) -> Answer {
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", folder.join("gitrepos"))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{repository}"))
        .env("QUERY_STRING", &request.query)
        .env("REQUEST_METHOD", &request.method)
        .env("CONTENT_TYPE", request.header("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
        .env("GIT_PROTOCOL", request.header("git-protocol"))
        .env("HOME", folder)
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("run `git` (package git)");
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(&request.body);
    }
    let output = child.wait_with_output().expect("wait for `git`").stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => (&output[..end], &output[end + 4..]),
        None => (&output[..], &[][..]),
    };
    let mut answer = Answer::new(200, body);
    for line in String::from_utf8_lossy(head).lines() {
        match line.split_once(": ") {
            Some(("Status", value)) => {
                answer.status = value
                    .get(..3)
                    .and_then(|code| code.parse().ok())
                    .unwrap_or(500);
            }
            Some((name, value)) => answer = answer.header(name, value),
            None => {}
        }
    }
    answer
}

/// `Sat, 01 Jan 2000 00:00:00 GMT`.
fn http_date(seconds: i64) -> String {
    let days = seconds.div_euclid(86400);
    let (hour, minute, second) = (
        seconds.rem_euclid(86400) / 3600,
        seconds.rem_euclid(3600) / 60,
        seconds.rem_euclid(60),
    );
    // Howard Hinnant's days-to-civil, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][days.rem_euclid(7) as usize];
    let names = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = names[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::http_date;

    #[test]
    fn dates_are_written_as_http_has_them() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
    }
}
