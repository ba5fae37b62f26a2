//! `--output`.

use diag::Error;

use crate::csv;
use crate::spec::Attributes;

/// What becomes of the result, as the user wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportSpec {
    /// `local`, `tar`, `oci`, `docker`, `image`, `registry`, `cacheonly`, or what the server knows.
    pub kind: String,
    /// What the exporter is told.
    pub attributes: Attributes,
    /// File or directory; `-` is standard output; empty if none was given.
    pub destination: String,
}

/// The outputs of the flag's values: `type=…,dest=…,key=value`, a directory, or `-` for a tar
/// archive to standard output.
pub fn parse_exports(values: &[String]) -> Result<Vec<ExportSpec>, Error> {
    let given = values.iter().filter(|value| !value.is_empty());
    given.map(|value| parse(value)).collect()
}

fn parse(text: &str) -> Result<ExportSpec, Error> {
    let fields = csv::fields(text)?;
    if fields.len() == 1 && fields[0] == text && !text.starts_with("type=") {
        let kind = if text == "-" { "tar" } else { "local" };
        return Ok(ExportSpec {
            kind: kind.to_owned(),
            attributes: Attributes::new(),
            destination: text.to_owned(),
        });
    }
    let mut spec = ExportSpec::default();
    for field in fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Error::invalid(format!("invalid value {field}")));
        };
        match key.to_lowercase().trim() {
            "type" => spec.kind = value.to_owned(),
            "dest" => spec.destination = value.to_owned(),
            key => {
                spec.attributes.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    if spec.kind.is_empty() {
        return Err(Error::invalid("type is required for output"));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(value: &str) -> Result<ExportSpec, Error> {
        Ok(parse_exports(&[value.to_owned()])?.remove(0))
    }

    #[test]
    fn directories_and_dashes_are_shorthands() {
        let spec = parse_one("out/dir").unwrap();
        assert_eq!((&*spec.kind, &*spec.destination), ("local", "out/dir"));
        let spec = parse_one("-").unwrap();
        assert_eq!((&*spec.kind, &*spec.destination), ("tar", "-"));
        let spec = parse_one("a=b").unwrap();
        assert_eq!((&*spec.kind, &*spec.destination), ("local", "a=b"));
        let spec = parse_one("type=image,Name=a,push=true").unwrap();
        assert_eq!(spec.attributes["name"], "a");
        assert_eq!(
            parse_one("dest=a,b=c").unwrap_err().to_string(),
            "type is required for output"
        );
        assert_eq!(
            parse_one("type=local,x").unwrap_err().to_string(),
            "invalid value x"
        );
    }
}
