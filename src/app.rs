//! Binds, runs and drains the proxy. The only file that connects all modules.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jsonrpsee::{Methods, RpcModule};
use listenfd::ListenFd;
use prometheus_client::registry::Registry;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Access, Admin, Api, ClientPort, Page, Readiness};
use crate::backplane::{self, Wanted};
use crate::chain::{Archive, ContentFetches, History, Ingest, PublishedWriter, Source};
use crate::clock::Clock;
use crate::config::Config;
use crate::devnet::Devnet;
use crate::door::{Door, unix_now};
use crate::extension::{self, Extension};
use crate::fleet::Fleet;
use crate::module;
use crate::operator::{self, OperatorServer as _, OperatorService, UsageFileError, UsageLog};
use crate::otlp::Exporter;
use crate::reload::Follower;
use crate::rpc::{self, Rpc};
use crate::server::Server;
use crate::session::{PositionsFileError, Services, take_positions, write_positions};
use crate::subscription::{self, Replays, SavedSessions, dispatch};
use crate::telemetry::{AccessLog, AccessLogError, Metrics, Tracer};
use crate::tls::Certificate;
use crate::upstream::{self, Endpoint, Pool};
use crate::webhooks::Webhooks;

/// A failed start; one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{setting}: cannot listen on {address}: {why}; choose another with --{setting} or HEADWATER_{}", setting.to_uppercase())]
    Bind {
        /// `listen` or `admin`.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        why: io::Error,
    },
    /// The embedded chain did not start.
    #[error("the embedded devnet did not start: {0}")]
    Devnet(#[from] crate::devnet::Error),
    /// The export of spans cannot be prepared.
    #[error("tracing.endpoint: {0}; remove the setting to run without tracing")]
    Tracing(#[from] reqwest::Error),
    /// The access log cannot be opened.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The file of usage cannot be used.
    #[error(transparent)]
    Usage(#[from] UsageFileError),
    /// The file of positions cannot be used.
    #[error(transparent)]
    Positions(#[from] PositionsFileError),
}

/// The unexpected end of a task, by its name.
#[derive(Debug, thiserror::Error)]
#[error("the {0} task ended unexpectedly: this is a bug, please report it")]
pub struct Broken(&'static str);

/// Capacity of the channel from the upstreams to the ingest, which empties it at once.
const SIGHTINGS: usize = 1024;

/// Capacity of the channel of best-effort events to the dispatcher; what does not fit is dropped and counted (E8).
const GOSSIP: usize = 4096;

/// Length of the accept queue; the kernel's own bound (`net.core.somaxconn`) is usually 4096.
const BACKLOG: i32 = 4096;

/// Interval between sweeps of the tables of accounts and sessions.
const SWEEP: Duration = Duration::from_secs(10);

/// The whole proxy, bound but not yet running.
pub struct App {
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    devnet: Option<Devnet>,
    usage: UsageLog,
    metrics: Metrics,
    metrics_registry: Registry,
    exporter: Option<Exporter>,
    positions: Option<SavedSessions>,
    follower: Option<Follower>,
    methods: Methods,
    running: watch::Sender<Option<Arc<Services>>>,
}

impl App {
    /// Binds both ports, and starts the embedded devnet if no upstream is configured.
    ///
    /// # Errors
    /// Returns a [`StartError`] if an address cannot be bound, the file of usage cannot be read, the access log cannot be
    /// opened or the devnet does not start.
    pub async fn bind(mut config: Config) -> Result<Self, StartError> {
        // Fails if a provider is installed already, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut inherited = ListenFd::from_env();
        let mut inherit = |at| inherited.take_tcp_listener(at).ok().flatten();
        let listener = match inherit(0) {
            Some(listener) => adopt("listen", config.listen, listener)?,
            None => bind("listen", config.listen, config.reuse_port)?,
        };
        let admin_listener = match inherit(1) {
            Some(listener) => adopt("admin", config.admin, listener)?,
            None => bind("admin", config.admin, false)?,
        };
        let usage = UsageLog::open(config.usage_file.as_deref())?;
        let (mut metrics, metrics_registry) = Metrics::new();
        if let Some(settings) = &config.access_log {
            let log = AccessLog::start(settings, metrics.access_log_dropped.clone())?;
            metrics.recorder.access_log = Some(Arc::new(log));
        }
        let mut exporter = None;
        if let Some(settings) = &config.tracing {
            let (tracer, spans) = Tracer::new(settings.sampling, metrics.spans_dropped.clone());
            metrics.recorder.tracer = Some(Arc::new(tracer));
            exporter = Some(Exporter::new(settings, spans, metrics.spans_dropped.clone())?);
        }
        let positions = config
            .positions_file
            .as_deref()
            .map(take_positions)
            .transpose()?
            .flatten();
        let mut devnet = None;
        if config.upstreams.is_empty() {
            let node = Devnet::start(config.devnet.clone()).await?;
            if let Ok(url) = node.ws_url().parse() {
                config.upstreams.push(Endpoint::Ws(url).into());
            }
            devnet = Some(node);
        }
        Ok(Self {
            config,
            listener,
            admin_listener,
            devnet,
            usage,
            metrics,
            metrics_registry,
            exporter,
            positions,
            follower: None,
            methods: Methods::new(),
            running: watch::Sender::new(None),
        })
    }

    /// Applies later changes of the configuration.
    #[must_use]
    pub fn follow(mut self, follower: Follower) -> Self {
        self.follower = Some(follower);
        self
    }

    /// Serves the methods and subscriptions of a module on the client port too, over WebSocket and HTTP, to every
    /// client whose key allows them. Callbacks find the caller ([`extension::Client`]) in jsonrpsee's `Extensions`.
    ///
    /// # Errors
    /// [`extension::NameTaken`] if headwater serves a method of that name itself, or another module that was added
    /// before.
    pub fn serve(mut self, module: impl Into<Methods>) -> Result<Self, extension::NameTaken> {
        extension::merge(&mut self.methods, module.into(), rpc::serves)?;
        Ok(self)
    }

    /// Returns headwater as a module for a jsonrpsee server of this program: `eth_subscribe`, `eth_unsubscribe` and the
    /// forwarded methods. Callbacks wait until [`Self::run`] has begun, and that server limits its clients itself.
    #[must_use]
    pub fn module(&self) -> RpcModule<()> {
        module::module(self.running.subscribe())
    }

    /// Returns the address for clients.
    ///
    /// # Errors
    /// Returns the system's error, only if the socket has no local address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns the operator's address.
    ///
    /// # Errors
    /// As [`Self::address`].
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin_listener.local_addr()
    }

    /// Checks if clients connect over TLS.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        self.config.server.tls.is_some()
    }

    /// Returns the embedded chain; `None` if an upstream is configured.
    #[must_use]
    pub fn devnet(&self) -> Option<&Devnet> {
        self.devnet.as_ref()
    }

    /// Serves until `stop`, then drains: reports not ready, admits no new clients, and sends each client its queued
    /// events and then a close frame.
    ///
    /// # Errors
    /// Returns [`Broken`] if a task ended that must not end.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Broken> {
        let Self {
            mut config,
            listener,
            admin_listener,
            devnet: _devnet,
            usage,
            metrics,
            metrics_registry,
            exporter,
            positions,
            follower,
            methods,
            running,
        } = self;
        raise_file_limit(config.door.max_connections);
        warn_of_namespaces(&config);
        let clock = Clock::start();
        let metrics = Arc::new(metrics);

        // The event path, from the node to the sockets.
        let (sightings, seen) = mpsc::channel(SIGHTINGS);
        let (best_effort, heard) = mpsc::channel(GOSSIP);
        let (wanted, wants) = watch::channel(Wanted::default());
        let channels = upstream::Channels {
            sightings,
            best_effort,
            wanted: wants,
        };
        let max_contents_age = config.node.silence_timeout / 2;
        let pool = Pool::start(&config.upstreams, &config.node, &channels, metrics.clone());
        drop(channels);
        let (publisher, feed) = backplane::in_process(heard);
        let source = Arc::new(Source::new(pool.clone(), config.history.verify));
        let ingest = Ingest::new(
            pool.clone(),
            source.clone(),
            seen,
            publisher,
            config.history,
            metrics.clone(),
        );
        let history = History::new(config.history.blocks).within(config.history.max_bytes);
        let writer = PublishedWriter::new(history, metrics.clone());
        let published = writer.reader();
        let registry = subscription::Registry::new(
            writer,
            config.max_passthrough,
            config.server.compression,
            wanted,
            clock,
            metrics.clone(),
        );
        let registry = Arc::new(registry.with_sessions(config.positions, unix_now()));
        if let Some(positions) = positions {
            let restored = registry.restore_sessions(positions, unix_now());
            info!(subscriptions = restored, "positions of sessions restored");
        }
        let archive = Archive::new(source.clone());
        let replays = Replays::new(registry.clone(), archive, config.replay, metrics.clone());

        // The request path, from the sockets to the node. The listener may be inherited, with another address than
        // configured.
        config.rpc.is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let rpc = Arc::new(Rpc::new(pool.clone(), published.clone(), config.rpc, metrics.clone()));
        if !config.door.auth.required && config.door.auth.is_used() {
            info!("clients without a key or token are served too: set auth.required = true to refuse them");
        }
        let (door, fleet) = Fleet::join(config.fleet, Door::new(config.door, clock), clock, &metrics);
        let extension = Extension::new(methods, config.rpc.max_response_bytes, metrics.clone());
        let services = Services::new(
            registry.clone(),
            replays.clone(),
            rpc,
            door,
            config.session,
            metrics.clone(),
            clock,
        );
        let services = Arc::new(services.extended(extension).in_fleet(fleet.clone()));
        running.send_replace(Some(services.clone()));
        let webhooks = Webhooks::start(services.clone(), config.webhooks);
        let readiness = Readiness::new(
            services.clone(),
            pool.clone(),
            published.clone(),
            config.max_head_age,
            max_contents_age,
        );
        let readiness = Arc::new(readiness);
        let operator = OperatorService::new(operator::Parts {
            services: services.clone(),
            pool: pool.clone(),
            published: published.clone(),
            readiness: readiness.clone(),
            reload: follower.as_ref().map(Follower::handle),
            webhooks: webhooks.clone(),
            usage,
        });
        let admin_address = admin_listener.local_addr().unwrap_or(config.admin);
        let admin = Arc::new(Admin {
            services: services.clone(),
            pool: pool.clone(),
            published,
            webhooks: webhooks.clone(),
            registry: metrics_registry,
            readiness: readiness.clone(),
            access: Access::new(config.admin_token, admin_address),
            api: Api::new(operator.clone().into_rpc()),
            page: Page::new(ClientPort {
                address: listener.local_addr().unwrap_or(config.listen),
                is_tls: config.server.tls.is_some(),
            }),
        });

        let closing = CancellationToken::new();
        let last_spans = CancellationToken::new();
        let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(last_spans.clone())));
        let certificate = config.server.tls.clone().map(|own| Arc::new(Certificate::new(own)));
        let server = Server::new(
            listener,
            certificate.clone(),
            config.server,
            services.clone(),
            closing.clone(),
        );
        let mut serving = tokio::spawn(server.run());
        let mut critical = JoinSet::new();
        critical.spawn(named("ingest", ingest.run()));
        critical.spawn(named("pool", pool.clone().watched()));
        critical.spawn(named(
            "dispatch",
            dispatch(feed, pool.watch_answers(), registry, ContentFetches::new(source)),
        ));
        critical.spawn(named("levels", replays.follow_levels()));
        critical.spawn(named("admin", admin::serve(admin_listener, admin, config.admin_hosts)));
        if let Some(fleet) = fleet {
            critical.spawn(named("fleet", fleet.run(pool.clone())));
        }
        critical.spawn(named("operator", operator.clone().run()));
        let watched = services.clone();
        critical.spawn(named("client watch", async move {
            watched.clients.watch(config.life_signs).await
        }));
        let relieved = services.clone();
        critical.spawn(named(
            "backlog watch",
            async move { relieved.enforce_total_backlog().await },
        ));
        let swept = services.clone();
        critical.spawn(named("account sweep", async move { sweep(&swept).await }));
        if let Some(follower) = follower {
            critical.spawn(named(
                "reload",
                follower.run(services.clone(), certificate, pool.clone(), webhooks.clone()),
            ));
        }

        let broken = tokio::select! {
            () = stop => None,
            ended = critical.join_next() => Some(Broken(ended.and_then(Result::ok).unwrap_or("unknown"))),
            // The server must not end before `closing` is cancelled.
            ended = &mut serving => {
                serving = tokio::spawn(async { ended.unwrap_or_default() });
                Some(Broken("listener"))
            }
        };
        if let Some(broken) = &broken {
            error!("{broken}");
        }
        info!(clients = services.clients.len(), "draining");
        readiness.shut_down();
        closing.cancel();
        running.send_replace(None);
        // At once: a receiver that hangs must not make the time without a listener longer.
        tokio::join!(webhooks.stop(), services.clients.drain(config.grace));
        if let Ok(tasks) = serving.await
            && tokio::time::timeout(Duration::from_secs(1), tasks.wait())
                .await
                .is_err()
        {
            warn!(
                connections = tasks.len(),
                "connections open after shutdown.grace end with the process"
            );
        }
        operator.finish().await;
        last_spans.cancel();
        if let Some(exporting) = exporting
            && tokio::time::timeout(Duration::from_secs(1), exporting).await.is_err()
        {
            warn!("spans are lost: the collector does not take them in time");
        }
        if let Some(log) = &metrics.recorder.access_log
            && tokio::time::timeout(Duration::from_secs(1), log.finish())
                .await
                .is_err()
        {
            warn!("lines of the access log are lost: its destination takes none");
        }
        if let Some(path) = &config.positions_file {
            let saved = services.registry.save_sessions(unix_now());
            if let Err(why) = write_positions(path, &saved) {
                warn!("{why}; clients with sessions are closed once, and served live");
            }
        }
        broken.map_or(Ok(()), Err)
    }
}

fn bind(setting: &'static str, address: SocketAddr, reuse_port: bool) -> Result<TcpListener, StartError> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart need not wait until the kernel forgets the last connections of the old process.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|why| StartError::Bind { setting, address, why })
}

/// Adopts a socket on which the parent process listens already (systemd's `LISTEN_FDS`: the first is for clients, the
/// second for the operator).
fn adopt(
    setting: &'static str,
    address: SocketAddr,
    listener: std::net::TcpListener,
) -> Result<TcpListener, StartError> {
    info!("{setting}: using an inherited socket");
    let adopted = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener));
    adopted.map_err(|why| StartError::Bind { setting, address, why })
}

/// Runs a task that must not end; returns its name if it ends nevertheless, even by a panic.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    // The standard hook has written the panic by then.
    drop(AssertUnwindSafe(task).catch_unwind().await);
    name
}

async fn sweep(services: &Services) {
    loop {
        tokio::time::sleep(SWEEP).await;
        services.door.forget_idle();
        services.registry.expire_sessions(unix_now());
    }
}

/// Warns of namespaces beyond the usual ones that clients may call where a node serves them.
fn warn_of_namespaces(config: &Config) {
    if config.door.anonymous.methods.allowed.are_all() {
        warn!(
            "methods.allowed contains \"*\": clients may call every namespace of a node, except methods that sign, \
             write or administer; remove the setting to allow only the list in docs/methods.md"
        );
    }
}

/// Raises the limit of open files: each client is a file descriptor, and the usual soft limit of 1024 is for programs
/// that use `select(2)`.
fn raise_file_limit(max_connections: usize) {
    // Upstreams, the admin port, standard streams and the runtime's own.
    const OTHERS: u64 = 128;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < max_connections as u64 + OTHERS => {
            warn!("limits.max_connections is {max_connections}, but only {limit} files may be open: raise ulimit -n");
        }
        Ok(_) => {}
        Err(error) => warn!("cannot raise the limit of open files: {error}"),
    }
}
