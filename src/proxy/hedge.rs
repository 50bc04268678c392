//! Hedged requests: one that takes long is sent to a second endpoint as well, and whichever answers first counts. (J. Dean
//! and L. A. Barroso, "The Tail at Scale", CACM 56, 2013.)

use super::{
    body::Body,
    headers::{self, X_PILLION_ATTEMPT},
    http::Interim,
    journey::{Destination, Failed, Journey, SendFailure, Sent, says_something},
    record::Record,
    retry::{self, Verdict},
    timer::Timer,
    waiting::Waiting,
};
use crate::{
    cluster::{
        Endpoint,
        budget::Grant,
        endpoint::InFlight,
        health::{Choice, Outcome},
    },
    config::Hedge,
};
use http::{HeaderValue, Method, Response, request};
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::Instant;

/// Both tries, as far as they have ended.
type Ended = [Option<Result<Sent, SendFailure>>; 2];

impl Journey<'_> {
    /// After what time the request goes to a second endpoint as well; `None` if it does not. Only first tries do, of what is
    /// idempotent and has no body.
    pub(super) fn hedge_after(&self, retries: u32) -> Option<Duration> {
        let service = self.to.service;
        let hedge = service.hedge.as_ref()?;
        let may = retries == 0
            && !self.to.is_grpc
            && self.parts.method.is_idempotent()
            && self.body.as_ref().is_some_and(Body::is_done)
            && !headers::is_upgrade(&self.parts.headers);
        may.then(|| match hedge {
            Hedge { after: Some(after), .. } => *after,
            Hedge { percentile, .. } => {
                let known = self.to.cluster.latencies().percentile(percentile.unwrap_or(95));
                // Until enough is known: never. But what is seen is learnt from.
                known.unwrap_or(service.timeouts.request)
            }
        })
    }

    /// One try, and after some time a second one beside it. `endpoint` becomes the one whose result this is; if the other one
    /// failed, it is added to `tried`.
    pub(super) async fn send_hedged(
        &mut self,
        endpoint: &mut Arc<Endpoint>,
        fresh: bool,
        after: Duration,
        tried: &mut Vec<Arc<Endpoint>>,
        record: &mut Record,
    ) -> Result<Sent, Box<Failed>> {
        let Self { to, interim, body, parts, waiting } = self;
        let (to, began, first) = (*to, Instant::now(), endpoint.clone());
        let mut timer = Timer::default();
        let mut second_waiting = waiting.beside(&mut timer);
        let mut second_parts = parts.clone();
        second_parts.headers.insert(X_PILLION_ATTEMPT, HeaderValue::from(2));
        let mut second: Option<Second> = None;
        let [one, two] = {
            let one = pin!(to.send(&first, parts, body, fresh, waiting, *interim));
            race(to, one, after, &first, &mut second, &mut second_parts, &mut second_waiting).await
        };
        if one.as_ref().is_some_and(Result::is_ok) || two.as_ref().is_some_and(Result::is_ok) {
            to.cluster.latencies().observe(began.elapsed());
        }
        let Some(Second { endpoint: other, mut in_flight, grant: _held }) = second else {
            let sent = one.unwrap_or_else(|| unreachable!("the race ends with a result"));
            return to.classify(sent, &first, &parts.method, waiting.since());
        };
        record.hedged();
        to.cluster.metrics.hedges.inc();
        let (method, since) = (&parts.method, second_waiting.since());
        let one = one.map(|sent| to.classify(sent, &first, method, waiting.since()));
        let two = two.map(|sent| to.classify(sent, &other, method, since));
        match (one, two) {
            (Some(Ok(sent)), two) => {
                if let Some(Err(failed)) = two
                    && failed.is_the_endpoint_s()
                {
                    to.cluster.tell(&mut in_flight, Outcome::Failure);
                }
                Ok(sent)
            }
            (one, Some(two)) => {
                match one {
                    None => {
                        first.live.at_least(began.elapsed(), Instant::now());
                        record.tell(Outcome::Silence);
                    }
                    Some(Err(failed)) if failed.is_the_endpoint_s() => record.tell(Outcome::Failure),
                    Some(_) => {}
                }
                if two.is_ok() {
                    to.cluster.metrics.hedges_won.inc();
                } else {
                    tried.push(first);
                }
                record.attempt_instead(in_flight);
                *endpoint = other;
                two
            }
            (Some(one), None) => one,
            (None, None) => unreachable!("the race ends with a result"),
        }
    }
}

/// The second try.
struct Second {
    endpoint: Arc<Endpoint>,
    in_flight: InFlight,
    /// Held until both have ended.
    grant: Grant,
}

/// Lets the first try run, starts the second when it is time, and ends when one has an answer for the caller or both have
/// failed. What is still running then is cancelled.
async fn race(
    to: Destination<'_>,
    mut one: Pin<&mut impl Future<Output = Result<Sent, SendFailure>>>,
    after: Duration,
    first: &Arc<Endpoint>,
    second: &mut Option<Second>,
    parts: &mut request::Parts,
    waiting: &mut Waiting<'_>,
) -> Ended {
    if let Ok(sent) = tokio::time::timeout(after, one.as_mut()).await {
        return [Some(sent), None];
    }
    // A probe finds out how one endpoint is; what another says is of no use for that. A second one is not worth a last resort.
    let next = to.pick(std::slice::from_ref(first), Instant::now()).filter(|(_, choice)| *choice == Choice::Available);
    let granted = next.and_then(|next| Some((next, to.allow_another()?)));
    let Some(((endpoint, choice), grant)) = granted else { return [Some(one.await), None] };
    let method = parts.method.clone();
    *second = Some(Second { endpoint: endpoint.clone(), in_flight: InFlight::start(endpoint.clone(), choice), grant });
    let mut body = Some(Body::Empty);
    let mut two = pin!(to.send(&endpoint, parts, &mut body, false, waiting, &Nobody));
    let mut ended: Ended = [None, None];
    poll_fn(|cx| {
        if ended[0].is_none()
            && let Poll::Ready(sent) = one.as_mut().poll(cx)
        {
            ended[0] = Some(sent);
        }
        if ended[1].is_none()
            && let Poll::Ready(sent) = two.as_mut().poll(cx)
        {
            ended[1] = Some(sent);
        }
        let is_answered = ended.iter().flatten().any(|sent| is_final(to, sent, &method));
        if is_answered || ended.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    ended
}

/// Whether this is for the caller.
fn is_final(to: Destination<'_>, sent: &Result<Sent, SendFailure>, method: &Method) -> bool {
    let retry = &to.service.retry;
    sent.as_ref().is_ok_and(|sent| retry::judge(&sent.response, to.is_grpc, method, retry) == Verdict::Final)
}

impl Failed {
    /// Whether it says something about the endpoint.
    fn is_the_endpoint_s(&self) -> bool {
        match &self.outcome {
            Ok(_) => true,
            Err(error) => !self.stale && says_something(error.reason),
        }
    }
}

/// Informational responses to a second try go nowhere: the caller has perhaps had those to the first.
pub(super) struct Nobody;

impl Interim for Nobody {
    fn send(&self, _: Response<()>) {}
}
