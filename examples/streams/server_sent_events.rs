//! The logs of a contract by server-sent events.

// docs/server-sent-events.md
use std::error::Error;
use std::time::Duration;

pub async fn follow(
    url: &str,
    mut last: Option<String>, // the id that `take` had last; keep it with what you keep of the event
    mut take: impl FnMut(&str, &str, &str),
) -> Result<(), Box<dyn Error>> {
    let client = reqwest::Client::new();
    loop {
        let mut request = client.get(url);
        if let Some(id) = &last {
            request = request.header("Last-Event-ID", id);
        }
        if let Ok(mut response) = request.send().await {
            if response.status() == 410 {
                return Err(response.text().await?.into());
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
                    last = field("id").map(str::to_owned).or(last);
                    if let (Some(kind), Some(data), Some(id)) = (field("event"), field("data"), &last) {
                        take(kind, data, id);
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
// end
