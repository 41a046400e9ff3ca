//! Proxies of others before the same node, in the form in which Debian packages them.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::Process;

const START: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    Haproxy,
    Nginx,
}

impl PeerKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Paths of the peers; one that is not there is left out.
#[derive(clap::Args, Clone, Debug)]
pub struct PeerPaths {
    /// Path of HAProxy; its rows are left out if it is not there.
    #[arg(long, env = "HAPROXY", default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
    /// Path of nginx; its rows are left out if it is not there.
    #[arg(long, env = "NGINX", default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
}

impl PeerPaths {
    /// Returns the peers that are installed.
    pub fn installed(&self) -> Vec<(PeerKind, &Path)> {
        let all = [(PeerKind::Haproxy, &*self.haproxy), (PeerKind::Nginx, &*self.nginx)];
        all.into_iter().filter(|(_, path)| path.is_file()).collect()
    }
}

/// A running peer, stopped when dropped.
pub struct Peer {
    process: Process,
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Peer {
    /// Starts a peer before the node and waits until it accepts connections.
    pub fn start(kind: PeerKind, binary: &Path, node: SocketAddr) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = tempfile::tempdir().context("a folder for a peer")?;
        let config = folder.path().join("peer.conf");
        let text = match kind {
            PeerKind::Haproxy => haproxy_config(address, node),
            PeerKind::Nginx => nginx_config(address, node, folder.path()),
        };
        fs::write(&config, text)?;
        let config = config.to_string_lossy().into_owned();
        let args = match kind {
            PeerKind::Haproxy => vec!["-db".to_owned(), "-q".to_owned(), "-f".to_owned(), config],
            PeerKind::Nginx => vec!["-c".to_owned(), config],
        };
        let peer = Self {
            process: Process::start_program(kind.name(), binary, &args, &[])?,
            address,
            _folder: folder,
        };
        let until = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < until, "{} does not listen on {address}", kind.name());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// A thread for each core, which is its default, and connections to the node that all requests share.
fn haproxy_config(address: SocketAddr, node: SocketAddr) -> String {
    format!(
        "global\n  maxconn 2000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 5m\n  timeout server 5m\n  timeout tunnel 1h\n  \
         http-reuse always\n\
         frontend clients\n  bind {address}\n  default_backend nodes\n\
         backend nodes\n  server node {node}\n"
    )
}

/// One process, which ends with the benchmark; workers of a master would outlive it.
fn nginx_config(address: SocketAddr, node: SocketAddr, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  tcp_nodelay on;\n  keepalive_requests 1000000000;\n  client_max_body_size 16m;\n  \
         client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  fastcgi_temp_path {folder}/fastcgi;\n  \
         uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
         map $http_upgrade $connection_header {{ default upgrade; '' ''; }}\n  \
         upstream node {{ server {node}; keepalive 512; keepalive_requests 1000000000; }}\n  \
         server {{\n    listen {address};\n    location / {{\n      proxy_pass http://node;\n      proxy_http_version 1.1;\n      \
         proxy_set_header Host {node};\n      proxy_set_header Upgrade $http_upgrade;\n      \
         proxy_set_header Connection $connection_header;\n      proxy_read_timeout 1h;\n    }}\n  }}\n}}\n"
    )
}
