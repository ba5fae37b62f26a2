//! Where keys and records are kept.

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::{KeyPart, Miss};

/// Why the store cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("key store: {0}")]
    Database(#[from] rusqlite::Error),
    /// A record cannot be written.
    #[error("key store: cannot encode a record: {0}")]
    Encode(#[from] serde_json::Error),
    /// The state was made by a newer version.
    #[error("key store at {path} has format {found}, this version reads up to {known}")]
    Format {
        /// Where it is.
        path: String,
        /// Its format.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
}

impl From<StoreError> for diag::Error {
    fn from(error: StoreError) -> Self {
        let full = matches!(
            &error,
            StoreError::Database(rusqlite::Error::SqliteFailure(e, _))
                if e.code == rusqlite::ErrorCode::DiskFull
        );
        let code = if full {
            diag::Code::ResourceExhausted
        } else {
            diag::Code::Internal
        };
        diag::Error::new(code, error.to_string())
    }
}

/// What a key leads to.
#[derive(Clone, Debug)]
pub struct Record<O> {
    /// The key its users are keyed by.
    pub canonical: Digest,
    /// The outputs, or `None` if they were evicted.
    pub outputs: Option<Vec<O>>,
}

/// What is kept with a record for people.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RecordNote {
    /// What made it, such as `[2/3] RUN make`.
    pub description: String,
    /// What its key was made of; long values are shortened.
    pub parts: Vec<KeyPart>,
    /// Why it was made and not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Miss>,
}

/// A record as listed.
#[derive(Clone, Debug)]
pub struct RecordInfo<O> {
    /// The canonical key.
    pub canonical: Digest,
    /// The outputs, or `None` if they are gone.
    pub outputs: Option<Vec<O>>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Milliseconds since 1970.
    pub last_used_at_ms: i64,
    /// How often it was found.
    pub usage_count: i64,
    /// What made it.
    pub note: RecordNote,
}

/// Keys and the records they lead to.
///
/// Several keys may lead to one record. Calls are short (no network, no waiting for work) and may
/// block on the disk.
pub trait KeyStore<O>: Send + Sync + 'static {
    /// What this key leads to. Counts as a use of the record.
    fn lookup(&self, key: &Digest) -> Result<Option<Record<O>>, StoreError>;

    /// Keeps a record under its canonical key, and makes each of `keys` lead to it. What these
    /// keys led to before is forgotten.
    fn save(
        &self,
        canonical: &Digest,
        keys: &[Digest],
        outputs: &[O],
        note: &RecordNote,
    ) -> Result<(), StoreError>;

    /// Makes `key` lead to the record of `canonical`.
    fn alias(&self, key: &Digest, canonical: &Digest) -> Result<(), StoreError>;

    /// All records.
    fn list(&self) -> Result<Vec<RecordInfo<O>>, StoreError>;

    /// Forgets a record and every key that leads to it.
    fn remove(&self, canonical: &Digest) -> Result<(), StoreError>;

    /// What the keys of a few records of that description were made of, the one used last first.
    fn similar(&self, description: &str) -> Result<Vec<(Digest, Vec<KeyPart>)>, StoreError>;

    /// Forgets records whose outputs are gone: those not asked for since `unused_since_ms`
    /// (milliseconds since 1970), and of the others all but the `count_max` that were asked for
    /// last. Says how many.
    fn forget_evicted(&self, unused_since_ms: i64, count_max: usize) -> Result<usize, StoreError>;
}
