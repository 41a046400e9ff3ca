//! The program, started as a process.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use tokio::net::UnixDatagram;

use crate::harness::eventually;
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, http};

pub fn headwater(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    command
        .env_clear()
        .envs(variables.iter().copied())
        .args(args)
        .stdin(Stdio::null());
    command
}

pub fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    headwater(args, variables).output().unwrap()
}

#[track_caller]
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn file(content: &str) -> (tempfile::NamedTempFile, String) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let path = file.path().display().to_string();
    (file, path)
}

/// Checks that standard error is one line that contains these words, that standard output is empty, and that the exit
/// status is `EX_USAGE`.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{line}");
    assert!(output.stdout.is_empty());
    assert!(line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
    for word in words {
        assert!(line.contains(word), "{line:?} lacks {word:?}");
    }
}

#[test]
fn mistakes_in_the_settings_are_one_line_that_names_the_key() {
    for (content, words) in [
        (
            "[limits]\nmax_conections = 5",
            &["limits.max_conections", "did you mean limits.max_connections?"][..],
        ),
        ("lisen = \"x\"", &["lisen", "did you mean listen?"]),
        ("[limits]\nmax_batch = \"many\"", &["limits.max_batch"]),
        ("[node]\nrequest_timeout = \"soon\"", &["node.request_timeout"]),
        (
            "[limits]\nmax_connections = 0",
            &["limits.max_connections", "at least 1"],
        ),
        ("[log]\nformat = \"xml\"", &["log.format"]),
        ("[log]\nfilter = \"a=b=c\"", &["log.filter"]),
        ("listen = \"9546\"", &["listen", "9546"]),
        ("upstream = \"localhost\"", &["upstream", "localhost"]),
        ("listen = ", &[]),
        ("[limits\n", &[]),
    ] {
        let (_file, path) = file(content);
        refused(&run(&["--config", &path], &[]), words);
        if !words.contains(&"log.filter") {
            refused(&run(&["check-config", "--config", &path], &[]), words);
        }
    }
    for (name, value, words) in [
        ("HEADWATER_LISTN", "x", &["HEADWATER_LISTN", "HEADWATER_LISTEN"][..]),
        (
            "HEADWATER_LIMITS_MAX_BATCH",
            "many",
            &["limits.max_batch", "HEADWATER_LIMITS_MAX_BATCH"],
        ),
        ("HEADWATER_UPSTREAM", "localhost", &["upstream", "localhost"]),
        ("HEADWATER_CONFIG", "/does/not/exist.toml", &["/does/not/exist.toml"]),
    ] {
        refused(&run(&[], &[(name, value)]), words);
    }
    refused(&run(&["--listen", "here"], &[]), &["listen", "here"]);
    refused(&run(&["--upstream", "ftp://x"], &[]), &["upstream", "ftp://x"]);
}

#[test]
fn a_port_that_is_taken_is_one_line_that_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (setting, other) in [("listen", "admin"), ("admin", "listen")] {
        let output = run(
            &[&format!("--{setting}"), &address, &format!("--{other}"), "127.0.0.1:0"],
            &[("HEADWATER_DEVNET_BLOCK_TIME", "1h")],
        );
        refused(&output, &[setting, &address, &format!("--{setting}")]);
    }
}

#[test]
fn a_bad_flag_is_named_with_the_usage() {
    let output = run(&["--upstraem", "x"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("--upstraem"), "{output:?}");
    let output = run(&["--log-format", "xml"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("xml"), "{output:?}");
}

#[test]
fn version_and_help_go_to_standard_output() {
    let output = run(&["--version"], &[]);
    assert!(output.status.success());
    assert_eq!(
        text(&output.stdout),
        format!("headwater {}\n", env!("CARGO_PKG_VERSION"))
    );
    let output = run(&["--help"], &[]);
    assert!(output.status.success() && text(&output.stdout).contains("--upstream"));
}

#[test]
fn the_default_configuration_passes_its_own_check() {
    let example = run(&["default-config"], &[]);
    assert!(example.status.success());
    let (_file, path) = file(text(&example.stdout));
    let output = run(&["check-config", "--config", &path], &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        text(&output.stdout),
        "ok: listen 127.0.0.1:9546, admin 127.0.0.1:9547, upstream the embedded devnet\n"
    );
}

#[test]
fn a_key_is_printed_once_with_the_lines_for_the_configuration() {
    let output = run(&["key", "alice", "--plan", "partner"], &[]);
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output.stdout);
    let key = printed.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
    assert!(key.starts_with("hw_"));
    assert_eq!(printed.matches(key).count(), 1);
    let (_file, path) = file(&format!("{printed}[plans.partner]\nmax_subscriptions = 5\n"));
    let output = run(&["check-config", "--config", &path], &[]);
    assert!(output.status.success(), "{output:?}");
    let digest = headwater::door::Digest::of(key).to_string();
    assert!(printed.contains(&format!("[keys.alice]\nhash = \"{digest}\"\nplan = \"partner\"\n")));
    assert_ne!(run(&["key", "alice"], &[]).stdout, run(&["key", "alice"], &[]).stdout);
    refused(&run(&["key", "a b"], &[]), &["letters, digits"]);
}

#[test]
fn flags_come_before_variables_before_the_file() {
    let (_file, path) = file("listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:1\"\nupstream = \"ws://file:1\"");
    let variables = [("HEADWATER_LISTEN", "127.0.0.1:2"), ("HEADWATER_ADMIN", "127.0.0.1:2")];
    let output = run(
        &["check-config", "--config", &path, "--listen", "127.0.0.1:3"],
        &variables,
    );
    assert_eq!(
        text(&output.stdout),
        "ok: listen 127.0.0.1:3, admin 127.0.0.1:2, upstream ws://file:1\n"
    );
}

/// Reads the log to the first line that contains `before`; returns the word that follows it there.
pub fn address_after(before: &str, log: &mut impl BufRead) -> String {
    let mut line = String::new();
    while !line.contains(before) {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the log ended without {before:?}");
    }
    let rest = &line[line.find(before).unwrap() + before.len()..];
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Waits until a started program is ready; returns its address, its admin address and its log, which stays open.
pub async fn serving(running: &mut Child) -> (String, String, BufReader<ChildStderr>) {
    let mut log = BufReader::new(running.stderr.take().unwrap());
    let address = address_after("serving on ws://", &mut log);
    let admin = address_after("admin on http://", &mut log);
    eventually("ready", async || {
        http(admin.parse().unwrap(), "GET /ready HTTP/1.1", "").await.status == 200
    })
    .await;
    (address, admin, log)
}

#[tokio::test]
async fn without_a_node_it_runs_on_its_own_and_leaves_when_told_to() {
    let mut running = headwater(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &[])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (address, admin, _log) = serving(&mut running).await;
    let reply = http(
        address.parse().unwrap(),
        "POST / HTTP/1.1\r\ncontent-type: application/json",
        CHAIN_ID,
    )
    .await;
    assert_eq!(reply.body, CHAIN_ID_ANSWER);
    let health = run(&["health", "--admin", &admin], &[]);
    assert!(health.status.success(), "{health:?}");
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(running.wait().unwrap().success());
    let health = run(&["health", "--admin", &admin], &[]);
    assert_eq!(health.status.code(), Some(1));
}

/// Socket activation as by systemd: the sockets are descriptors 3 and 4 of the process that `LISTEN_PID` names.
#[tokio::test]
async fn sockets_can_be_inherited() {
    const PARENT: &str = r#"
import os, socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for at, own in enumerate(held):
    os.dup2(own.fileno(), 13 + at)
for at in range(2):
    os.dup2(13 + at, 3 + at, inheritable=True)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"#;
    // The configured address is not on this machine, so the program starts only if it does not bind that address.
    let mut running = Command::new("python3")
        .args(["-c", PARENT, env!("CARGO_BIN_EXE_headwater"), "--listen", "192.0.2.1:1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (address, _admin, _log) = serving(&mut running).await;
    let head = "POST / HTTP/1.1\r\ncontent-type: application/json";
    let reply = http(address.parse().unwrap(), head, CHAIN_ID).await;
    assert_eq!(reply.body, CHAIN_ID_ANSWER);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&running),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(running.wait().unwrap().success());
}

/// Notifications as systemd expects them of `Type=notify`, with a watchdog of a minute.
#[tokio::test]
async fn the_service_manager_is_told_of_start_and_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let notified = async || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).await.unwrap();
        text(&buffer[..length]).to_owned()
    };
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "60000000")];
    let mut running = headwater(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &variables)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (address, admin, _log) = serving(&mut running).await;
    assert_eq!(
        notified().await,
        format!("READY=1\nSTATUS=serving on ws://{address}, admin on http://{admin}")
    );
    assert_eq!(notified().await, "WATCHDOG=1");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&running),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(
        notified().await,
        "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=15000000"
    );
    assert!(running.wait().unwrap().success());
}

#[test]
fn the_effect_of_a_reload_is_known_before_it() {
    let (_running, running) = file("listen = \"127.0.0.1:1\"\n[plans.partner]\nmax_batch = 7\n");
    let (_next, next) = file("[limits]\nmax_batch = 9\n");
    let output = run(&["check-config", "--config", &next, "--diff", &running], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(
        lines[1..],
        [
            "reload   limits.max_batch: 1000 -> 9",
            "restart  listen: \"127.0.0.1:1\" -> \"127.0.0.1:9546\"",
            "reload   plans.partner: { \"max_batch\" = 7 } -> absent",
        ]
    );
    // A variable wins over both files.
    let variables = [("HEADWATER_LISTEN", "127.0.0.1:3"), ("HEADWATER_LIMITS_MAX_BATCH", "3")];
    let output = run(&["check-config", "--config", &next, "--diff", &running], &variables);
    assert_eq!(
        text(&output.stdout).lines().skip(1).collect::<Vec<_>>(),
        ["reload   plans.partner: { \"max_batch\" = 7 } -> absent"]
    );
    let output = run(&["check-config", "--config", &next, "--diff", &next], &[]);
    assert!(text(&output.stdout).ends_with("\nnothing changes\n"));
    refused(
        &run(&["check-config", "--config", &next, "--diff", "/nowhere.toml"], &[]),
        &["/nowhere.toml"],
    );
}

#[test]
fn the_schema_of_the_configuration_is_printed() {
    let output = run(&["default-config", "--schema"], &[]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        schema["properties"]["limits"]["properties"]["max_batch"]["default"],
        1000
    );
    let example = run(&["default-config"], &[]);
    let first = format!("#:schema {}\n", schema["$id"].as_str().unwrap());
    assert!(text(&example.stdout).starts_with(&first));
}
