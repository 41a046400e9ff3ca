//! Follows the logs of a contract by server-sent events.
//!
//! ```sh
//! cargo run --example server_sent_events http://127.0.0.1:8546 0xCONTRACT
//! ```

#![expect(clippy::print_stdout, reason = "the logs are this program's output")]

use std::time::Duration;

// docs/server-sent-events.md
async fn follow(url: &str, mut take: impl FnMut(&str, &str)) -> Result<(), String> {
    let client = reqwest::Client::new();
    let mut last = None::<String>;
    loop {
        let mut request = client.get(url);
        if let Some(id) = &last {
            request = request.header("Last-Event-ID", id);
        }
        if let Ok(mut response) = request.send().await {
            if response.status() == 410 {
                return Err(response.text().await.unwrap_or_default());
            }
            let mut bytes = Vec::new();
            while let Ok(Some(chunk)) = response.chunk().await {
                bytes.extend_from_slice(&chunk);
                while let Some(end) = bytes.windows(2).position(|two| two == b"\n\n") {
                    let block: Vec<u8> = bytes.drain(..end + 2).collect();
                    let block = String::from_utf8_lossy(&block);
                    let field = |name| {
                        block
                            .lines()
                            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    };
                    if let (Some(kind), Some(data)) = (field("event"), field("data")) {
                        take(kind, data);
                    }
                    last = field("id").map(str::to_owned).or(last);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
// end

#[tokio::main]
async fn main() -> Result<(), String> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: server_sent_events http://HOST:PORT 0xCONTRACT".to_owned());
    };
    let show = |kind: &str, data: &str| {
        if kind == "logs" {
            println!("{data}");
        }
    };
    follow(&format!("{url}/events?kind=logs&address={address}"), show).await
}
