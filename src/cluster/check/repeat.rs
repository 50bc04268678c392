//! Checks of what no registry lists, one after the other: the local application.

use super::{Change, Checked, Last, Outcome, perform, schedule};
use crate::{
    cluster::{Endpoint, table::Settings},
    config::HealthCheck,
};
use std::{convert::Infallible, future::Future};
use tokio::time::{Instant, sleep_until};

/// Checks `endpoint` now, and again and again. What is known is kept with the endpoint, and each result is told; requests
/// are not kept from it. Only on the control thread.
pub async fn repeat(
    service: &str,
    endpoint: &Endpoint,
    settings: &Settings,
    check: &HealthCheck,
    mut tell: impl FnMut(Change, &Last),
) -> Infallible {
    let live = &endpoint.live;
    let next = schedule(live, Instant::now());
    let mut checked = live.checked().map_or_else(|| Checked::new(next), |checked| Checked::clone(&checked));
    loop {
        let before = checked.state;
        checked = once_more(&checked, check, perform(service, endpoint, settings, check)).await;
        live.set_checked(Some(checked.clone()));
        if let Some(last) = &checked.last {
            tell(Change { from: before, to: checked.state }, last);
        }
    }
}

/// What is known after `check`, which begins when it is due.
pub async fn once_more(known: &Checked, timing: &HealthCheck, check: impl Future<Output = Outcome>) -> Checked {
    sleep_until(known.next).await;
    let began = Instant::now();
    let failure = check.await.err();
    let at = Instant::now();
    known.after(Last { at, took: at - began, failure }, timing, false, fastrand::f64())
}
