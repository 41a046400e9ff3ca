//! The command line.

mod bench;
mod health;
mod notify;
mod operate;
mod tail;
mod text;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand};
use headwater::app::App;
use headwater::config::{self, ConfigError, Flags};
use headwater::devnet::{self, Devnet};
use headwater::door::ApiKey;
use headwater::reload::{ConfigSource, Follower};
use headwater::telemetry::{self, LogFormat};
use headwater::webhooks;
use tokio::signal::unix::{SignalKind, signal};

use self::notify::ServiceManager;

/// `EX_USAGE` of sysexits(3): invalid arguments or settings.
const USAGE: u8 = 64;

/// Ethereum JSON-RPC subscription proxy: one subscription at the node, thousands of clients.
///
/// Without a subcommand headwater runs the proxy; without an upstream, on an embedded devnet.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default without a subcommand).
    Run(RunArgs),
    /// Run the simulated node alone.
    Devnet(DevnetArgs),
    /// Print the events of an endpoint: heads, logs, receipts, pending transactions.
    Tail(tail::TailArgs),
    /// Load an endpoint with many clients and check the events of each.
    Bench(bench::BenchArgs),
    /// Check the configuration, print a summary, and exit.
    CheckConfig(CheckArgs),
    /// Print a configuration file with every setting, its meaning and its default.
    DefaultConfig(DefaultArgs),
    /// Create an API key, and print it once, with the lines for the configuration.
    Key(KeyArgs),
    /// Try a webhook of the configuration.
    Webhook(WebhookArgs),
    /// Check if a running headwater is alive (for a container's health check).
    Health(RunArgs),
    #[command(flatten)]
    Operator(operate::OperatorCommand),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "HEADWATER_CONFIG")]
    config: Option<PathBuf>,
    /// Node address: ws://, wss://, http://, https:// or the path of an IPC socket. Repeat for failover.
    #[arg(long, value_name = "URL")]
    upstream: Vec<String>,
    /// Address for clients [default: 127.0.0.1:9546].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address of /health, /ready, /metrics and /status [default: 127.0.0.1:9547].
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Format of the log [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
struct WebhookArgs {
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Debug, Subcommand)]
enum WebhookCommand {
    /// Send one signed test event, and print the status of the answer.
    Test {
        /// Name of the webhook, a section [webhooks.NAME] of the configuration.
        name: String,
        #[command(flatten)]
        run: RunArgs,
    },
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    run: RunArgs,
    /// File of the configuration in force: lists the settings that differ, and the effect of a reload on each.
    #[arg(long, value_name = "RUNNING")]
    diff: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DefaultArgs {
    /// Print the JSON Schema of the file instead, for editors.
    #[arg(long)]
    schema: bool,
}

#[derive(Debug, Args)]
struct KeyArgs {
    /// Name of the key in the configuration, such as its owner's.
    name: String,
    /// Plan of the key, a section [plans.NAME] of the configuration.
    #[arg(long, value_name = "NAME", default_value = "default")]
    plan: String,
}

#[derive(Debug, Args)]
struct DevnetArgs {
    /// Address of the node, for WebSocket and HTTP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8546")]
    listen: SocketAddr,
    /// Also listen on this Unix socket.
    #[arg(long, value_name = "PATH")]
    ipc: Option<PathBuf>,
    /// Seed; the same seed gives the same blocks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Time between blocks, for example 2s or 100ms; 0s mines by the devnet_mine command only.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    block_time: Duration,
    /// Pending transactions per second.
    #[arg(long, value_name = "N", default_value_t = 4.0)]
    pending_rate: f64,
    /// Transactions per block.
    #[arg(long, value_name = "N", default_value_t = 8)]
    transactions: usize,
    /// Logs per transaction.
    #[arg(long, value_name = "N", default_value_t = 3)]
    logs: usize,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if !error.use_stderr() {
                // --help and --version.
                drop(error.print());
                return ExitCode::SUCCESS;
            }
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let meant = match error
                .get(ContextKind::SuggestedArg)
                .or(error.get(ContextKind::SuggestedSubcommand))
            {
                Some(ContextValue::String(meant)) => format!("; did you mean {meant}?"),
                Some(ContextValue::Strings(meant)) => format!("; did you mean {}?", meant.join(" or ")),
                _ => "; see headwater --help".to_owned(),
            };
            eprintln!("headwater: {line}{meant}");
            return ExitCode::from(USAGE);
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headwater: {error:#}");
            if let Some(error) = error.downcast_ref::<tail::TailError>() {
                return ExitCode::from(error.code());
            }
            let usage = error.is::<ConfigError>() || error.is::<headwater::app::StartError>();
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run(source(&args)),
        Command::Key(args) => key(&args),
        Command::Devnet(args) => block_on(run_devnet(args)),
        Command::Tail(args) => block_on(async { Ok(tail::tail(args).await?) }),
        Command::Bench(args) => bench::bench(args),
        Command::CheckConfig(args) => check_config(&args),
        Command::DefaultConfig(args) => {
            print(&if args.schema {
                config::schema()
            } else {
                config::example()
            });
            Ok(())
        }
        Command::Operator(command) => block_on(operate::run(command)),
        Command::Webhook(args) => block_on(test_webhook(args)),
        Command::Health(args) => block_on(health::health(source(&args).read()?.1.admin)),
    }
}

/// Prints a summary of the configuration, and its differences from the one in force if that is given.
fn check_config(args: &CheckArgs) -> anyhow::Result<()> {
    let own = source(&args.run);
    let (typed, config) = own.read()?;
    // Flags and variables win over either file, so they are the same on both sides.
    let running = args.diff.clone().map(|file| ConfigSource {
        file: Some(file),
        ..own
    });
    let running = running.map(|running| running.read()).transpose()?;
    let upstreams: Vec<String> = config.upstreams.iter().map(|node| node.endpoint.to_string()).collect();
    let upstreams = if upstreams.is_empty() {
        "the embedded devnet".to_owned()
    } else {
        upstreams.join(", ")
    };
    print(&format!(
        "ok: listen {}, admin {}, upstream {upstreams}\n",
        config.listen, config.admin
    ));
    let Some((running, _)) = running else { return Ok(()) };
    let changes = config::differences(&running, &typed);
    if changes.is_empty() {
        print("nothing changes\n");
    }
    for change in changes {
        print(&format!("{change}\n"));
    }
    Ok(())
}

/// Sends a test event to the receiver of a webhook.
async fn test_webhook(args: WebhookArgs) -> anyhow::Result<()> {
    let WebhookCommand::Test { name, run } = args.command;
    let (_, config) = source(&run).read()?;
    let known: Vec<&str> = config.webhooks.iter().map(|own| &*own.name).collect();
    let own = config.webhooks.iter().find(|own| *own.name == *name);
    let own = own.ok_or_else(|| match known.is_empty() {
        true => ConfigError("webhooks: there are none: give the configuration with --config FILE".into()),
        false => ConfigError(format!(
            "{name:?} is not a configured webhook: use one of {}",
            known.join(", ")
        )),
    })?;
    // Fails if a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let line = webhooks::send_test(own).await.map_err(anyhow::Error::msg)?;
    print(&format!("{line}\n"));
    Ok(())
}

/// Prints the result of a command; a closed pipe is not an error.
fn print(text: &str) {
    use std::io::Write as _;
    drop(std::io::stdout().write_all(text.as_bytes()));
}

fn source(args: &RunArgs) -> ConfigSource {
    let flags = Flags {
        upstream: args.upstream.clone(),
        listen: args.listen.clone(),
        admin: args.admin.clone(),
        log_format: args.log_format,
    };
    // A variable that is not UTF-8 cannot be a setting.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("HEADWATER_"));
    ConfigSource {
        file: args.config.clone(),
        variables: variables.collect(),
        flags,
    }
}

/// Prints a new key, which is stored nowhere.
fn key(args: &KeyArgs) -> anyhow::Result<()> {
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !plain(&args.name) || !plain(&args.plan) {
        return Err(ConfigError("a name may contain only letters, digits, - and _".into()).into());
    }
    let key = ApiKey::random();
    print(&format!(
        "# Give this key to its owner; headwater does not store it and cannot show it again:\n#   {}\n\n[keys.{}]\nhash = \"{}\"\nplan = \"{}\"\n",
        key.reveal(),
        args.name,
        key.digest(),
        args.plan,
    ));
    Ok(())
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

fn run(source: ConfigSource) -> anyhow::Result<()> {
    let (typed, config) = source.read()?;
    telemetry::init_log(config.log_format, &config.log_filter)
        .map_err(|why| ConfigError(format!("log.filter: {why}; use a level such as info")))?;
    let grace = config.grace;
    block_on(async {
        let app = App::bind(config).await?.follow(Follower::new(source, typed)?);
        let (address, admin) = (app.address()?, app.admin_address()?);
        if let Some(devnet) = app.devnet() {
            tracing::info!(
                "no upstream is configured: running on the embedded devnet at {}",
                devnet.ws_url()
            );
            tracing::info!("to run it in front of your node:  headwater --upstream ws://127.0.0.1:8546");
            tracing::info!("to print its events:              headwater tail ws://{address}");
        }
        let (scheme, plain) = if app.is_secured() {
            ("wss", "HTTPS")
        } else {
            ("ws", "HTTP")
        };
        tracing::info!("serving on {scheme}://{address} ({plain} on the same port)");
        tracing::info!("admin on http://{admin} (/health /ready /metrics /status /api)");
        let stop = stop_signal()?;
        let manager = ServiceManager::connect(&notify::Variables::of_process());
        if let Some(manager) = &manager {
            manager.ready(&format!("serving on {scheme}://{address}, admin on http://{admin}"));
            tokio::spawn(manager.clone().keep_alive());
        }
        let stop = async {
            stop.await;
            if let Some(manager) = &manager {
                manager.stopping(grace);
            }
        };
        app.run(stop).await?;
        tracing::info!("stopped");
        Ok(())
    })
}

async fn run_devnet(args: DevnetArgs) -> anyhow::Result<()> {
    let node = Devnet::start(devnet::Config {
        listen: args.listen,
        ipc: args.ipc,
        seed: args.seed,
        block_time: (!args.block_time.is_zero()).then_some(args.block_time),
        pending_rate: args.pending_rate,
        transactions_per_block: args.transactions,
        logs_per_transaction: args.logs,
        ..devnet::Config::default()
    })
    .await
    .map_err(headwater::app::StartError::from)?;
    eprintln!("devnet on {} and {}", node.ws_url(), node.http_url());
    stop_signal()?.await;
    Ok(())
}

/// Returns a future that ends on SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
