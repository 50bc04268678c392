//! From a file, flags and the environment to a checked [`Config`].

use super::{
    Config, Direction, FixedResponse, Listener, RegisterPort, Registry, Service, Transparent,
    env::{self, Env},
    error::{Errors, Faults, Path, Place, Step},
    layers::{self, Overrides},
    read::from_tree,
    tree::{self, Fate, Node},
    validate,
};
use std::path::PathBuf;

/// Where a config comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    pub input: Input,
    pub overrides: Overrides,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Input {
    /// No file: flags and environment only.
    #[default]
    None,
    File(PathBuf),
    /// A text, and the name that errors give it.
    Text {
        name: String,
        text: Vec<u8>,
    },
}

/// A config that passed all checks.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// With all defaults filled in.
    pub config: Config,
    /// What it was read from, with positions.
    pub tree: Node,
}

impl Origin {
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { input: Input::File(path.into()), overrides: Overrides::default() }
    }

    pub fn text(name: &str, text: impl Into<Vec<u8>>) -> Self {
        Self { input: Input::Text { name: name.into(), text: text.into() }, overrides: Overrides::default() }
    }

    pub fn with(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }
}

/// Reads, layers and checks. All that is wrong is reported at once, except that nothing more can be said about a file
/// that is not YAML.
pub fn load(source: Origin, env: &Env<'_>) -> Result<Loaded, Errors> {
    let mut faults = Faults::default();
    let (name, base, bytes) = match source.input {
        Input::None => (None, None, Some(Vec::new())),
        Input::Text { name, text } => (Some(name), None, Some(text)),
        Input::File(path) => {
            let bytes = std::fs::read(&path).map_err(|error| {
                faults.add(Place::Whole, Path::default(), format!("cannot be read: {error}"));
            });
            let base = std::path::absolute(&path).ok().and_then(|path| path.parent().map(ToOwned::to_owned));
            (Some(path.display().to_string()), base, bytes.ok())
        }
    };
    let loaded = bytes.and_then(|bytes| tree::parse(&bytes, &mut faults)).and_then(|mut root| {
        if name.is_none() {
            root.place = Place::Whole;
        }
        layers::apply(&mut root, &source.overrides, env, &mut faults);
        env::expand(&mut root, env, &mut faults);
        // Read by themselves first, so that what is wrong there is reported there and inherited by no service.
        if let Some(defaults) = root.get_mut("defaults")
            && from_tree::<Service>(defaults, &Path::default().key("defaults"), &mut faults).is_none()
        {
            defaults.fate = Fate::Pruned;
        }
        layers::merge_defaults(&mut root);
        layers::spread_connections(&mut root);
        layers::merge_into_routes(&mut root);
        let mut config: Config = from_tree(&mut root, &Path::default(), &mut faults)?;
        if let Some(base) = base {
            resolve_paths(&mut config, &root, &base);
        }
        read_contents(&mut config, &root, &mut faults);
        // Listeners that were left out because of errors are not none.
        if root.get("listeners").is_none_or(|listeners| listeners.elements().is_empty()) {
            config = config.effective();
        }
        validate::check(&config, &root, &mut faults);
        Some(Loaded { config: config.with_suffix_of_dns().with_derived(), tree: root })
    });
    faults.or(name.as_deref(), loaded)
}

/// Relative paths in a file are relative to its folder, wherever pillion was started; those in flags and variables are
/// relative to where it was started.
fn resolve_paths(config: &mut Config, root: &Node, base: &std::path::Path) {
    let registries_given = root.get("registries").is_some_and(|node| matches!(node.place, Place::Setting(_)));
    let mut paths: Vec<&mut PathBuf> = config.access_log.path.iter_mut().collect();
    paths.extend(config.discovery.snapshot.as_mut().map(|snapshot| &mut snapshot.dir));
    paths.extend(config.register.iter_mut().filter_map(|register| match &mut register.port {
        Some(RegisterPort::File(path) | RegisterPort::PidFile(path)) => Some(path),
        _ => None,
    }));
    paths.extend(config.upgrade.as_mut().map(|upgrade| &mut upgrade.socket));
    let mut tls: Vec<_> = Vec::new();
    for service in config.services.values_mut().chain([&mut config.defaults]) {
        tls.extend(service.tls.as_mut());
        let prometheus = service.rollout.as_mut().and_then(|rollout| rollout.prometheus.as_mut());
        tls.extend(prometheus.map(|prometheus| &mut prometheus.tls));
        let own = service.fallback.as_mut().and_then(|fallback| fallback.response.as_mut());
        let routes = service.routes.iter_mut().flat_map(|route| {
            let fallback = route.fallback.as_mut().and_then(|fallback| fallback.response.as_mut());
            fallback.into_iter().chain(&mut route.respond)
        });
        paths.extend(own.into_iter().chain(routes).filter_map(|response| response.file.as_mut()));
    }
    if !registries_given {
        for registry in config.registries.values_mut() {
            match registry {
                Registry::Embedded(embedded) => paths.extend(embedded.persist.as_mut()),
                Registry::File(file) => paths.push(&mut file.path),
                Registry::Consul(consul) => tls.push(&mut consul.tls),
                Registry::Etcd(etcd) => tls.push(&mut etcd.tls),
                Registry::Redis(redis) => tls.extend(redis.tls.iter_mut().chain(&mut redis.sentinel_tls)),
                Registry::Xds(xds) => tls.push(&mut xds.tls),
                Registry::Dns(_) => {}
                Registry::Zookeeper(zookeeper) => tls.push(&mut zookeeper.tls),
                Registry::Kubernetes(kubernetes) => {
                    paths.extend([&mut kubernetes.kubeconfig, &mut kubernetes.token_file].into_iter().flatten());
                    tls.push(&mut kubernetes.tls);
                }
                Registry::Eureka(eureka) => tls.push(&mut eureka.tls),
                Registry::Nacos(nacos) => tls.push(&mut nacos.tls),
            }
        }
    }
    paths.extend(tls.into_iter().flat_map(|tls| [&mut tls.ca, &mut tls.cert, &mut tls.key]).flatten());
    // An empty one is a mistake, which would be the folder's own path then.
    for path in paths.into_iter().filter(|path| !path.as_os_str().is_empty()) {
        *path = base.join(&*path);
    }
}

/// Reads what is to be answered without an upstream: it must be there when nothing else is.
fn read_contents(config: &mut Config, root: &Node, faults: &mut Faults) {
    let defaults = [(Path::default().key("defaults"), root.get("defaults"), &mut config.defaults)];
    let services = Path::default().key("services");
    let named = config.services.iter_mut().map(|(name, service)| {
        (services.key(name), root.get("services").and_then(|services| services.get(name)), service)
    });
    for (path, node, service) in defaults.into_iter().chain(named) {
        read_service_contents(service, &path, node, root.place, faults);
    }
}

/// Those of one service, which is at `node`.
pub(super) fn read_service_contents(
    service: &mut Service,
    path: &Path,
    node: Option<&Node>,
    whole: Place,
    faults: &mut Faults,
) {
    let mut read = |response: &mut FixedResponse, path: Path, node: Option<&Node>| {
        response.content = response.body.clone().unwrap_or_default().into();
        let Some(file) = &response.file else { return };
        match std::fs::read(file) {
            Ok(content) => response.content = content.into(),
            Err(error) => {
                let place = node.and_then(|node| node.get("file")).map_or(whole, |node| node.place);
                faults.add(place, path.key("file"), format!("`{}` cannot be read: {error}", file.display()));
            }
        }
    };
    let below = |node: Option<&Node>, key| node.and_then(|node| node.get(key)).cloned();
    if let Some(response) = service.fallback.as_mut().and_then(|fallback| fallback.response.as_mut()) {
        let node = below(below(node, "fallback").as_ref(), "response");
        read(response, path.key("fallback").key("response"), node.as_ref());
    }
    let routes = below(node, "routes");
    // Those that were read, by their place in the list.
    let live = routes.iter().flat_map(|routes| routes.elements().iter().enumerate());
    let mut live = live.filter(|(_, node)| node.fate != Fate::Pruned);
    for (number, route) in service.routes.iter_mut().enumerate() {
        let (number, node) = live.next().map_or((number, None), |(number, node)| (number, Some(node)));
        let path = path.key("routes").with(Step::Index(number));
        if let Some(response) = &mut route.respond {
            read(response, path.key("respond"), below(node, "respond").as_ref());
        }
        if let Some(response) = route.fallback.as_mut().and_then(|fallback| fallback.response.as_mut()) {
            let node = below(below(node, "fallback").as_ref(), "response");
            read(response, path.key("fallback").key("response"), node.as_ref());
        }
    }
}

impl Config {
    /// With what is there when the config says nothing: the listener `egress`.
    pub fn effective(mut self) -> Self {
        if self.listeners.is_empty() {
            self.listeners.push(Listener::egress());
        }
        self
    }

    /// With the defaults that follow from other keys.
    fn with_derived(mut self) -> Self {
        let services = self.services.values_mut().chain([&mut self.defaults]);
        for rollout in services.filter_map(|service| service.rollout.as_mut()) {
            rollout.p99.warm_up = Some(rollout.p99.warm_up(rollout.hold));
        }
        self
    }

    /// What applications call by the names that DNS answers know, they name so in requests, too.
    fn with_suffix_of_dns(mut self) -> Self {
        let Some(dns) = &self.dns else { return self };
        let is_outbound = |it: &Transparent| it.direction == Direction::Outbound;
        for listener in self.listeners.iter_mut().filter(|it| it.transparent.as_ref().is_some_and(is_outbound)) {
            if !listener.host_suffixes.contains(&dns.suffix) {
                listener.host_suffixes.push(dns.suffix.clone());
            }
        }
        self
    }
}
