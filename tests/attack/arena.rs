//! Arena of a row: the addresses of the process, the time of the attack, and its outcome.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater::devnet::Control;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The size of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Fewer connections in less time; counts and bounds are asserted, but no times.
    Short,
    /// All connections and times, as `make attack` plays them.
    Full,
    /// [`Self::Full`] on a machine whose times say nothing: as in the short form, none is asserted.
    Untimed,
}

impl Form {
    /// Checks if all connections are played.
    pub fn is_full(self) -> bool {
        self != Self::Short
    }

    /// Time in which the bystander is watched before the attack.
    pub fn calm(self) -> Duration {
        Duration::from_millis(if self.is_full() { 4_000 } else { 250 })
    }

    /// Time for what an attack leaves behind to show, and for an attack that does not end by itself.
    pub fn aftermath(self) -> Duration {
        Duration::from_millis(if self.is_full() { 2_000 } else { 300 })
    }

    /// Timeout of an answer to the bystander. Where no times are asserted it only distinguishes late from never.
    pub fn patience(self) -> Duration {
        Duration::from_secs(if self == Self::Full { 10 } else { 30 })
    }

    /// Longest time of an attack.
    pub fn window(self) -> Duration {
        Duration::from_millis(if self.is_full() { 8_000 } else { 1_200 })
    }
}

/// State that all attackers of a row share. Cheap to clone.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    admin: SocketAddr,
    form: Form,
    ends: Instant,
    node: Option<Control>,
    second: Option<Control>,
    lying: Arc<AtomicBool>,
    got: Mutex<BTreeMap<String, u64>>,
    broken: Mutex<Vec<String>>,
}

/// Addresses of the process, and controls of its nodes.
pub struct Ground {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// Control of the node, where it is a simulated one.
    pub node: Option<Control>,
    /// Control of the second node, where it is a simulated one.
    pub second: Option<Control>,
    /// Set while the second node is to lie.
    pub lying: Arc<AtomicBool>,
}

impl Arena {
    /// Starts the time of the attack.
    pub fn open(ground: Ground, form: Form) -> Self {
        Self(Arc::new(Inner {
            address: ground.address,
            admin: ground.admin,
            form,
            ends: Instant::now() + form.window(),
            node: ground.node,
            second: ground.second,
            lying: ground.lying,
            got: Mutex::default(),
            broken: Mutex::default(),
        }))
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Returns the address of the operator's port.
    pub fn admin(&self) -> SocketAddr {
        self.0.admin
    }

    /// Returns the control of the simulated node; rows that need it are skipped with a real node.
    pub fn node(&self) -> &Control {
        self.0
            .node
            .as_ref()
            .expect("the row says that it needs the simulated node")
    }

    /// Returns the control of the simulated second node.
    pub fn second(&self) -> &Control {
        self.0.second.as_ref().expect("the row says that it has a second node")
    }

    /// Makes the second node lie from now on.
    pub fn lie(&self) {
        self.0.lying.store(true, Ordering::Relaxed);
    }

    /// Chooses a size by form.
    pub fn size(&self, short: usize, full: usize) -> usize {
        if self.0.form.is_full() { full } else { short }
    }

    /// Checks if the time of the attack is not over.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.0.ends
    }

    /// Waits for the end of the attack.
    pub async fn end(&self) {
        sleep_until(self.0.ends).await;
    }

    /// Waits for the start of attacker `number`; the starts of `of` attackers are spread over the time of the attack.
    pub async fn turn(&self, number: usize, of: usize) {
        let time = self.0.form.window().mul_f64(number as f64 / of as f64);
        tokio::time::sleep(time).await;
    }

    /// Runs attackers at the same time, until all have ended or the attack's time is over.
    pub async fn all<F>(&self, count: usize, attacker: impl Fn(Self, usize) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut attackers = JoinSet::new();
        for number in 0..count {
            attackers.spawn(attacker(self.clone(), number));
        }
        let ending = async {
            while let Some(ended) = attackers.join_next().await {
                if ended.is_err_and(|error| error.is_panic()) {
                    self.broken("an attacker panicked");
                }
            }
        };
        // Attackers that end by themselves at the end of the attack are not counted.
        let limit = self.0.ends + self.0.form.aftermath() / 2;
        if tokio::time::timeout_at(limit, ending).await.is_err() {
            self.count_by("ended by the clock", attackers.len() as u64);
        }
    }

    /// Counts something that the attackers got.
    pub fn count(&self, what: &str) {
        self.count_by(what, 1);
    }

    pub fn count_by(&self, what: &str, times: u64) {
        *self.0.got.lock().entry(what.to_owned()).or_default() += times;
    }

    /// Counts the answers in a message: results and codes of errors.
    pub fn count_answers(&self, text: &str) {
        // A long answer is a result, which its beginning shows.
        let start = text.get(..text.len().min(4 << 10)).unwrap_or_default();
        let text = if start.starts_with('[') { text } else { start };
        self.count_by("result", text.matches(r#","result":"#).count() as u64);
        for error in text.split(r#""error":{"code":"#).skip(1) {
            self.count(error.split([',', '}']).next().unwrap_or_default());
        }
    }

    /// Records a claim of the row that proved false.
    pub fn broken(&self, claim: impl Into<String>) {
        self.0.broken.lock().push(claim.into());
    }

    /// Returns counts of what the attackers got, and the claims that proved false.
    pub fn outcome(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let mut got = self.0.got.lock().clone();
        got.retain(|_, times| *times > 0);
        (got, self.0.broken.lock().clone())
    }
}
