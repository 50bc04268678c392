//! Hosts are the same in any case, services' names are not.

use crate::{
    explain::explained,
    peer::{Answering, Upstream, ok},
    pillion::Setup,
};

async fn named(name: &'static str) -> Answering {
    Upstream::bind().await.answering(move |_| ok(name))
}

#[tokio::test]
async fn a_host_names_a_service_in_any_case() {
    let (users, greeter) = (named("users").await, named("greeter").await);
    let pillion = Setup::users([users.address])
        .instances("helloworld.Greeter", [greeter.address])
        .service("example.com: { routes: [{ match: { host: EXAMPLE.com }, to: user-service/ }, { respond: { status: 418 } }] }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    let mut asked = async |host: &str| {
        client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let response = client.response().await;
        (response.status(), response.text())
    };
    for (host, name) in [
        ("User-Service", "users"),
        ("USER-SERVICE:8080", "users"),
        ("user-service", "users"),
        ("helloworld.Greeter", "greeter"),
        ("Example.COM", "users"),
        ("example.com", "users"),
    ] {
        assert_eq!(asked(host).await, (200, name.to_owned()), "{host}");
    }
    // No host is written in a way in which its service is not.
    for host in ["helloworld.greeter", "HelloWorld.Greeter", "Nobody"] {
        let (status, text) = asked(host).await;
        assert_eq!(status, 404, "{host}: {text}");
    }
    for (host, service) in [("User-Service", "user-service"), ("helloworld.Greeter", "helloworld.Greeter")] {
        let said = explained(&pillion, &["GET", &format!("http://{host}/")]).await;
        assert!(said.contains(&format!("→ {service}, any endpoint")), "{said}");
    }
}

/// Whoever writes a name in capitals before anybody else does is not told that there is no such service.
#[tokio::test]
async fn the_first_request_may_have_capitals() {
    let users = named("users").await;
    let pillion = Setup::users([users.address]).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..2 {
        client.send("GET http://USER-service/ HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(client.response().await.text(), "users");
    }
    pillion.until_metric("pillion_requests_total", &["service=\"user-service\""], 2.0).await;
}

#[tokio::test]
async fn a_tunnel_leads_to_a_service_in_any_case() {
    let (db, elsewhere) = (Upstream::bind().await, Upstream::bind().await);
    let pillion = Setup::default()
        .instances("db", [db.address])
        .instances("example.com", [elsewhere.address])
        .service("example.com: {}")
        // Of a name with a dot that nobody follows no registry is asked.
        .egress("connect: { unknown: pass, ports: [1] }")
        .start()
        .await;
    for (target, upstream) in [("DB:443", &db), ("Example.COM:443", &elsewhere)] {
        let mut client = pillion.connect().await;
        client.send(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\nhello")).await;
        let mut server = upstream.accept().await;
        assert_eq!(server.take(5).await, b"hello", "{target}");
        assert_eq!(client.head().await.status(), 200, "{target}");
    }
}
