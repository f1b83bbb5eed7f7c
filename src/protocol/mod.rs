//! The words on the wire: encodes and decodes every message and audio frame, with every bound.
//!
//! It refuses to know what any message causes. Nothing here touches a socket, a clock or another
//! module of ours; the promises to peers are written down in docs/PROTOCOL.md.

pub mod admin;
pub mod audio;
pub mod error;
pub mod gateway;
pub mod hello;
pub mod ids;
pub mod job;
mod lenient;
pub mod limits;
pub mod node;
pub mod passed;
pub mod room;
mod scan;
pub mod session;
mod splice;
mod terse;
pub mod trace;
pub mod wav;

pub use error::{DecodeError, ErrorCode};
pub use ids::{JobId, Lang, NodeId, Pair, RoomCode, SessionId, TurnId};
