//! A client that subscribes to heads alone and must not be affected by faults elsewhere.

use serde_json::json;

use crate::harness::{Client, Proxy};
use crate::scripted::Made;

pub struct Bystander {
    client: Client,
}

impl Bystander {
    pub async fn join(proxy: &Proxy) -> Self {
        let mut client = proxy.client().await;
        client.subscribe(json!(["newHeads"])).await;
        Self { client }
    }

    /// Checks that the next heads are these, once each and in order.
    pub async fn sees(&mut self, blocks: &[Made]) {
        self.client.expect(blocks.iter().map(Made::head_line).collect()).await;
    }

    /// Checks [`Self::sees`], that no other head arrives, and that the connection is still served.
    pub async fn saw_only(mut self, blocks: &[Made]) {
        self.sees(blocks).await;
        let (answer, beside) = self.client.ask_alone(crate::wire::CHAIN_ID).await;
        assert_eq!(answer, crate::wire::CHAIN_ID_ANSWER);
        assert!(beside.is_empty(), "{beside:?}");
    }
}
