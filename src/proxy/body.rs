//! A message's body on its way through: read from one codec, written by another, never gathered.

use super::{h1, h2, last_good::Keeping, mirror::Tee};
use crate::error::ProxyError;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

/// The body of a request or a response, whichever codec it comes from.
#[derive(Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    /// Bytes at hand, e.g. of an error that pillion itself answers.
    Full(Bytes),
    /// A request's body, from an HTTP/1 client.
    H1Request(h1::RequestBody),
    /// A response's body, from an HTTP/1 upstream.
    H1Response(Box<h1::ResponseBody>),
    /// Either, from an HTTP/2 peer.
    H2(Box<h2::RecvBody>),
    /// A response's, whose request is still being sent.
    H2Duplex(Box<h2::Duplex>),
    /// A body that is sent once more: first what was taken of it, then its rest.
    Again(Box<(VecDeque<Bytes>, Body)>),
    /// A response's that is kept, as it passes, for when there is none.
    Kept(Box<Keeping>),
    /// A request's that is copied, as it passes.
    Teed(Box<Tee>),
    /// No body: the rest of a connection that was upgraded.
    Tunnel(Box<h1::Tunnel>),
}

impl Body {
    /// The error that ended it early, told from the side that sent it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::H1Request(body) => body.poll_next(cx),
            Self::H1Response(body) => body.poll_next(cx),
            Self::H2(body) => body.poll_next(cx),
            Self::H2Duplex(body) => body.poll_next(cx),
            Self::Again(again) => match again.0.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => again.1.poll_next(cx),
            },
            Self::Kept(keeping) => keeping.poll_next(cx),
            Self::Teed(tee) => tee.poll_next(cx),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    /// Whether it is known that nothing more comes.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::H1Request(body) => body.is_done(),
            Self::H1Response(body) => body.is_done(),
            Self::H2(body) => body.is_done(),
            Self::H2Duplex(body) => body.is_done(),
            Self::Again(again) => again.0.is_empty() && again.1.is_done(),
            Self::Kept(keeping) => keeping.body().is_done(),
            Self::Teed(tee) => tee.body().is_done(),
            Self::Tunnel(_) => true,
        }
    }

    /// Whether its own framing tells where it ends, so that one that was cut off is known as such.
    pub fn tells_its_end(&self) -> bool {
        match self {
            Self::H1Response(body) => body.tells_its_end(),
            Self::Kept(keeping) => keeping.body().tells_its_end(),
            _ => true,
        }
    }

    /// Drives what goes on beside it: a response's request that is still being sent. For when nothing more of the response
    /// can be taken at the moment; one direction must not wait for the other.
    pub fn poll_beside(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::H1Response(body) => body.poll_beside(cx),
            Self::H2Duplex(body) => body.poll_beside(cx),
            Self::Kept(keeping) => keeping.body_mut().poll_beside(cx),
            _ => {}
        }
    }

    /// The number of bytes to come, where the sender said it.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::H1Request(body) => body.length(),
            Self::H1Response(body) => body.length(),
            Self::H2(body) => body.length(),
            Self::H2Duplex(body) => body.length(),
            Self::Again(again) => {
                let taken: usize = again.0.iter().map(Bytes::len).sum();
                Some(taken as u64 + again.1.length()?)
            }
            Self::Kept(keeping) => keeping.body().length(),
            Self::Teed(tee) => tee.body().length(),
            Self::Tunnel(_) => Some(0),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = ProxyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        self.get_mut().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What was taken of a body so far, in case it has to be sent again. The pieces are shared, not copied.
#[derive(Debug)]
pub struct Replay {
    pieces: VecDeque<Bytes>,
    /// How many more bytes are kept.
    left: usize,
}

impl Replay {
    /// A body of more than `limit` bytes is not kept.
    pub fn new(limit: usize) -> Self {
        Self { pieces: VecDeque::new(), left: limit }
    }

    /// Keeps one more piece; false when that is too much, and the body cannot be sent again.
    pub fn keep(&mut self, piece: &Bytes) -> bool {
        let Some(left) = self.left.checked_sub(piece.len()) else { return false };
        self.left = left;
        self.pieces.push_back(piece.clone());
        true
    }

    pub fn into_body(self, rest: Body) -> Body {
        if self.pieces.is_empty() { rest } else { Body::Again(Box::new((self.pieces, rest))) }
    }
}
