//! Nacos' configs, on the connection on which services are followed. The names of those that there are can be had over HTTP
//! only, which is also asked when a config is not known yet.

use super::{
    calls::CallError,
    message::{ChangedConfigs, Config, ConfigKey, ConfigPage, ListedConfig, Outcome},
    poll::{Version, encoded, is_missing},
    session::Session,
};
use crate::registry::RegistryError;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::{sync::broadcast, time::sleep};

/// What the answer to a query may be besides a config: there is none, or it is just being written. In other answers these
/// numbers mean something else.
const NOT_FOUND: i64 = 300;
const BEING_WRITTEN: i64 = 400;
/// How often a query is repeated for that, and after how long: for half a second in all.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);
/// What both lines say when a config is not as it was said to be; there is no number for it.
const CONFLICT: &str = "md5 may have changed";
/// Configs per page of a listing, the most that Nacos 3 gives.
const LIST_PAGE: usize = 500;

/// What Nacos 3 puts around its answers.
#[derive(Deserialize)]
struct Wrapped {
    data: ConfigPage,
}

impl Session {
    /// Configs that changed from now on, of those that [`Self::changed`] was asked about.
    pub fn config_changes(&self) -> broadcast::Receiver<ConfigKey> {
        self.changed_configs.subscribe()
    }

    /// A config as this server has it, which may be a moment behind what another one, or the database, has.
    pub async fn config(&self, key: &ConfigKey) -> Result<Option<Config>, CallError> {
        let request = json!({ "dataId": key.data_id, "group": key.group, "tenant": self.tenant() });
        for _ in 0..TRIES {
            let (outcome, answer) = self.calls.ask("ConfigQueryRequest", &request).await?;
            if outcome.is_success() {
                return self.calls.read(&answer).map(Some);
            }
            match outcome.error_code {
                NOT_FOUND if answer.kind() == "ConfigQueryResponse" => return Ok(None),
                BEING_WRITTEN if answer.kind() == "ConfigQueryResponse" => sleep(PAUSE).await,
                _ => return Err(self.calls.failed("ConfigQueryRequest", outcome)),
            }
        }
        let cause = format!("`{}` is written again and again", key.data_id);
        Err(CallError::Call(RegistryError::Busy { server: self.calls.server(), cause }))
    }

    /// Writes a config if its content has this MD5, or if there is none. False: it is another one.
    pub async fn swap_config(&self, key: &ConfigKey, md5: &str, content: &str) -> Result<bool, CallError> {
        let ConfigKey { group, data_id } = key;
        let request = json!({
            "dataId": data_id, "group": group, "tenant": self.tenant(), "content": content, "casMd5": md5,
            "additionMap": {},
        });
        let (outcome, _) = self.calls.ask("ConfigPublishRequest", &request).await?;
        let says = |outcome: &Outcome| outcome.message.as_deref().is_some_and(|message| message.contains(CONFLICT));
        match outcome.is_success() {
            true => Ok(true),
            false if says(&outcome) => Ok(false),
            false => Err(self.calls.failed("ConfigPublishRequest", outcome)),
        }
    }

    /// Which of these configs do not have this MD5. The server tells from now on when one of them changes.
    pub async fn changed<'a>(
        &self,
        group: &str,
        known: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<ConfigKey>, CallError> {
        let tenant = self.tenant();
        let known =
            known.map(|(data_id, md5)| json!({ "group": group, "dataId": data_id, "md5": md5, "tenant": tenant }));
        let request = json!({ "listen": true, "configListenContexts": known.collect::<Vec<_>>() });
        let answer: ChangedConfigs = self.calls.call("ConfigBatchListenRequest", &request).await?;
        Ok(answer.changed_configs)
    }

    /// The names of all configs of a group. `api` is the one that the server was found to have.
    pub async fn config_names(&self, group: &str, api: &mut Option<Version>) -> Result<Vec<String>, CallError> {
        let (mut names, mut listed) = (Vec::new(), 0);
        for page in 1.. {
            let found = self.config_page(group, page, api).await?;
            if found.page_items.is_empty() {
                break;
            }
            listed += found.page_items.len();
            // The database takes some letters for patterns.
            let of_group = found.page_items.into_iter().filter(|config: &ListedConfig| config.group == group);
            names.extend(of_group.map(|config| config.data_id));
            if listed >= found.total_count {
                break;
            }
        }
        Ok(names)
    }

    async fn config_page(&self, group: &str, page: usize, api: &mut Option<Version>) -> Result<ConfigPage, CallError> {
        let (tenant, group) = (encoded(self.tenant()), encoded(group));
        let query = format!("dataId=&search=accurate&pageNo={page}&pageSize={LIST_PAGE}");
        if *api != Some(Version::Three) {
            let path = format!("/v1/cs/configs?{query}&group={group}&tenant={tenant}");
            let answer = self.calls.get(&path).await?;
            if !is_missing(answer.status) {
                *api = Some(Version::One);
                return self.read_page(answer.status, &answer.body, |body| serde_json::from_slice(body));
            }
        }
        *api = Some(Version::Three);
        let path = format!("/v3/admin/cs/config/list?{query}&groupName={group}&namespaceId={tenant}");
        let answer = self.calls.get(&path).await?;
        let unwrap = |body: &[u8]| serde_json::from_slice::<Wrapped>(body).map(|wrapped| wrapped.data);
        self.read_page(answer.status, &answer.body, unwrap)
    }

    fn read_page(
        &self,
        status: StatusCode,
        body: &[u8],
        read: impl Fn(&[u8]) -> Result<ConfigPage, serde_json::Error>,
    ) -> Result<ConfigPage, CallError> {
        let server = self.calls.server();
        if status != StatusCode::OK {
            let cause = format!("the list of configs: {status} {}", String::from_utf8_lossy(body));
            return Err(CallError::Call(RegistryError::Busy { server, cause }));
        }
        read(body).map_err(|error| CallError::Call(RegistryError::Protocol { server, cause: error.to_string() }))
    }

    /// The namespace, as configs have it.
    fn tenant(&self) -> &str {
        if self.namespace == "public" { "" } else { &self.namespace }
    }
}
