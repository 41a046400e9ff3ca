//! headwater in this process, in front of one node.

use std::net::SocketAddr;
use std::time::Duration;

use headwater::app::{App, Broken};
use headwater::config::{Config, typed};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::node::{Block, Node};
use crate::peer::{Peer, PeerMessage, request, until, within};

pub struct Proxy {
    pub address: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Proxy {
    /// Starts headwater with `config` (TOML) and waits until it is ready.
    pub async fn start(node: &Node, config: &str) -> Result<Self, String> {
        let mut typed: typed::Config = toml::from_str(config).map_err(|why| format!("{config}: {why}"))?;
        typed.listen = "127.0.0.1:0".into();
        typed.admin = "127.0.0.1:0".into();
        typed.upstream = vec![node.url().into()];
        typed.node.reconnect_min = Duration::from_millis(5);
        typed.node.reconnect_max = Duration::from_millis(50);
        // All rows together exceed the default rate limit of one client.
        if typed.limits.request_burst == typed::Limits::default().request_burst {
            typed.limits.request_burst = 1_000_000;
        }
        let config = Config::check(&typed).map_err(|why| format!("{config}: {why}"))?;
        let app = App::bind(config).await.map_err(|why| why.to_string())?;
        let address = app.address().map_err(|why| why.to_string())?;
        let admin = app.admin_address().map_err(|why| why.to_string())?;
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        let proxy = Self {
            address,
            admin,
            stop,
            running,
        };
        until("headwater is ready", async || proxy.is_ready().await).await?;
        Ok(proxy)
    }

    pub async fn is_ready(&self) -> bool {
        let asked = request(self.admin, "GET /ready", false, &[], None).await;
        asked.is_ok_and(|(reply, _)| reply.status == 200)
    }

    pub async fn stop(self) -> Result<(), String> {
        self.stop.cancel();
        let ended = within("headwater ends", self.running).await?;
        ended.map_err(|why| why.to_string())?.map_err(|why| why.to_string())
    }
}

/// Subscribes to heads and logs at a target and waits until a block is delivered completely there: events left over
/// from one case would reach the next.
pub struct Observer(Peer);

impl Observer {
    pub async fn start(door: SocketAddr) -> Result<Self, String> {
        let mut peer = Peer::open(door).await?;
        for params in [r#"["newHeads"]"#, r#"["logs",{}]"#] {
            peer.say(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{params}}}"#
            ))
            .await?;
            loop {
                match peer.hear("the observer's answer").await? {
                    PeerMessage::Text(text) if text.contains("\"id\":1") => break,
                    PeerMessage::Text(_) => {}
                    other => return Err(format!("the observer heard {}", other.show())),
                }
            }
        }
        Ok(Self(peer))
    }

    /// Waits for the block's head and all its logs.
    pub async fn has_seen(&mut self, block: &Block) -> Result<(), String> {
        let (mut head, mut logs) = (false, 0);
        while !head || logs < block.logs {
            let PeerMessage::Text(text) = self.0.hear("the observer's events").await? else {
                return Err("the observer heard no text".into());
            };
            let mut event: Value = serde_json::from_str(&text).map_err(|why| why.to_string())?;
            let result = event["params"]["result"].take();
            head |= result["hash"] == *block.hash;
            logs += usize::from(result["blockHash"] == *block.hash && result["removed"] == false);
        }
        Ok(())
    }
}
