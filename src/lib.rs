//! utterd: takes live speech from many sessions, cuts it into utterances, gets each one translated
//! by one of many nodes, and returns the results in order.
//!
//! Three floors; imports go down only:
//!
//! ```text
//! SHELL    server   sim   cli   peer        performs: sockets, the clock, tasks
//! CORE     tenant   session   job   node    decides: never awaits, is told the time
//! GROUND   protocol config telemetry store transport    serves: no opinions
//! ```
//!
//! An utterance's journey: `transport` yields a frame, `protocol` decodes it, `session` cuts,
//! `job` queues and places it on a `node`, `server` performs; the way back is the mirror of it.
//! docs/ARCHITECTURE.md tells it step by step.

mod atomics;
pub mod protocol;

pub mod config;
pub mod store;
pub mod telemetry;
pub mod transport;

pub mod job;
pub mod node;
pub mod session;
pub mod tenant;

pub mod peer;
pub mod server;
pub mod sim;

pub mod cli;
