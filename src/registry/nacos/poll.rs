//! Nacos over HTTP, for servers whose gRPC port cannot be reached: nothing is pushed, so services are asked for in turns.

use super::{
    calls::CallError,
    login::Login,
    message::{Key, ServiceInfo, ServicePage},
};
use crate::registry::{
    RegistryError,
    http::{Answer, HttpClient},
};
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Services per page of a listing.
const LIST_PAGE: usize = 500;

/// Which of Nacos' APIs a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Nacos 1 and 2, and 3 as long as it keeps it.
    One,
    /// Nacos 3. It tells the instances of the clusters that are named, or of `DEFAULT`, and has no way to ask for all;
    /// so it is used only where there is no other.
    Three,
}

/// Requests to one server.
pub struct Api {
    http: Arc<HttpClient>,
    login: Login,
    namespace: String,
    clusters: Vec<String>,
    version: Version,
    worked: AtomicBool,
}

/// What the third API puts around its answers.
#[derive(Deserialize)]
struct Wrapped<T> {
    code: i64,
    #[serde(default)]
    message: Option<String>,
    data: Option<T>,
}

/// One page of the services of a group in the third API.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdminPage {
    total_count: usize,
    page_items: Vec<AdminService>,
}

#[derive(Deserialize)]
struct AdminService {
    name: String,
}

impl Api {
    /// Finds out which API the server has.
    pub async fn open(
        http: Arc<HttpClient>,
        login: Login,
        namespace: &str,
        clusters: &[String],
    ) -> Result<Self, RegistryError> {
        let (namespace, clusters) = (namespace.to_owned(), clusters.to_vec());
        let mut api = Self { http, login, namespace, clusters, version: Version::One, worked: AtomicBool::new(false) };
        // It need not exist.
        let any = Key { group: "DEFAULT_GROUP".into(), name: "pillion".into() };
        match api.send(Method::GET, &api.instances_path(&any, None)).await? {
            answer if is_missing(answer.status) => api.version = Version::Three,
            answer => drop(api.read_instances(&answer)?),
        }
        Ok(api)
    }

    pub fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// What a service is now.
    pub async fn instances(&self, key: &Key) -> Result<ServiceInfo, CallError> {
        self.read_service(&self.instances_path(key, None)).await
    }

    /// As much of it as is in one cluster.
    pub async fn instances_of(&self, key: &Key, cluster: &str) -> Result<ServiceInfo, CallError> {
        self.read_service(&self.instances_path(key, Some(cluster))).await
    }

    async fn read_service(&self, path: &str) -> Result<ServiceInfo, CallError> {
        let answer = self.send(Method::GET, path).await.map_err(call_error)?;
        let info = self.read_instances(&answer).map_err(call_error)?;
        self.worked.store(true, Ordering::Relaxed);
        Ok(info)
    }

    /// The names of all services of a group.
    pub async fn services(&self, group: &str) -> Result<Vec<String>, CallError> {
        let mut services = Vec::new();
        for page in 1.. {
            let (mut names, count) = self.services_page(group, page).await.map_err(call_error)?;
            if names.is_empty() {
                break;
            }
            services.append(&mut names);
            if services.len() >= count {
                break;
            }
        }
        Ok(services)
    }

    async fn services_page(&self, group: &str, page: usize) -> Result<(Vec<String>, usize), RegistryError> {
        let (namespace, group) = (encoded(&self.namespace), encoded(group));
        let query = format!("pageNo={page}&pageSize={LIST_PAGE}&namespaceId={namespace}&groupName={group}");
        let answer = self.send(Method::GET, &format!("/v1/ns/service/list?{query}")).await?;
        if !is_missing(answer.status) {
            let found: ServicePage = self.read(&answer)?;
            return Ok((found.service_names, found.count));
        }
        // Nacos 3 has it only for administrators.
        let query = query.replace("groupName", "groupNameParam");
        let answer = self.send(Method::GET, &format!("/v3/admin/ns/service/list?{query}")).await?;
        let found: AdminPage = self.unwrap(&answer)?;
        Ok((found.page_items.into_iter().map(|service| service.name).collect(), found.total_count))
    }

    /// What says which service is meant.
    pub fn service_query(&self, key: &Key) -> String {
        let (namespace, group, name) = (encoded(&self.namespace), encoded(&key.group), encoded(&key.name));
        format!("serviceName={name}&groupName={group}&namespaceId={namespace}")
    }

    fn instances_path(&self, key: &Key, cluster: Option<&str>) -> String {
        let query = format!("{}&healthyOnly=false", self.service_query(key));
        match (self.version, cluster) {
            (Version::One, None) => format!("/v1/ns/instance/list?{query}"),
            (Version::One, Some(cluster)) => format!("/v1/ns/instance/list?{query}&clusters={}", encoded(cluster)),
            (Version::Three, Some(cluster)) => {
                format!("/v3/client/ns/instance/list?{query}&clusterName={}", encoded(cluster))
            }
            (Version::Three, None) => {
                format!("/v3/client/ns/instance/list?{query}&clusterName={}", encoded(&self.clusters.join(",")))
            }
        }
    }

    fn read_instances(&self, answer: &Answer) -> Result<ServiceInfo, RegistryError> {
        match self.version {
            Version::One => self.read(answer),
            Version::Three => Ok(self.unwrap::<Vec<Value>>(answer)?.into()),
        }
    }

    /// The answer, whatever its status, unless that is about the login.
    pub async fn send(&self, method: Method, path: &str) -> Result<Answer, RegistryError> {
        self.login.send(method, path).await
    }

    /// The error that an answer is for its status.
    pub fn refusal(&self, answer: &Answer) -> RegistryError {
        self.http.refusal(answer.status, &answer.body)
    }

    /// The error that an answer is for what it says.
    pub fn protocol(&self, answer: &Answer) -> RegistryError {
        self.http.protocol(String::from_utf8_lossy(&answer.body))
    }

    fn unwrap<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, RegistryError> {
        let wrapped: Wrapped<T> = self.read(answer)?;
        match wrapped.data {
            Some(data) if wrapped.code == 0 => Ok(data),
            _ => Err(self.http.protocol(format!("{} {}", wrapped.code, wrapped.message.unwrap_or_default()))),
        }
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, RegistryError> {
        if answer.status != StatusCode::OK {
            return Err(self.refusal(answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| self.http.protocol(error))
    }
}

/// What is refused here is so at another server, too.
pub fn call_error(error: RegistryError) -> CallError {
    match error {
        RegistryError::Refused { .. } => CallError::Call(error),
        _ => CallError::Server(error),
    }
}

/// Whether a server with this answer does not have what was asked for.
pub fn is_missing(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED)
}

pub fn encoded(text: &str) -> impl Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
