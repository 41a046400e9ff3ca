//! Messages to systemd (`Type=notify`): started, alive, stopping. Elsewhere, without `NOTIFY_SOCKET`, nothing is sent.
//!
//! The protocol is one datagram of `NAME=VALUE` lines for each message (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::{debug, warn};

/// Variables by which the service manager says where it listens, and the interval of its watchdog.
#[derive(Debug, Default)]
pub struct Variables {
    /// `NOTIFY_SOCKET`: a path, or `@` and a name in the abstract namespace.
    pub socket: Option<OsString>,
    /// `WATCHDOG_USEC`.
    pub watchdog_micros: Option<String>,
    /// `WATCHDOG_PID`: the process that is watched; absent for any.
    pub watchdog_pid: Option<String>,
}

impl Variables {
    /// Reads the variables of this process.
    pub fn of_process() -> Self {
        let text = |name| std::env::var(name).ok();
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
            watchdog_micros: text("WATCHDOG_USEC"),
            watchdog_pid: text("WATCHDOG_PID"),
        }
    }

    /// Returns the time within which this process, `own`, must show that it is alive.
    fn watchdog(&self, own: u32) -> Option<Duration> {
        let is_own = self.watchdog_pid.as_ref().is_none_or(|pid| pid.parse() == Ok(own));
        let micros = self.watchdog_micros.as_ref()?.parse().ok()?;
        (is_own && micros > 0).then_some(Duration::from_micros(micros))
    }
}

/// Connection to the service manager.
#[derive(Clone, Debug)]
pub struct ServiceManager {
    socket: Arc<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Connects to the service manager; `None` if there is none, or it cannot be reached, which is logged.
    pub fn connect(variables: &Variables) -> Option<Self> {
        let path = variables.socket.as_ref()?;
        match open(path) {
            Ok(socket) => Some(Self {
                socket: Arc::new(socket),
                watchdog: variables.watchdog(std::process::id()),
            }),
            Err(why) => {
                warn!(
                    "cannot notify the service manager at NOTIFY_SOCKET {}: {why}",
                    path.display()
                );
                None
            }
        }
    }

    /// Reports that the ports are open. Nodes may still be missing, which `/ready` reports.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports that clients are being drained, for at most `grace`; a unit's shorter `TimeoutStopSec` is extended.
    pub fn stopping(&self, grace: Duration) {
        let micros = (grace + SLACK).as_micros();
        self.send(&format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={micros}"));
    }

    /// Reports twice within each period of the watchdog that tasks still run; returns at once if there is no watchdog.
    pub async fn keep_alive(self) {
        let Some(period) = self.watchdog else { return };
        let mut round = tokio::time::interval(period / 2);
        loop {
            round.tick().await;
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        if let Err(why) = self.socket.send(message.as_bytes()) {
            // The manager kills or keeps the process; there is nobody else to tell.
            debug!("the service manager did not take {message:?}: {why}");
        }
    }
}

/// Time for the end of the process after the drain.
const SLACK: Duration = Duration::from_secs(5);

fn open(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&address(path)?)?;
    // A manager that does not read must not stop the runtime.
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Returns the address of a path; `@` stands for the zero byte with which an abstract name begins.
fn address(path: &OsStr) -> io::Result<SockAddr> {
    let mut path = path.as_bytes().to_vec();
    if let Some(first) = path.first_mut().filter(|first| **first == b'@') {
        *first = 0;
    }
    SockAddr::unix(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn start_and_stop_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let variables = Variables {
            socket: Some(path.into()),
            ..Variables::default()
        };
        let service = ServiceManager::connect(&variables).unwrap();
        service.ready("serving");
        service.stopping(Duration::from_secs(10));
        assert_eq!(heard(&manager), "READY=1\nSTATUS=serving");
        assert_eq!(
            heard(&manager),
            "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=15000000"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_in_the_abstract_namespace_is_reached() {
        let name = OsString::from(format!("@headwater-notify-{}", std::process::id()));
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        socket.bind(&address(&name).unwrap()).unwrap();
        let variables = Variables {
            socket: Some(name),
            ..Variables::default()
        };
        ServiceManager::connect(&variables).unwrap().ready("serving");
        assert_eq!(heard(&socket.into()), "READY=1\nSTATUS=serving");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        assert!(ServiceManager::connect(&Variables::default()).is_none());
        let gone = Variables {
            socket: Some("/nowhere/notify".into()),
            ..Variables::default()
        };
        assert!(ServiceManager::connect(&gone).is_none());
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let watchdog = |micros: &str, pid: Option<&str>| {
            let variables = Variables {
                watchdog_micros: Some(micros.to_owned()),
                watchdog_pid: pid.map(str::to_owned),
                ..Variables::default()
            };
            variables.watchdog(7)
        };
        assert_eq!(watchdog("30000000", Some("7")), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("30000000", Some("8")), None);
        assert_eq!(watchdog("0", None), None);
        assert_eq!(watchdog("soon", None), None);
        assert_eq!(Variables::default().watchdog(7), None);
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_a_period() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let variables = Variables {
            socket: Some(path.into()),
            watchdog_micros: Some("2000000".into()),
            watchdog_pid: None,
        };
        let service = ServiceManager::connect(&variables).unwrap();
        let signs = tokio::spawn(service.keep_alive());
        tokio::time::sleep(Duration::from_millis(2500)).await;
        signs.abort();
        // At 0, 1 and 2 seconds.
        for _ in 0..3 {
            assert_eq!(heard(&manager), "WATCHDOG=1");
        }
        let mut buffer = [0; 16];
        assert!(manager.recv(&mut buffer).is_err(), "there is no fourth");
    }
}
