//! The receivers of docs/webhooks.md, run as they stand there, and the specification's own library.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc;

use super::receiver::Receiver;
use super::webhook_request::SECRET;
use super::{Files, add, begun, logs};
use crate::harness::{Event, Rig, adopted, within};

const PAGE: &str = include_str!("../../../docs/webhooks.md");

/// Python with what `tests/interop/requirements.txt` installs.
const PYTHON: &str = "tests/interop/.venv/bin/python";

/// Process that ends with the test, and its lines.
struct Program(Child, mpsc::UnboundedReceiver<String>);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self(process, lines)
    }
}

#[tokio::test]
async fn the_receiver_of_the_page_takes_all_events() {
    let (_, after) = PAGE.split_once("```python\n").unwrap();
    let (code, _) = after.split_once("```").unwrap();
    let files = Files::new();
    // A free port that the example does not choose: it is taken as soon as it was closed.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let text = format!(
        "import json\n\nport, secret = {port}, {SECRET:?}\n\n\ndef take(kind, event):\n    print(json.dumps(event), flush=True)\n\n\n{code}"
    );
    let path = files.path("receiver.py");
    std::fs::write(&path, text).unwrap();
    let mut program = Program::start(Command::new("python3").arg(&path).stderr(Stdio::null()));
    let rig = Rig::with(|config| {
        let url = format!("http://127.0.0.1:{port}/");
        add(config, "a", files.hook(url, "kind=logs"));
    })
    .await;
    begun(&rig, "a").await;
    for line in logs(adopted(&rig.control.mine_many(3))) {
        let payload = within("the example's line", program.1.recv()).await.unwrap();
        let subscription = String::new();
        assert_eq!(Event { subscription, payload }.line(), line);
    }
}

/// The library reads what a receiver got; the long form (`make interop`) has it installed.
#[tokio::test]
async fn the_official_library_verifies_the_requests() {
    let python = std::env::var("STANDARD_WEBHOOKS_PYTHON").unwrap_or_else(|_| PYTHON.to_owned());
    let has = |path: &str| {
        let tried = Command::new(path)
            .args(["-c", "import standardwebhooks"])
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    };
    if !Path::new(&python).exists() || !has(&python) {
        eprintln!("skipped: {python} has no standardwebhooks; make interop installs it");
        return;
    }
    let (files, receiver) = (Files::new(), Receiver::start().await);
    let secrets = format!("whsec_{}\n{SECRET}\n", "A".repeat(32));
    std::fs::write(files.path("secret"), secrets).unwrap();
    let rig = Rig::with(|config| add(config, "a", files.hook(receiver.url(), "kind=logs"))).await;
    begun(&rig, "a").await;
    receiver.expect(&logs(adopted(&rig.control.mine_many(3)))).await;
    let code = "import json, sys\nfrom standardwebhooks import Webhook, WebhookVerificationError\n\
                secret, headers, body = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]\n\
                try:\n    print(len(Webhook(secret).verify(body, headers)['data']))\n\
                except WebhookVerificationError as why:\n    print(why)\n";
    let verify = |secret: &str, own: &super::receiver::Request, body: &str| {
        let headers = serde_json::to_string(&own.headers).unwrap();
        let output = Command::new(&python)
            .args(["-c", code, secret, &headers, body])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let old = format!("whsec_{}", "A".repeat(32));
    for own in receiver.accepted() {
        for secret in [SECRET, &old] {
            assert_eq!(verify(secret, &own, &own.body), own.lines().len().to_string());
        }
        let changed = own.body.replacen("logs", "logz", 1);
        assert_eq!(verify(SECRET, &own, &changed), "No matching signature found");
        assert_eq!(
            verify(&format!("whsec_{}", "B".repeat(32)), &own, &own.body),
            "No matching signature found"
        );
    }
}
