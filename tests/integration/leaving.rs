//! Instances leave while they are in use.

use crate::e2e::{Client, Load, Pillion, Upstream, get, until, until_answer};
use http::Version;
use std::{fs, path::Path};
use tempfile::TempDir;

fn write(path: &Path, instances: &[&Upstream]) {
    let addresses: Vec<_> = instances.iter().map(|instance| format!("\"{}\"", instance.address)).collect();
    fs::write(path, format!("services: {{ users: [{}] }}", addresses.join(", "))).unwrap();
}

#[tokio::test]
async fn one_that_is_taken_out_finishes_what_it_has_and_gets_no_more() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("instances.yaml");
    let (stays, leaves) = (Upstream::start("stays").await, Upstream::start("leaves").await);
    write(&path, &[&leaves]);
    let pillion = Pillion::with_registry(&format!("file:{}", path.display())).await;
    let egress = pillion.egress();
    let mut held = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(egress, version).await.unwrap();
        held.push(tokio::spawn(async move { client.get("users", "/held").await }));
    }
    until("both to be held", async || leaves.holds() == 2).await;
    let mut loads = [Version::HTTP_11, Version::HTTP_2].map(|version| Load::start(egress, version, "users", 4));

    write(&path, &[&stays, &leaves]);
    until_answer(egress, "users", |_, name| name == stays.name).await;
    write(&path, &[&stays]);
    until("the one to be left alone", async || {
        let before = leaves.requests();
        for load in &mut loads {
            load.more(100).await;
        }
        leaves.requests() == before
    })
    .await;
    leaves.release();
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().1, "leaves");
    }
    leaves.leave().await;
    for mut load in loads {
        load.more(100).await;
        load.end_without_failure().await;
    }
    assert_eq!(get(egress, "users").await, Ok((200, "stays".into())));
}
