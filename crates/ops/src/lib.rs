//! How each LLB operation is keyed and run.
//!
//! File actions work on [`Root`]s, directories out of which no path leads; content digests are
//! taken of [`contenthash::Tree`]s, stacks of layers looked at without mounting them.
//!
//! This crate knows nothing of any wire protocol or of how a build is asked for.

pub mod chmod;
pub mod contenthash;
mod copy_file;
mod copy_pool;
mod dir_entry;
mod error;
pub mod file_actions;
pub mod make_dirs;
mod merged_dir;
pub mod owner;
mod root;
pub mod tree_copy;
mod unpack;
pub mod work;

pub use error::{OpError, errno_text, hint_at_full_disk};
pub use owner::Owner;
pub use root::{LastLink, Resolved, Root, clean, is_dir, is_link, is_regular};
