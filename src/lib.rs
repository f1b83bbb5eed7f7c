//! utterd
pub mod cli;
pub mod config;
pub mod job;
pub mod node;
pub mod peer;
pub mod protocol;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod transport;
