//! Receiver of webhooks: a process of its own, which is killed and stopped like the others. It appends each batch to a
//! journal before it answers, so what is in the journal is what its program has.
//!
//! The streams have a level of finality that no reorg reaches: anvil forgets the blocks that it drops, and a position
//! behind such a block is a gap after a restart. Removals over kills are shown before a node that remembers, in
//! `tests/it/webhooks/killed.rs`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::chain::{MAX_DEPTH, header, log};
use crate::client::Wish;
use crate::history::{Canonical, Delivered, Record, Start, Verdict, check};
use crate::process::{Process, port};
use crate::webhook_request::{Batch, Deliveries, SECRET};

/// Kinds of the streams, which are also the names of the webhooks.
const KINDS: [&str; 2] = ["heads", "logs"];

/// Variables with the port and the folder of the process.
const PORT: &str = "CHAOS_RECEIVER_PORT";
const FOLDER: &str = "CHAOS_RECEIVER_FOLDER";

/// A batch that was taken.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    at: SystemTime,
    id: String,
    is_signed: bool,
    body: String,
}

/// A batch that was taken twice.
#[derive(Debug)]
pub struct Repeat {
    pub id: String,
    pub taken: SystemTime,
    pub again: SystemTime,
}

/// The process, with the settings of its webhooks.
pub struct WebhookReceiver {
    /// Configuration file of the proxy.
    pub config: PathBuf,
    folder: PathBuf,
    port: u16,
    from: u64,
    /// Locked by a fault until the process runs again.
    process: Mutex<Process>,
}

impl WebhookReceiver {
    /// Starts a receiver of all events from block `from` on, with its files and the configuration file in `folder`.
    pub fn start(folder: &Path, from: u64) -> Self {
        let (port, folder) = (port(), folder.to_owned());
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        std::fs::write(path("webhook.secret"), SECRET).unwrap();
        let section = |kind: &str| {
            format!(
                "[webhooks.{kind}]\nurl = \"http://127.0.0.1:{port}/{kind}\"\nstream = \
                 \"kind={kind}&confirmations={}&fromBlock={from:#x}\"\nsecret_file = {:?}\nstate = {:?}\nallow_private = \
                 true\nbatch = 5\ntimeout = \"4s\"\nretry_max = \"1s\"\n",
                MAX_DEPTH + 1,
                path("webhook.secret"),
                path(&format!("webhook-{kind}.state"))
            )
        };
        let config = folder.join("webhooks.toml");
        std::fs::write(&config, KINDS.map(section).concat()).unwrap();
        Self {
            config,
            process: Mutex::new(spawn(port, &folder)),
            folder,
            port,
            from,
        }
    }

    /// Kills the process with `kill -9` and restarts it after `down`.
    pub async fn kill(&self, down: Duration) {
        let mut process = self.process.lock().await;
        process.kill();
        sleep(down).await;
        *process = spawn(self.port, &self.folder);
    }

    /// Stops the process with SIGSTOP, and continues it with SIGCONT after `duration`.
    pub async fn freeze(&self, duration: Duration) {
        let process = self.process.lock().await;
        process.freeze();
        sleep(duration).await;
        process.thaw();
    }

    pub fn has_arrived(&self, canonical: &Canonical) -> bool {
        let canonical = final_part(canonical);
        let last_log = |block: &crate::history::CanonBlock| Some((block.hash, block.logs.last()?.index));
        KINDS.iter().all(|kind| {
            let expected = match *kind {
                "heads" => canonical.blocks.last().map(|block| (block.hash, 0)),
                _ => canonical.blocks.iter().rev().find_map(last_log),
            };
            Account::read(&self.folder, kind, self.from).last == expected
        })
    }

    /// Returns the verdict, a description of each webhook, and the batches that came more than once.
    pub fn judge(&self, canonical: &Canonical) -> Vec<(Verdict, String, Vec<Repeat>)> {
        let canonical = final_part(canonical);
        let judge = |kind: &&str| {
            let account = Account::read(&self.folder, kind, self.from);
            let mut verdict = check(&account.record, &canonical, |log| Wish::All.wants(log), self.from);
            verdict.contradictory += account.faults.len() as u64;
            verdict.examples.extend(account.faults);
            let words = format!(
                "webhook of {kind}: {} events in {} batches, of which {} came again: {verdict}",
                account.record.delivered.len() - 1,
                account.sequence,
                account.repeats.len()
            );
            (verdict, words, account.repeats)
        };
        KINDS.iter().map(judge).collect()
    }
}

/// Returns the blocks that have the level of the streams.
fn final_part(canonical: &Canonical) -> Canonical {
    let mut own = canonical.clone();
    own.blocks.truncate(own.blocks.len().saturating_sub(MAX_DEPTH as usize));
    own
}

fn spawn(port: u16, folder: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--ignored", "webhook::process_of_the_receiver"])
        .env(PORT, port.to_string())
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process::start(&mut command)
}

fn journal(folder: &Path, kind: &str) -> PathBuf {
    folder.join(format!("webhook-{kind}.journal"))
}

/// Content of a journal.
struct Account {
    record: Record,
    /// Number of the last batch.
    sequence: u64,
    last: Option<(B256, u64)>,
    repeats: Vec<Repeat>,
    faults: Vec<String>,
}

impl Account {
    fn read(folder: &Path, kind: &str, from: u64) -> Self {
        let subscribed = Delivered::Subscribed {
            heads: kind == "heads",
            logs: kind == "logs",
            from: Start::FromBlock(from),
        };
        let mut account = Self {
            record: Record {
                name: format!("webhook of {kind}"),
                delivered: vec![subscribed],
            },
            sequence: 0,
            last: None,
            repeats: Vec::new(),
            faults: Vec::new(),
        };
        let text = std::fs::read_to_string(journal(folder, kind)).unwrap_or_default();
        let mut before: Option<Entry> = None;
        // The last line may not be complete yet.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let entry: Entry = serde_json::from_str(line).unwrap();
            account.take(kind, &entry, before.as_ref());
            before = Some(entry);
        }
        account
    }

    fn take(&mut self, kind: &str, entry: &Entry, before: Option<&Entry>) {
        let batch: Batch<'_> = serde_json::from_str(&entry.body).unwrap();
        if !entry.is_signed || batch.kind != kind {
            self.faults.push(format!(
                "{}: of {}, signed: {}: {}",
                entry.id, batch.kind, entry.is_signed, batch.data
            ));
        }
        if let Some(before) = before.filter(|before| before.id == entry.id) {
            if before.body != entry.body {
                self.faults
                    .push(format!("{}: came again, and is another one", entry.id));
            }
            self.repeats.push(Repeat {
                id: entry.id.clone(),
                taken: before.at,
                again: entry.at,
            });
            return;
        }
        if batch.sequence != self.sequence + 1 {
            self.faults
                .push(format!("{}: comes behind {}", entry.id, self.sequence));
        }
        self.sequence = batch.sequence;
        for event in batch.events() {
            self.event(kind, &serde_json::from_str(event.get()).unwrap());
        }
    }

    fn event(&mut self, kind: &str, event: &Value) {
        self.record.delivered.push(if kind == "heads" {
            let (number, hash, parent) = header(event);
            self.last = Some((hash, 0));
            Delivered::Head { number, hash, parent }
        } else {
            let (block, log) = log(event);
            self.last = Some((block.1, log.index));
            let removed = event["removed"] == true;
            Delivered::Log { block, log, removed }
        });
    }
}

/// The receiver itself, which the other tests start as a process.
#[tokio::test]
#[ignore = "a part of the other tests"]
async fn process_of_the_receiver() {
    let (Some(port), Some(folder)) = (std::env::var_os(PORT), std::env::var_os(FOLDER)) else {
        return;
    };
    let listener = TcpListener::bind(("127.0.0.1", port.to_str().unwrap().parse().unwrap()))
        .await
        .unwrap();
    let folder = PathBuf::from(folder);
    for kind in KINDS {
        repair(&journal(&folder, kind));
    }
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(socket, folder.clone()));
    }
}

/// Removes the part of a line that a kill left.
fn repair(path: &Path) {
    let Ok(bytes) = std::fs::read(path) else { return };
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(whole as u64).unwrap();
}

async fn serve(socket: TcpStream, folder: PathBuf) {
    let mut connection = Deliveries::new(socket);
    while let Some(delivery) = connection.next().await {
        let status = match rand::random_range(0..20) {
            0 => 500,
            _ => 204,
        };
        if status == 204 {
            let entry = Entry {
                at: SystemTime::now(),
                id: delivery.id().to_owned(),
                is_signed: delivery.is_signed(),
                body: delivery.body.clone(),
            };
            let line = serde_json::to_string(&entry).unwrap() + "\n";
            let path = journal(&folder, delivery.path.trim_start_matches('/'));
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
            // Longer than nothing, so that some kills come in between.
            sleep(Duration::from_millis(rand::random_range(0..100))).await;
        }
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
        if connection.socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
