//! What is told of a finished build: image ID, metadata file, results of calls.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diag::{Context, Error};
use progress::VertexWarning;
use serde_json::Value;

use crate::inputs::go_path_error;
use crate::response::{CONFIG_DIGEST, DIGEST, Response};
use crate::spec::CallFunction;

/// What a build gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the server said of the result.
    pub response: Response,
    /// What the user calls the Dockerfile.
    pub dockerfile_source: String,
}

impl Outcome {
    /// What `-q` prints and `--iidfile` gets: the digest of the configuration where there is one,
    /// else of the image, else nothing.
    pub fn image_id(&self) -> &str {
        let get = |key| self.response.get(key).map(String::as_str);
        get(CONFIG_DIGEST).or(get(DIGEST)).unwrap_or_default()
    }

    /// A line the frontend wants shown, if it has one.
    pub fn inline_message(&self) -> Option<&str> {
        let message = self.response.get("frontend.result.inlinemessage");
        message.map(String::as_str)
    }

    /// The text of a metadata file. Values that are JSON, plain or in base64, stand as JSON.
    pub fn metadata(&self, warnings: &[VertexWarning]) -> String {
        let mut values: BTreeMap<&str, Value> = self
            .response
            .iter()
            .map(|(key, value)| (key.as_str(), metadata_value(key, value)))
            .collect();
        if !warnings.is_empty() {
            values.insert(
                "buildx.build.warnings",
                progress_ui::warnings_json(warnings),
            );
        }
        let text = serde_json::to_string_pretty(&values).unwrap_or_default();
        progress_ui::go_escapes(&text)
    }

    /// What a called frontend answered, as text for standard output, and the exit code it asks for.
    pub fn call_result(&self, function: &CallFunction) -> Result<(String, i32), Error> {
        let get = |key: &str| self.response.get(key).map(String::as_str);
        let json = get("result.json");
        let text = match (function.format.as_str(), json, get("result.txt")) {
            ("json", Some(json), _) => format!("{json}\n"),
            (_, _, Some(text)) if function.name == "lint" => {
                lint_text(text, json, &self.dockerfile_source)?
            }
            (_, _, Some(text)) => text.to_owned(),
            (_, Some(json), None) => format!("{json}\n"),
            (_, None, None) => {
                return Err(Error::unimplemented(format!(
                    "the frontend gave no result for {:?}",
                    function.name
                )));
            }
        };
        let code = get("result.statuscode")
            .filter(|_| !function.ignore_status)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        Ok((text, code))
    }
}

/// Writes a file whole or not at all, readable by everybody. What is not a plain file, such as
/// `/dev/null` or a pipe, is written to and stays what it is; a link is followed.
pub fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let found = std::fs::metadata(path);
    if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        let hint = format!("{} is a folder: name a file in it", path.display());
        return Err(Error::invalid("cannot write to a directory").hint(hint));
    }
    if found.is_ok_and(|found| !found.is_file()) {
        return std::fs::write(path, text).with_context(|| format!("writing {}", path.display()));
    }
    let followed = std::fs::canonicalize(path);
    let path = followed.as_deref().unwrap_or(path);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::metadata(parent)
        .map_err(|error| go_path_error("stat", &parent.to_string_lossy(), &error))
        .context("invalid output path")?;
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(parent)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)
        .map_err(|error| Error::from(error.error))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Removes the file of `--iidfile`: a build that fails must not leave the ID of an older one.
pub fn remove_stale_image_id(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let error = go_path_error("remove", &path.to_string_lossy(), &error);
            Err(error.context("removing image ID file"))
        }
        _ => Ok(()),
    }
}

/// Writes the file of `--iidfile`.
pub fn write_image_id(path: &Path, id: &str) -> Result<(), Error> {
    std::fs::write(path, id)
        .map_err(|error| go_path_error("open", &path.to_string_lossy(), &error))
        .context("writing image ID file")
}

/// What a server said of a result, as it stands in a metadata file: JSON, plain or in base64, as
/// such if it is an object or a list of them, everything else as the text it came as.
pub fn metadata_value(key: &str, value: &str) -> Value {
    let as_text = || Value::String(value.to_owned());
    let bytes = match key {
        "result.json" => value.as_bytes().to_vec(),
        _ => match STANDARD.decode(value) {
            Ok(bytes) => bytes,
            Err(_) => return as_text(),
        },
    };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(object)) if !object.is_empty() => Value::Object(object),
        Ok(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_object) => {
            Value::Array(list)
        }
        _ => as_text(),
    }
}

/// The result of a check, under a line that counts; the Dockerfile goes by the name the user knows.
fn lint_text(text: &str, json: Option<&str>, dockerfile: &str) -> Result<String, Error> {
    let parsed: Value = serde_json::from_str(json.unwrap_or("{}"))
        .map_err(|error| Error::internal(error.to_string()).context("result.json"))?;
    let count = parsed
        .get("warnings")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let failed = parsed
        .get("buildError")
        .is_some_and(|error| !error.is_null());
    let name = parsed["sources"][0]["filename"].as_str();
    let text = renamed(text, name.unwrap_or_default(), dockerfile);
    // The error, which is printed with all others, stands apart from the warnings.
    let text = text + if failed && count > 0 { "\n" } else { "" };
    Ok(match count {
        0 if failed => text,
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => format!("Check complete, 1 warning has been found!\n{text}"),
        count => format!("Check complete, {count} warnings have been found!\n{text}"),
    })
}

/// The text with excerpts headed `NEW:LINE` in place of `OLD:LINE`.
fn renamed(text: &str, old: &str, new: &str) -> String {
    if old.is_empty() || new.is_empty() {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let heads = lines
            .peek()
            .is_some_and(|next| next.starts_with("--------------------"));
        let number = line
            .strip_prefix(old)
            .and_then(|rest| rest.strip_prefix(':'));
        match number.filter(|_| heads) {
            Some(number) => out.push_str(&format!("{new}:{number}")),
            None => out.push_str(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::response::{BUILD_REF, DESCRIPTOR, IMAGE_NAME};

    #[test]
    fn a_file_is_replaced_and_links_and_pipes_stay_what_they_are() {
        use std::os::unix::fs::FileTypeExt as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_file(&at("plain"), "one").unwrap();
        std::os::unix::fs::symlink("plain", at("link")).unwrap();
        write_file(&at("link"), "two").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read_to_string(at("plain")).unwrap(), "two");
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status();
        assert!(made.unwrap().success());
        let pipe = at("pipe");
        let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
        write_file(&at("pipe"), "three").unwrap();
        assert_eq!(reader.join().unwrap(), "three");
        assert!(std::fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    }

    #[test]
    fn a_directory_is_no_file_to_write_or_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let told = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert_eq!(
            told(write_file(dir.path(), "x")),
            "cannot write to a directory"
        );
        assert_eq!(
            told(remove_stale_image_id(dir.path())),
            format!(
                "removing image ID file: remove {}: is a directory",
                dir.path().display()
            )
        );
        remove_stale_image_id(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn excerpts_name_the_file_as_the_user_does() {
        let text = "x\nDockerfile:2\n--------------------\nDockerfile:3\n";
        let shown = renamed(text, "Dockerfile", "sub/D");
        assert_eq!(shown, "x\nsub/D:2\n--------------------\nDockerfile:3\n");
    }

    fn outcome(pairs: &[(&str, &str)]) -> Outcome {
        let response = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Outcome {
            response: response.collect(),
            dockerfile_source: String::new(),
        }
    }

    #[test]
    fn the_image_id_is_the_configurations_digest_if_there_is_one() {
        assert_eq!(
            outcome(&[(DIGEST, "a"), (CONFIG_DIGEST, "b")]).image_id(),
            "b"
        );
        assert_eq!(outcome(&[(DIGEST, "a")]).image_id(), "a");
        assert_eq!(outcome(&[]).image_id(), "");
    }

    #[test]
    fn metadata_shows_descriptors_as_objects() {
        let descriptor = STANDARD.encode(r#"{"mediaType":"m","digest":"sha256:1","size":7}"#);
        let built = outcome(&[
            (BUILD_REF, "b/b0/x"),
            (DESCRIPTOR, &descriptor),
            (IMAGE_NAME, "a<b"),
            ("text", "e30="),
        ]);
        let expected = r#"{
  "buildx.build.ref": "b/b0/x",
  "containerimage.descriptor": {
    "mediaType": "m",
    "digest": "sha256:1",
    "size": 7
  },
  "image.name": "a\u003cb",
  "text": "e30="
}"#;
        assert_eq!(built.metadata(&[]), expected);
    }

    #[test]
    fn files_are_replaced_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.json");
        write_file(&path, "one").unwrap();
        write_file(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write_file(&dir.path().join("no/x"), "").unwrap_err();
        let expected = "invalid output path: stat ";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn results_of_calls_are_text_or_json() {
        let function = |name: &str, format: &str| CallFunction {
            name: name.into(),
            format: format.into(),
            ignore_status: false,
        };
        let result = outcome(&[
            ("result.json", r#"{"warnings":[{}]}"#),
            ("result.txt", "\nWARNING: X\n"),
            ("result.statuscode", "1"),
        ]);
        let (text, code) = result.call_result(&function("lint", "")).unwrap();
        assert_eq!(
            text,
            "Check complete, 1 warning has been found!\n\nWARNING: X\n"
        );
        assert_eq!(code, 1);
        let (text, _) = result.call_result(&function("outline", "json")).unwrap();
        assert_eq!(text, "{\"warnings\":[{}]}\n");
        assert!(outcome(&[]).call_result(&function("x", "")).is_err());
    }
}
