//! For the target `nacos` of `fuzz/`.

use super::{
    decode,
    message::{
        ChangedConfigs, Config, ConfigKey, ConfigPage, Outcome, Push, ServerRequest, ServiceAnswer, ServiceInfo,
        ServicePage,
    },
    proto::Payload,
};
use crate::registry::Instance;
use prost::Message;
use serde_json::Value;

/// The JSON in a payload; `None` if it is none.
pub fn json(payload: &[u8]) -> Option<Vec<u8>> {
    Some(Payload::decode(payload).ok()?.json().to_vec())
}

/// What there is of instances in the JSON of any message.
pub fn instances(json: &[u8]) -> Option<Vec<Instance>> {
    let _ = serde_json::from_slice::<ServerRequest>(json);
    let _ = serde_json::from_slice::<ServicePage>(json);
    let _ = serde_json::from_slice::<ConfigPage>(json);
    let _ = serde_json::from_slice::<Config>(json);
    let _ = serde_json::from_slice::<ConfigKey>(json);
    let _ = serde_json::from_slice::<ChangedConfigs>(json);
    let _ = serde_json::from_slice::<Outcome>(json).map(|outcome| outcome.is_success());
    let pushed = || Some(serde_json::from_slice::<Push>(json).ok()?.service_info);
    let answered = || Some(serde_json::from_slice::<ServiceAnswer>(json).ok()?.service_info);
    let over_http = || serde_json::from_slice::<ServiceInfo>(json).ok();
    let only_hosts = || Some(serde_json::from_slice::<Vec<Value>>(json).ok()?.into());
    let info = pushed().or_else(answered).or_else(over_http).or_else(only_hosts)?;
    info.key();
    Some(decode::found(info, &[]).instances)
}
