//! What each fuzz target does with an input. Whatever goes against a promise panics.
//!
//! libFuzzer calls the targets through `targets/`; `cargo test --test fuzz` includes this file and
//! runs them over the corpus and over what was found once. docs/FUZZING.md tells the rest.

#![forbid(unsafe_code)]

pub mod audio;
pub mod bounded;
pub mod config;
pub mod connection;
pub mod credentials;
pub mod http_upgrade;
pub mod jobs;
pub mod memory;
pub mod node_frames;
pub mod order;
pub mod outbox;
pub mod pools;
pub mod script;
pub mod segmenter;
pub mod server;
pub mod session;
pub mod session_frames;
pub mod store_records;
pub mod twin;
pub mod wav;
pub mod websocket;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 16] = [
    ("audio", audio::run),
    ("config", config::run),
    ("connection", connection::run),
    ("credentials", credentials::run),
    ("http_upgrade", http_upgrade::run),
    ("jobs", jobs::run),
    ("node_frames", node_frames::run),
    ("order", order::run),
    ("outbox", outbox::run),
    ("pools", pools::run),
    ("segmenter", segmenter::run),
    ("server", server::run),
    ("session", session::run),
    ("session_frames", session_frames::run),
    ("store_records", store_records::run),
    ("wav", wav::run),
];
