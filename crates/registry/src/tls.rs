//! TLS configuration: built-in and system authorities, configured ones, client certificates.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{KeyPair, TlsSettings};

/// Where Linux distributions keep their authorities, in one file; the first that exists counts.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Mozilla's authorities, which are part of the executable, and those of the machine.
static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let found = named.or_else(|| {
        let mut known = SYSTEM_ROOTS.iter().map(PathBuf::from);
        known.find(|path| path.exists())
    });
    if let Some(path) = found
        && let Ok(certificates) = CertificateDer::pem_file_iter(&path)
    {
        roots.add_parsable_certificates(certificates.flatten());
    }
    roots
});

/// The configuration for these settings; the error is a text for [`crate::RegistryError::Config`].
pub(crate) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let (authorities, pairs) = files(settings)?;
    let builder = if settings.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(tls::AnyServer::new(&provider)))
    } else {
        let mut roots = ROOTS.clone();
        for path in &authorities {
            add_authorities(&mut roots, path)?;
        }
        builder.with_root_certificates(roots)
    };
    // A rustls configuration shows one certificate; further pairs are for other hosts.
    let mut config = match pairs.first() {
        Some(pair) => {
            let (chain, key) = load_pair(pair)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("{}: {error}", pair.cert.display()))?
        }
        None => builder.with_no_client_auth(),
    };
    // HTTP/2's flow control slows uploads down, and registries' proxies differ in how well they
    // speak it: only HTTP/1.1 is offered.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Authority files and key pairs, those of the folders included.
fn files(settings: &TlsSettings) -> Result<(Vec<PathBuf>, Vec<KeyPair>), String> {
    let (mut authorities, mut pairs) = (settings.ca.clone(), settings.keypair.clone());
    for dir in &settings.dirs {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                ) =>
            {
                continue;
            }
            Err(error) => return Err(format!("{}: {error}", dir.display())),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") => pairs.push(KeyPair {
                    key: path.with_extension("key"),
                    cert: path,
                }),
                _ => {}
            }
        }
    }
    Ok((authorities, pairs))
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let fail =
        |error: &dyn std::fmt::Display| format!("failed to read {}: {error}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(&error))? {
        let certificate = certificate.map_err(|error| fail(&error))?;
        roots.add(certificate).map_err(|error| fail(&error))?;
    }
    Ok(())
}

fn load_pair(
    pair: &KeyPair,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let fail = |error: rustls_pki_types::pem::Error| {
        format!(
            "failed to load keypair for {}: {error}",
            pair.cert.display()
        )
    };
    let chain = CertificateDer::pem_file_iter(&pair.cert)
        .and_then(Iterator::collect)
        .map_err(fail)?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(fail)?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_authority_file_is_named() {
        let settings = TlsSettings {
            ca: vec!["/nonexistent/ca.pem".into()],
            ..Default::default()
        };
        let error = client_config(&settings).unwrap_err();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }

    #[test]
    fn a_missing_folder_of_certificates_is_no_error() {
        let settings = TlsSettings {
            dirs: vec!["/nonexistent".into()],
            ..Default::default()
        };
        client_config(&settings).unwrap();
    }
}
