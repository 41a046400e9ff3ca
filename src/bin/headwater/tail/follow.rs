//! One connection after another to the endpoint, and what both ways of following have in common.

use std::convert::Infallible;
use std::io::Write;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::connection::Connection;
use super::error::{Stop, TailError};
use super::event::{Event, Header};
use super::message::Notification;
use super::plan::Plan;
use super::printer::Printer;
use super::walk::MAX_HOLE;
use super::window::{Contents, TooDeep, Window};

/// Waiting times before another connection: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

pub(super) struct Follower<W> {
    pub(super) plan: Plan,
    pub(super) printer: Printer<W>,
    pub(super) window: Window,
    progress: Progress,
    chain: Option<u64>,
}

/// Progress of the command, over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// No subscription yet: a failure is one of the command line.
    Nothing,
    /// The block to start with is known.
    Started,
    /// A subscription was accepted.
    Subscribed,
}

impl<W: Write> Follower<W> {
    pub(super) fn new(plan: Plan, printer: Printer<W>) -> Self {
        Self {
            plan,
            printer,
            window: Window::new(0, None),
            progress: Progress::Nothing,
            chain: None,
        }
    }

    /// Follows until all is printed that was asked for.
    ///
    /// # Errors
    /// The first failure that another connection cannot mend, or any with `--no-retry` or before the first
    /// subscription.
    pub(super) async fn run(mut self) -> Result<(), TailError> {
        let mut wait = FIRST_WAIT;
        loop {
            let (began, before) = (Instant::now(), self.window.tip());
            let error = match self.connection().await {
                Err(Stop::Done) => return Ok(()),
                Err(Stop::Failed(error)) => error,
            };
            if !error.passes() || !self.plan.retries || self.progress != Progress::Subscribed {
                return Err(error);
            }
            if self.window.tip() != before || began.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            eprintln!("headwater: {error}; connecting again");
            // Many that lost the same endpoint do not return in the same instant.
            tokio::time::sleep(wait.mul_f64(rand::rng().random_range(0.5..1.0))).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Follows over one connection.
    async fn connection(&mut self) -> Result<Infallible, Stop> {
        let mut node = Connection::open(&self.plan.endpoint, &self.plan.headers).await?;
        let chain = node.chain_id().await?;
        match self.chain.replace(chain) {
            Some(before) if before != chain => {
                let endpoint = node.endpoint();
                return Err(TailError::Lost(format!(
                    "{endpoint} was chain {before} and is chain {chain} now; start again to follow that one"
                ))
                .into());
            }
            _ => {}
        }
        if !self.plan.has_blocks() {
            return self.pending_alone(node).await;
        }
        if self.progress == Progress::Nothing {
            self.find_start(&mut node).await?;
        }
        // A removal that the last connection broke off is ended before anything else.
        let rest = self.window.settle();
        self.printer.remove(&rest)?;
        if node.is_headwater().await? {
            self.resumed(node).await
        } else {
            self.backfilled(node).await
        }
    }

    /// Finds the block to start after.
    async fn find_start(&mut self, node: &mut Connection) -> Result<(), Stop> {
        let head = node.latest().await?;
        let start = self.plan.from.unwrap_or(head.number + 1);
        if let Some(until) = self.plan.until.filter(|until| *until < start) {
            eprintln!(
                "headwater: block {until} is past (the head is {}); add --from to read it",
                head.number
            );
            return Err(Stop::Done);
        }
        let anchor = match start.checked_sub(1) {
            None => None,
            Some(before) if before < head.number => Some(self.anchor(node, before).await?),
            Some(_) => Some(head),
        };
        self.window = Window::new(start, anchor.as_ref());
        self.progress = Progress::Started;
        Ok(())
    }

    /// Returns the block of this number, or the nearest before it: some chains have numbers without a block.
    async fn anchor(&self, node: &mut Connection, number: u64) -> Result<Header, Stop> {
        for number in (number.saturating_sub(MAX_HOLE)..=number).rev() {
            if let Some(anchor) = node.block(number).await? {
                return Ok(anchor);
            }
        }
        let endpoint = node.endpoint();
        let text =
            format!("{endpoint} has no block {number}, after which --from begins; start later, or ask an archive node");
        Err(TailError::Refused(text).into())
    }

    /// Notes that the endpoint serves what is wanted: from here on, disconnects are waited out.
    pub(super) fn subscribed(&mut self, node: &Connection) {
        if self.progress == Progress::Subscribed {
            let endpoint = node.endpoint();
            match self.window.tip() {
                Some((number, _)) => {
                    eprintln!("headwater: connected to {endpoint} again, continuing after block {number}")
                }
                None => eprintln!("headwater: connected to {endpoint} again"),
            }
        }
        self.progress = Progress::Subscribed;
    }

    async fn pending_alone(&mut self, mut node: Connection) -> Result<Infallible, Stop> {
        let pending = node.subscribe_one("newPendingTransactions").await?;
        self.subscribed(&node);
        loop {
            let event = node.next().await?;
            if event.subscription == pending {
                self.pending(&node, &event)?;
            }
        }
    }

    /// Prints a pending transaction.
    ///
    /// # Errors
    /// If the event is not a hash, at the last line that is wanted, or if the output fails.
    pub(super) fn pending(&mut self, node: &Connection, event: &Notification) -> Result<(), Stop> {
        let hash = node.parsed(&event.result, "newPendingTransactions")?;
        self.printer.print(&Event::Pending(hash), false)
    }

    /// Returns the events of a block except its logs.
    ///
    /// # Errors
    /// If the receipts cannot be read.
    pub(super) async fn head_and_receipts(
        &mut self,
        node: &mut Connection,
        header: &Header,
        logs: Vec<Event>,
    ) -> Result<Vec<Event>, Stop> {
        let mut events = Vec::new();
        if self.plan.heads {
            events.push(Event::Head(header.clone()));
        }
        events.extend(logs);
        if let Some(filter) = &self.plan.receipts {
            let receipts = node.receipts_of(header.hash).await?;
            let wanted = receipts
                .into_iter()
                .filter(|receipt| filter.concerns(&[Some(receipt.from), receipt.to, receipt.contract_address]));
            events.extend(wanted.map(Event::Receipt));
        }
        Ok(events)
    }

    /// Prints that these blocks' events are gone, then a block's own events.
    ///
    /// # Errors
    /// [`Stop::Done`] at the last line that is wanted, or if the output fails.
    pub(super) fn print_block(
        &mut self,
        removed: &[Event],
        header: &Header,
        events: Vec<Event>,
        contents: Contents,
    ) -> Result<(), Stop> {
        self.printer.remove(removed)?;
        events.iter().try_for_each(|event| self.printer.print(event, false))?;
        self.window.adopt(header, events, contents);
        Ok(())
    }

    /// Checks if a block's events are wanted.
    pub(super) fn wants(&self, header: &Header) -> bool {
        header.number >= self.window.start()
    }

    /// Ends the command before a block that is beyond the last one wanted.
    ///
    /// # Errors
    /// [`Stop::Done`] then.
    pub(super) fn before(&self, header: &Header) -> Result<(), Stop> {
        match self.plan.until {
            Some(until) if header.number > until => Err(Stop::Done),
            _ => Ok(()),
        }
    }

    /// Ends the command if the last block that is wanted is printed.
    ///
    /// # Errors
    /// [`Stop::Done`] then.
    pub(super) fn after(&self) -> Result<(), Stop> {
        match (self.plan.until, self.window.tip()) {
            (Some(until), Some((tip, _))) if tip >= until && self.window.incomplete().is_none() => Err(Stop::Done),
            _ => Ok(()),
        }
    }
}

impl From<TooDeep> for Stop {
    fn from(TooDeep: TooDeep) -> Self {
        TailError::Lost(
            "the chain was reorganised below the blocks that are remembered, so what was dropped cannot be listed; start again with --from"
                .to_owned(),
        )
        .into()
    }
}
