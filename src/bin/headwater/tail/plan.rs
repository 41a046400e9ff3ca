//! The task that the flags describe, checked.

use std::path::PathBuf;
use std::str::FromStr;

use alloy_primitives::Address;
use clap::{Args, ValueEnum};
use headwater::quantity::MAX_HEIGHT;
use http::{HeaderName, HeaderValue};

use super::abi::Events;
use super::error::{Endpoint, TailError};
use super::filter::{Choice, LogFilter};
use super::printer::Form;

/// Endpoint of a headwater with default settings.
const DEFAULT_URL: &str = "ws://127.0.0.1:9546";

const MORE: &str = "\
Examples:
  headwater tail logs --event 'Transfer(address,address,uint256)' --address 0x…
  headwater tail ws://127.0.0.1:8546 heads receipts --from 19000000 --json

Exit codes:
   0  done: --count or --until-block is reached, or the reader of the pipe left
  64  wrong usage
  65  events are lost: a reorg deeper than what is remembered, or another chain
  69  no connection at the start
  74  standard output cannot be written
  75  the connection was lost, with --no-retry
  76  the endpoint does not speak as an Ethereum node
  77  refused, or blocks that the endpoint does not keep";

/// Kind of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Heads,
    Logs,
    Pending,
    Receipts,
}

#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub struct TailArgs {
    /// Endpoint (ws:// or wss://) and kinds: heads, logs, pending, receipts [default: ws://127.0.0.1:9546 heads logs pending]
    #[arg(value_name = "URL|KIND")]
    words: Vec<Word>,
    /// Form of `tail` before kinds were words.
    #[arg(long = "kind", value_enum, hide = true)]
    kinds: Vec<Kind>,
    /// Header of the handshake, such as 'Authorization: Bearer KEY'; repeat for several.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// Only logs of this contract, and receipts from, to or creating this address; repeat for several.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Vec<Address>,
    /// Topic of logs at the next position: a topic or an address, several with commas between, or any.
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<Choice>,
    /// Only logs of this event, decoded: a signature such as 'Transfer(address,address,uint256)', or a name in --abi; repeat for several.
    #[arg(long, value_name = "SIGNATURE")]
    event: Vec<String>,
    /// ABI or a compiler's artefact (JSON) to decode logs with; repeat for several.
    #[arg(long, value_name = "FILE")]
    abi: Vec<PathBuf>,
    /// Start with this block instead of the next one.
    #[arg(long, value_name = "N", value_parser = block_number)]
    from: Option<u64>,
    /// Stop when everything up to this block is printed.
    #[arg(long, value_name = "N", value_parser = block_number)]
    until_block: Option<u64>,
    /// Stop after this many lines.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
    /// Stop when the connection is lost, instead of connecting again and continuing.
    #[arg(long)]
    no_retry: bool,
}

impl TailArgs {
    /// Reads the files of `--abi`; returns the name and the content of each.
    ///
    /// # Errors
    /// [`TailError::Usage`] if a file cannot be read as text.
    pub(super) fn read_abi_files(&self) -> Result<Vec<(String, String)>, TailError> {
        let read = |path: &PathBuf| {
            let name = path.display().to_string();
            match std::fs::read_to_string(path) {
                Ok(content) => Ok((name, content)),
                Err(why) => Err(TailError::Usage(format!("--abi {name}: {why}"))),
            }
        };
        self.abi.iter().map(read).collect()
    }
}

/// A positional argument: endpoints and kinds may come in any order.
#[derive(Clone, Debug)]
enum Word {
    Url(Endpoint),
    Kind(Kind),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(kind) = Kind::from_str(text, true) {
            return Ok(Self::Kind(kind));
        }
        if !text.contains("://") {
            return Err(
                "neither a kind (heads, logs, pending, receipts) nor a URL such as ws://127.0.0.1:9546".to_owned(),
            );
        }
        let url = url::Url::parse(text).map_err(|why| why.to_string())?;
        match url.scheme() {
            "ws" | "wss" if url.has_host() => Ok(Self::Url(Endpoint(url))),
            "http" | "https" => Err("subscriptions need a WebSocket: use ws:// or wss://".to_owned()),
            _ => Err("not a URL such as ws://127.0.0.1:9546".to_owned()),
        }
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parse = || {
        let (name, value) = text.split_once(':')?;
        let mut value: HeaderValue = value.trim().parse().ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    };
    parse().ok_or_else(|| "write a header as 'Name: value'".to_owned())
}

fn address(text: &str) -> Result<Address, String> {
    text.parse()
        .map_err(|_| "an address is 0x and 40 hex digits".to_owned())
}

/// Parses a block's number, in decimal or in hex with 0x.
fn block_number(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
        _ => text.parse().ok(),
    };
    number
        .filter(|number| *number < MAX_HEIGHT)
        .ok_or_else(|| "not a block number".to_owned())
}

/// The task.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) endpoint: Endpoint,
    /// Headers of the handshake.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) heads: bool,
    pub(super) pending: bool,
    /// The filter, if logs are wanted.
    pub(super) logs: Option<LogFilter>,
    /// The filter, of which only addresses count, if receipts are wanted.
    pub(super) receipts: Option<LogFilter>,
    pub(super) from: Option<u64>,
    pub(super) until: Option<u64>,
    pub(super) retries: bool,
}

impl Plan {
    /// Checks the flags, and the files of `--abi` by name and content, from [`TailArgs::read_abi_files`]. Returns the
    /// plan, the form of the lines, the events to decode, and the number of lines.
    ///
    /// # Errors
    /// [`TailError::Usage`] if flags contradict each other, or a signature, topic or file cannot be parsed.
    pub(super) fn new(
        args: TailArgs,
        abi_files: &[(String, String)],
    ) -> Result<(Self, Form, Events, Option<u64>), TailError> {
        let usage = |why: &str| TailError::Usage(why.to_owned());
        let (mut urls, mut kinds) = (Vec::new(), args.kinds);
        for word in args.words {
            match word {
                Word::Url(url) => urls.push(url),
                Word::Kind(kind) => kinds.push(kind),
            }
        }
        if urls.len() > 1 {
            return Err(usage("give one URL; each endpoint needs a tail of its own"));
        }
        if kinds.is_empty() {
            kinds = vec![Kind::Heads, Kind::Logs, Kind::Pending];
        }
        let wants = |kind| kinds.contains(&kind);
        let asks_for_logs = !args.topic.is_empty() || !args.event.is_empty() || !args.abi.is_empty();
        if asks_for_logs && !wants(Kind::Logs) {
            return Err(usage("--topic, --event and --abi are about logs: add the kind logs"));
        }
        if !wants(Kind::Logs) && !wants(Kind::Receipts) && !args.address.is_empty() {
            return Err(usage("--address is about logs and receipts: add one of these kinds"));
        }
        let has_blocks = kinds.iter().any(|kind| *kind != Kind::Pending);
        if !has_blocks && (args.from.is_some() || args.until_block.is_some()) {
            return Err(usage(
                "pending transactions have no block: --from and --until-block need another kind",
            ));
        }
        if let (Some(from), Some(until)) = (args.from, args.until_block)
            && from > until
        {
            return Err(usage("--from is above --until-block"));
        }
        let (events, topics) = Events::new(abi_files, &args.event).map_err(TailError::Usage)?;
        let filter = LogFilter::new(args.address, topics, args.topic).map_err(TailError::Usage)?;
        let default = || Endpoint(url::Url::parse(DEFAULT_URL).expect("the constant is a URL"));
        let plan = Self {
            endpoint: urls.pop().unwrap_or_else(default),
            headers: args.header,
            heads: wants(Kind::Heads),
            pending: wants(Kind::Pending),
            receipts: wants(Kind::Receipts).then(|| filter.clone()),
            logs: wants(Kind::Logs).then_some(filter),
            from: args.from,
            until: args.until_block,
            retries: !args.no_retry,
        };
        let form = if args.json { Form::Json } else { Form::Text };
        Ok((plan, form, events, args.count))
    }

    /// Checks if anything is wanted that belongs to blocks.
    pub(super) fn has_blocks(&self) -> bool {
        self.heads || self.logs.is_some() || self.receipts.is_some()
    }

    /// Returns the filter of logs if nothing else of blocks is wanted: ranges of blocks can be read at once.
    pub(super) fn logs_alone(&self) -> Option<&LogFilter> {
        self.logs.as_ref().filter(|_| !self.heads && self.receipts.is_none())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::{Expect, expect};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "tail")]
    struct Command {
        #[command(flatten)]
        args: TailArgs,
    }

    const ABI: &str = r#"[{"type":"event","name":"Seen","anonymous":false,"inputs":[]}]"#;

    /// Checks what a command line means, or the first line of what is said to it. No file is opened: one that is named
    /// has the content [`ABI`].
    #[track_caller]
    fn check(line: &str, expect: Expect) {
        let plan = |args: TailArgs| {
            let files = args.abi.iter().map(|path| (path.display().to_string(), ABI.to_owned()));
            let files: Vec<_> = files.collect();
            Plan::new(args, &files)
        };
        let words = std::iter::once("tail").chain(line.split_whitespace());
        let text = match Command::try_parse_from(words).map(|command| plan(command.args)) {
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            Ok(Err(error)) => error.to_string(),
            Ok(Ok((plan, form, _, count))) => {
                let kinds = [
                    ("heads", plan.heads),
                    ("logs", plan.logs.is_some()),
                    ("receipts", plan.receipts.is_some()),
                    ("pending", plan.pending),
                ];
                let kinds: Vec<_> = kinds
                    .iter()
                    .filter(|(_, wanted)| *wanted)
                    .map(|(kind, _)| *kind)
                    .collect();
                let Plan {
                    from, until, retries, ..
                } = plan;
                let bounds = [from, until, count].map(|bound| bound.map_or("-".to_owned(), |bound| bound.to_string()));
                format!(
                    "{} {} {} {form:?} retries={retries}",
                    plan.endpoint,
                    kinds.join("+"),
                    bounds.join(" ")
                )
            }
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn words_are_endpoints_and_kinds() {
        check(
            "",
            expect!["ws://127.0.0.1:9546 heads+logs+pending - - - Text retries=true"],
        );
        check("heads", expect!["ws://127.0.0.1:9546 heads - - - Text retries=true"]);
        check(
            "wss://example.org/secret-key logs receipts --json --no-retry",
            expect!["wss://example.org logs+receipts - - - Json retries=false"],
        );
        check(
            "logs ws://127.0.0.1:8546 --from 0x10 --until-block 20 --count 5",
            expect!["ws://127.0.0.1:8546 logs 16 20 5 Text retries=true"],
        );
        check(
            "logs --abi /does/not/exist.json --event Seen",
            expect!["ws://127.0.0.1:9546 logs - - - Text retries=true"],
        );
        // The form before kinds were words.
        check(
            "ws://127.0.0.1:8546 --kind heads --kind pending",
            expect!["ws://127.0.0.1:8546 heads+pending - - - Text retries=true"],
        );
    }

    #[test]
    fn mistakes_are_said_with_the_remedy() {
        check(
            "hedas",
            expect![
                "error: invalid value 'hedas' for '[URL|KIND]...': neither a kind (heads, logs, pending, receipts) nor a URL such as ws://127.0.0.1:9546"
            ],
        );
        check(
            "127.0.0.1:8546",
            expect![
                "error: invalid value '127.0.0.1:8546' for '[URL|KIND]...': neither a kind (heads, logs, pending, receipts) nor a URL such as ws://127.0.0.1:9546"
            ],
        );
        check(
            "http://127.0.0.1:8546",
            expect![
                "error: invalid value 'http://127.0.0.1:8546' for '[URL|KIND]...': subscriptions need a WebSocket: use ws:// or wss://"
            ],
        );
        check(
            "ftp://127.0.0.1",
            expect![
                "error: invalid value 'ftp://127.0.0.1' for '[URL|KIND]...': not a URL such as ws://127.0.0.1:9546"
            ],
        );
        check(
            "ws://a ws://b",
            expect!["give one URL; each endpoint needs a tail of its own; see headwater tail --help"],
        );
        check(
            "heads --topic any",
            expect!["--topic, --event and --abi are about logs: add the kind logs; see headwater tail --help"],
        );
        check(
            "pending --address 0x00000000000000000000000000000000000000aa",
            expect!["--address is about logs and receipts: add one of these kinds; see headwater tail --help"],
        );
        check(
            "pending --until-block 5",
            expect![
                "pending transactions have no block: --from and --until-block need another kind; see headwater tail --help"
            ],
        );
        check(
            "heads --from 6 --until-block 5",
            expect!["--from is above --until-block; see headwater tail --help"],
        );
        check("heads --from -1", expect!["error: unexpected argument '-1' found"]);
        check(
            "heads --from latest",
            expect!["error: invalid value 'latest' for '--from <N>': not a block number"],
        );
        check(
            "heads --header Authorization",
            expect![
                "error: invalid value 'Authorization' for '--header <NAME: VALUE>': write a header as 'Name: value'"
            ],
        );
        check(
            "logs --address 0x12",
            expect!["error: invalid value '0x12' for '--address <ADDRESS>': an address is 0x and 40 hex digits"],
        );
        check(
            "logs --topic 0x12",
            expect![
                "error: invalid value '0x12' for '--topic <TOPIC>': a topic is 0x and 64 hex digits, an address, several of them with commas between, or any"
            ],
        );
        check(
            "logs --event Transfer",
            expect![[
                r#"--event "Transfer" is not a signature such as 'Transfer(address,address,uint256)'; a name alone needs --abi; see headwater tail --help"#
            ]],
        );
        check(
            "logs --abi /does/not/exist.json --event Unseen",
            expect![[r#"--event "Unseen": no file of --abi has such an event; see headwater tail --help"#]],
        );
    }
}
