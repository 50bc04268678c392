//! An endpoint's share of the traffic, from its own weight and its locality's.

use super::super::proto::LocalityLbEndpoints;
use crate::registry::Instance;
use std::collections::BTreeMap;

/// Sums over the localities of one priority that have endpoints.
struct Group {
    /// Of the localities' weights; `None` where one of them has none.
    localities: Option<f64>,
    /// Of the endpoints' weights.
    endpoints: f64,
}

/// The weight of each endpoint of each locality: 100 times what the control plane wrote. That is 1 where it wrote none,
/// and so the same as an instance without a weight has from other registries.
///
/// Where all localities of a priority have a weight, a locality's is what its endpoints get together, in proportion to
/// their own, scaled so that the mean of all stays. (gRPC's clients do this always; Envoy only where the cluster asks for
/// it. Istio writes the sum of the endpoints' weights, where it makes no difference.)
pub fn effective(localities: &[LocalityLbEndpoints]) -> Result<Vec<Vec<u32>>, String> {
    let own = localities.iter().map(own_weights).collect::<Result<Vec<_>, _>>()?;
    let mut groups = BTreeMap::new();
    for (locality, own) in localities.iter().zip(&own) {
        let weight = locality.load_balancing_weight.as_ref().map(|weight| weight.value);
        if weight == Some(0) {
            return Err("a locality has the weight 0".into());
        }
        if own.is_empty() {
            continue;
        }
        let group = groups.entry(locality.priority).or_insert(Group { localities: Some(0.0), endpoints: 0.0 });
        group.localities = group.localities.zip(weight).map(|(sum, weight)| sum + f64::from(weight));
        group.endpoints += own.iter().sum::<f64>();
    }
    Ok(localities
        .iter()
        .zip(own)
        .map(|(locality, own)| {
            let factor = groups.get(&locality.priority).map_or(1.0, |group| factor(locality, &own, group));
            own.into_iter().map(|weight| whole(weight * factor)).collect()
        })
        .collect())
}

fn factor(locality: &LocalityLbEndpoints, own: &[f64], group: &Group) -> f64 {
    match (&locality.load_balancing_weight, group.localities) {
        (Some(weight), Some(all)) => f64::from(weight.value) / all * group.endpoints / own.iter().sum::<f64>(),
        _ => 1.0,
    }
}

/// Never 0, which would take the endpoint out.
fn whole(weight: f64) -> u32 {
    (weight * f64::from(Instance::DEFAULT_WEIGHT)).round().clamp(1.0, u32::MAX.into()) as u32
}

fn own_weights(locality: &LocalityLbEndpoints) -> Result<Vec<f64>, String> {
    let written = locality.lb_endpoints.iter().map(|endpoint| &endpoint.load_balancing_weight);
    let weight = written.map(|weight| match weight.as_ref().map_or(1, |weight| weight.value) {
        0 => Err("an endpoint has the weight 0".to_owned()),
        weight => Ok(f64::from(weight)),
    });
    weight.collect()
}
