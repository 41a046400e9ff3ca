//! The ground on which a row is played: where the program listens, how long the attack may take, and what it brought.

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
    /// Fewer connections in less time; counts and bounds are asserted, and no times.
    Short,
    /// Everything, as `make attack` plays it.
    Full,
}

impl Form {
    /// Time in which the bystander is watched before the attack.
    pub fn calm(self) -> Duration {
        Duration::from_millis(if self == Self::Full { 3_000 } else { 400 })
    }

    /// Longest time of an attack.
    pub fn window(self) -> Duration {
        Duration::from_millis(if self == Self::Full { 6_000 } else { 1_500 })
    }
}

/// What all attackers of a row share. Cheap to clone.
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

/// Where the program and its nodes are.
pub struct Ground {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The commands to the node, where it is a simulated one.
    pub node: Option<Control>,
    /// The commands to the second node, where it is a simulated one.
    pub second: Option<Control>,
    /// Set while the second node is to lie.
    pub lying: Arc<AtomicBool>,
}

impl Arena {
    /// The attack's time begins now.
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

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The operator's port.
    pub fn admin(&self) -> SocketAddr {
        self.0.admin
    }

    /// The simulated node; rows that need it are left out before another one.
    pub fn node(&self) -> &Control {
        self.0
            .node
            .as_ref()
            .expect("the row says that it needs the simulated node")
    }

    /// The simulated second node.
    pub fn second(&self) -> &Control {
        self.0.second.as_ref().expect("the row says that it has a second node")
    }

    /// From now on the second node lies.
    pub fn lie(&self) {
        self.0.lying.store(true, Ordering::Relaxed);
    }

    /// A size, by form.
    pub fn size(&self, short: usize, full: usize) -> usize {
        if self.0.form == Form::Full { full } else { short }
    }

    /// Whether the attack's time is not over.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.0.ends
    }

    /// The attack's end.
    pub async fn end(&self) {
        sleep_until(self.0.ends).await;
    }

    /// Waits between the steps of an attack that takes all its time in so many steps.
    pub async fn step(&self, steps: usize) {
        tokio::time::sleep(self.0.form.window() / steps.max(1) as u32).await;
    }

    /// Runs attackers at the same time, until all have ended.
    pub async fn all<F>(&self, count: usize, attacker: impl Fn(Self, usize) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut attackers = JoinSet::new();
        for number in 0..count {
            attackers.spawn(attacker(self.clone(), number));
        }
        while let Some(ended) = attackers.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                self.broken(format!("an attacker panicked: {error}"));
            }
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
        // Long answers are results, and their beginning says so.
        let start = text.get(..text.len().min(4 << 10)).unwrap_or_default();
        let text = if start.starts_with('[') { text } else { start };
        self.count_by("result", text.matches(r#","result":"#).count() as u64);
        for error in text.split(r#""error":{"code":"#).skip(1) {
            self.count(error.split([',', '}']).next().unwrap_or_default());
        }
    }

    /// A claim of the row's own that did not come true.
    pub fn broken(&self, claim: impl Into<String>) {
        self.0.broken.lock().push(claim.into());
    }

    /// What the attackers got, with counts; and the claims that did not come true.
    pub fn outcome(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let mut got = self.0.got.lock().clone();
        got.retain(|_, times| *times > 0);
        (got, self.0.broken.lock().clone())
    }
}
