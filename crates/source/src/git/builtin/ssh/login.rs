//! Logging in by the keys of the client's agent, in its order.

use diag::{Code, Error, Result};
use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::key::parse_public_key;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use russh::{MethodKind, MethodSet, Signer};

use super::address::Address;
use super::agent::{Agent, RSA_SHA2_256, RSA_SHA2_512, put_string};
use super::client::{Client, Failure, Heard};
use crate::git::command::GitAccess;

/// The mark in the name of a certificate's type.
const CERTIFICATE: &[u8] = b"-cert-v01@";

/// How often the mark may be in what is read as a certificate: each is one in another.
const CERTIFICATES_MAX: usize = 4;

/// A login under way.
pub(super) struct Login<'a> {
    pub(super) handle: &'a mut Handle<Client>,
    pub(super) address: &'a Address,
    pub(super) heard: &'a Heard,
}

/// What an agent has.
enum Offer {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

/// Lets the agent sign with one of its keys.
struct AgentSigner<'a> {
    agent: &'a mut Agent,
    blob: &'a [u8],
    flags: u32,
}

impl Login<'_> {
    /// Logs in.
    ///
    /// # Errors
    /// Hosts that take none of the keys, and clients that have none.
    pub(super) async fn run(mut self, access: &GitAccess) -> Result<()> {
        let user = self.address.user.clone();
        let first = self.handle.authenticate_none(user).await;
        let methods = match first.map_err(|error| Failure::from(error).0)? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure {
                remaining_methods, ..
            } => remaining_methods,
        };
        self.check_end()?;
        let Some(socket) = &access.ssh_auth_sock else {
            let hint = "give the build the client's ssh agent with `--ssh default`";
            return Err(self.denied(&methods).hint(hint));
        };
        if !methods.contains(&MethodKind::PublicKey) {
            return Err(self.denied(&methods).hint("the host takes no keys"));
        }
        let mut agent = Agent::open(socket).await?;
        let identities = agent.identities().await?;
        if identities.is_empty() {
            let hint = "the client's ssh agent has no keys: add one with `ssh-add`";
            return Err(self.denied(&methods).hint(hint));
        }
        let mut tried = Vec::new();
        for blob in &identities {
            let said = match self.offer(&mut agent, blob).await {
                Ok(true) => return Ok(()),
                Ok(false) => "not taken by the host".to_owned(),
                Err(error) => error.to_string(),
            };
            self.check_end()?;
            tried.push(format!("{}: {said}", shown(blob)));
        }
        let hint = format!(
            "of the keys in the client's ssh agent none opens it: {}",
            tried.join("; ")
        );
        Err(self.denied(&methods).hint(hint))
    }

    /// Offers one key; whether it was taken.
    async fn offer(&mut self, agent: &mut Agent, blob: &[u8]) -> Result<bool> {
        let offer = Offer::read(blob)?;
        let hash = match offer.is_rsa() {
            true => self.rsa_hash().await?,
            false => None,
        };
        let mut signer = AgentSigner {
            agent,
            blob,
            flags: match hash {
                Some(HashAlg::Sha256) => RSA_SHA2_256,
                Some(_) => RSA_SHA2_512,
                None => 0,
            },
        };
        let (user, handle) = (self.address.user.clone(), &mut *self.handle);
        let answer = match offer {
            Offer::Key(key) => {
                handle
                    .authenticate_publickey_with(user, key, hash, &mut signer)
                    .await
            }
            Offer::Certificate(certificate) => {
                handle
                    .authenticate_certificate_with(user, *certificate, hash, &mut signer)
                    .await
            }
        };
        Ok(answer.map_err(|failure| failure.0)?.success())
    }

    /// How RSA keys are to sign; what has no SHA-2 is not spoken to.
    async fn rsa_hash(&self) -> Result<Option<HashAlg>> {
        let best = self.handle.best_supported_rsa_hash().await;
        match best.map_err(|error| Failure::from(error).0)? {
            None => Ok(Some(HashAlg::Sha256)),
            Some(None) => Err(Error::new(
                Code::FailedPrecondition,
                "the host takes RSA keys with SHA-1 only",
            )),
            Some(hash) => Ok(hash),
        }
    }

    /// Fails if the host has hung up.
    fn check_end(&self) -> Result<()> {
        match self.heard.end() {
            Some(end) => Err(Error::new(Code::Unavailable, end)),
            None => Ok(()),
        }
    }

    fn denied(&self, methods: &MethodSet) -> Error {
        let methods: Vec<&str> = methods.iter().map(<&str>::from).collect();
        let text = format!(
            "{}: Permission denied ({})",
            self.address,
            methods.join(",")
        );
        Error::new(Code::PermissionDenied, text)
    }
}

impl Offer {
    /// Reads what an agent has told, whom nobody trusts.
    fn read(blob: &[u8]) -> Result<Offer> {
        let unknown = |error: &dyn std::fmt::Display| {
            Error::new(Code::Unimplemented, format!("not understood: {error}"))
        };
        let marks = blob.windows(CERTIFICATE.len());
        match marks.filter(|window| *window == CERTIFICATE).count() {
            0 => {
                let key = parse_public_key(blob).map_err(|error| unknown(&error))?;
                match key.algorithm() {
                    Algorithm::Other(_) | Algorithm::Dsa => Err(unknown(&"its type")),
                    _ => Ok(Offer::Key(key)),
                }
            }
            1..=CERTIFICATES_MAX => {
                let read = Certificate::from_bytes(blob).map_err(|error| unknown(&error))?;
                Ok(Offer::Certificate(Box::new(read)))
            }
            _ => Err(unknown(&"certificates in certificates")),
        }
    }

    fn is_rsa(&self) -> bool {
        match self {
            Offer::Key(key) => key.algorithm().is_rsa(),
            Offer::Certificate(certificate) => certificate.algorithm().is_rsa(),
        }
    }
}

impl Signer for AgentSigner<'_> {
    type Error = Failure;

    /// Gives the data with the signature after it.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let signature = self.agent.sign(self.blob, &data, self.flags).await;
        put_string(&mut data, &signature.map_err(Failure)?);
        Ok(data)
    }
}

/// A key as people compare it.
fn shown(blob: &[u8]) -> String {
    match Offer::read(blob) {
        Ok(Offer::Key(key)) => {
            let fingerprint = key.fingerprint(HashAlg::Sha256);
            format!("{} {fingerprint}", key.algorithm().as_str())
        }
        Ok(Offer::Certificate(certificate)) => {
            format!("certificate {:?}", certificate.key_id())
        }
        Err(_) => "another".to_owned(),
    }
}
