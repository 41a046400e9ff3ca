//! Setup of the log.

use tracing_subscriber::filter::Targets;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// Starts the log on standard error. `filter` is a level, or levels by target (`warn,headwater=debug`); a second call has
/// no effect.
///
/// # Errors
/// Returns the parser's message if `filter` is not valid.
pub fn init_log(format: LogFormat, filter: &str) -> Result<(), String> {
    use std::io::IsTerminal as _;

    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;

    // Not tracing_subscriber's `EnvFilter`: the regular expressions that it brings took a twentieth of the time of a
    // build, for filters by the values of fields.
    let mut levels: Targets = filter
        .parse()
        .map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())?;
    // At trace level these libraries print the requests to the nodes, whose addresses and headers may contain keys:
    // only if the filter names the library.
    let everything = levels.default_level() == Some(LevelFilter::TRACE);
    for library in ["tungstenite", "tokio_tungstenite", "hyper", "hyper_util", "reqwest"] {
        if everything && !filter.contains(library) {
            levels = levels.with_target(library, LevelFilter::DEBUG);
        }
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(levels);
    // A second subscriber is refused: tests start many apps in one process.
    let _ = match format {
        LogFormat::Text => log
            .with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal()))
            .try_init()
            .map_err(drop),
        LogFormat::Json => log.with(lines.json()).try_init().map_err(drop),
    };
    Ok(())
}
