//! A relay in front of the node that counts calls by method.
//!
//! Standard output carries `listening <address>` and, for each line on standard input, `counted` and the counts so
//! far as JSON.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{
    frames::{BINARY, FrameReader, TEXT},
    websocket::http_head_len,
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub node: SocketAddr,
}

/// Number of calls by method.
pub type Counts = BTreeMap<String, u64>;

#[derive(Deserialize)]
struct Call {
    method: String,
}

pub fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("listening {}", listener.local_addr()?);
    let counts = Arc::new(Mutex::new(Counts::new()));
    let (of_all, node) = (counts.clone(), args.node);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let counts = of_all.clone();
            thread::spawn(move || {
                if let Err(error) = pass_on(client, node, &counts) {
                    println!("fault the relay: {error:#}");
                }
            });
        }
    });
    for _line in std::io::stdin().lines().map_while(Result::ok) {
        let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        println!("counted {}", serde_json::to_string(&*counts)?);
    }
    Ok(())
}

fn pass_on(mut client: TcpStream, node: SocketAddr, counts: &Mutex<Counts>) -> Result<()> {
    let mut node = TcpStream::connect(node)?;
    node.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (mut answers, mut back) = (node.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        // When either direction ends, close both.
        let _ended = std::io::copy(&mut answers, &mut back);
        let _gone = back.shutdown(Shutdown::Both);
    });
    let (mut head, mut frames) = (Some(Vec::new()), FrameReader::default());
    let mut buffer = [0; 16 * 1024];
    loop {
        let len = match client.read(&mut buffer) {
            Ok(0) | Err(_) => {
                let _gone = node.shutdown(Shutdown::Both);
                return Ok(());
            }
            Ok(len) => len,
        };
        // Count before forwarding, so that a caller with an answer finds the call counted.
        let mut bytes = buffer[..len].to_vec();
        if let Some(before) = &mut head {
            before.append(&mut bytes);
            if let Some(len) = http_head_len(before) {
                bytes = before.split_off(len);
                head = None;
            }
        }
        frames.feed(&bytes, |message| {
            if matches!(message.opcode, TEXT | BINARY) {
                let Call { method } = serde_json::from_slice(&message.payload).context("no call")?;
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry(method).or_default() += 1;
            }
            Ok(())
        })?;
        node.write_all(&buffer[..len])?;
    }
}
