//! The body of an answer: whole, or in pieces as they come.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// The body of an answer. Nearly all are whole before they are sent.
pub struct Body(Kind);

enum Kind {
    Whole(Full<Bytes>),
    Pieces { left: u64, pieces: mpsc::Receiver<Bytes> },
}

impl Body {
    /// So many bytes, which come in pieces. If they end early the connection is broken off, so that
    /// nobody takes a part for the whole.
    pub fn in_pieces(length: u64, pieces: mpsc::Receiver<Bytes>) -> Self {
        Self(Kind::Pieces { left: length, pieces })
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self(Kind::Whole(Full::new(whole.into())))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.0 {
            Kind::Whole(full) => {
                let never = |never: Infallible| match never {};
                Pin::new(full).poll_frame(context).map_err(never)
            }
            Kind::Pieces { left: 0, .. } => Poll::Ready(None),
            Kind::Pieces { left, pieces } => pieces.poll_recv(context).map(|piece| {
                Some(match piece {
                    Some(piece) if piece.len() as u64 <= *left => {
                        *left -= piece.len() as u64;
                        Ok(Frame::data(piece))
                    }
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(full) => full.is_end_stream(),
            Kind::Pieces { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(full) => full.size_hint(),
            Kind::Pieces { left, .. } => SizeHint::with_exact(*left),
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
