//! The other ends of the links: clients and nodes, honest and not. They know what comes over their
//! links, and nothing of the server's inside.

mod audio;
mod client;
mod node;

pub(super) use audio::{from_base64, packets};
pub(super) use client::Client;
pub(super) use node::NodeActor;
