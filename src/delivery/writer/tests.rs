use std::time::Duration;
use tokio::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::Clock;
use crate::delivery::{Event, Kind};
use crate::telemetry::Metrics;

/// Returns a writer and the client's end of its socket.
pub(super) async fn pair(max_bytes: usize, holdoff: Duration) -> (Arc<ClientWriter>, TcpStream) {
    let limits = WriterLimits {
        max_bytes,
        max_total_bytes: 1 << 20,
        max_age: Duration::from_secs(60),
        holdoff,
    };
    one_of(&WriterShared::new(limits, Clock::start(), &Metrics::new().0)).await
}

pub(super) async fn one_of(shared: &Arc<WriterShared>) -> (Arc<ClientWriter>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    server.writable().await.unwrap();
    let writer = ClientWriter::new(server.into(), Compression::None, Arc::default(), shared.clone());
    (writer, client)
}

pub(super) fn one(kind: Kind, len: usize) -> Arc<Batch> {
    Batch::new(kind, vec![Event::new(&vec![b'1'; len])].into(), Instant::now())
}

pub(super) fn released() -> Arc<Recipient> {
    let recipient = Recipient::new(SubscriptionId::random(), 0);
    recipient.release(Moment::START);
    recipient
}

pub(super) async fn read(client: &mut TcpStream) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 20];
    let read = tokio::time::timeout(Duration::from_secs(5), client.read(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer.truncate(read);
    buffer
}

#[tokio::test]
async fn many_pushes_are_one_flush() {
    let (writer, mut client) = pair(10_000, Duration::ZERO).await;
    let to = released();
    assert!(writer.push_events(&to, &one(Kind::Heads, 1), Moment::START));
    assert!(!writer.push_events(&to, &one(Kind::Logs, 1), Moment::START));
    writer.flush();
    assert_eq!(read(&mut client).await.len(), 2 * one(Kind::Heads, 1).wire_len);
    assert_eq!(writer.waits(), Waits::default());
    assert!(
        writer.push_events(&to, &one(Kind::Heads, 1), Moment::START),
        "the next push asks again"
    );
}

#[tokio::test]
async fn the_answer_leaves_alone_and_the_session_is_told_until_when_to_wait() {
    let (writer, mut client) = pair(10_000, Duration::from_millis(30)).await;
    let to = Recipient::new(SubscriptionId::random(), 0);
    let _ = writer.push_events(&to, &one(Kind::Heads, 1), Moment::START);
    writer.flush();
    assert_eq!(
        writer.waits(),
        Waits::default(),
        "nothing to wait for before the answer"
    );
    assert!(matches!(
        writer.answer(vec![Bytes::from_static(b"answer")], vec![to.clone()]),
        Answered::Yes
    ));
    assert_eq!(read(&mut client).await, b"answer");
    let until = writer.waits().until.unwrap();
    assert_eq!(Some(until), to.release_at());
    tokio::time::sleep(Duration::from_millis(40)).await;
    writer.flush();
    assert_eq!(read(&mut client).await.len(), one(Kind::Heads, 1).wire_len);
    assert_eq!(writer.waits(), Waits::default());
}
