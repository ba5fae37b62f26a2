//! Differences that stand in the ledger of ARCHITECTURE.md.

use super::super::Built;

/// Whether two outcomes differ only in what the ledger says.
pub fn is_known(_ours: &Built, _stock: &Built) -> bool {
    false
}
