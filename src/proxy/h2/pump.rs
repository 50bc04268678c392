//! A body on its way to an HTTP/2 peer, no faster than the peer takes it.

use crate::{
    error::ProxyError,
    proxy::{
        body::{Body, Replay},
        headers::GRPC_STATUS,
    },
};
use bytes::Bytes;
use h2::SendStream;
use http::HeaderValue;
use std::task::{Context, Poll, ready};

/// Carries a body into the sending half of a stream.
#[derive(Debug)]
pub struct Pump {
    body: Body,
    stream: SendStream<Bytes>,
    piece: Bytes,
    finished: bool,
    replay: Option<Replay>,
    /// Bytes of the body taken so far.
    pub bytes: u64,
    /// What the trailers said of a gRPC call.
    pub grpc_status: Option<HeaderValue>,
}

/// Which end broke.
#[derive(Debug)]
pub enum PumpError {
    /// The body could not be read. The stream was reset.
    Source(ProxyError),
    /// The peer does not take it.
    Sink(h2::Error),
}

impl Pump {
    pub fn new(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, piece: Bytes::new(), finished: false, replay: None, bytes: 0, grpc_status: None }
    }

    /// One whose body can be sent a second time, if it has at most `limit` bytes.
    pub fn replayable(body: Body, stream: SendStream<Bytes>, limit: usize) -> Self {
        Self { replay: Some(Replay::new(limit)), ..Self::new(body, stream) }
    }

    /// It need not be sent a second time any more.
    pub fn forget(&mut self) {
        self.replay = None;
    }

    /// The body from its start, if it is still at hand.
    pub fn into_replay(self) -> Option<Body> {
        self.replay.map(|replay| replay.into_body(self.body))
    }

    /// Grows whenever something moves.
    pub fn moved(&self) -> u64 {
        self.bytes - self.piece.len() as u64
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Tells the peer that the stream ends here, and why.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.finished = true;
        self.stream.send_reset(reason);
    }

    /// Moves what can be moved. Ready when all of it has been handed to the connection.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        while !self.finished {
            if !self.piece.is_empty() {
                if let Poll::Ready(sent) = self.poll_send_piece(cx) {
                    sent.map_err(PumpError::Sink)?;
                    continue;
                }
                self.body.poll_beside(cx);
                return Poll::Pending;
            }
            match self.body.poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.bytes += data.len() as u64;
                        if self.replay.as_mut().is_some_and(|replay| !replay.keep(&data)) {
                            self.replay = None;
                        }
                        self.piece = data;
                        if self.piece.is_empty() && self.body.is_done() {
                            self.end()?;
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.replay = None;
                            self.finished = true;
                            self.grpc_status = trailers.get(GRPC_STATUS).cloned();
                            self.stream.send_trailers(trailers).map_err(PumpError::Sink)?;
                        }
                    }
                },
                Poll::Ready(None) => self.end()?,
                Poll::Ready(Some(Err(error))) => {
                    self.reset(h2::Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(PumpError::Source(error)));
                }
                Poll::Pending => {
                    // Nothing to send, so only this tells when the peer is no longer interested.
                    return match self.stream.poll_reset(cx) {
                        Poll::Ready(Ok(reason)) => Poll::Ready(Err(PumpError::Sink(reason.into()))),
                        Poll::Ready(Err(error)) => Poll::Ready(Err(PumpError::Sink(error))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.stream.reserve_capacity(self.piece.len());
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(h2::Reason::STREAM_CLOSED.into())),
            }
        }
        let fits = self.stream.capacity().min(self.piece.len());
        let data = self.piece.split_to(fits);
        self.finished = self.piece.is_empty() && self.body.is_done();
        Poll::Ready(self.stream.send_data(data, self.finished))
    }

    fn end(&mut self) -> Result<(), PumpError> {
        self.finished = true;
        self.stream.send_data(Bytes::new(), true).map_err(PumpError::Sink)
    }
}
