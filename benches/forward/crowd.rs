//! Many clients, each of which requests every block as soon as its head is announced.
//!
//! Standard output carries `ready` when all clients have subscribed, and `done <number> <microseconds>` when the last
//! client has the block of this number, counted from the first announcement to any client.

use std::{collections::HashMap, io::ErrorKind, net::SocketAddr, time::Instant};

use anyhow::{Context, Result, ensure};
use mio::{Events, Poll, Token};
use serde::Deserialize;

use crate::{
    call::{Message, quoted},
    http::{quantity, request},
    line::{Line, Transport},
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub server: SocketAddr,
    #[arg(long)]
    pub clients: usize,
}

impl Args {
    pub fn to_args(&self) -> Vec<String> {
        let Self { server, clients } = self;
        vec![format!("--server={server}"), format!("--clients={clients}")]
    }
}

#[derive(Default)]
struct Client {
    is_subscribed: bool,
    /// Newest head announced to this client.
    head: Option<Head>,
}

/// The members of a block that are compared.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Head {
    number: String,
    hash: String,
}

#[derive(Deserialize)]
struct Event {
    result: Head,
}

/// Progress of one block on the way to all clients.
struct Block {
    first_told: Instant,
    have_it: usize,
}

/// Id of the call that subscribes; the ids of the other calls are block numbers, and block 0 is never announced.
const SUBSCRIBE: u64 = 0;

pub fn run(args: &Args) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut lines = Vec::with_capacity(args.clients);
    for token in 0..args.clients {
        let mut line = Line::connect(args.server, Transport::Ws).with_context(|| format!("client {token}"))?;
        line.register(poll.registry(), token)?;
        line.ask(&request(SUBSCRIBE, "eth_subscribe", r#"["newHeads"]"#));
        line.flush()?;
        lines.push((line, Client::default()));
    }
    let mut subscribed = 0;
    let mut blocks: HashMap<u64, Block> = HashMap::new();
    let mut ready = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let mut wanted = Vec::new();
    loop {
        if let Err(error) = poll.poll(&mut ready, None) {
            ensure!(error.kind() == ErrorKind::Interrupted, error);
            continue;
        }
        for event in &ready {
            let Token(number) = event.token();
            let (line, client) = &mut lines[number];
            let mut on_message = |json: &[u8]| {
                let message = Message::parse(json)?;
                if let Some(params) = message.params {
                    let Event { result: head } = serde_json::from_str(params.get())?;
                    let block = quantity(&head.number)?;
                    let (first_told, have_it) = (Instant::now(), 0);
                    blocks.entry(block).or_insert(Block { first_told, have_it });
                    let before = client.head.replace(head);
                    let follows =
                        before.is_none_or(|before| quantity(&before.number).is_ok_and(|before| before + 1 == block));
                    ensure!(follows, "a head is missing or came twice before {block}");
                    wanted.push(block);
                    return Ok(());
                }
                let (id, result) = Message::answer(json)?;
                if id == SUBSCRIBE {
                    client.is_subscribed = true;
                    subscribed += 1;
                    if subscribed == args.clients {
                        println!("ready");
                    }
                    return Ok(());
                }
                let own: Head = serde_json::from_str(result.get())
                    .with_context(|| format!("block {id} was answered with {}", quoted(json)))?;
                ensure!(
                    client.head.as_ref() == Some(&own),
                    "not the block that the client was notified of: {}",
                    quoted(json)
                );
                let block = blocks.get_mut(&id).context("an answer that nobody asked for")?;
                block.have_it += 1;
                if block.have_it == args.clients {
                    println!("done {id} {}", block.first_told.elapsed().as_micros());
                }
                Ok(())
            };
            line.read(&mut buffer, &mut on_message)
                .with_context(|| format!("client {number}"))?;
            for block in wanted.drain(..) {
                line.ask(&request(
                    block,
                    "eth_getBlockByNumber",
                    &format!(r#"["{block:#x}",false]"#),
                ));
            }
            line.flush()?;
        }
    }
}
