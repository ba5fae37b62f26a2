//! End to end: the executable against real Docker Engines, registries and stock clients.
//!
//! Each test has a lab of its own (namespaces, Engine, directory), so they run side by side.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attested;
mod bad_input;
mod cancel;
mod counted;
mod devices;
mod disk;
mod docker_driver;
mod driver_page;
mod embedded;
mod engine_images;
mod faults;
mod flow;
mod gateway;
mod gateway_calls;
mod history;
mod layouts;
mod matrix;
mod mistakes;
mod options;
mod remote;
mod remote_files;
mod requests;
mod server_flags;
mod sources;
mod state;
mod stock;
mod workshop;
