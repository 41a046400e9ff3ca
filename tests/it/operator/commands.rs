//! The command line on the API.

use std::process::Stdio;

use serde_json::Value;

use super::{operator, secret};
use crate::cli::{headwater, run, text};
use crate::harness::{Rig, eventually};
use crate::wire::CHAIN_ID;
use headwater::operator::OperatorClient as _;

/// Runs a command on the app; returns if it succeeded, and what it printed.
async fn command(rig: &Rig, args: &[&str]) -> (bool, String) {
    let admin = rig.admin.to_string();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let running = tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args, &[("HEADWATER_ADMIN", &admin)])
    });
    let output = running.await.unwrap();
    let printed = if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    };
    (output.status.success(), text(printed).to_owned())
}

async fn json(rig: &Rig, args: &[&str]) -> Value {
    let (succeeded, printed) = command(rig, &[args, &["--json"]].concat()).await;
    assert!(succeeded, "{printed}");
    serde_json::from_str(&printed).unwrap()
}

#[tokio::test]
async fn commands_show_and_act() {
    let rig = Rig::start().await;
    let mut client = rig.watcher().await;
    rig.nothing_else(&mut client).await;
    let api = operator(&rig).await;
    eventually("one client", async || api.clients(None).await.unwrap().connected == 1).await;

    let (_, status) = command(&rig, &["status"]).await;
    let head = format!("head       5 {}", rig.control.head().hash());
    assert!(status.contains(&head) && status.contains(", ready\n"), "{status}");
    assert!(status.contains("subscriptions: logs 1, newHeads 1\n"), "{status}");
    assert!(
        status.contains("\n#  UPSTREAM") && status.contains("active"),
        "{status}"
    );
    assert_eq!(json(&rig, &["status"]).await["head"]["number"], 5);

    let (_, table) = command(&rig, &["clients", "--sort", "sent", "127."]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].ends_with("SUBS  CALLS  QUEUE  EVENTS     SENT"), "{table}");
    assert!(lines[1].contains("127.0.0.1  default"), "{table}");
    let page = json(&rig, &["clients"]).await;
    let id = page["clients"][0]["id"].to_string();
    let (_, none) = command(&rig, &["clients", "nobody"]).await;
    assert_eq!(none.lines().count(), 1);

    let (succeeded, why) = command(&rig, &["cordon", "0"]).await;
    assert!(!succeeded && why.starts_with("headwater: no other upstream"), "{why}");
    for (args, printed) in [
        (&["cordon", "0", "--force"][..], "cordoned\n"),
        (&["cordon", "0"], "was cordoned already\n"),
        (&["uncordon", "0"], "the cordon has ended\n"),
        (&["uncordon", "0"], "was not cordoned\n"),
        (&["drain"], "drained: /ready answers 503\n"),
        (&["undrain"], "the drain has ended\n"),
    ] {
        assert_eq!(command(&rig, args).await, (true, printed.to_owned()), "{args:?}");
    }
    let (succeeded, why) = command(&rig, &["reload"]).await;
    assert_eq!(
        (succeeded, &*why),
        (false, "headwater: this process follows no configuration\n")
    );
    let (_, usage) = command(&rig, &["usage", "--by-hour"]).await;
    assert!(
        usage.starts_with("HOUR (UTC)") && usage.contains(":00  anonymous"),
        "{usage}"
    );
    assert_eq!(json(&rig, &["usage"]).await[0]["account"], "anonymous");

    let printed = command(&rig, &["tap", &id, "--time", "1s"]).await;
    assert_eq!(printed, (true, "! the time is over\n".to_owned()));
    let kicked = command(&rig, &["kick", &id]).await;
    assert_eq!(kicked, (true, format!("client {id} is disconnected\n")));
    assert_eq!(client.closed().await.1, 1008);
}

#[tokio::test]
async fn a_command_ends_with_the_reader_of_its_output() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let api = operator(&rig).await;
    eventually("one client", async || api.clients(None).await.unwrap().connected == 1).await;
    let id = api.clients(None).await.unwrap().clients[0].id.to_string();
    for args in [&["top", "--json"][..], &["tap", &id, "--json", "--time", "10m"]] {
        let admin = rig.admin.to_string();
        let mut process = headwater(args, &[("HEADWATER_ADMIN", &admin)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(process.stdout.take());
        eventually("it has ended", async || {
            client.ask(CHAIN_ID).await;
            process.try_wait().unwrap().is_some()
        })
        .await;
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
}

#[tokio::test]
async fn a_command_shows_the_token() {
    let token = "0123456789abcdef-operator\n";
    let (_folder, path) = secret(token);
    let path = path.display().to_string();
    let rig = Rig::with(|config| config.admin_token_file.clone_from(&path)).await;
    let (succeeded, why) = command(&rig, &["status"]).await;
    assert!(!succeeded && why.contains("give its file with --token-file"), "{why}");
    let (succeeded, printed) = command(&rig, &["status", "--token-file", &path]).await;
    assert!(succeeded, "{printed}");
    let (_wrong, other) = secret("another-token-of-some-length");
    let other = other.display().to_string();
    let (succeeded, _) = command(&rig, &["status", "--token-file", &other]).await;
    assert!(!succeeded);
    let (succeeded, why) = command(&rig, &["status", "--admin", "127.0.0.1:1"]).await;
    assert!(
        !succeeded && why.contains("cannot connect to ws://127.0.0.1:1/api"),
        "{why}"
    );
}
