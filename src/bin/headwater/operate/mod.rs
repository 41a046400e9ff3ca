//! Commands to a running headwater, over the operator's API.

mod lines;
mod table;
mod top;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use headwater::operator::{
    ClientQuery, ClientSort, Drain, OperatorClient as _, TapItem, TapQuery, UpstreamName, UsageQuery,
};
use jsonrpsee::client_transport::ws::WsHandshakeError;
use jsonrpsee::core::client::Error;
use jsonrpsee::ws_client::{HeaderMap, HeaderValue, WsClient, WsClientBuilder};
use serde::Serialize;

use crate::text::{Printable, escape_json, escape_json_lines};

/// Time limit of connecting, and of each request.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Show the state of a running headwater.
    Status(Target),
    /// Show the state in the terminal, once a second.
    Top(Target),
    /// List the connected clients.
    Clients(ClientsArgs),
    /// Print the messages of one client, redacted, for a while.
    Tap(TapArgs),
    /// Disconnect a client.
    Kick(OfClient),
    /// Keep an upstream out of use, without loss.
    Cordon(CordonArgs),
    /// End a cordon.
    Uncordon(OfUpstream),
    /// Report not ready, and optionally close the clients little by little.
    Drain(DrainArgs),
    /// End a drain.
    Undrain(Target),
    /// Show the usage of each key.
    Usage(UsageArgs),
    /// Read the configuration again and apply it.
    Reload(Target),
}

/// Address and access of the API.
#[derive(Debug, Args)]
pub struct Target {
    /// Admin address of the running headwater.
    #[arg(long, value_name = "URL", env = "HEADWATER_ADMIN", default_value = "127.0.0.1:9547")]
    admin: String,
    /// File with the admin token.
    #[arg(long, value_name = "FILE", env = "HEADWATER_ADMIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ClientsArgs {
    /// Text that the account or the address contains.
    text: Option<String>,
    /// Kind of subscription that the client has.
    #[arg(long)]
    kind: Option<String>,
    /// Order, greatest first.
    #[arg(long, value_enum, default_value_t = Sort::Newest)]
    sort: Sort,
    /// Clients to list.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Clients to skip.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: usize,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    Newest,
    Queue,
    Sent,
    Notifications,
    Subscriptions,
    Calls,
}

impl From<Sort> for ClientSort {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Newest => Self::Newest,
            Sort::Queue => Self::Queue,
            Sort::Sent => Self::Sent,
            Sort::Notifications => Self::Notifications,
            Sort::Subscriptions => Self::Subscriptions,
            Sort::Calls => Self::Calls,
        }
    }
}

#[derive(Debug, Args)]
pub struct TapArgs {
    /// Id of the client, as listed by `clients`.
    client: u64,
    /// Time after which it ends, for example 10s.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Bytes of messages after which it ends.
    #[arg(long, value_name = "N", default_value_t = 256 << 10)]
    max_bytes: usize,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct OfClient {
    /// Id of the client, as listed by `clients`.
    client: u64,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct OfUpstream {
    /// Upstream: its number (0 is the first one in the settings) or its address, as listed by `status`.
    #[arg(value_parser = upstream)]
    upstream: UpstreamName,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct CordonArgs {
    #[command(flatten)]
    of: OfUpstream,
    /// Cordon even the only upstream that takes calls; calls then fail.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Close the connected clients, spread over this time, for example 5m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    close_within: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Account; all if not given.
    account: Option<String>,
    /// Newest hours.
    #[arg(long, value_name = "N", default_value_t = 24)]
    hours: u64,
    /// Show each hour.
    #[arg(long)]
    by_hour: bool,
    #[command(flatten)]
    target: Target,
}

fn upstream(text: &str) -> Result<UpstreamName, std::convert::Infallible> {
    let index = text.parse().map(UpstreamName::Index);
    Ok(index.unwrap_or_else(|_| UpstreamName::Address(text.to_owned())))
}

/// Runs a command; it ends when it is done, or when nobody reads its output any more.
pub async fn run(command: OperatorCommand) -> anyhow::Result<()> {
    let outcome = perform(command).await;
    let is_unread = |why: &anyhow::Error| {
        let why = why.downcast_ref::<io::Error>();
        why.is_some_and(|why| why.kind() == io::ErrorKind::BrokenPipe)
    };
    outcome.or_else(|why| if is_unread(&why) { Ok(()) } else { Err(why) })
}

async fn perform(command: OperatorCommand) -> anyhow::Result<()> {
    match command {
        OperatorCommand::Status(target) => {
            let status = result_of(target.connect().await?.status().await)?;
            target.show(&status, lines::status)?;
        }
        OperatorCommand::Top(target) => top::top(&target).await?,
        OperatorCommand::Clients(args) => {
            let query = ClientQuery {
                text: args.text,
                kind: args.kind,
                min_queue: None,
                sort: args.sort.into(),
                offset: args.offset,
                limit: Some(args.limit),
            };
            let page = result_of(args.target.connect().await?.clients(Some(query)).await)?;
            args.target.show(&page, |page| lines::clients(page, args.offset))?;
        }
        OperatorCommand::Tap(args) => tap(&args).await?,
        OperatorCommand::Kick(OfClient { client, target }) => {
            result_of(target.connect().await?.disconnect(client).await)?;
            target.show(&true, |_| format!("client {client} is disconnected\n"))?;
        }
        OperatorCommand::Cordon(CordonArgs { of, force }) => {
            let changed = result_of(of.target.connect().await?.cordon(of.upstream, Some(force)).await)?;
            of.target
                .show(&changed, |new| outcome(*new, "cordoned", "was cordoned already"))?;
        }
        OperatorCommand::Uncordon(OfUpstream { upstream, target }) => {
            let changed = result_of(target.connect().await?.uncordon(upstream).await)?;
            target.show(&changed, |new| {
                outcome(*new, "the cordon has ended", "was not cordoned")
            })?;
        }
        OperatorCommand::Drain(DrainArgs { close_within, target }) => {
            let close_within_ms = close_within.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let changed = result_of(target.connect().await?.drain(Some(Drain { close_within_ms })).await)?;
            target.show(&changed, |new| {
                outcome(*new, "drained: /ready answers 503", "was drained already")
            })?;
        }
        OperatorCommand::Undrain(target) => {
            let changed = result_of(target.connect().await?.undrain().await)?;
            target.show(&changed, |new| outcome(*new, "the drain has ended", "was not drained"))?;
        }
        OperatorCommand::Usage(args) => {
            let query = UsageQuery {
                account: args.account,
                hours: Some(args.hours),
                total: !args.by_hour,
            };
            let rows = result_of(args.target.connect().await?.usage(Some(query)).await)?;
            args.target.show(&rows, |rows| lines::usage(rows, args.by_hour))?;
        }
        OperatorCommand::Reload(target) => {
            let reloaded = result_of(target.connect().await?.reload().await)?;
            target.show(&reloaded, |reloaded| match &reloaded.needs_restart[..] {
                [] => "reloaded\n".to_owned(),
                waiting => format!("reloaded; only a restart applies {}\n", Printable(&waiting.join(", "))),
            })?;
        }
    }
    Ok(())
}

/// Prints a result at once.
///
/// # Errors
/// Error of standard output; a reader that is gone ends a command without an error, see [`run`].
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn outcome(changed: bool, done: &str, nothing: &str) -> String {
    format!("{}\n", if changed { done } else { nothing })
}

async fn tap(args: &TapArgs) -> anyhow::Result<()> {
    let api = args.target.connect().await?;
    let query = TapQuery {
        // At least a second.
        seconds: Some(args.time.as_secs().max(1)),
        max_bytes: Some(args.max_bytes),
    };
    let mut items = result_of(api.tap(args.client, Some(query)).await)?;
    while let Some(item) = items.next().await {
        let item = item?;
        if args.target.json {
            print(&format!("{}\n", escape_json(serde_json::to_string(&item)?)))?;
        } else {
            print(&lines::tapped(&item))?;
        }
        if matches!(item, TapItem::Ended { .. }) {
            break;
        }
    }
    Ok(())
}

impl Target {
    /// Connects to the API.
    async fn connect(&self) -> anyhow::Result<WsClient> {
        // Fails if a provider is installed already, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let url = url(&self.admin);
        let mut headers = HeaderMap::new();
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
            let value = HeaderValue::from_str(&format!("Bearer {}", text.trim()));
            let value = value.with_context(|| format!("--token-file {}: not a token", path.display()))?;
            headers.insert("authorization", value);
        }
        let client = WsClientBuilder::default()
            .set_headers(headers)
            .connection_timeout(TIMEOUT)
            .request_timeout(TIMEOUT);
        client.build(&url).await.map_err(|why| match rejected(&why) {
            Some(401) => anyhow!("{url} needs the admin token: give its file with --token-file"),
            Some(429) => anyhow!("{url} has too many connections, or got too many wrong tokens: wait a minute"),
            _ => anyhow!(
                "cannot connect to {url}: {why}; is headwater running, and is this its admin address?",
                why = Printable(&why.to_string())
            ),
        })
    }

    /// Prints a value as JSON, or as text for people.
    fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(value).unwrap_or_default();
            print(&format!("{}\n", escape_json_lines(&json)))
        } else {
            print(&text(value))
        }
    }
}

/// Returns the status with which the server rejected an upgrade.
fn rejected(why: &Error) -> Option<u16> {
    match why {
        Error::Transport(why) => match why.downcast_ref() {
            Some(WsHandshakeError::Rejected { status_code }) => Some(*status_code),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the result of a request; an error of the server as its message alone.
fn result_of<T>(answer: Result<T, Error>) -> anyhow::Result<T> {
    answer.map_err(|why| match why {
        Error::Call(error) => anyhow!("{}", Printable(error.message())),
        other => anyhow!("{}", Printable(&other.to_string())),
    })
}

/// Returns the URL of the API at an admin address, as it is written in the settings, or at a URL.
fn url(admin: &str) -> String {
    let (scheme, rest) = match admin.split_once("://") {
        Some(("http" | "ws", rest)) => ("ws", rest),
        Some(("https" | "wss", rest)) => ("wss", rest),
        Some((scheme, rest)) => (scheme, rest),
        None => ("ws", admin),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    // A listener on all addresses is asked on loopback.
    let host = match host.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => host.to_owned(),
    };
    let path = if path.is_empty() { "api" } else { path };
    format!("{scheme}://{host}/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_known_by_its_status_whatever_the_text_of_an_error_holds() {
        for (error, status) in [
            (WsHandshakeError::Rejected { status_code: 401 }, Some(401)),
            (WsHandshakeError::Rejected { status_code: 503 }, Some(503)),
            (WsHandshakeError::NoAddressFound("node-429.example:401".into()), None),
        ] {
            assert_eq!(rejected(&Error::Transport(error.into())), status);
        }
        assert_eq!(rejected(&Error::Custom("429".into())), None);
    }

    #[test]
    fn an_admin_address_is_as_in_the_settings_or_a_url() {
        for (admin, expected) in [
            ("127.0.0.1:9547", "ws://127.0.0.1:9547/api"),
            ("0.0.0.0:1", "ws://127.0.0.1:1/api"),
            ("[::]:1", "ws://[::1]:1/api"),
            ("http://host:1/", "ws://host:1/api"),
            ("https://ops.example", "wss://ops.example/api"),
            ("wss://ops.example/headwater/api", "wss://ops.example/headwater/api"),
        ] {
            assert_eq!(url(admin), expected);
        }
    }
}
