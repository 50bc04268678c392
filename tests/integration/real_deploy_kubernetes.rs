//! `deploy/kubernetes`, as a real API server takes it.

use crate::{
    e2e::pillion,
    following::Following,
    programs::{Output, wait},
    real_deploy::{checked, deployed, drain_timeout},
    servers::{
        kubernetes::{ADMIN, KubernetesServer, NAMESPACE, WITHOUT, slice},
        program,
    },
    stores::Watching,
};
use http::Method;
use pillion::{
    config::{KubernetesRegistry, Secret, Tls},
    registry::{Kubernetes, Registry},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::process::Command;

const FILES: [&str; 5] =
    ["config.yaml", "network-policy.yaml", "native-sidecar.yaml", "classic-sidecar.yaml", "job.yaml"];

/// With rules for who may do what, and for what pods may ask for.
async fn cluster() -> KubernetesServer {
    cluster_of("restricted").await
}

/// The same, where pods may do what this level allows.
async fn cluster_of(level: &str) -> KubernetesServer {
    let without = format!("--disable-admission-plugins={}", WITHOUT.replace("PodSecurity,", ""));
    let server = KubernetesServer::start_with(&["--authorization-mode=RBAC", &without]).await;
    let labels = json!({"pod-security.kubernetes.io/enforce": level});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    server.send(Method::POST, "/api/v1/namespaces", &namespace).await;
    server
}

async fn kubectl(server: &KubernetesServer, args: &[&str]) -> Output {
    let mut command = Command::new(program("kubectl"));
    // A cache of its own, and nobody's settings.
    command.env("HOME", server.path("")).env_remove("KUBECONFIG").args(["--server", &server.url(), "--token", ADMIN]);
    command.arg("--certificate-authority").arg(server.path("ca.pem"));
    wait(command.args(args)).await
}

/// Every object of `deploy/kubernetes/FILE` as the server would keep it.
async fn dry_run(server: &KubernetesServer, file: &str) -> Vec<Value> {
    let path = deployed("kubernetes").join(file).display().to_string();
    let args = ["apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", &path];
    let Output { ok, stdout, stderr } = kubectl(server, &args).await;
    // What it only warns of are rules of the namespace.
    assert!(ok && stderr.is_empty(), "{file}: {stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    found["items"].as_array().cloned().unwrap_or_else(|| vec![found])
}

/// All objects, by kind, name and file.
async fn objects(server: &KubernetesServer) -> BTreeMap<(String, String, &'static str), Value> {
    let mut all = BTreeMap::new();
    for file in FILES {
        for object in dry_run(server, file).await {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            all.insert((object["kind"].as_str().unwrap().to_owned(), name, file), object);
        }
    }
    all
}

/// The container of that name, wherever it is.
fn container<'p>(pod: &'p Value, name: &str) -> &'p Value {
    let all = ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array()).flatten();
    all.into_iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or_default())
}

#[tokio::test]
async fn the_api_server_takes_every_file() {
    let server = cluster().await;
    let all = objects(&server).await;
    let kinds = all.keys().map(|(kind, name, file)| format!("{file} {kind} {name}")).collect::<Vec<_>>();
    for wanted in [
        "config.yaml ConfigMap web-pillion",
        "config.yaml Role pillion",
        "config.yaml RoleBinding web-pillion",
        "config.yaml ServiceAccount web",
        "network-policy.yaml NetworkPolicy web",
        "native-sidecar.yaml Deployment web",
        "native-sidecar.yaml Service web",
        "classic-sidecar.yaml Deployment web",
        "classic-sidecar.yaml Service web",
        "job.yaml ConfigMap report-pillion",
        "job.yaml Job report",
    ] {
        assert!(kinds.iter().any(|kind| kind == wanted), "no {wanted} in {kinds:#?}");
    }
    // Pods come from the objects above, by controllers that are not here.
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All&fieldValidation=Strict");
    let mut seen = 0;
    for ((kind, name, file), object) in &all {
        let template = &object["spec"]["template"];
        if template.is_null() {
            continue;
        }
        let metadata = json!({"name": name, "labels": template["metadata"]["labels"]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
        println!("{file}: {kind} {name}");
        server.send(Method::POST, &pods, &pod).await;
        let config = pod["spec"]["volumes"][0]["configMap"]["name"].as_str().unwrap();
        assert!(kinds.iter().any(|kind| kind.ends_with(&format!(" ConfigMap {config}"))), "{file}: {config}");
        seen += 1;
    }
    assert_eq!(seen, 3);

    // A mistake would be found: in a name, and in what a pod may do.
    let path = server.path("wrong.yaml");
    let native = std::fs::read_to_string(deployed("kubernetes/native-sidecar.yaml")).unwrap();
    std::fs::write(&path, native.replace("failureThreshold", "failureThresholds")).unwrap();
    let args = ["apply", "--dry-run=server", "--validate=strict", "-f", path.to_str().unwrap()];
    let found = kubectl(&server, &args).await;
    assert!(!found.ok && found.stderr.contains("failureThresholds"), "{}", found.stderr);
    std::fs::write(&path, native.replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true")).unwrap();
    let found = kubectl(&server, &args).await;
    assert!(found.stderr.contains("would violate PodSecurity"), "{}", found.stderr);
}

#[tokio::test]
async fn pods_start_and_end_in_order() {
    let server = cluster().await;
    let all = objects(&server).await;
    let get = |kind: &str, name: &str, file| &all[&(kind.to_owned(), name.to_owned(), file)];
    let config = |name: &str, file| get("ConfigMap", name, file)["data"]["pillion.yaml"].as_str().unwrap();
    let web = checked("config.yaml", config("web-pillion", "config.yaml")).await;
    let report = checked("job.yaml", config("report-pillion", "job.yaml")).await;
    let wait_for_it = json!(["/pillion", "wait", "--for", "startup", "--timeout", "60s"]);

    let mut pods = BTreeMap::new();
    for file in ["native-sidecar.yaml", "classic-sidecar.yaml"] {
        let pod = &get("Deployment", "web", file)["spec"]["template"]["spec"];
        let (own, app) = (container(pod, "pillion"), container(pod, "web"));
        for (probe, path) in [("startupProbe", "/startup"), ("readinessProbe", "/ready"), ("livenessProbe", "/live")] {
            assert_eq!(own[probe]["httpGet"]["path"], path, "{file}");
            assert_eq!(own[probe]["httpGet"]["port"], "admin", "{file}");
        }
        let ports = own["ports"].as_array().unwrap().iter();
        let ports: BTreeMap<_, _> =
            ports.map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap())).collect();
        let ends_with = |address: &Value, port: u64| address.as_str().unwrap().ends_with(&format!(":{port}"));
        assert!(ends_with(&web["admin"]["listen"], ports["admin"]), "{file}");
        let inbound = web["listeners"].as_array().unwrap().iter().find(|one| one["name"] == "inbound").unwrap();
        assert!(ends_with(&inbound["listen"], ports["inbound"]), "{file}");
        // The application's end comes first; what is left must do for pillion's.
        let grace = seconds(&pod["terminationGracePeriodSeconds"]);
        let before = seconds(&own["lifecycle"]["preStop"]["sleep"]["seconds"]);
        let leaving = seconds(&app["lifecycle"]["preStop"]["sleep"]["seconds"]);
        assert!(grace > before.max(leaving) + drain_timeout(&web), "{file}: {grace:?}");
        assert!(!leaving.is_zero(), "{file}");
        pods.insert(file, pod);
    }
    let native = container(pods["native-sidecar.yaml"], "pillion");
    assert_eq!(native["restartPolicy"], "Always");
    assert_eq!(pods["native-sidecar.yaml"]["initContainers"].as_array().unwrap().len(), 1);
    let classic = pods["classic-sidecar.yaml"];
    assert_eq!(classic["containers"][0]["name"], "pillion", "it is the first to start");
    let hooks = &container(classic, "pillion")["lifecycle"];
    assert_eq!(hooks["postStart"]["exec"]["command"], wait_for_it);
    let app = &container(classic, "web")["lifecycle"];
    assert!(seconds(&hooks["preStop"]["sleep"]["seconds"]) > seconds(&app["preStop"]["sleep"]["seconds"]));

    let job = &get("Job", "report", "job.yaml")["spec"]["template"]["spec"];
    assert_eq!(job["containers"][0]["name"], "pillion", "it is the first to start");
    assert_eq!(container(job, "pillion")["lifecycle"]["postStart"]["exec"]["command"], wait_for_it);
    assert!(seconds(&job["terminationGracePeriodSeconds"]) > drain_timeout(&report));
    let admin = report["admin"]["listen"].as_str().unwrap();
    let script = container(job, "report")["args"][0].as_str().unwrap();
    assert!(script.contains(&format!("http://{admin}/api/quit")), "{script}");
}

#[tokio::test]
async fn rules_are_made_when_pillion_is_there_and_before_the_application_is() {
    let server = cluster_of("privileged").await;
    let objects = dry_run(&server, "transparent.yaml").await;
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Service", "Deployment"]);
    let template = &objects[1]["spec"]["template"];
    let pod = &template["spec"];
    let metadata = json!({"name": "web", "labels": template["metadata"]["labels"]});
    let whole = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod});
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All&fieldValidation=Strict");
    server.send(Method::POST, &pods, &whole).await;

    let order: Vec<_> = pod["initContainers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(order, ["pillion", "pillion-net"]);
    let (own, net, app) = (container(pod, "pillion"), container(pod, "pillion-net"), container(pod, "web"));
    assert_eq!((&own["restartPolicy"], &net["restartPolicy"]), (&json!("Always"), &Value::Null));
    assert!(own["startupProbe"].is_object(), "the next one waits for it");
    let (user, app_user) = (&own["securityContext"]["runAsUser"], &app["securityContext"]["runAsUser"]);
    assert!(user.is_number() && app_user.is_number() && user != app_user);
    let rights = &net["securityContext"];
    assert_eq!((&rights["runAsUser"], &rights["capabilities"]["add"]), (&json!(0), &json!(["NET_ADMIN"])));

    let args: Vec<_> = net["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let Output { ok, stdout, stderr } = wait(pillion(&args).arg("--print")).await;
    assert!(ok, "{stderr}");
    assert!(stdout.contains(&format!("meta skuid {{ {user} }} return")), "{stdout}");
    let port = &app["ports"][0]["containerPort"];
    assert!(stdout.contains(&format!("tcp dport {{ {port} }} counter redirect to :4143")), "{stdout}");
}

#[tokio::test]
async fn its_account_may_follow_services_and_routes_and_nothing_else() {
    let server = cluster().await;
    let path = deployed("kubernetes/config.yaml").display().to_string();
    let applied = kubectl(&server, &["apply", "--validate=strict", "-f", &path]).await;
    assert!(applied.ok, "{}", applied.stderr);
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:web");
    let slices = "endpointslices.discovery.k8s.io";
    for (verb, what, namespace, allowed) in [
        ("watch", slices, NAMESPACE, true),
        ("list", slices, NAMESPACE, true),
        ("delete", slices, NAMESPACE, false),
        ("watch", slices, "bank", false),
        ("get", "secrets", NAMESPACE, false),
        ("get", "configmaps", NAMESPACE, false),
        ("watch", "configmap/pillion-routes", NAMESPACE, true),
        ("patch", "configmap/pillion-routes", NAMESPACE, false),
        ("get", "configmap/web-pillion", NAMESPACE, false),
    ] {
        let found = kubectl(&server, &["auth", "can-i", verb, what, "--namespace", namespace, &account]).await;
        let expected = if allowed { "yes\n" } else { "no\n" };
        assert_eq!(found.stdout, expected, "{verb} {what} in {namespace}: {}", found.stderr);
    }

    // With the token that a pod of this account gets.
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/web/token");
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = server.send(Method::POST, &path, &asked).await;
    let config = KubernetesRegistry {
        servers: vec![server.url()],
        namespace: Some(NAMESPACE.into()),
        token: Some(Secret::new(answer["status"]["token"].as_str().unwrap())),
        tls: Tls { ca: Some(server.path("ca.pem")), ..Tls::default() },
        ..KubernetesRegistry::default()
    };
    let ready = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]);
    server.put(&slice("users", "users-1", ready)).await;
    let registry = Arc::new(Kubernetes::new("main", &config, None).unwrap());
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    let more = json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}}]);
    server.put(&slice("users", "users-1", more)).await;
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
    let mut routes = Watching::start(&registry.store().unwrap(), "pillion/routes");
    routes.until_set(&[]).await;
    server.kubectl(&["create", "configmap", "pillion-routes", "--from-literal=users={}"]);
    routes.until_set(&[("users", "{}")]).await;
}
