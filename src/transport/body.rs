//! What an answer carries: bytes that are whole before it is sent, or pieces that are made for as
//! long as somebody reads them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::Full;
use hyper::body::{self, Frame, SizeHint};

/// What an answer carries.
pub enum Body {
    /// All of it.
    Whole(Full<Bytes>),
    /// Pieces, each when there is one; the answer is over when there are no more.
    Live(Live),
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
    /// Pieces for a peer that may take nothing for `patience`, or for twice as long at most.
    pub fn live(pieces: impl Stream<Item = Bytes> + Send + 'static, patience: Duration) -> Self {
        let flow = Flow { patience, asked: AtomicU64::new(0), given: AtomicBool::new(false) };
        Self::Live(Live { pieces: Box::pin(pieces), flow: Arc::new(flow) })
    }

    pub(super) fn flow(&self) -> Option<Arc<Flow>> {
        match self {
            Self::Whole(_) => None,
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
    fn from(bytes: T) -> Self {
        Self::Whole(Full::new(bytes.into()))
    }
}

impl body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
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
            Self::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Live(_) => SizeHint::default(),
        }
    }
}
