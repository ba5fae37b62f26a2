//! A certificate authority of a test's own, with a certificate for a server and one for a client.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Writes `ca.pem`, `server.pem` and `server.key` for a server of that name, and `cert.pem` and
/// `key.pem` for its clients (the names under which Docker's client looks for them).
pub fn write_certificates(directory: &Path, host: &str) {
    let key = || KeyPair::generate().expect("make a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("CA parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Cooperage test authority");
    let authority = CertifiedIssuer::self_signed(params, key()).expect("make the authority");
    let names = vec![
        host.to_owned(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
    ];
    let (server_key, client_key) = (key(), key());
    let signed = |names: Vec<String>, usage, key: &KeyPair| {
        let mut params = CertificateParams::new(names).expect("parameters");
        params.extended_key_usages = vec![usage];
        params
            .signed_by(key, &authority)
            .expect("sign a certificate")
    };
    let server_usage = rcgen::ExtendedKeyUsagePurpose::ServerAuth;
    let client_usage = rcgen::ExtendedKeyUsagePurpose::ClientAuth;
    let server = signed(names, server_usage, &server_key);
    let client = signed(Vec::new(), client_usage, &client_key);
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("server.pem", server.pem()),
        ("server.key", server_key.serialize_pem()),
        ("cert.pem", client.pem()),
        ("key.pem", client_key.serialize_pem()),
    ] {
        std::fs::write(directory.join(name), text).expect("write a certificate");
    }
}
