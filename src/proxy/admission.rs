//! Whether a request may come in: its service's limits, before anything is done for it.

use super::{headers::past_deadline, record::Record};
use crate::{
    cluster::{
        Cluster,
        limit::{QueueFull, TooFast},
    },
    error::{ProxyError, Reason},
    telemetry::flags::Flag,
};
use http::HeaderMap;
use tokio::time::{Instant, timeout_at};

/// Lets the request in, or says why not. Gives whether it had to wait for that.
pub async fn admit(
    cluster: &Cluster,
    headers: &HeaderMap,
    started: Instant,
    deadline: Option<Instant>,
    record: &mut Record,
) -> Result<bool, ProxyError> {
    let limits = &cluster.limits;
    // Before it takes or waits for a place that another could have.
    if limits.is_rated() {
        limits.take_rate(headers, started).map_err(rate_limited)?;
    }
    let waited = !limits.try_enter();
    let entered = if waited {
        record.flag(Flag::Queued);
        // Boxed, like all that is large and rare on a connection.
        Box::pin(wait(cluster, deadline)).await?;
        Instant::now()
    } else {
        started
    };
    record.entered(entered);
    Ok(waited)
}

/// Waits for a place as long as the config and the caller allow.
async fn wait(cluster: &Cluster, deadline: Option<Instant>) -> Result<(), ProxyError> {
    let settings = cluster.load().settings.clone();
    let (limit, config) = (cluster.metrics.requests_limit.get(), &settings.service.limits);
    let overloaded = |detail| Err(ProxyError::new(Reason::Overloaded, detail));
    if config.queue_timeout.is_zero() {
        return overloaded(format!("{limit} requests to the service may be in flight, and are"));
    }
    let patience = Instant::now() + config.queue_timeout;
    let until = deadline.map_or(patience, |deadline| deadline.min(patience));
    match timeout_at(until, cluster.limits.enter(config.pending)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(QueueFull)) => overloaded(format!("{limit} requests are in flight and {} wait", config.pending)),
        Err(_) if deadline == Some(until) => Err(past_deadline()),
        Err(_) => overloaded(format!("{limit} requests are in flight, and none ended in {:?}", config.queue_timeout)),
    }
}

fn rate_limited(too_fast: TooFast) -> ProxyError {
    let (whose, wait) = match too_fast {
        TooFast::Caller(wait) => ("this caller's limit (limits.rate.per_caller)", wait),
        TooFast::All(wait) => ("the service's limit (limits.rate)", wait),
    };
    ProxyError::new(Reason::RateLimited, format!("more requests per second than {whose}")).retry_after(wait)
}
