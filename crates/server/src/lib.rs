//! The build server: BuildKit's `Control` and gateway services over our own solver.
//!
//! ```text
//! listener ─ Control.Solve ─► Plan ─► Job ─┬ frontend ─► graphs ─► solver ─► ops      (solve.rs)
//!            LLBBridge.*  ─────────────────┘ (bridge.rs)                │
//!            frontend images: LLBBridge.* on their stdio (stdio.rs)     │
//!            Control.Status ◄─ ProgressLog ◄─ Running ◄─ events ────────┤
//!            Control.Session ─► SessionManager ◄── sources, secrets ────┘
//! ```
//!
//! Only [`control`], [`bridge`], [`gateway_build`], [`errors`] and [`wire`] turn wire messages into ours and back; a
//! request is checked once, at the edge. What every build shares is [`parts::ServerParts`]; what one
//! build has is its [`job::Job`].

mod allocator;
pub mod bridge;
pub mod capabilities;
mod client_target;
pub mod config;
mod content_service;
pub mod control;
mod credentials;
mod daemon;
mod damaged;
mod debug;
pub mod entitlements;
mod error_length;
pub mod errors;
mod exec_process;
mod exporting;
mod failed_step;
pub mod filters;
pub mod flags;
mod frontend_image;
mod frontends;
pub mod gateway_build;
mod gateway_containers;
mod gc;
pub mod gc_policy;
pub mod history;
mod idle;
pub mod job;
pub mod listen;
mod logging;
pub mod metrics;
pub mod parts;
mod peer;
pub mod progress_log;
mod prune;
mod reading;
mod reserve;
mod resolving;
pub mod running;
mod server;
mod solve;
mod source_policy;
mod stdio;
pub mod trace;
pub mod usage;
pub mod version;
pub mod wire;
pub mod worker;

pub use daemon::main;
pub use server::{Server, ServerOptions};
