//! The frontend against a host that answers from memory.

mod host;
mod recorded;
mod robust;
mod structure;
