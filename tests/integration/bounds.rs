//! What callers cannot make pillion do.

use crate::e2e::{ANY, Client, Load, Pillion, Upstream, get, until_answer};
use http::Version;
use std::fs;
use tempfile::TempDir;

#[tokio::test]
async fn made_up_names_are_bounded_and_go_again() {
    const LIMIT: usize = 100;
    let (folder, users) = (TempDir::new().unwrap(), Upstream::start("u1").await);
    let instances = format!("services: {{ users: [\"{0}\"], late: [\"{0}\"] }}", users.address);
    fs::write(folder.path().join("instances.yaml"), instances).unwrap();
    let config = folder.path().join("pillion.yaml");
    let text = format!(
        "registries: {{ main: {{ kind: file, path: instances.yaml }} }}\nadmin: {{ listen: {ANY} }}\n\
         discovery: {{ max_services: {LIMIT}, idle: 10s }}\nlisteners: [{{ name: egress, listen: {ANY} }}]\n"
    );
    fs::write(&config, text).unwrap();
    let pillion = Pillion::with_config(&config).await;
    let egress = pillion.egress();
    assert_eq!(get(egress, "users").await.unwrap().0, 200);
    let load = Load::start(egress, Version::HTTP_11, "users", 1);
    let before = pillion.resident();
    let (mut client, mut unknown, mut refused) = (Client::connect(egress, Version::HTTP_11).await.unwrap(), 0, 0);
    for number in 0..1000 {
        let (status, body) = client.get(&format!("made-up-{number}"), "/").await.unwrap();
        match status.as_u16() {
            404 if body.contains("unknown_service") => unknown += 1,
            503 if body.contains("too_many_services") => refused += 1,
            _ => panic!("{status} {body}"),
        }
    }
    let after = pillion.resident();
    println!("1,000 made-up names: {unknown} unknown, {refused} refused, {before} KiB before, {after} KiB after");
    // While they are made up, some may have gone again.
    assert!(unknown >= LIMIT - 1 && refused > 0, "{unknown} unknown, {refused} refused");
    assert!(after < before + 8 * 1024, "{before} KiB before, {after} KiB after");
    // They make room, however many go on asking; `users`, which is used, stays.
    until_answer(egress, "late", |status, _| status == 200).await;
    crate::e2e::until("the made-up services' series to go", async || {
        pillion.metric("pillion_table_swaps_total{service=\"made-up").await == 0.0
    })
    .await;
    load.end_without_failure().await;
}
