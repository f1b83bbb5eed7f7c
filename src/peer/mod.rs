//! The two other ends of the wire: a node agent that does the work and a speaker that asks for it.
//!
//! Both talk to a scheduler only through its sockets. Nothing here shares code with the server's
//! own reading and writing of messages, on purpose: a mistake made twice in the same way would go
//! unseen.

pub mod command;
pub mod dial;
pub mod engine;
pub mod load;
pub mod node;
pub mod speaker;
pub mod voice;

mod answer;
mod brake;
mod machine;
mod program;
mod unacked;
mod wire;

/// The same reader of recordings as the gateway has: files are not words of the wire.
pub use crate::protocol::wav;
