//! What an answer carries: bytes that are whole before it is sent, so many that come in pieces, or
//! pieces that are made for as long as somebody reads them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::Full;
use hyper::body::{self, Frame, SizeHint};
use tokio::sync::mpsc;

/// What an answer carries.
pub enum Body {
    /// All of it. Nearly all answers are.
    Whole(Full<Bytes>),
    /// So many bytes, as they come.
    Pieces(Pieces),
    /// Pieces, each when there is one; the answer is over when there are no more.
    Live(Live),
}

/// So many bytes that come in pieces.
pub struct Pieces {
    left: u64,
    pieces: mpsc::Receiver<Bytes>,
}

/// Pieces that are asked for one after the other: who is slow to read asks late, and nothing is
/// kept here for it.
pub struct Live {
    pieces: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    flow: Arc<Flow>,
}

/// Whether the peer takes what it is given.
pub(super) struct Flow {
    /// How long it may take nothing.
    patience: Duration,
    /// How often a piece was asked for.
    asked: AtomicU64,
    /// A piece was given, and none asked for since.
    given: AtomicBool,
}

impl Body {
    /// So many bytes, which come in pieces. If they end early the connection is broken off, so that
    /// nobody takes a part for the whole.
    pub fn in_pieces(length: u64, pieces: mpsc::Receiver<Bytes>) -> Self {
        Self::Pieces(Pieces { left: length, pieces })
    }

    /// Pieces for a peer that may take nothing for `patience`, or for twice as long at most.
    pub fn live(pieces: impl Stream<Item = Bytes> + Send + 'static, patience: Duration) -> Self {
        let flow = Flow { patience, asked: AtomicU64::new(0), given: AtomicBool::new(false) };
        Self::Live(Live { pieces: Box::pin(pieces), flow: Arc::new(flow) })
    }

    pub(super) fn flow(&self) -> Option<Arc<Flow>> {
        match self {
            Self::Whole(_) | Self::Pieces(_) => None,
            Self::Live(live) => Some(Arc::clone(&live.flow)),
        }
    }
}

impl Flow {
    /// Returns when the peer has taken nothing of what there is for too long.
    pub(super) async fn stands_still(&self) {
        let mut seen = self.asked.load(SeqCst);
        loop {
            tokio::time::sleep(self.patience).await;
            let asked = self.asked.load(SeqCst);
            if asked == seen && self.given.load(SeqCst) {
                return;
            }
            seen = asked;
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self::Whole(Full::new(whole.into()))
    }
}

impl body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole(whole) => {
                let never = |never: Infallible| match never {};
                Pin::new(whole).poll_frame(context).map_err(never)
            }
            Self::Pieces(Pieces { left: 0, .. }) => Poll::Ready(None),
            Self::Pieces(Pieces { left, pieces }) => pieces.poll_recv(context).map(|piece| {
                Some(match piece {
                    Some(piece) if piece.len() as u64 <= *left => {
                        *left -= piece.len() as u64;
                        Ok(Frame::data(piece))
                    }
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                })
            }),
            Self::Live(live) => {
                live.flow.asked.fetch_add(1, SeqCst);
                let polled = live.pieces.as_mut().poll_next(context);
                live.flow.given.store(matches!(polled, Poll::Ready(Some(_))), SeqCst);
                polled.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Pieces(pieces) => pieces.left == 0,
            Self::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Pieces(pieces) => SizeHint::with_exact(pieces.left),
            Self::Live(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn pieces_that_end_early_are_an_error_and_not_an_end() {
        let send = |pieces: &'static [&'static str]| {
            let (to, from) = mpsc::channel(8);
            pieces
                .iter()
                .for_each(|piece| to.try_send(Bytes::from_static(piece.as_bytes())).unwrap());
            Body::in_pieces(6, from).collect()
        };
        assert_eq!(send(&["abc", "def"]).await.unwrap().to_bytes(), "abcdef");
        assert!(send(&["abc"]).await.is_err());
        assert!(send(&["abc", "defg"]).await.is_err(), "more than was said");
    }
}
