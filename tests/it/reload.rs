//! The configuration changes while clients are connected.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use headwater::door::ApiKey;
use serde_json::json;

use crate::cli::{address_after, headwater};
use crate::door::{post, upgrade};
use crate::harness::{Proxy, eventually, node};
use crate::wire::CHAIN_ID;

/// Replaces the file in one step, as editors do.
fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

async fn reloads(proxy: &Proxy, outcome: &str) -> f64 {
    proxy
        .metric(&format!("headwater_config_reloads_total{{outcome=\"{outcome}\"}}"))
        .await
}

#[tokio::test]
async fn what_a_file_says_now_holds_for_those_who_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("headwater.toml");
    let (alice, bob) = (ApiKey::random(), ApiKey::random());
    let key = |name: &str, key: &ApiKey| format!("[keys.{name}]\nhash = \"{}\"\n", key.digest());
    let both = key("alice", &alice) + &key("bob", &bob);
    write(&path, &format!("[limits]\nmax_subscriptions = 1\n{both}"));
    let node = node().await;
    let proxy = Proxy::from_file(&path, &[node.ws_url()]).await;
    proxy.settled(&node.handle()).await;
    let mut client = proxy.client().await;
    let (mut hers, _) = upgrade(proxy.address, &format!("\r\nX-API-Key: {}", alice.reveal())).await;
    let (mut his, _) = upgrade(proxy.address, &format!("\r\nX-API-Key: {}", bob.reveal())).await;
    client.subscribe(json!(["newHeads"])).await;
    assert_eq!(
        client.call("eth_subscribe", json!(["newHeads"])).await["error"]["code"],
        -32005
    );

    // Limits, methods, origins and keys, in one step.
    let other = "[limits]\nmax_subscriptions = 2\nrequest_burst = 1500\n\
        [methods]\ndenied = [\"eth_gasPrice\"]\n[server]\norigins = [\"https://app.example\"]\nheader_timeout = \"3s\"\n";
    write(&path, &format!("{other}{}", key("alice", &alice)));
    eventually("it is read", async || reloads(&proxy, "applied").await >= 1.0).await;
    client.subscribe(json!(["newHeads"])).await;
    assert_eq!(
        client.call("eth_subscribe", json!(["newHeads"])).await["error"]["code"],
        -32005
    );
    assert_eq!(client.call("eth_gasPrice", json!([])).await["error"]["code"], -32601);
    let page = "\r\nOrigin: https://app.example";
    assert_eq!(upgrade(proxy.address, page).await.1.status, 101);
    // A client whose key was removed is closed, even if it sends nothing; a client whose key remains stays.
    assert_eq!(his.closed().await.1, Some(1008));
    hers.works().await;
    let headers = format!("\r\nX-API-Key: {}", bob.reveal());
    assert_eq!(post(proxy.address, &headers, CHAIN_ID).await.status, 401);

    // An invalid file changes nothing, not even by its valid parts.
    write(&path, "[limits]\nmax_subscriptions = 5\nmax_batch = 0\n");
    eventually("it is refused", async || reloads(&proxy, "refused").await >= 1.0).await;
    assert_eq!(
        client.call("eth_subscribe", json!(["newHeads"])).await["error"]["code"],
        -32005
    );
    hers.works().await;
    write(&path, &format!("[limits]\nmax_subscriptions = 3\n{both}"));
    eventually("it is read again", async || reloads(&proxy, "applied").await >= 2.0).await;
    client.subscribe(json!(["newHeads"])).await;
    assert!(client.call("eth_gasPrice", json!([])).await.get("result").is_some());
    assert_eq!(
        post(proxy.address, &headers, CHAIN_ID).await.status,
        200,
        "he has it back"
    );
}

#[tokio::test]
async fn on_sighup_it_is_read_and_what_waits_for_a_restart_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("headwater.toml");
    write(&path, "");
    let file = path.display().to_string();
    let mut running = headwater(
        &["--config", &file, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        &[],
    )
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut log = BufReader::new(running.stderr.take().unwrap());
    address_after("admin on http://", &mut log);
    let pid = rustix::process::Pid::from_child(&running);
    let mut line = String::new();
    let mut until = |words: &str| {
        line.clear();
        while !line.contains(words) {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the log ended without {words:?}");
        }
        line.clone()
    };
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    until("the configuration was reloaded");
    write(
        &path,
        "admin = \"127.0.0.1:1\"\n[delivery]\ncompression = \"on\"\n[limits]\nmax_batch = 7\n",
    );
    // The flag takes precedence over the file.
    let named = until("only after a restart");
    assert!(
        named.trim_end().ends_with("only after a restart: delivery.compression"),
        "{named}"
    );
    write(&path, "[limits]\nmax_bach = 7\n");
    let refused = until("stays in force");
    assert!(refused.contains("did you mean limits.max_batch?"), "{refused}");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(running.wait().unwrap().success());
}
