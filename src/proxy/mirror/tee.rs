//! A request's body that is collected while it passes.

use crate::{error::ProxyError, proxy::body::Body, telemetry::labels::MirrorSkipped};
use bytes::Bytes;
use http_body::Frame;
use std::{
    fmt,
    task::{Context, Poll, ready},
};

/// Waits for a body that passes.
pub trait Waiter: fmt::Debug {
    /// One that has more bytes is not wanted.
    fn max_body(&self) -> usize;

    /// All of it has passed.
    fn send(self: Box<Self>, body: Bytes);

    /// It is not to be had.
    fn leave_out(self: Box<Self>, why: MirrorSkipped);
}

/// Goes on as it is, at its own pace. Those who wait for it get a copy at its end.
#[derive(Debug)]
pub struct Tee {
    body: Body,
    waiters: Vec<Box<dyn Waiter>>,
    /// Not shared with the reader, whose memory is much larger and in use for much shorter.
    data: Vec<u8>,
    /// How long it is to become, where the sender said it.
    length: Option<u64>,
}

impl Tee {
    pub fn new(body: Body, waiters: Vec<Box<dyn Waiter>>) -> Self {
        let length = body.length();
        let room = length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        let mut tee = Self { body, waiters, data: Vec::new(), length };
        tee.leave_out_under(room);
        if !tee.waiters.is_empty() {
            tee.data.reserve_exact(room);
        }
        tee
    }

    pub fn body(&self) -> &Body {
        &self.body
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        let next = ready!(self.body.poll_next(cx));
        if !self.waiters.is_empty() {
            self.passes(next.as_ref());
        }
        Poll::Ready(next)
    }

    fn passes(&mut self, next: Option<&Result<Frame<Bytes>, ProxyError>>) {
        match next {
            None => return self.end(),
            Some(Err(_)) => return self.leave_out(MirrorSkipped::Incomplete),
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => {
                    self.leave_out_under(self.data.len() + data.len());
                    if self.waiters.is_empty() {
                        self.data = Vec::new();
                        return;
                    }
                    self.data.extend_from_slice(data);
                }
                // Trailers; a copy would have to have them, too.
                None => return self.leave_out(MirrorSkipped::Unfit),
            },
        }
        if self.body.is_done() || self.length == Some(self.data.len() as u64) {
            self.end();
        }
    }

    fn end(&mut self) {
        let body = Bytes::from(std::mem::take(&mut self.data));
        for waiter in self.waiters.drain(..) {
            waiter.send(body.clone());
        }
    }

    /// Those who do not want so much go.
    fn leave_out_under(&mut self, length: usize) {
        for waiter in self.waiters.extract_if(.., |waiter| waiter.max_body() < length) {
            waiter.leave_out(MirrorSkipped::TooLarge);
        }
    }

    fn leave_out(&mut self, why: MirrorSkipped) {
        self.data = Vec::new();
        for waiter in self.waiters.drain(..) {
            waiter.leave_out(why);
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.leave_out(MirrorSkipped::Incomplete);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use http::HeaderMap;
    use std::{cell::RefCell, collections::VecDeque, rc::Rc, task::Waker};

    type Ended = Rc<RefCell<Vec<Result<Bytes, MirrorSkipped>>>>;

    #[derive(Debug)]
    struct Limit(usize, Ended);

    impl Waiter for Limit {
        fn max_body(&self) -> usize {
            self.0
        }

        fn send(self: Box<Self>, body: Bytes) {
            self.1.borrow_mut().push(Ok(body));
        }

        fn leave_out(self: Box<Self>, why: MirrorSkipped) {
            self.1.borrow_mut().push(Err(why));
        }
    }

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: VecDeque<Bytes> = pieces.iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect();
        Body::Again(Box::new((pieces, Body::Empty)))
    }

    fn tee(body: Body, limits: &[usize]) -> (Tee, Ended) {
        let ended = Ended::default();
        let waiters = limits.iter().map(|limit| Box::new(Limit(*limit, ended.clone())) as Box<dyn Waiter>).collect();
        (Tee::new(body, waiters), ended)
    }

    fn next(tee: &mut Tee) -> Option<Bytes> {
        match tee.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => next.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("it is all there"),
        }
    }

    #[test]
    fn all_of_it_passes_and_is_copied_at_its_end() {
        let (mut tee, ended) = tee(pieces(&["one ", "two ", "three"]), &[13]);
        assert_eq!(next(&mut tee).unwrap(), "one ");
        assert_eq!(next(&mut tee).unwrap(), "two ");
        assert!(ended.borrow().is_empty(), "not before its end");
        assert_eq!(next(&mut tee).unwrap(), "three");
        assert_eq!(*ended.borrow(), [Ok(Bytes::from_static(b"one two three"))]);
        assert_eq!(next(&mut tee), None);
        drop(tee);
        assert_eq!(ended.borrow().len(), 1, "once");
    }

    #[test]
    fn one_that_is_too_large_passes_and_is_not_copied() {
        // By its length, before any of it came.
        let (mut known, ended) = tee(pieces(&["one ", "two"]), &[6, 7]);
        assert_eq!(*ended.borrow(), [Err(MirrorSkipped::TooLarge)]);
        while next(&mut known).is_some() {}
        assert_eq!(*ended.borrow(), [Err(MirrorSkipped::TooLarge), Ok(Bytes::from_static(b"one two"))]);
        // By what came of it.
        let (mut tee, ended) = tee(pieces(&["one ", "two"]), &[7]);
        tee.waiters = vec![Box::new(Limit(6, ended.clone()))];
        assert_eq!(next(&mut tee).unwrap(), "one ");
        assert_eq!(next(&mut tee).unwrap(), "two");
        assert_eq!(ended.borrow()[..], [Err(MirrorSkipped::TooLarge)]);
        assert_eq!((tee.data.capacity(), next(&mut tee)), (0, None));
    }

    #[test]
    fn what_does_not_come_to_its_end_is_not_copied() {
        let (mut tee, ended) = tee(pieces(&["one ", "two"]), &[7]);
        next(&mut tee);
        drop(tee);
        assert_eq!(*ended.borrow(), [Err(MirrorSkipped::Incomplete)]);
        let (mut tee, ended) = self::tee(pieces(&["one ", "two"]), &[7]);
        next(&mut tee);
        tee.passes(Some(&Err(ProxyError::new(Reason::DownstreamClosed, "it left"))));
        assert_eq!(*ended.borrow(), [Err(MirrorSkipped::Incomplete)]);
    }

    #[test]
    fn trailers_are_not_lost_in_silence() {
        let (mut tee, ended) = tee(pieces(&["one ", "two"]), &[7]);
        next(&mut tee);
        tee.passes(Some(&Ok(Frame::trailers(HeaderMap::new()))));
        assert_eq!(*ended.borrow(), [Err(MirrorSkipped::Unfit)]);
    }
}
