//! A `DestinationRule`: a service's subsets, and how its requests are carried.

use super::{export_to, traffic_policy};
use crate::import::{
    name::Names,
    reader::{At, Log},
    services::Services,
};

pub fn destination_rule<'o>(root: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) {
    let Some(at) = root.get("spec") else { return };
    at.others(&["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"], log);
    export_to(&at, log);
    if let Some(at) = at.get("workloadSelector") {
        log.note(
            &at,
            "not carried over: a config holds for the pillion that has it; give it to those alone that shall have it",
        );
    }
    let Some(host) = at.text("host", log) else {
        log.fault(&at, "`host` is missing");
        return;
    };
    if host.contains('*') {
        log.note(&at, format!("not carried over: `{host}` is many services; `defaults` holds for all of them"));
        return;
    }
    let service = services.of(&names.host(&host, &root.object.namespace));
    for subset in at.items("subsets", log) {
        subset.others(&["name", "labels", "trafficPolicy"], log);
        let Some(name) = subset.text("name", log) else {
            log.fault(&subset, "`name` is missing");
            continue;
        };
        if let Some(at) = subset.get("trafficPolicy") {
            log.note(
                &at,
                "not carried over: subsets share their service's settings; another service, with \
                 `registered_as`, can have its own",
            );
        }
        let labels = subset.labels("labels", log);
        if labels.is_empty() {
            log.note(
                &subset,
                format!(
                    "without labels the subset `{name}` is the whole service, which pillion writes \
                     `SERVICE/`; name the labels"
                ),
            );
        }
        if service.subsets.contains_key(&name) {
            log.note(&subset, format!("left out: there is a subset `{name}` of `{host}` already"));
            continue;
        }
        service.subsets.insert(name, (labels, subset));
    }
    let Some(policy) = at.get("trafficPolicy") else { return };
    if service.settings_at.is_some() {
        log.note(&policy, format!("left out: `{host}` has a traffic policy of another object already"));
        return;
    }
    service.settings = traffic_policy::settings(&policy, log);
    service.settings_at = Some(policy);
}
