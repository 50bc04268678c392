//! What each kind of registry needs.

use super::{Check, Spot};
use crate::config::{
    ConsulRegistry, DnsRecord, DnsRegistry, EtcdRegistry, EurekaRegistry, KubernetesRegistry, NacosRegistry,
    NacosTransport, RedisRegistry, Registry, Secret, Tls, XdsRegistry, ZookeeperRegistry, error::shorten, human,
};
use std::time::Duration;

/// What most servers' addresses are.
const ORIGIN: &str = "`http://HOST:PORT` or `https://HOST:PORT`";

impl<'t> Check<'_, 't> {
    pub(super) fn registry(&mut self, spot: &Spot<'t>, name: &str, registry: &Registry) {
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.fail(spot, "expected a name without spaces");
        }
        match registry {
            Registry::Embedded(embedded) => {
                self.at_least(&spot.key("ttl"), embedded.ttl, Duration::from_secs(1));
                self.path(&spot.key("persist"), embedded.persist.as_deref());
            }
            Registry::File(file) => self.path(&spot.key("path"), Some(&file.path)),
            Registry::Consul(consul) => self.consul(spot, consul),
            Registry::Etcd(etcd) => self.etcd(spot, etcd),
            Registry::Redis(redis) => self.redis(spot, redis),
            Registry::Xds(xds) => self.xds(spot, xds),
            Registry::Dns(dns) => self.dns(spot, dns),
            Registry::Zookeeper(zookeeper) => self.zookeeper(spot, zookeeper),
            Registry::Kubernetes(kubernetes) => self.kubernetes(spot, kubernetes),
            Registry::Eureka(eureka) => self.eureka(spot, eureka),
            Registry::Nacos(nacos) => self.nacos(spot, nacos),
        }
    }

    fn consul(&mut self, spot: &Spot<'t>, consul: &ConsulRegistry) {
        let secure = self.url(&spot.key("address"), &consul.address, ORIGIN);
        self.client_tls(&spot.key("tls"), &consul.tls, secure);
        self.token(&spot.key("token"), consul.token.as_ref());
        if consul.dc.as_deref() == Some("") {
            self.fail(&spot.key("dc"), "found an empty text; expected a datacenter's name");
        }
        self.none_empty(&spot.key("tags"), &consul.tags);
        let wait = spot.key("wait");
        self.at_least(&wait, consul.wait, Duration::from_secs(1));
        if consul.wait > Duration::from_secs(600) {
            self.fail(&wait, "expected at most `10m`, which is the most that Consul grants");
        }
    }

    fn etcd(&mut self, spot: &Spot<'t>, etcd: &EtcdRegistry) {
        let secure = self.urls(&spot.key("endpoints"), &etcd.endpoints, ORIGIN);
        self.client_tls(&spot.key("tls"), &etcd.tls, secure);
        self.login(spot, etcd.user.is_some(), etcd.password.is_some());
        if etcd.prefix.as_deref().is_some_and(|prefix| prefix.chars().any(char::is_control)) {
            self.fail(&spot.key("prefix"), "expected a prefix without control characters");
        }
    }

    fn redis(&mut self, spot: &Spot<'t>, redis: &RedisRegistry) {
        let (addresses, sentinels, master) = (spot.key("addresses"), spot.key("sentinels"), spot.key("master"));
        match (&redis.addresses[..], &redis.sentinels[..], &redis.master) {
            ([], [], None) if !addresses.dead && !sentinels.dead => {
                self.fail(spot, "no server; expected `addresses`, or `sentinels` and `master`");
            }
            ([_, ..], [_, ..], _) => self.fail(&addresses, "expected either `addresses` or `sentinels`, found both"),
            (_, [_, ..], None) if !master.dead => {
                self.fail(&sentinels, "`sentinels` goes with `master`, which is missing");
            }
            (_, [], Some(_)) if !sentinels.dead => {
                self.fail(&master, "`master` goes with `sentinels`, which is missing");
            }
            _ => {}
        }
        if redis.master.as_deref() == Some("") {
            self.fail(&master, "found an empty text; expected the master's name");
        }
        for (spot, servers) in [(addresses, &redis.addresses), (sentinels, &redis.sentinels)] {
            for (index, server) in servers.iter().enumerate() {
                self.host_and_port(&spot.live_item(index), server);
            }
        }
        let interval = spot.key("interval");
        self.at_least(&interval, redis.interval, Duration::from_millis(100));
        if redis.interval > Duration::from_secs(3600) {
            self.fail(&interval, "expected at most `1h`");
        }
        for (user, password, given) in [
            ("user", "password", redis.user.is_some() && redis.password.is_none()),
            ("sentinel_user", "sentinel_password", redis.sentinel_user.is_some() && redis.sentinel_password.is_none()),
        ] {
            if given && !spot.key(password).dead {
                self.fail(&spot.key(user), format!("`{user}` goes with `{password}`, which is missing"));
            }
        }
        for (key, tls) in [("tls", &redis.tls), ("sentinel_tls", &redis.sentinel_tls)] {
            if let Some(tls) = tls {
                self.tls(&spot.key(key), tls);
            }
        }
        if redis.prefix.as_deref().is_some_and(|prefix| prefix.chars().any(char::is_control)) {
            self.fail(&spot.key("prefix"), "expected a prefix without control characters");
        }
    }

    /// A server that does not speak HTTP.
    fn host_and_port(&mut self, spot: &Spot<'_>, text: &str) {
        let expected = "expected `HOST:PORT`";
        // Whatever stands before an `@` may be a password.
        if text.contains('@') {
            return self.fail(spot, format!("a user in the address; {expected}"));
        }
        let authority = text.parse::<http::uri::Authority>().ok();
        if !authority.is_some_and(|it| !it.host().is_empty() && it.port_u16().is_some_and(|port| port > 0)) {
            self.fail(spot, format!("found `{}`; {expected}", shorten(text)));
        }
    }

    fn xds(&mut self, spot: &Spot<'t>, xds: &XdsRegistry) {
        let secure = self.urls(&spot.key("servers"), &xds.servers, ORIGIN);
        self.client_tls(&spot.key("tls"), &xds.tls, secure);
        self.token(&spot.key("token"), xds.token.as_ref());
        let headers = spot.key("metadata");
        for (name, value) in &xds.metadata {
            let spot = headers.key(name);
            // gRPC keeps `-bin` for what is not text, and these for itself.
            let own = name.starts_with("grpc-") || name.ends_with("-bin") || name == "te" || name == "content-type";
            if own || http::HeaderName::from_lowercase(name.as_bytes()).is_err() {
                self.fail(&spot, "expected the name of a header, in lower case, that is not gRPC's own");
            }
            if xds.token.is_some() && name == "authorization" {
                self.fail(&spot, "there is a `token` already, which is sent in this header");
            }
            self.token(&spot, Some(value));
        }
        if xds.node.id.as_deref() == Some("") {
            self.fail(&spot.key("node").key("id"), "found an empty text; expected a node's id");
        }
        self.at_least(&spot.key("keepalive"), xds.keepalive, Duration::from_secs(1));
        self.at_most(&spot.key("keepalive"), xds.keepalive);
    }

    /// What is sent in a header.
    fn token(&mut self, spot: &Spot<'t>, token: Option<&Secret>) {
        if let Some(token) = token
            && (token.expose().is_empty() || http::HeaderValue::from_str(token.expose()).is_err())
        {
            self.fail(spot, "expected a token: not empty, and of characters that a header can carry");
        }
    }

    fn dns(&mut self, spot: &Spot<'t>, dns: &DnsRegistry) {
        let servers = spot.key("servers");
        for (index, server) in dns.servers.iter().enumerate() {
            if DnsRegistry::server(server).is_none() {
                let found = format!("found `{}`; expected `IP` or `IP:PORT`", shorten(server));
                self.fail(&servers.live_item(index), found);
            }
        }
        let name = spot.key("name");
        let expected = "expected a name with `{service}` in it, like `{service}.service.consul`";
        if !dns.names_service() {
            self.fail(&name, format!("found `{}`; {expected}", shorten(&dns.name)));
        } else if let Err(why) = dns.name_of("x") {
            self.fail(&name, format!("found `{}`; {expected}, and of {why}", shorten(&dns.name)));
        }
        let port = spot.key("port");
        match (dns.record, dns.port) {
            (DnsRecord::Srv, Some(_)) => self.fail(&port, "`srv` records have their own; expected none"),
            (DnsRecord::Srv, None) | (_, Some(_)) => {}
            _ if port.dead => {}
            _ => self.fail(&spot.key("record"), "`port` is missing; only `srv` records say it"),
        }
        let max_ttl = spot.key("max_ttl");
        self.at_least(&spot.key("min_ttl"), dns.min_ttl, Duration::from_millis(100));
        self.at_most(&max_ttl, dns.max_ttl);
        if dns.max_ttl < dns.min_ttl {
            let (found, least) = (human::format(dns.max_ttl), human::format(dns.min_ttl));
            self.fail(&max_ttl, format!("found `{found}`; expected at least `min_ttl`, which is `{least}`"));
        }
        self.positive(&spot.key("timeout"), dns.timeout);
    }

    fn zookeeper(&mut self, spot: &Spot<'t>, zookeeper: &ZookeeperRegistry) {
        let expected = "expected `HOST:PORT` or `tls://HOST:PORT`";
        let endpoints = spot.key("endpoints");
        if zookeeper.endpoints.is_empty() && endpoints.elements().is_empty() {
            self.fail(&endpoints, format!("the list is empty; {expected}"));
        }
        let mut secure = false;
        for (index, endpoint) in zookeeper.endpoints.iter().enumerate() {
            let spot = endpoints.live_item(index);
            let address = endpoint.strip_prefix("tls://");
            secure |= address.is_some();
            // Whatever stands before an `@` may be a password.
            if endpoint.contains('@') {
                self.fail(&spot, format!("a user in the address; {expected}"));
            } else if endpoint.contains(',') {
                self.fail(&spot, format!("found `{}`; expected one address, and a list of them", shorten(endpoint)));
            } else if address.unwrap_or(endpoint).contains('/') {
                let found = shorten(endpoint);
                self.fail(&spot, format!("found `{found}`; {expected}, and a path as `chroot`"));
            } else if !is_host_and_port(address.unwrap_or(endpoint)) {
                self.fail(&spot, format!("found `{}`; {expected}", shorten(endpoint)));
            }
        }
        if !secure && zookeeper.tls != Tls::default() && !endpoints.dead {
            self.fail(&spot.key("tls"), "used only with `tls://` addresses, of which there is none");
        }
        self.tls(&spot.key("tls"), &zookeeper.tls);
        self.login(spot, zookeeper.user.is_some(), zookeeper.password.is_some());
        for (key, path) in [("chroot", &zookeeper.chroot), ("prefix", &zookeeper.prefix)] {
            if let Some(path) = path
                && (path.chars().any(char::is_control) || path.contains("//"))
            {
                self.fail(&spot.key(key), format!("found `{}`; expected a path like `/a/b`", shorten(path)));
            }
        }
        self.at_least(&spot.key("session_timeout"), zookeeper.session_timeout, Duration::from_secs(1));
    }

    fn kubernetes(&mut self, spot: &Spot<'t>, kubernetes: &KubernetesRegistry) {
        let servers = spot.key("servers");
        let explicit = !kubernetes.servers.is_empty() || !servers.elements().is_empty();
        let secure = if explicit { self.urls(&servers, &kubernetes.servers, ORIGIN) } else { None };
        self.client_tls(&spot.key("tls"), &kubernetes.tls, secure);
        self.token(&spot.key("token"), kubernetes.token.as_ref());
        let given = [
            ("token", kubernetes.token.is_some()),
            ("token_file", kubernetes.token_file.is_some()),
            ("tls", kubernetes.tls != Tls::default()),
        ];
        for (key, _) in given.into_iter().filter(|(_, given)| *given && !explicit) {
            self.fail(&spot.key(key), format!("`{key}` goes with `servers`, which is missing"));
        }
        if kubernetes.kubeconfig.is_some() && explicit {
            self.fail(
                &spot.key("kubeconfig"),
                "`servers` says where the cluster is already; expected only one of the two",
            );
        }
        if kubernetes.token_file.is_some() && kubernetes.token.is_some() {
            self.fail(&spot.key("token_file"), "`token` is there already; expected only one of the two");
        }
        if kubernetes.context.is_some() && kubernetes.kubeconfig.is_none() && !spot.key("kubeconfig").dead {
            self.fail(&spot.key("context"), "`context` goes with `kubeconfig`, which is missing");
        }
        self.readable(&spot.key("kubeconfig"), kubernetes.kubeconfig.as_deref(), "a kubeconfig file");
        self.readable(&spot.key("token_file"), kubernetes.token_file.as_deref(), "a file with a token");
        if let Some(name) = kubernetes.namespace.as_deref().filter(|name| !KubernetesRegistry::is_name(name)) {
            self.fail(
                &spot.key("namespace"),
                format!("found `{}`; expected a namespace: small letters, digits and `-`", shorten(name)),
            );
        }
    }

    fn eureka(&mut self, spot: &Spot<'t>, eureka: &EurekaRegistry) {
        let expected = "`http://HOST:PORT/PATH` or `https://HOST:PORT/PATH`";
        let secure = self.urls(&spot.key("servers"), &eureka.servers, expected);
        self.client_tls(&spot.key("tls"), &eureka.tls, secure);
        self.login(spot, eureka.user.is_some(), eureka.password.is_some());
        self.at_least(&spot.key("interval"), eureka.interval, Duration::from_secs(1));
    }

    fn nacos(&mut self, spot: &Spot<'t>, nacos: &NacosRegistry) {
        let servers = spot.key("servers");
        let secure = self.urls(&servers, &nacos.servers, ORIGIN);
        let http_only = nacos.transport == NacosTransport::Http;
        // Either way may have TLS without the other.
        let secure = if http_only || nacos.grpc_tls != Some(true) { secure } else { Some(true) };
        self.client_tls(&spot.key("tls"), &nacos.tls, secure);
        self.login(spot, nacos.user.is_some(), nacos.password.is_some());
        if !nacos.context.is_empty()
            && (!nacos.context.starts_with('/') || nacos.context.parse::<http::uri::PathAndQuery>().is_err())
        {
            self.fail(
                &spot.key("context"),
                format!("found `{}`; expected a path like `/nacos`", shorten(&nacos.context)),
            );
        }
        for (key, text) in [("namespace", &nacos.namespace), ("group", &nacos.group)] {
            if text.is_empty() {
                self.fail(&spot.key(key), "found an empty text; leave it out for the default");
            }
        }
        self.none_empty(&spot.key("clusters"), &nacos.clusters);
        if nacos.grpc_port == Some(0) {
            self.fail(&spot.key("grpc_port"), "expected a port from 1 to 65535");
        }
        let has_grpc_port = |url: &String| url.parse().is_ok_and(|uri: http::Uri| uri.port_u16() > Some(64_535));
        if !http_only && nacos.grpc_port.is_none() && nacos.servers.iter().any(has_grpc_port) {
            self.fail(&servers, "gRPC is at the port 1000 above, and there is none; expected `grpc_port` as well");
        }
        let poll = spot.key("poll");
        self.at_least(&poll, nacos.poll, Duration::from_millis(500));
        if nacos.poll > Duration::from_secs(300) {
            self.fail(&poll, "expected at most `5m`");
        }
    }

    /// At least one address, and all of them `http` or all `https`: whether they are the latter, if that can be told.
    fn urls(&mut self, spot: &Spot<'t>, urls: &[String], expected: &str) -> Option<bool> {
        if urls.is_empty() && spot.elements().is_empty() {
            self.fail(spot, format!("the list is empty; expected at least one {expected}"));
        }
        let mut secure = None;
        for (index, url) in urls.iter().enumerate() {
            let spot = spot.live_item(index);
            let this = self.url(&spot, url, expected);
            if let (Some(first), Some(this)) = (secure, this)
                && first != this
            {
                self.fail(
                    &spot,
                    format!("`{}` and the first of them differ; expected all `http` or all `https`", shorten(url)),
                );
            }
            secure = secure.or(this);
        }
        secure
    }

    /// `user` and `password` go together.
    fn login(&mut self, spot: &Spot<'t>, user: bool, password: bool) {
        if user && !password && !spot.key("password").dead {
            self.fail(&spot.key("user"), "`user` goes with `password`, which is missing");
        }
        if password && !user && !spot.key("user").dead {
            self.fail(&spot.key("password"), "`password` goes with `user`, which is missing");
        }
    }

    /// Whether it is https, if it is a URL at all; and one without a path if that is what is `expected`.
    pub(super) fn url(&mut self, spot: &Spot<'t>, url: &str, expected: &str) -> Option<bool> {
        // Whatever stands before an `@` may be a password.
        if url.contains('@') {
            self.fail(spot, format!("a user in the address; expected {expected}"));
            return None;
        }
        let parts = url.parse::<http::Uri>().ok().map(http::Uri::into_parts);
        let secure = match parts.as_ref().and_then(|parts| parts.scheme.as_ref()).map(http::uri::Scheme::as_str) {
            Some("http") => Some(false),
            Some("https") => Some(true),
            _ => None,
        };
        let authority = parts.as_ref().and_then(|parts| parts.authority.as_ref());
        let path = parts.as_ref().and_then(|parts| parts.path_and_query.as_ref());
        let fits = path.is_none_or(|rest| rest.as_str() == "/" || expected != ORIGIN && rest.query().is_none());
        // A port that is no number is left in the authority unread.
        let port = authority.is_some_and(|authority| match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().is_ok_and(|port: u16| port > 0),
            _ => true,
        });
        if secure.is_none() || authority.is_none_or(|authority| authority.host().is_empty()) || !fits || !port {
            self.fail(spot, format!("found `{}`; expected {expected}", shorten(url)));
            return None;
        }
        secure
    }

    /// TLS towards a registry, which only an https address uses.
    pub(super) fn client_tls(&mut self, spot: &Spot<'t>, tls: &Tls, secure: Option<bool>) {
        if secure == Some(false) && *tls != Tls::default() {
            self.fail(spot, "used only with `https://` addresses; found `http://`");
        }
        self.tls(spot, tls);
    }
}

fn is_host_and_port(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>().ok();
    // A port that is no number is left in the authority unread.
    authority.is_some_and(|authority| !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port > 0))
}
