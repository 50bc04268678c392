//! For the target `eureka` of `fuzz/`.

use super::{applications::Applications, decode, gzip};
use crate::{
    config::{EurekaAddress, EurekaName},
    registry::Instance,
};

/// The sets of instances that there are, by name, after a full answer and deltas; `None` if one of them is no answer.
pub fn instances<'b>(full: &[u8], deltas: impl Iterator<Item = &'b [u8]>) -> Option<Vec<Vec<Instance>>> {
    let mut all = Applications::new(decode::answer(full, EurekaAddress::Ip).ok()?);
    for delta in deltas {
        all.apply(decode::answer(delta, EurekaAddress::Hostname).ok()?.listed);
    }
    all.hash();
    let by = [EurekaName::App, EurekaName::Vip].into_iter();
    let sets = by.flat_map(|by| all.names(by).into_iter().map(move |name| (name, by)));
    Some(sets.map(|(name, by)| all.find(&name, by).instances).collect())
}

pub fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    gzip::unpack(packed, limit).ok()
}
