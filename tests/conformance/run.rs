//! Plays a case at all targets of a node at the same time, step by step: an event of the node happens once, and all
//! targets must deliver it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::node::{Block, Node};
use crate::pattern::{Names, Pattern};
use crate::peer::{Peer, PeerMessage, Reply, request, until};
use crate::proxy::{Observer, Proxy};
use crate::table::{Act, Case, HttpRequest, Section, Step, Target};

/// Request that shows, by its answer, that nothing else comes first.
const END: &str = r#"{"jsonrpc":"2.0","id":"end","method":"eth_chainId"}"#;

/// Mark of an empty block: geth, which mines one block per transaction, occasionally mines an empty one, which no
/// case expects.
const NO_TRANSACTIONS: &str =
    r#""transactionsRoot":"0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421""#;

/// The result of a case at one target.
pub struct Outcome {
    pub target: Target,
    pub section: &'static str,
    pub case: String,
    /// File, line and description of the failure; `None` if the case passed.
    pub failure: Option<String>,
}

/// A node and the targets in front of it.
pub struct Stage {
    node: Node,
    names: Names,
    doors: Vec<Door>,
}

struct Door {
    target: Target,
    /// `None` if the target is the node itself.
    proxy: Option<Proxy>,
    observer: Observer,
}

impl Door {
    fn address(&self, node: &Node) -> SocketAddr {
        self.proxy.as_ref().map_or(node.address(), |proxy| proxy.address)
    }
}

impl Stage {
    pub async fn start(node: Node, targets: &[Target]) -> Result<Self, String> {
        let mut stage = Self {
            names: node
                .names()
                .await?
                .into_iter()
                .map(|(name, text)| (name.to_owned(), text.into()))
                .collect(),
            node,
            doors: Vec::new(),
        };
        for target in targets {
            let proxy = match target {
                Target::Geth => None,
                _ => Some(Proxy::start(&stage.node, "").await?),
            };
            let address = proxy.as_ref().map_or(stage.node.address(), |proxy| proxy.address);
            stage.doors.push(Door {
                target: *target,
                observer: Observer::start(address).await?,
                proxy,
            });
        }
        // Later subscribers receive no events of earlier blocks.
        let block = stage.node.mine().await?;
        stage.settle(&block).await?;
        Ok(stage)
    }

    async fn settle(&mut self, block: &Block) -> Result<(), String> {
        for door in &mut self.doors {
            door.observer.has_seen(block).await?;
        }
        Ok(())
    }

    pub async fn stop(self) -> Result<(), String> {
        for door in self.doors {
            // An open connection would keep the proxy from ending.
            drop(door.observer);
            if let Some(proxy) = door.proxy {
                proxy.stop().await?;
            }
        }
        Ok(())
    }

    /// Plays a case and returns its outcome at each selected target.
    pub async fn play(&mut self, section: &Section, case: &Case, wanted: impl Fn(Target) -> bool) -> Vec<Outcome> {
        let targets: Vec<Target> = self.doors.iter().map(|door| door.target).collect();
        let targets: Vec<Target> = targets.into_iter().filter(|target| wanted(*target)).collect();
        if targets.is_empty() {
            return Vec::new();
        }
        let played = self.play_before(section, case, &targets).await;
        let failures = played.unwrap_or_else(|why| targets.iter().map(|target| (*target, why.clone())).collect());
        let outcome = |target: &Target| Outcome {
            target: *target,
            section: section.name,
            case: case.to_string(),
            failure: failures.get(target).cloned(),
        };
        targets.iter().map(outcome).collect()
    }

    /// Returns the failures by target; an error concerns all targets.
    async fn play_before(
        &mut self,
        section: &Section,
        case: &Case,
        targets: &[Target],
    ) -> Result<BTreeMap<Target, String>, String> {
        let here = |why: String| format!("{}:{}: {why}", case.file, case.line);
        let mut names = self.names.clone();
        for (name, text) in &section.lets {
            let text = value(text, &names).map_err(here)?;
            names.insert(name.clone(), text.into());
        }
        let (mut own_node, mut own_proxies, mut own_observers) = (None, Vec::new(), Vec::new());
        let mut sessions = Vec::new();
        let mut blocks = Vec::new();
        for target in targets {
            let door = self.doors.iter().find(|door| door.target == *target).ok_or("no door")?;
            let address = if case.config.is_empty() || *target == Target::Geth {
                door.address(&self.node)
            } else {
                // Faults of the simulated node must not affect other cases.
                if *target == Target::Devnet {
                    own_node = Some(Node::devnet().await?);
                }
                let config = Pattern::parse(&case.config)
                    .and_then(|config| config.fill(&names))
                    .map_err(here)?;
                let node = own_node.as_ref().unwrap_or(&self.node);
                let proxy = Proxy::start(node, &config).await.map_err(here)?;
                if tells_events(case) {
                    let mut observer = Observer::start(proxy.address).await?;
                    blocks.push(node.mine().await?);
                    observer.has_seen(&blocks[blocks.len() - 1]).await?;
                    own_observers.push(observer);
                }
                own_proxies.push(proxy);
                own_proxies[own_proxies.len() - 1].address
            };
            sessions.push(Session {
                target: *target,
                address,
                names: names.clone(),
                peers: BTreeMap::new(),
                on: String::new(),
                reply: Reply::default(),
                said: String::new(),
                failure: None,
            });
        }
        for step in &case.steps {
            let mut alive = sessions.iter_mut().filter(|session| session.failure.is_none());
            let concerned: Vec<&mut Session> = alive.by_ref().filter(|session| step.is_for(session.target)).collect();
            if concerned.is_empty() {
                continue;
            }
            let node = own_node.as_ref().unwrap_or(&self.node);
            match happen(node, step, &concerned[0].names, &own_proxies).await {
                Err(why) => return Err(format!("{}:{}: {why}", case.file, step.line)),
                Ok(None) => take(step, concerned, case).await,
                Ok(Some(happened)) => {
                    for session in sessions.iter_mut() {
                        let news = happened.names.iter().cloned();
                        session.names.extend(news.map(|(name, text)| (name, text.into())));
                    }
                    blocks.extend(happened.blocks.iter().cloned());
                    // Clients that connect later must not receive events of earlier blocks.
                    if sessions.iter().all(|session| session.peers.is_empty())
                        && let Some(block) = happened.blocks.last()
                    {
                        blocks.clear();
                        if own_node.is_none() {
                            self.settle(block).await.map_err(here)?;
                        }
                        for observer in &mut own_observers {
                            observer.has_seen(block).await.map_err(here)?;
                        }
                    }
                }
            }
        }
        for session in &mut sessions {
            if session.failure.is_none()
                && let Err(why) = session.end().await
            {
                session.failure = Some(format!("{}:{}: in the end: {why}", case.file, case.line));
            }
        }
        // An open connection would keep its proxy from ending.
        for session in &mut sessions {
            session.peers.clear();
        }
        drop(own_observers);
        for proxy in own_proxies {
            proxy.stop().await.map_err(here)?;
        }
        if own_node.is_none()
            && let Some(block) = blocks.last()
        {
            self.settle(block).await.map_err(here)?;
        }
        let failures = sessions
            .into_iter()
            .filter_map(|session| Some((session.target, session.failure?)));
        Ok(failures.collect())
    }
}

/// Evaluates a `let`: `1001 * text` repeats the text with commas between, and `1001 x text` without.
fn value(text: &str, names: &Names) -> Result<String, String> {
    let fill = |text: &str| Pattern::parse(text)?.fill(names);
    for (sign, between) in [(" * ", ","), (" x ", "")] {
        if let Some((count, one)) = text.split_once(sign)
            && let Ok(count) = count.parse()
        {
            return Ok(vec![fill(one)?; count].join(between));
        }
    }
    fill(text)
}

fn tells_events(case: &Case) -> bool {
    case.steps.iter().any(|step| matches!(step.act, Act::Node(_)))
}

/// The effects of a step on a node.
#[derive(Default)]
struct Happened {
    names: Vec<(String, String)>,
    blocks: Vec<Block>,
}

/// Performs a step on the node; `None` if the step does not concern the node.
async fn happen(node: &Node, step: &Step, names: &Names, proxies: &[Proxy]) -> Result<Option<Happened>, String> {
    let mut happened = Happened::default();
    match &step.act {
        Act::Ask { name, method, params } => {
            let answer = node.ask(method, &params.fill(names)?).await?;
            happened.names.push((name.clone(), answer));
        }
        Act::Node(words) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words[..] {
                ["block"] => happened.blocks.push(node.mine().await?),
                ["reorg", depth] => {
                    let depth = depth.parse().map_err(|_| "reorg DEPTH")?;
                    happened.blocks = node.reorg(depth).await?;
                }
                ["pending"] => happened.names.push(("pending".into(), node.pending().await?)),
                _ => node.trouble(&words)?,
            }
            if let ["away" | "back"] = words[..] {
                for proxy in proxies {
                    let there = words[0] == "back";
                    until("headwater notices", async || proxy.is_ready().await == there).await?;
                }
            }
            if let Some(block) = happened.blocks.last() {
                happened.names.push(("block".into(), block.hash.clone()));
                happened.names.push(("number".into(), block.number.clone()));
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(happened))
}

/// Performs a step at each target, and compares geth and headwater where both must give the same result.
async fn take(step: &Step, sessions: Vec<&mut Session>, case: &Case) {
    let mut geths: Option<String> = None;
    for session in sessions {
        match session.step(step).await {
            Ok(heard) if session.target == Target::Geth => geths = heard,
            Ok(heard) => {
                if let (Target::Proxied, Some(geths), Some(heard)) = (session.target, &geths, heard)
                    && step.is_common()
                    && *geths != heard
                {
                    let difference = difference("geth says", geths, "through headwater", &heard);
                    session.failure = Some(format!(
                        "{}:{}: not geth's own answer\n{}{difference}",
                        case.file, step.line, session.said
                    ));
                }
            }
            Err(why) => session.failure = Some(format!("{}:{}: {}{why}", case.file, step.line, session.said)),
        }
    }
}

/// One client's state in a case.
struct Session {
    target: Target,
    address: SocketAddr,
    names: Names,
    peers: BTreeMap<String, Peer>,
    on: String,
    reply: Reply,
    /// The last message sent, for failure reports.
    said: String,
    failure: Option<String>,
}

impl Session {
    /// Performs a step and returns the received text for comparison, without values that differ by nature.
    async fn step(&mut self, step: &Step) -> Result<Option<String>, String> {
        match &step.act {
            Act::On(name) => self.on.clone_from(name),
            Act::Frame {
                first,
                payload,
                escapes,
            } => {
                let text = payload.fill(&self.names)?;
                self.said = format!("\n    >> {}\n", shortened(&text));
                let bytes = if *escapes { unescape(&text)? } else { text.into_bytes() };
                self.peer().await?.frame(*first, &bytes).await?;
            }
            Act::Raw(bytes) => {
                self.said = format!("\n    >> {bytes:02x?}\n");
                self.peer().await?.write(bytes).await?;
            }
            Act::Request(request) => self.request(request).await?,
            Act::Message(pattern) => return self.message(pattern).await.map(Some),
            Act::Nothing => self.nothing().await?,
            Act::Pong(payload) => {
                let payload = payload.fill(&self.names)?;
                let heard = self.hear("a pong").await?;
                if heard != PeerMessage::Pong(payload.clone().into_bytes()) {
                    return Err(difference("expected", &format!("pong {payload}"), "got", &heard.show()));
                }
                return Ok(Some(heard.show()));
            }
            Act::Close(code, reason) => {
                let heard = self.hear("a close frame").await?;
                let right = match &heard {
                    PeerMessage::Close(got, text) => got == code && reason.take(text, &mut self.names).is_ok(),
                    _ => false,
                };
                if !right {
                    let code = code.map(|code| code.to_string()).unwrap_or_default();
                    let expected = format!("close {code} {}", reason.show(&self.names));
                    return Err(difference("expected", &expected, "got", &heard.show()));
                }
                let end = self.hear("the end").await?;
                if end != PeerMessage::End {
                    return Err(difference("expected", "the end of the connection", "got", &end.show()));
                }
                return Ok(Some(heard.show()));
            }
            Act::End => {
                let heard = self.hear("the end").await?;
                if heard != PeerMessage::End {
                    return Err(difference(
                        "expected",
                        "the end of the connection",
                        "got",
                        &heard.show(),
                    ));
                }
            }
            Act::Status(status) => {
                if self.reply.status != *status {
                    return Err(difference(
                        "expected",
                        &status.to_string(),
                        "got",
                        &format!("{} {}", self.reply.status, self.reply.body.trim_end()),
                    ));
                }
            }
            Act::Header(name, pattern) => {
                let got = self.reply.header(name).map(str::to_owned);
                match (got, pattern) {
                    (None, None) => {}
                    (Some(value), Some(pattern)) if pattern.take(&value, &mut self.names).is_ok() => {}
                    (got, pattern) => {
                        let expected = pattern
                            .as_ref()
                            .map_or("none".into(), |pattern| pattern.show(&self.names));
                        let got = got.unwrap_or_else(|| "none".into());
                        return Err(format!(
                            "the header {name}{}",
                            difference("expected", &expected, "got", &got)
                        ));
                    }
                }
            }
            Act::OnlyHeaders(names) => {
                let more = self.reply.headers.iter().find(|(name, _)| !names.contains(name));
                if let Some((name, value)) = more {
                    return Err(format!("a header too many: {name}: {value}"));
                }
            }
            Act::Check { left, equal, right } => {
                let (left, right) = (left.fill(&self.names)?, right.fill(&self.names)?);
                if (left == right) != *equal {
                    let sign = if *equal { "==" } else { "!=" };
                    return Err(format!("not {left} {sign} {right}"));
                }
            }
            Act::Node(_) | Act::Ask { .. } => {}
        }
        Ok(None)
    }

    async fn peer(&mut self) -> Result<&mut Peer, String> {
        if !self.peers.contains_key(&self.on) {
            let peer = Peer::open(self.address).await?;
            self.peers.insert(self.on.clone(), peer);
        }
        self.peers.get_mut(&self.on).ok_or_else(|| "no connection".into())
    }

    async fn hear(&mut self, what: &str) -> Result<PeerMessage, String> {
        let geths = matches!(self.target, Target::Geth | Target::Proxied);
        loop {
            let heard = self.peer().await?.hear(what).await?;
            if !geths
                || !matches!(&heard, PeerMessage::Text(text) if text.contains(NO_TRANSACTIONS) && text.contains("\"eth_subscription\""))
            {
                return Ok(heard);
            }
        }
    }

    async fn message(&mut self, pattern: &Pattern) -> Result<String, String> {
        let text = if self.peers.contains_key(&self.on) || self.reply.status == 0 {
            let expected = pattern.show(&self.names);
            let heard = self.hear("a message").await;
            match heard.map_err(|why| format!("expected  {}\n    but {why}", shortened(&expected)))? {
                PeerMessage::Text(text) => text.replace('\n', "⏎"),
                other => return Err(difference("expected", &expected, "got", &other.show())),
            }
        } else {
            self.reply.body.replace('\n', "⏎")
        };
        match pattern.take(&text, &mut self.names) {
            Ok(found) => Ok(found.masked),
            Err(_) => Err(difference("expected", &pattern.show(&self.names), "got", &text)),
        }
    }

    async fn request(&mut self, request_: &HttpRequest) -> Result<(), String> {
        let fill = |pattern: &Pattern| pattern.fill(&self.names);
        let mut headers = Vec::new();
        for (name, value) in &request_.headers {
            headers.push((name.clone(), value.as_ref().map(fill).transpose()?));
        }
        let body = request_.body.as_ref().map(fill).transpose()?;
        let line = fill(&Pattern::parse(&request_.line)?)?;
        self.said = format!("\n    {line} {}\n", shortened(body.as_deref().unwrap_or_default()));
        let (reply, peer) = request(self.address, &line, request_.upgrade, &headers, body.as_deref()).await?;
        self.reply = reply;
        match peer {
            Some(peer) => drop(self.peers.insert(self.on.clone(), peer)),
            None => drop(self.peers.remove(&self.on)),
        }
        Ok(())
    }

    /// Checks that the next message is the answer to one more request.
    async fn nothing(&mut self) -> Result<(), String> {
        let end = format!(
            r#"{{"jsonrpc":"2.0","id":"end","result":"{}"}}"#,
            Pattern::parse("${chain}")?.fill(&self.names)?
        );
        self.peer().await?.say(END).await?;
        match self.hear("the answer to one more request").await? {
            PeerMessage::Text(text) if text == end => Ok(()),
            other => Err(difference("expected", "nothing more", "got", &other.show())),
        }
    }

    /// Checks that nothing more arrives on any open connection.
    async fn end(&mut self) -> Result<(), String> {
        let open = self.peers.iter().filter(|(_, peer)| !peer.over);
        let open: Vec<String> = open.map(|(name, _)| name.clone()).collect();
        for name in open {
            self.on = name;
            self.nothing().await?;
        }
        Ok(())
    }
}

/// Formats two lines for comparison, one below the other.
fn difference(a: &str, left: &str, b: &str, right: &str) -> String {
    let (a, b) = (format!("{a}  "), format!("{b}  "));
    let width = a.chars().count().max(b.chars().count());
    format!(
        "\n    {a:width$}{}\n    {b:width$}{}",
        shortened(left),
        shortened(right)
    )
}

/// Shortens a text for display; some rows have a hundred kilobytes.
fn shortened(text: &str) -> String {
    const MOST: usize = 1200;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], text.len()),
    }
}

/// Replaces the escapes `\n`, `\t`, `\r`, `\\` and `\xff`.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        rest = match rest {
            [b'n', after @ ..] => {
                bytes.push(b'\n');
                after
            }
            [b't', after @ ..] => {
                bytes.push(b'\t');
                after
            }
            [b'r', after @ ..] => {
                bytes.push(b'\r');
                after
            }
            [b'\\', after @ ..] => {
                bytes.push(b'\\');
                after
            }
            [b'x', high, low, after @ ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).map_err(|why| why.to_string())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|why| why.to_string())?);
                after
            }
            _ => return Err(format!("an unknown escape in {text}")),
        };
    }
    Ok(bytes)
}
