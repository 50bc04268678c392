//! A WebSocket through the running program, between a client and a server that are not ours.

use crate::{
    pillion::Setup,
    programs::{Server, run},
};

#[tokio::test]
async fn messages_of_all_sizes_come_back_and_the_close_arrives() {
    let server = Server::start("ws-echo-server", &["-id", "a"]).await;
    let pillion = Setup::users([server.address]).start().await;
    let url = format!("ws://{}/chat", pillion.egress());
    let got = run("ws-echo-client", ["-url", &url, "-host", "user-service", "-n", "50", "-max-size", "1048576"]).await;
    assert!(got.ok, "{} {}", got.stdout, got.stderr);
    pillion.until_free().await;
}
