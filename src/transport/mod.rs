//! Bytes of one connection: TLS, HTTP upgrade, WebSocket life, limits, and a bounded way out.
//!
//! The owner of a connection pairs a `Connection` (the socket, one task) with an `Outbox` (any
//! thread) and hears about both through `Connection::next`. Every buffer here has a bound and every
//! wait a deadline, both stated in `Limits` and `HttpLimits`.
//!
//! It refuses to know who the peers are, what they say, and what to do about it.

mod body;
mod counted;
mod frames;
mod http;
mod listen;
mod outbox;
mod pipe;
mod socket;
mod tls;
mod toll;
mod visitors;
mod websocket;

pub use body::Body;
pub use http::{Agreed, Entrance, House, HttpLimits, Service, Socket, answer, serve, upgrade};
pub use listen::Listen;
pub use outbox::{Budget, CloseRequest, Frame, Outbox, Refusal, Refused};
pub use pipe::{Client, Heard, Stream, pipe};
pub use socket::WebSocket;
pub use tls::{Reading, Side, Tls, TlsDoor};
pub use tokio_tungstenite::tungstenite::Utf8Bytes;
pub use toll::Rates;
pub use visitors::VisitorLimits;
pub use websocket::{Connection, Event, Gone, Limits, server_socket, websocket_config};
