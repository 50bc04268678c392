//! The instances of one service, as the children of its node say them.

use super::{
    follow::{Child, Content, Wrong},
    proto::Data,
};
use crate::registry::{Instance, layout::Keys, watch::Found};
use std::collections::BTreeMap;

pub struct Instances<'a> {
    pub keys: &'a Keys,
    pub service: &'a str,
}

impl Content for Instances<'_> {
    type Part = Vec<Instance>;
    type Set = Found;

    fn reads_values(&self) -> bool {
        self.keys.reads_values()
    }

    fn part(&self, name: &str, data: &Data) -> Result<Vec<Instance>, String> {
        // A node on the way to other services.
        if self.reads_values() && (data.stat.children > 0 || data.value.is_empty() && data.stat.owner == 0) {
            return Ok(Vec::new());
        }
        self.keys.decode(self.service, name, &data.value).map_err(|error| error.to_string())
    }

    fn whole(&self, path: &str, children: &BTreeMap<String, Child<Vec<Instance>>>) -> Option<Found> {
        let mut found = Found::default();
        let mut hidden = false;
        for (name, child) in children {
            found.instances.extend_from_slice(&child.part);
            let wrong = match &child.wrong {
                None => continue,
                Some(Wrong::Value(wrong)) => wrong,
                Some(Wrong::NoRight) => {
                    hidden = true;
                    "no right to read it (NoAuth)"
                }
            };
            found.unreadable.push(format!("{path}/{name}: {wrong}"));
        }
        // That nothing may be read is not that nothing is there.
        (!found.instances.is_empty() || !hidden).then_some(found)
    }
}
