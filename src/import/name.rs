//! What services are called.

/// How the names of Kubernetes' services become those of pillion's.
#[derive(Debug)]
pub struct Names {
    pub namespace: String,
}

impl Names {
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.into() }
    }

    /// A service of a namespace: `NAME` in our own, `NAME.NAMESPACE` elsewhere, as the registry `kubernetes` has them.
    pub fn service(&self, name: &str, namespace: &str) -> String {
        if namespace == self.namespace { name.into() } else { format!("{name}.{namespace}") }
    }

    /// A host as Istio writes it: without a dot it is a service in the namespace of whoever names it, with
    /// `.svc.DOMAIN` one of the namespace before that, and all others are names of their own.
    pub fn host(&self, host: &str, namespace: &str) -> String {
        let host = host.to_ascii_lowercase();
        if !host.contains('.') {
            return self.service(&host, namespace);
        }
        match host.split_once(".svc.").and_then(|(name, _)| name.split_once('.')) {
            Some((name, namespace)) if !namespace.contains('.') => self.service(name, namespace),
            _ => host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_become_names() {
        let names = Names::new("shop");
        for (host, namespace, name) in [
            ("reviews", "shop", "reviews"),
            ("reviews", "other", "reviews.other"),
            ("Reviews.shop.svc.cluster.local", "other", "reviews"),
            ("reviews.prod.svc.cluster.local", "shop", "reviews.prod"),
            ("reviews.prod.svc.my.domain", "shop", "reviews.prod"),
            ("api.example.com", "shop", "api.example.com"),
            ("a.b.c.svc.cluster.local", "shop", "a.b.c.svc.cluster.local"),
        ] {
            assert_eq!(names.host(host, namespace), name, "{host} in {namespace}");
        }
    }
}
