//! The build server.
#![allow(dead_code)]
pub mod capabilities;
pub mod config;
pub mod errors;
pub mod filters;
pub mod flags;
pub mod listen;
pub mod progress_log;
pub mod version;
