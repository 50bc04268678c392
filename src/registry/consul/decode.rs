//! From the rows of Consul's health endpoint to instances, with what frameworks put into tags and metadata.

mod micro_tags;
#[cfg(test)]
mod tests;

use crate::registry::{
    Address, Instance,
    layout::{Endpoint, Metadata, endpoint_instance},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What the agents know of each other.
const NODE_CHECK: &str = "serfHealth";

/// One instance as Consul tells it, as far as it is of use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Row {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    meta: Metadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    address: String,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<String, TaggedAddress>>,
    #[serde(default)]
    meta: Metadata,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaggedAddress {
    address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default, rename = "CheckID")]
    id: String,
    status: String,
}

/// How an instance's checks stand, all taken together: the node's, maintenance (which shows as critical) and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Passing,
    Warning,
    Critical,
    /// Consul's own check of the node fails, and nothing else does.
    NodeLost,
}

/// The instances in `rows`, and what is wrong with rows that cannot be read. One that its own checks, or maintenance, hold
/// unfit is there as such; one whose node is lost is left out, for that says nothing about the instance.
///
/// Ids are `NODE/ID`, because Consul's service ids are unique only on their node. A registration by Kratos gives an
/// instance per endpoint, see the layout `kratos`. Labels are the tags (`tag.NAME: "true"`), the metadata, and `version`
/// where a framework writes one.
pub fn instances(rows: Vec<Row>, only_passing: bool) -> (Vec<Instance>, Vec<String>) {
    let (mut instances, mut complaints) = (Vec::new(), Vec::new());
    for row in rows {
        let standing = Standing::of(row.checks.as_deref().unwrap_or_default());
        if standing == Standing::NodeLost {
            continue;
        }
        let id = format!("{}/{}", row.node.node, row.service.id);
        let healthy = standing == Standing::Passing || standing == Standing::Warning && !only_passing;
        match decode(&id, row, standing) {
            Ok(found) => instances.extend(found.into_iter().map(|instance| Instance { healthy, ..instance })),
            Err(error) => complaints.push(format!("{id}: {error}")),
        }
    }
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    (instances, complaints)
}

impl Standing {
    fn of(checks: &[Check]) -> Self {
        let is = |check: &&Check, known: &[&str]| known.contains(&check.status.as_str());
        let critical: Vec<_> = checks.iter().filter(|check| !is(check, &["passing", "warning"])).collect();
        match critical[..] {
            [] if checks.iter().any(|check| check.status == "warning") => Self::Warning,
            [] => Self::Passing,
            [only] if only.id == NODE_CHECK => Self::NodeLost,
            _ => Self::Critical,
        }
    }
}

fn decode(id: &str, row: Row, standing: Standing) -> Result<Vec<Instance>, crate::registry::AddressError> {
    let Row { node, service, .. } = row;
    let weight = service.weight(standing);
    let (mut labels, mut version) = (BTreeMap::new(), String::new());
    for tag in service.tags.unwrap_or_default() {
        if let Some(found) = micro_tags::version(&tag).or_else(|| tag.strip_prefix("version=").map(str::to_owned)) {
            version = found;
        } else if let Some(metadata) = micro_tags::metadata(&tag) {
            labels.extend(metadata);
        } else if !micro_tags::is_endpoint(&tag) {
            labels.insert(format!("tag.{tag}"), "true".to_owned());
        }
    }
    labels.extend(service.meta.0);
    let metadata = Metadata(labels);

    // Kratos writes whole URLs where others have plain addresses for `lan`, `wan` and the like.
    let urls = service.tagged_addresses.unwrap_or_default().into_values().map(|tagged| tagged.address);
    let urls: Vec<_> = urls.filter(|address| address.contains("://")).collect();
    let mut instances = Vec::new();
    if urls.is_empty() {
        let host = if service.address.is_empty() { &node.address } else { &service.address };
        let address = Address::new(host, u16::try_from(service.port).unwrap_or_default())?;
        let mut instance = Instance::new(id, address);
        instance.tls = metadata.0.get("secure").map(|secure| secure == "true");
        metadata.apply(&mut instance);
        // Consul has weights of its own; `weight` among the metadata is of some other scale.
        instance.weight = weight.unwrap_or(1);
        if !version.is_empty() {
            instance.labels.insert("version".into(), version);
        }
        instances.push(instance);
    } else {
        for url in urls {
            let Some(endpoint) = Endpoint::parse(&url)? else { continue };
            let mut instance = endpoint_instance(id, endpoint, &version, metadata.clone());
            if let Some(weight) = weight {
                instance.weight = weight;
            }
            instances.push(instance);
        }
    }
    for instance in &mut instances {
        if instance.zone.is_none() {
            instance.zone = node.meta.0.get("zone").cloned();
        }
    }
    Ok(instances)
}

impl Service {
    /// The weight that somebody set; `None` for 1 and 1, which Consul puts where nobody did.
    fn weight(&self, standing: Standing) -> Option<u32> {
        let weights = self.weights.as_ref().filter(|weights| (weights.passing, weights.warning) != (1, 1))?;
        let weight = if standing == Standing::Warning { weights.warning } else { weights.passing };
        Some(u32::try_from(weight.max(0)).unwrap_or(u32::MAX))
    }
}
