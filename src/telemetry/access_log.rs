//! Access log: one JSON object per line for each HTTP request, each call, and each WebSocket connection's begin and end.
//!
//! A line holds names, sizes and times; never a key, a token, an address (URL), parameters or a result. Lines go through
//! a bounded channel to a thread of their own ([`writer`]), so that a disk that is slow or full delays nobody: a line
//! that finds no room is dropped and counted.

mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::{Serialize, Serializer};
use tokio::sync::oneshot;

use self::writer::Writer;
use super::{ReasonLabel, RequestId};

/// Most lines that wait for the writer; a line has some 300 bytes.
const WAITING: usize = 8192;

/// Destination of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output of the process.
    Stdout,
    /// Standard error of the process, where the log goes too.
    Stderr,
    /// File that lines are appended to.
    File(PathBuf),
}

/// Settings of the access log.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogSettings {
    /// Destination of the lines.
    pub destination: Destination,
    /// Share of requests and connections that are logged, from 0 to 1.
    pub sample: f64,
}

/// File of the access log that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("log.access: cannot open {}: {why}; choose a file that can be written, stdout or stderr", path.display())]
pub struct AccessLogError {
    path: PathBuf,
    why: io::Error,
}

/// Event that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LineEvent {
    /// HTTP request, answered or refused.
    Http,
    /// Call or notification, over either transport; each item of a batch is one.
    Call,
    /// Begin of a WebSocket connection.
    Open,
    /// End of a WebSocket connection.
    Close,
}

/// Transport that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Carrier {
    /// HTTP request.
    #[serde(rename = "http")]
    Http,
    /// WebSocket connection.
    #[serde(rename = "ws")]
    WebSocket,
}

/// Line of the access log; members without a value are left out.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Moment at which the line was made, in UTC.
    #[serde(serialize_with = "utc")]
    pub time: SystemTime,
    /// Event that the line is about.
    pub event: LineEvent,
    /// Transport of the request.
    pub transport: Carrier,
    /// Id of the HTTP request, or of the WebSocket connection.
    pub request_id: RequestId,
    /// Number of the message on its WebSocket connection, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<u64>,
    /// Trace id, if the request is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Account that is charged, as operators know it: `key NAME`, `token SUBJECT` or a network.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shared")]
    pub account: Option<Arc<str>>,
    /// HTTP method, or method of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Box<str>>,
    /// Outcome: `result`, `error`, `no_answer` for a notification, `abandoned` if the client left; of an HTTP request
    /// `answered` or the reason of a refusal; of a connection `accepted`, or the reason of its end.
    pub outcome: &'static str,
    /// HTTP status, JSON-RPC error code or WebSocket close code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// Source of a call's answer: `memory`, `shared`, `history`, `node`, or `headwater`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'static str>,
    /// Upstream that was asked last, without secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Box<str>>,
    /// Microseconds from the request to its answer; of a connection its age.
    pub duration_us: u64,
    /// Bytes received: a body, a call's parameters, or all bytes of a connection.
    pub bytes_in: u64,
    /// Bytes sent: a body, a call's response, or all bytes of a connection.
    pub bytes_out: u64,
}

fn utc<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_micros(*time))
}

fn shared<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text.as_deref().unwrap_or_default())
}

/// Lines that are not in the log, by reason: `full` (the writer is behind) or `write` (the file refuses them).
pub(super) type Dropped = Family<ReasonLabel, Counter>;

/// Sending end of the access log.
#[derive(Debug)]
pub struct AccessLog {
    /// `None` once the log is finished.
    lines: Mutex<Option<SyncSender<Line>>>,
    sample: f64,
    reopen: Arc<AtomicBool>,
    finished: Mutex<Option<oneshot::Receiver<()>>>,
    dropped: Dropped,
}

impl AccessLog {
    /// Opens the destination and starts the thread that writes to it.
    ///
    /// # Errors
    /// [`AccessLogError`] if the file cannot be opened.
    pub fn start(settings: &AccessLogSettings, dropped: Dropped) -> Result<Self, AccessLogError> {
        let (lines, waiting) = std::sync::mpsc::sync_channel(WAITING);
        let reopen = Arc::new(AtomicBool::new(false));
        let failed = |path: &Path, why| AccessLogError {
            path: path.to_owned(),
            why,
        };
        let path = match &settings.destination {
            Destination::File(path) => path.as_path(),
            Destination::Stdout => Path::new("standard output"),
            Destination::Stderr => Path::new("standard error"),
        };
        let writer = Writer::open(&settings.destination, reopen.clone(), dropped.clone());
        let writer = writer.map_err(|why| failed(path, why))?;
        let (done, finished) = oneshot::channel();
        let run = move || {
            writer.run(&waiting);
            // Nobody may wait for it.
            let _ = done.send(());
        };
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(run).map_err(|why| failed(path, why))?;
        Ok(Self {
            lines: Mutex::new(Some(lines)),
            sample: settings.sample,
            reopen,
            finished: Mutex::new(Some(finished)),
            dropped,
        })
    }

    /// Decides if a request or connection is logged.
    #[must_use]
    pub fn takes(&self) -> bool {
        self.sample >= 1.0 || fastrand::f64() < self.sample
    }

    /// Hands a line to the writer; drops and counts it if too many wait. Never waits.
    pub fn write(&self, line: Line) {
        let lines = self.lines.lock();
        let Some(lines) = lines.as_ref() else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lines.try_send(line) {
            self.dropped.get_or_create(&ReasonLabel { reason: "full" }).inc();
        }
    }

    /// Opens the file anew with the next line, as after a rotation.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Ends the log; returns once the lines that wait are written. The caller bounds the wait.
    pub async fn finish(&self) {
        drop(self.lines.lock().take());
        let finished = self.finished.lock().take();
        if let Some(finished) = finished {
            // The thread may have panicked.
            let _ = finished.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(method: &str) -> Line {
        Line {
            time: SystemTime::UNIX_EPOCH,
            event: LineEvent::Call,
            transport: Carrier::WebSocket,
            request_id: RequestId::parse(b"id-1").unwrap(),
            message: Some(7),
            trace_id: None,
            account: Some("key alice".into()),
            method: Some(method.into()),
            outcome: "error",
            code: Some(-32601),
            by: Some("headwater"),
            upstream: None,
            duration_us: 12,
            bytes_in: 2,
            bytes_out: 30,
        }
    }

    fn start(path: &Path, dropped: &Dropped) -> Result<AccessLog, AccessLogError> {
        let settings = AccessLogSettings {
            destination: Destination::File(path.to_owned()),
            sample: 1.0,
        };
        AccessLog::start(&settings, dropped.clone())
    }

    async fn read(path: &Path, lines: usize) -> String {
        let reading = async {
            loop {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                if text.lines().count() >= lines && text.ends_with('\n') {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap()
    }

    #[tokio::test]
    async fn a_line_is_one_json_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = start(&path, &Dropped::default()).unwrap();
        log.write(line("a\nb\""));
        log.finish().await;
        log.write(line("too late"));
        expect_test::expect![[r#"
            {"time":"1970-01-01T00:00:00.000000Z","event":"call","transport":"ws","request_id":"id-1","message":7,"account":"key alice","method":"a\nb\"","outcome":"error","code":-32601,"by":"headwater","duration_us":12,"bytes_in":2,"bytes_out":30}
        "#]]
        .assert_eq(&std::fs::read_to_string(&path).unwrap());
    }

    #[tokio::test]
    async fn the_file_is_opened_anew_on_request_and_when_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (path, first, second) = (
            dir.path().join("log"),
            dir.path().join("log.1"),
            dir.path().join("log.2"),
        );
        let log = start(&path, &Dropped::default()).unwrap();
        log.write(line("one"));
        read(&path, 1).await;
        std::fs::rename(&path, &first).unwrap();
        log.reopen();
        log.write(line("two"));
        assert!(read(&path, 1).await.contains("two"));
        assert!(!std::fs::read_to_string(&first).unwrap().contains("two"));
        // Without a request it is noticed, once a second.
        std::fs::rename(&path, &second).unwrap();
        let noticed = async {
            while !path.exists() {
                log.write(line("three"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), noticed).await.unwrap();
        log.finish().await;
        assert!(std::fs::read_to_string(&path).unwrap().contains("three"));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_stops_the_start_and_later_it_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let why = start(dir.path(), &Dropped::default()).unwrap_err().to_string();
        assert!(
            why.starts_with("log.access: cannot open ") && why.ends_with("stdout or stderr"),
            "{why}"
        );
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let log = start(&folder.join("log"), &Dropped::default()).unwrap();
        log.write(line("one"));
        read(&folder.join("log"), 1).await;
        let moved = dir.path().join("moved");
        std::fs::rename(&folder, &moved).unwrap();
        log.reopen();
        log.write(line("two"));
        // The old file stays open.
        assert!(read(&moved.join("log"), 2).await.contains("two"));
    }
}
