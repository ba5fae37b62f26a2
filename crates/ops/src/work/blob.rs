//! Blobs of registries and OCI layouts as a source: attributes and keys.

use diag::{Error, Result};
use layers::RecordType;
use llb::SourceOp;
use solver::KeyPart;
use source::blob::BlobRequest;

use super::http::number;
use super::source_op::image_reference;

/// Reads identifier and attributes of a blob source; those not known do not count.
pub fn blob_request(source: &SourceOp) -> Result<BlobRequest> {
    let mut request = BlobRequest::new(image_reference(source)?);
    request.digest()?;
    for (name, value) in &source.attrs {
        match name.as_str() {
            "http.filename" => request.filename.clone_from(value),
            "http.perm" => request.mode = Some(number(name, value)?),
            "http.uid" => request.uid = number(name, value)?,
            "http.gid" => request.gid = number(name, value)?,
            "image.recordtype" => {
                request.record_type = RecordType::from_name(value)
                    .ok_or_else(|| Error::invalid(format!("invalid record type {value}")))?;
            }
            _ => {}
        }
    }
    Ok(request)
}

/// What tells the outcome of a request apart.
pub fn blob_parts(request: &BlobRequest) -> Result<Vec<KeyPart>> {
    Ok(vec![
        KeyPart::new("op", "source"),
        KeyPart::new("blob", request.digest()?.to_string()),
        KeyPart::new("filename", request.file_name()?),
        KeyPart::new("mode", request.mode.unwrap_or_default().to_string()),
        KeyPart::new("owner", format!("{}:{}", request.uid, request.gid)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_has_a_digest_and_attributes_of_a_file() {
        let digest = oci::Digest::of("x");
        let mut source = SourceOp {
            identifier: format!("docker-image+blob://example.org/a@{digest}"),
            attrs: [
                ("http.perm", "0644"),
                ("http.filename", "f"),
                ("http.uid", "5"),
            ]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        };
        let request = blob_request(&source).unwrap();
        assert_eq!((request.mode, request.uid), (Some(0o644), 5));
        assert_eq!(request.file_name().unwrap(), "f");
        assert_eq!(request.digest().unwrap(), digest);
        source.identifier = "docker-image+blob://example.org/a:latest".into();
        assert!(blob_request(&source).is_err());
    }
}
