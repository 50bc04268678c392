//! How long a request may take: one timer for the whole, for one try, and for silence while it is sent.

use super::{
    headers::{self, past_deadline},
    timer::Timer,
};
use crate::{
    config,
    error::{ProxyError, Reason},
};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How long one request may take, over all its tries.
pub struct Waiting<'t> {
    timer: &'t mut Timer,
    /// From the end of the request to the start of the response.
    request: Duration,
    /// Whether that is `timeouts.stream`, which is the shorter one.
    streams: bool,
    /// Without a byte of the request, while it is sent.
    idle: Duration,
    /// What the caller asked for.
    deadline: Option<Instant>,
    /// For one try to begin its response, once it is sent.
    per_try: Option<Duration>,
    /// When all of it is over, as known so far.
    over: Option<Instant>,
    /// When this try is, at the latest when all is.
    until: Option<Instant>,
    /// When the request came; until the first wait this is as good as now.
    begun: Option<Instant>,
    started: Instant,
    /// Whether the request had to be waited for, as one whose body comes slowly.
    slow: bool,
    /// Whether the request was sent once, so that its own time counts besides the caller's deadline.
    counted: bool,
    tries: u32,
    /// Since when this try's response is waited for, or the try runs.
    since: Instant,
    sent: bool,
    seen: u64,
    quiet: u32,
}

impl<'t> Waiting<'t> {
    /// The idle time is looked at this often per period, so that bytes that move cost nothing.
    const LOOKS: u32 = 4;

    pub fn new(timer: &'t mut Timer, service: &config::Service, begun: Instant, deadline: Option<Instant>) -> Self {
        let timeouts = &service.timeouts;
        timer.clear();
        Self {
            timer,
            request: timeouts.stream.map_or(timeouts.request, |stream| stream.min(timeouts.request)),
            streams: timeouts.stream.is_some_and(|stream| stream < timeouts.request),
            idle: timeouts.idle,
            deadline,
            per_try: service.retry.per_try_timeout,
            over: deadline,
            until: deadline,
            begun: Some(begun),
            started: begun,
            slow: false,
            counted: false,
            tries: 0,
            since: begun,
            sent: false,
            seen: 0,
            quiet: 0,
        }
    }

    /// For another try of the same request beside this one, which is over when this one is. Not for one whose body still
    /// comes in.
    pub fn beside<'a>(&self, timer: &'a mut Timer) -> Waiting<'a> {
        let over = self.over.filter(|_| self.counted).unwrap_or_else(|| self.whole(self.started));
        Waiting {
            timer,
            over: Some(over),
            until: Some(over),
            counted: true,
            tries: 1,
            sent: false,
            seen: 0,
            quiet: 0,
            ..*self
        }
    }

    /// Time has passed since the request came, before anything was done for it. It is part of the request's own time, and
    /// not of an endpoint's.
    pub fn delayed(&mut self) {
        self.begun = None;
        self.since = Instant::now();
    }

    /// The whole request has left; from now on the response is waited for.
    pub fn request_sent(&mut self) {
        if !self.sent {
            self.sent = true;
            let now = self.begun.unwrap_or_else(Instant::now);
            self.since = now;
            // Counted from the first try on.
            if !self.counted {
                self.counted = true;
                self.over = Some(self.whole(if self.slow { now } else { self.started }));
            }
            let tried = self.per_try.map(|per_try| Instant::now() + per_try);
            let until = self.over.into_iter().chain(tried).min();
            self.until = until;
            if let Some(until) = until {
                self.timer.set(until);
            }
        }
    }

    /// Another try begins.
    pub fn begin_try(&mut self) {
        self.tries += 1;
        if self.tries > 1 {
            self.begun = None;
            self.since = Instant::now();
        }
        (self.sent, self.seen, self.quiet, self.until) = (false, 0, 0, self.over);
    }

    /// Whether the caller's deadline has passed, as whoever was told of it sees it: headers say it in milliseconds.
    pub fn is_past_deadline(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now() + Duration::from_millis(1))
    }

    /// When the caller wants its answer at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Since when the endpoint has been waited for: the end of the request, or its start while it is still being sent.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Fails if the caller has stopped waiting.
    pub fn check_deadline(&self) -> Result<(), ProxyError> {
        match self.deadline {
            Some(deadline) if deadline <= Instant::now() => Err(past_deadline()),
            _ => Ok(()),
        }
    }

    /// Whether there is time for this wait, and for something after it.
    pub fn allows(&self, wait: Duration) -> bool {
        self.over.is_none_or(|over| over.saturating_duration_since(Instant::now()) > wait)
    }

    /// Ready with the error when time is up. `moved` counts what has been sent.
    pub fn poll_expired(&mut self, moved: u64, cx: &mut Context<'_>) -> Poll<ProxyError> {
        self.begun = None;
        self.slow |= !self.sent;
        if !self.sent && self.quiet == 0 && self.seen == 0 {
            self.next_look();
        }
        while self.timer.poll_expired(cx).is_ready() {
            let now = Instant::now();
            if let Some(until) = self.until.filter(|until| now >= *until) {
                if self.until != self.over {
                    let detail = format!("no response in {:?} to this try", self.per_try.unwrap_or_default());
                    return Poll::Ready(ProxyError::new(Reason::TryTimeout, detail));
                }
                return Poll::Ready(self.too_late(until));
            }
            if self.sent {
                return Poll::Pending;
            }
            self.quiet = if moved == self.seen { self.quiet + 1 } else { 1 };
            self.seen = moved;
            if self.quiet > Self::LOOKS {
                let detail = format!("nothing of the request moved for {:?}", self.idle);
                return Poll::Ready(ProxyError::new(Reason::IdleTimeout, detail));
            }
            self.next_look();
        }
        Poll::Pending
    }

    fn next_look(&mut self) {
        self.quiet = self.quiet.max(1);
        let look = Instant::now() + self.idle / Self::LOOKS;
        self.timer.set(self.until.map_or(look, |until| until.min(look)));
    }

    /// What comes of `future`, unless the time for all tries is over first.
    pub async fn in_time<F: Future>(&self, future: F) -> Result<F::Output, ProxyError> {
        let mut future = pin!(future);
        // Nearly always it is there at once, and needs no timer.
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Ok(output);
        }
        let over = self.over.filter(|_| self.counted).unwrap_or_else(|| self.whole(self.started));
        Box::pin(tokio::time::timeout_at(over, future)).await.map_err(|_| self.too_late(over))
    }

    /// When all is over if the request's own time counts from `start`.
    fn whole(&self, start: Instant) -> Instant {
        let over = start + self.request;
        self.deadline.map_or(over, |deadline| deadline.min(over))
    }

    /// The time for all tries, which was to be over then, has passed.
    fn too_late(&self, over: Instant) -> ProxyError {
        if self.deadline == Some(over) {
            return past_deadline();
        }
        let reason = if self.streams { Reason::StreamTimeout } else { Reason::RequestTimeout };
        ProxyError::new(reason, format!("no response in {:?}", self.request))
    }

    /// Passes the caller's deadline on, reduced by what has passed.
    pub fn shorten(&self, headers: &mut http::HeaderMap) {
        if let Some(deadline) = self.deadline {
            headers::put_deadline(headers, deadline);
        }
    }
}
