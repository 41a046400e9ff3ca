//! A receiver of webhooks that fails in many ways. What it has taken is on its disk: a batch whose answer is lost comes
//! again, and only such a batch.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use headwater::config::typed;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::consumer::{Consumer, Counts};
use crate::fleet::Progress;
use crate::history::Canonical;
use crate::plan::{INITIAL_BLOCKS, Plan};
use crate::stream::{Of, Story};
use crate::trailing::Level;
use crate::webhook_request::{Batch, Deliveries, Delivery, SECRET};

/// Time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Most failures of the receiver, so that it catches up in the end.
const MAX_FAILURES: usize = 40;

/// Type of the event about events that are missing.
const GAP: &str = "headwater.gap";

/// Conduct of the receiver towards one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conduct {
    /// Takes the batch, and answers after this time.
    Take(Duration),
    /// Takes the batch; the end of the connection comes within the body of the answer.
    TakeHalf,
    /// Takes the batch, and does not answer.
    TakeSilently,
    /// Takes the batch, and ends before the answer.
    TakeAndEnd,
    /// Answers with this status.
    Refuse(u16),
    /// Does not answer.
    Hang,
    /// Ends before the answer, and stays away for this long.
    End(Duration),
}

impl Conduct {
    fn draw(rng: &mut StdRng) -> Self {
        let ms = |rng: &mut StdRng, most| Duration::from_millis(rng.random_range(0..most));
        match rng.random_range(0..24) {
            0 => Self::TakeHalf,
            1 => Self::TakeSilently,
            2 => Self::TakeAndEnd,
            3 => Self::Refuse([302, 404, 429, 500, 503][rng.random_range(0..5)]),
            4 => Self::Hang,
            5 => Self::End(ms(rng, 6000)),
            6..9 => Self::Take(ms(rng, 1000)),
            _ => Self::Take(Duration::ZERO),
        }
    }

    fn takes(self) -> bool {
        !matches!(self, Self::Refuse(_) | Self::Hang | Self::End(_))
    }
}

/// The last batch that came.
#[derive(Debug)]
struct Last {
    sequence: u64,
    id: String,
    body: String,
    is_taken: bool,
    /// Life of the app in which the answer that took it was sent.
    answered_in: Option<u64>,
}

#[derive(Debug)]
struct Inbox {
    story: Story,
    last: Option<Last>,
    rng: StdRng,
    failures: usize,
    away_until: Instant,
    counts: Counts,
    complaints: Vec<String>,
}

/// Handle of a running receiver.
#[derive(Debug)]
pub struct WebhookReceiver {
    of: Of,
    inbox: Arc<Mutex<Inbox>>,
    over: watch::Sender<bool>,
}

impl WebhookReceiver {
    /// Starts a receiver; its stream and its failures follow from the plan's seed. Returns it with the settings of its
    /// webhook, whose files are in `folder`.
    pub async fn start(
        plan: &Plan,
        at: u64,
        contracts: &[Address],
        progress: Arc<Progress>,
        folder: &Path,
    ) -> (Self, (String, typed::Webhook)) {
        let mut rng = StdRng::seed_from_u64(plan.seed.rotate_left(44) ^ (0x3eb + at));
        let of = Of::draw(at, plan.history as u64, &mut rng);
        let first = rng.random_ratio(1, 2).then(|| INITIAL_BLOCKS - rng.random_range(0..8));
        let batch = [5, 20, 100][rng.random_range(0..3)];
        let mut story = Story::new(of, contracts);
        if let Some(first) = first {
            story.begin(true, first);
        }
        let inbox = Arc::new(Mutex::new(Inbox {
            story,
            last: None,
            rng,
            failures: 0,
            away_until: Instant::now(),
            counts: Counts::default(),
            complaints: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (over, ends) = watch::channel(false);
        let task = Task {
            of,
            progress,
            inbox: inbox.clone(),
            state: folder.join(format!("webhook-{at}")),
            may_lose: plan.may_lose_continuity(),
        };
        let hook = task.settings(address, contracts, first, batch);
        tokio::spawn(Arc::new(task).run(listener, ends));
        (Self { of, inbox, over }, (format!("hook-{at}"), hook))
    }
}

impl Consumer for WebhookReceiver {
    fn name(&self) -> String {
        format!("webhook {:?}", self.of)
    }

    fn counts(&self) -> Counts {
        self.inbox.lock().counts
    }

    fn has_arrived(&self, canonical: &Canonical) -> bool {
        self.inbox.lock().story.has_arrived(canonical)
    }

    fn judge(&self, canonical: &Canonical) -> Vec<String> {
        let _ = self.over.send(true);
        let inbox = self.inbox.lock();
        let mut faults = inbox.complaints.clone();
        faults.extend(inbox.story.faults(canonical));
        let name = self.name();
        faults.into_iter().map(|words| format!("{name}: {words}")).collect()
    }
}

struct Task {
    of: Of,
    progress: Arc<Progress>,
    inbox: Arc<Mutex<Inbox>>,
    /// File of the webhook's position.
    state: std::path::PathBuf,
    may_lose: bool,
}

impl Task {
    fn settings(&self, address: SocketAddr, contracts: &[Address], first: Option<u64>, batch: usize) -> typed::Webhook {
        let secret = self.state.with_file_name("webhook-secret");
        std::fs::write(&secret, SECRET).unwrap();
        let path = |path: &Path| Some(path.to_str().unwrap().to_owned());
        let first = first.map(|first| format!("&fromBlock={first:#x}"));
        typed::Webhook {
            url: format!("http://{address}/"),
            stream: Some(self.of.query(contracts) + &first.unwrap_or_default()),
            secret_file: path(&secret),
            state: path(&self.state),
            batch: Some(batch),
            batch_bytes: None,
            timeout: Some(TIMEOUT),
            retry_max: Some(Duration::from_secs(1)),
            retry_for: None,
            dead_letters: None,
            dead_letters_bytes: None,
            allow_private: true,
            ca: None,
        }
    }

    async fn run(self: Arc<Self>, listener: TcpListener, mut ends: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let away = self.inbox.lock().away_until > Instant::now();
                    if let Ok((socket, _)) = accepted && !away {
                        connections.spawn(self.clone().serve(socket));
                    }
                }
                Some(_) = connections.join_next() => {}
                _ = ends.changed() => return,
            }
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream) {
        let mut connection = Deliveries::new(socket);
        while let Some(delivery) = connection.next().await {
            let conduct = self.arrived(&delivery);
            let (wait, answer) = match conduct {
                Conduct::Take(wait) => (wait, "204 x\r\ncontent-length: 0\r\n\r\n".to_owned()),
                Conduct::TakeHalf => (Duration::ZERO, "200 x\r\ncontent-length: 9\r\n\r\n{".to_owned()),
                Conduct::Refuse(status) => {
                    let header = "retry-after: 1\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n";
                    (Duration::ZERO, format!("{status} x\r\n{header}"))
                }
                Conduct::TakeSilently | Conduct::Hang => {
                    // Until the other side gives up.
                    let _ = connection.next().await;
                    return;
                }
                Conduct::TakeAndEnd | Conduct::End(_) => return,
            };
            sleep(wait).await;
            let sent = connection
                .socket
                .write_all(format!("HTTP/1.1 {answer}").as_bytes())
                .await;
            if conduct.takes() && sent.is_ok() {
                self.answered(delivery.id());
            }
            if conduct == Conduct::TakeHalf {
                return;
            }
        }
    }

    /// Checks a request, and takes its batch unless the receiver fails.
    fn arrived(&self, delivery: &Delivery) -> Conduct {
        let mut inbox = self.inbox.lock();
        let inbox = &mut *inbox;
        let conduct = match inbox.failures {
            MAX_FAILURES.. => Conduct::Take(Duration::ZERO),
            _ => Conduct::draw(&mut inbox.rng),
        };
        inbox.failures += usize::from(!matches!(conduct, Conduct::Take(_)));
        if let Conduct::End(away) = conduct {
            inbox.away_until = Instant::now() + away;
        }
        let fault = self.check(inbox, delivery).err();
        inbox.complaints.extend(fault);
        if conduct.takes() {
            let fault = self.take(inbox).err();
            inbox.complaints.extend(fault);
        }
        conduct
    }

    /// Checks that a request is the last batch again, or the next one, and makes it the last.
    fn check(&self, inbox: &mut Inbox, delivery: &Delivery) -> Result<(), String> {
        if !delivery.is_signed() {
            return Err(format!("batch {} is not signed", delivery.id()));
        }
        let batch: Batch<'_> = serde_json::from_str(&delivery.body)
            .map_err(|error| format!("a batch that cannot be read ({error}): {}", delivery.body))?;
        let is_next = match &inbox.last {
            None => batch.sequence == 1,
            Some(last) if last.sequence == batch.sequence => {
                if (last.id.as_str(), &last.body) != (delivery.id(), &delivery.body) {
                    return Err(format!("batch {} came again, and is another one", delivery.id()));
                }
                if last.answered_in == Some(self.progress.lives.load(Ordering::Relaxed)) {
                    return Err(format!("batch {} came again, although it was accepted", delivery.id()));
                }
                inbox.counts.repeated += u64::from(last.is_taken);
                return Ok(());
            }
            Some(last) => last.is_taken && last.sequence + 1 == batch.sequence && last.id != delivery.id(),
        };
        let before = inbox.last.replace(Last {
            sequence: batch.sequence,
            id: delivery.id().to_owned(),
            body: delivery.body.clone(),
            is_taken: false,
            answered_in: None,
        });
        if is_next {
            return Ok(());
        }
        let before = before.map(|last| (last.sequence, last.is_taken));
        Err(format!(
            "batch {} came behind {before:?} (number, taken)",
            batch.sequence
        ))
    }

    /// Takes the last batch, unless it was taken before.
    fn take(&self, inbox: &mut Inbox) -> Result<(), String> {
        let Some(last) = inbox.last.as_mut().filter(|last| !last.is_taken) else {
            return Ok(());
        };
        last.is_taken = true;
        let body = last.body.clone();
        let batch: Batch<'_> = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        if batch.kind == GAP {
            return self.take_gap(inbox, batch.data.get());
        }
        if !inbox.story.has_begun() {
            // Blocks beyond all that there were are certainly events of the stream.
            let first = self.progress.highest.load(Ordering::Relaxed) + 1;
            inbox.story.begin(true, first);
        }
        let events = batch.events();
        if events.is_empty() {
            return Err(format!("a batch without events: {body}"));
        }
        inbox.counts.events += events.len() as u64;
        events
            .into_iter()
            .try_for_each(|event| inbox.story.take(batch.kind, event.get()))
    }

    /// Begins anew: events are missing, of which the receiver is notified.
    fn take_gap(&self, inbox: &mut Inbox, data: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Gap {
            position: Option<String>,
            last_block_hash: Option<B256>,
            first_block: Option<alloy_primitives::U64>,
            reason: String,
        }
        let gap: Gap = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
        inbox.counts.lost += 1;
        inbox.story.end();
        // A reorg may reach below a level of finality.
        let is_final = self.of.level() != Level::Head && gap.reason.contains("dropped by a reorg");
        if !self.may_lose && !is_final {
            return Err(format!("history reaches far enough, and there is a gap: {data}"));
        }
        let (Some(first), Some(_), Some(_)) = (gap.first_block, gap.position, gap.last_block_hash) else {
            return Err(format!("a gap without its ends: {data}"));
        };
        inbox.story.begin(true, first.to());
        Ok(())
    }

    fn answered(&self, id: &str) {
        let mut inbox = self.inbox.lock();
        if let Some(last) = inbox.last.as_mut().filter(|last| last.id == id) {
            last.answered_in = Some(self.progress.lives.load(Ordering::Relaxed));
        }
    }
}
