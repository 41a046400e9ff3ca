//! Headwater process under attack, with default settings.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::peer::connect;

/// Timeout of a start, longer than one takes on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A headwater process, which is killed when this is dropped.
pub struct Proxy {
    process: Child,
    log: PathBuf,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Proxy {
    /// Starts the process with these upstreams, written as in a configuration file; `settings` are TOML that follows
    /// them.
    pub async fn start(directory: &Path, upstreams: &str, settings: &str) -> Result<Self, String> {
        let (file, log) = (directory.join("attack.toml"), directory.join("proxy.log"));
        let config =
            format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nupstream = [{upstreams}]\n\n{settings}\n");
        std::fs::write(&file, config).map_err(|why| why.to_string())?;
        let output = File::create(&log).map_err(|why| why.to_string())?;
        let binary =
            std::env::var_os("PROXY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_headwater").into(), PathBuf::from);
        let process = Command::new(&binary)
            .env_clear()
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|why| format!("{}: {why}", binary.display()))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut proxy = Self {
            process,
            log,
            address: nowhere,
            admin: nowhere,
        };
        let patience = Instant::now() + START;
        while !proxy.is_ready().await {
            if let Some(how) = proxy.ended() {
                return Err(how);
            }
            if Instant::now() > patience {
                return Err(format!("it is not ready within {START:?}\n{}", proxy.newest_lines()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(proxy)
    }

    /// Checks if the process is ready. Reads its ports from its log first; it is ready when it has a head.
    async fn is_ready(&mut self) -> bool {
        if self.admin.port() == 0 {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let port = |before: &str| -> Option<SocketAddr> {
                let (_, rest) = log.split_once(before)?;
                rest.split_once(' ')?.0.parse().ok()
            };
            let Some((address, admin)) = port("serving on ws://").zip(port("admin on http://")) else {
                return false;
            };
            (self.address, self.admin) = (address, admin);
        }
        is_ready(self.admin).await
    }

    /// Returns the exit status and the last lines of the log, if the process has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.process.try_wait().ok()??;
        Some(format!("headwater ended ({status})\n{}", self.newest_lines()))
    }

    fn newest_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Checks if `/ready` answers 200 on the operator's port.
pub async fn is_ready(admin: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asking = async {
        let mut stream = connect(admin, 1, None).await.ok()?;
        let request = "GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await.ok()?;
        Some(page.starts_with("HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(5), asking).await == Ok(Some(true))
}

/// Returns the resident memory of a process in bytes (proc(5), `VmRSS`).
pub fn resident(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
