//! The proxy in this process, alloy's provider connected to it, and waits with a time limit.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use alloy_provider::{DynProvider, GetSubscription, Provider, ProviderBuilder, WsConnect};
use alloy_pubsub::Subscription;
use headwater::app::{App, Broken};
use headwater::chain::Verify;
use headwater::config::{Config, typed};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Time limit, longer than any expected event takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Silence after which no further event is expected.
const SILENCE: Duration = Duration::from_millis(300);
/// Channel size of a subscription: alloy's default of 16 is too small for a test that reads late, and a lagging
/// receiver loses events inside alloy.
const CHANNEL: usize = 1024;

/// Awaits `future`; panics after the time limit.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not in {PATIENCE:?}"))
}

/// Polls the condition until it is true.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, waiting).await;
}

/// Connects a provider over WebSocket, as an application does.
pub async fn connect(url: &str) -> DynProvider {
    let connecting = ProviderBuilder::new().connect_ws(WsConnect::new(url));
    within("connecting", connecting).await.unwrap().erased()
}

/// One subscription of an alloy provider.
pub struct Events<T> {
    what: &'static str,
    subscription: Subscription<T>,
}

impl<T: DeserializeOwned + Debug + Send + Sync + Unpin + 'static> Events<T> {
    pub async fn of<P>(what: &'static str, request: GetSubscription<P, T>) -> Self
    where
        P: Serialize + Clone + Debug + Send + Sync + Unpin + 'static,
    {
        let subscribing = request.channel_size(CHANNEL).into_future();
        let subscription = within(what, subscribing).await.unwrap();
        Self { what, subscription }
    }

    /// Returns alloy's local id of the subscription, for unsubscribing.
    pub fn id(&self) -> alloy_primitives::B256 {
        *self.subscription.local_id()
    }

    /// Returns the next event; panics if alloy cannot parse it.
    pub async fn next(&mut self) -> T {
        let event = within(self.what, self.subscription.recv_result()).await;
        event.expect("the subscription lives and does not lag").unwrap()
    }

    /// Returns the next event if it arrives within `SILENCE`.
    pub async fn soon(&mut self) -> Option<T> {
        timeout(SILENCE, self.next()).await.ok()
    }

    /// Returns all events until `SILENCE` passes without one.
    pub async fn drain(&mut self) -> Vec<T> {
        let mut events = Vec::new();
        while let Some(event) = self.soon().await {
            events.push(event);
        }
        events
    }

    /// Returns the next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<T> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next().await);
        }
        events
    }

    /// Returns the next `count` events and checks that none follows.
    pub async fn exactly(&mut self, count: usize) -> Vec<T> {
        let events = self.take(count).await;
        self.nothing_more().await;
        events
    }

    pub async fn nothing_more(&mut self) {
        // alloy ends the stream of an ended subscription; that counts as silence too.
        if let Ok(Ok(event)) = timeout(SILENCE, self.subscription.recv_result()).await {
            panic!("{}: one too many: {event:?}", self.what);
        }
    }
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), Broken>>,
}

impl Proxy {
    /// Starts the proxy and waits until it is ready.
    pub async fn start(upstream: &str) -> Self {
        Self::verifying(upstream, Verify::default()).await
    }

    /// Starts the proxy as [`Self::start`] does, with this check of logs.
    pub async fn verifying(upstream: &str, verify: Verify) -> Self {
        let mut settings = typed::Config {
            listen: "127.0.0.1:0".into(),
            admin: "127.0.0.1:0".into(),
            upstream: vec![upstream.into()],
            ..typed::Config::default()
        };
        settings.history.verify = verify;
        settings.node.poll_interval = Duration::from_millis(50);
        let app = App::bind(Config::check(&settings).unwrap()).await.unwrap();
        let (address, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async {
            // An error means that the test is over, too.
            let _ = stopped.await;
        }));
        let proxy = Self {
            address,
            admin,
            stop,
            running,
        };
        until("the proxy is ready", async || proxy.page("ready").await.0).await;
        proxy
    }

    pub async fn connect(&self) -> DynProvider {
        connect(&format!("ws://{}", self.address)).await
    }

    async fn page(&self, name: &str) -> (bool, String) {
        let answer = reqwest::get(format!("http://{}/{name}", self.admin)).await.unwrap();
        (answer.status().is_success(), answer.text().await.unwrap())
    }

    /// Returns the value of a metric, by name and labels; 0 if the metric is absent because it never changed.
    pub async fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.page("metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Drains the proxy and waits for its end.
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        within("the proxy ends", self.running).await.unwrap().unwrap();
    }
}
