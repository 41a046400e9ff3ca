//! Following a headwater: subscriptions that continue after what was printed (docs/resume.md).

use std::convert::Infallible;
use std::io::Write;

use serde_json::{Value, json};

use super::connection::Connection;
use super::error::{Stop, TailError};
use super::event::{Header, Log};
use super::follow::Follower;
use super::message::Notification;
use super::window::{Contents, ResumePoint};

/// Attempts to read by calls what cannot be resumed, and to resume after it.
const ATTEMPTS: usize = 3;

/// Ids of the subscriptions, as JSON.
struct Subscriptions {
    heads: String,
    logs: Option<String>,
    pending: Option<String>,
}

impl<W: Write> Follower<W> {
    /// Follows a headwater until the connection breaks or all is printed.
    ///
    /// # Errors
    /// The reason to leave the connection, which is never left without one.
    pub(super) async fn resumed(&mut self, mut node: Connection) -> Result<Infallible, Stop> {
        let mut attempts = 0;
        let subscriptions = loop {
            match self.subscribe(&mut node).await? {
                Ok(subscriptions) => break subscriptions,
                Err(why) if attempts == ATTEMPTS => return Err(node.interrupted(&why).into()),
                // Too far back, or on a branch that nobody has: the blocks are read by calls.
                Err(_) => self.catch_up(&mut node).await?,
            }
            attempts += 1;
        };
        self.subscribed(&node);
        loop {
            let event = node.next().await?;
            if event.subscription == subscriptions.heads {
                let header: Header = node.parsed(&event.result, "newHeads")?;
                self.announced(&mut node, &header).await?;
            } else if subscriptions.logs.as_ref() == Some(&event.subscription) {
                self.logged(&node, &event)?;
            } else if subscriptions.pending.as_ref() == Some(&event.subscription) {
                self.pending(&node, &event)?;
            }
        }
    }

    /// Subscribes in one batch, which keeps the order: a head, its logs, the next head. The inner error is the refusal to
    /// resume at this place.
    async fn subscribe(&mut self, node: &mut Connection) -> Result<Result<Subscriptions, String>, Stop> {
        let [heads, logs] = match self.window.resume_points() {
            Some(points) => points.map(after),
            None => [(); 2].map(|()| json!({"fromBlock": format!("{:#x}", self.window.start())})),
        };
        let mut requests = vec![json!(["newHeads", heads])];
        if let Some(filter) = &self.plan.logs {
            requests.push(json!(["logs", filter.json(), logs]));
        }
        if self.plan.pending {
            requests.push(json!(["newPendingTransactions"]));
        }
        let answers = node.subscribe(requests).await?;
        let refusal = answers
            .iter()
            .find_map(|answer| answer.as_ref().err().filter(|error| error.is_about_resuming()));
        if let Some(refusal) = refusal {
            let why = format!("refused to resume: {}", refusal.text());
            for id in answers.iter().flatten() {
                node.unsubscribe(id.get()).await?;
            }
            return Ok(Err(why));
        }
        let mut answers = answers.into_iter();
        let mut id = |kind: &str| match answers.next() {
            Some(answer) => node.subscribed(answer, kind),
            None => Err(node.interrupted("answered a part of a batch")),
        };
        Ok(Ok(Subscriptions {
            heads: id("newHeads")?,
            logs: self.plan.logs.is_some().then(|| id("logs")).transpose()?,
            pending: self.plan.pending.then(|| id("newPendingTransactions")).transpose()?,
        }))
    }

    async fn announced(&mut self, node: &mut Connection, header: &Header) -> Result<(), Stop> {
        if self.window.contains(header.hash) {
            return Ok(());
        }
        self.before(header)?;
        let events = match self.wants(header) {
            true => self.head_and_receipts(node, header, Vec::new()).await?,
            false => Vec::new(),
        };
        let contents = match self.plan.logs {
            Some(_) => Contents::Following,
            None => Contents::Complete,
        };
        let removed = self.window.make_room(header)?;
        self.print_block(&removed, header, events, contents)?;
        // The next head would show that the last block is complete, but a call does so at once.
        if self.plan.until == Some(header.number) {
            self.complete_tip(node).await?;
        }
        self.after()
    }

    fn logged(&mut self, node: &Connection, event: &Notification) -> Result<(), Stop> {
        let log: Log = node.parsed(&event.result, "logs")?;
        if log.removed {
            return match self.window.take_back(&log) {
                Some(event) => self.printer.print(&event, true),
                None => Ok(()),
            };
        }
        if log.block_number < self.window.start() {
            return Ok(());
        }
        match self.window.take(log) {
            Ok(Some(event)) => self.printer.print(event, false),
            Ok(None) => Ok(()),
            Err(log) => {
                let text = format!(
                    "{} sent a log of block {} before its head",
                    node.endpoint(),
                    log.block_hash
                );
                Err(TailError::Garbled(text).into())
            }
        }
    }
}

fn after(point: ResumePoint) -> Value {
    match point.log {
        Some(index) => json!({"after": {"blockHash": point.block, "logIndex": format!("{index:#x}")}}),
        None => json!({"after": {"blockHash": point.block}}),
    }
}
