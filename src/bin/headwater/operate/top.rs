//! `headwater top`: a terminal page of a running headwater, drawn once a second.

mod view;

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::bail;
use headwater::operator::{Entry, OperatorClient as _, Status};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use super::{Target, print, result_of};
use crate::text::escape_json;

/// Events in memory.
const EVENTS: usize = 64;

/// Rates in memory, one a second.
const RATES: usize = 240;

/// Interval of checks for keys.
const KEYS: Duration = Duration::from_millis(50);

/// Figures that the page shows.
#[derive(Debug, Default)]
pub(super) struct Figures {
    status: Option<Status>,
    /// Rates since the status before.
    rates: Rates,
    /// Notifications a second, oldest first.
    deliveries: VecDeque<u64>,
    /// Oldest first.
    events: VecDeque<Entry>,
}

/// Sums a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    deliveries: f64,
    requests: f64,
    sent: f64,
    received: f64,
}

impl Rates {
    /// Returns the rates between two states.
    fn between(before: &Status, now: &Status) -> Self {
        let seconds = now.at_ms.saturating_sub(before.at_ms).max(1) as f64 / 1000.0;
        let rate = |sum: fn(&Status) -> u64| sum(now).saturating_sub(sum(before)) as f64 / seconds;
        Self {
            deliveries: rate(|status| status.deliveries.values().sum()),
            requests: rate(|status| status.requests.values().sum()),
            sent: rate(|status| status.sent_bytes),
            received: rate(|status| status.received_bytes),
        }
    }
}

impl Figures {
    /// Takes a new status.
    fn update(&mut self, mut status: Status) {
        status.complete(self.status.as_ref());
        if let Some(before) = &self.status {
            self.rates = Rates::between(before, &status);
            if self.deliveries.len() == RATES {
                self.deliveries.pop_front();
            }
            self.deliveries.push_back(self.rates.deliveries.round() as u64);
        }
        self.status = Some(status);
    }

    /// Takes a new event.
    fn enter(&mut self, entry: Entry) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(entry);
    }
}

/// Runs until a key ends it, or the connection ends.
pub(super) async fn top(target: &Target) -> anyhow::Result<()> {
    let api = target.connect().await?;
    let mut states = result_of(api.subscribe_status().await)?;
    if target.json {
        let mut before = None;
        while let Some(status) = states.next().await {
            let mut status = status?;
            status.complete(before.as_ref());
            print(&format!("{}\n", escape_json(serde_json::to_string(&status)?)))?;
            before = Some(status);
        }
        bail!("the connection to headwater was lost");
    }
    if !std::io::stdout().is_terminal() {
        bail!("top needs a terminal; use --json for a line of JSON a second");
    }
    let mut events = result_of(api.subscribe_events(Some(EVENTS)).await)?;
    let mut keys = keys();
    let mut figures = Figures::default();
    let mut terminal = ratatui::init();
    let ended = async {
        loop {
            draw(&mut terminal, &figures)?;
            tokio::select! {
                status = states.next() => match status {
                    Some(status) => figures.update(status?),
                    None => bail!("the connection to headwater was lost"),
                },
                Some(entry) = events.next() => figures.enter(entry?),
                key = keys.recv() => match key {
                    Some(Key::Quit) | None => return Ok(()),
                    Some(Key::Redraw) => {}
                },
            }
        }
    };
    let ended = ended.await;
    ratatui::restore();
    ended
}

fn draw(terminal: &mut DefaultTerminal, figures: &Figures) -> std::io::Result<()> {
    terminal.draw(|frame| view::draw(frame, figures)).map(drop)
}

/// Input that changes the page.
enum Key {
    Quit,
    Redraw,
}

/// Starts a thread that waits for keys, as the terminal blocks; it ends with the receiver.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(8);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let key = match event::poll(KEYS) {
                Ok(false) => continue,
                Ok(true) => event::read().ok().and_then(|event| key(&event)),
                Err(_) => Some(Key::Quit),
            };
            if let Some(key) = key
                && sender.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn key(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            _ => None,
        },
        _ => None,
    }
}
