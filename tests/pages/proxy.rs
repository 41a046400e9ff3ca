//! The proxy under test.

use std::net::SocketAddr;
use std::time::Duration;

use headwater::app::{App, Broken};
use headwater::config::{Config, typed};
use headwater::devnet::Devnet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::PATIENCE;

/// The proxy, which can end and begin anew on its port.
pub struct Proxy {
    pub address: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Proxy {
    /// Starts it before a node; `edit` changes the settings.
    pub async fn start(node: &Devnet, listen: &str, edit: impl FnOnce(&mut typed::Config)) -> Self {
        let mut typed = typed::Config {
            listen: listen.into(),
            admin: "127.0.0.1:0".into(),
            upstream: vec![node.ws_url().into()],
            ..typed::Config::default()
        };
        edit(&mut typed);
        let app = App::bind(Config::check(&typed).unwrap()).await.unwrap();
        let (address, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        Self {
            address,
            admin,
            stop,
            running,
        }
    }

    /// Ends it, and returns its address.
    pub async fn end(self) -> String {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.address.to_string()
    }

    /// Waits until the samples of metrics that begin so have this sum.
    pub async fn has(&self, sample: &str, sum: usize) {
        let waiting = async {
            while self.sum(sample).await != sum {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{sample} is {}, not {sum}", self.sum(sample).await);
    }

    /// Waits until there are so many subscriptions.
    pub async fn has_subscriptions(&self, count: usize) {
        self.has("headwater_subscriptions{", count).await;
    }

    async fn sum(&self, sample: &str) -> usize {
        let page = self.get("/metrics").await;
        let lines = page.lines().filter(|line| line.starts_with(sample));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok())
            .sum()
    }

    /// Returns a page of the admin port, with the head of the response.
    pub async fn get(&self, path: &str) -> String {
        let mut admin = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        admin.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        admin.read_to_string(&mut page).await.unwrap();
        page
    }
}
