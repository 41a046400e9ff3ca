//! Selection, order and page of the connected clients.

use std::time::Duration;

use std::cmp::Reverse;

use super::views::{ClientPage, ClientQuery, ClientSort, ClientView};
use crate::clock::Moment;
use crate::delivery::{Compression, Kind, LivenessSigns, Phase};
use crate::session::ConnectedClient;

/// Length of a page, if the query has none.
const PAGE: usize = 50;

/// Longest page.
const MAX_PAGE: usize = 200;

/// Client with the figures by which it is selected and ordered.
struct Figured {
    client: ConnectedClient,
    signs: LivenessSigns,
    key: u64,
}

/// Returns the page that a query asks for. All clients are looked at, and those of the page described.
pub(super) fn page(all: Vec<ConnectedClient>, query: &ClientQuery, now: Moment) -> ClientPage {
    let connected = all.len();
    let mut matching: Vec<Figured> = all
        .into_iter()
        .map(|client| figured(client, query.sort, now))
        .filter(|figured| matches(figured, query))
        .collect();
    matching.sort_unstable_by_key(|figured| Reverse((figured.key, figured.client.writer.id())));
    let length = query.limit.unwrap_or(PAGE).min(MAX_PAGE);
    let page = matching.iter().skip(query.offset).take(length);
    ClientPage {
        matching: matching.len(),
        connected,
        clients: page
            .map(|figured| view_of(&figured.client, &figured.signs, now))
            .collect(),
    }
}

/// Describes a client.
pub(super) fn view(client: &ConnectedClient, now: Moment) -> ClientView {
    view_of(client, &client.writer.signs(now), now)
}

fn figured(client: ConnectedClient, sort: ClientSort, now: Moment) -> Figured {
    let signs = client.writer.signs(now);
    let key = match sort {
        ClientSort::Newest => 0,
        ClientSort::Queue => signs.waiting_bytes as u64,
        ClientSort::Sent => signs.sent.bytes,
        ClientSort::Notifications => signs.sent.notifications,
        ClientSort::Subscriptions => Kind::ALL.iter().map(|kind| u64::from(client.writer.live(*kind))).sum(),
        ClientSort::Calls => client.writer.calls_in_flight().into(),
    };
    Figured { client, signs, key }
}

fn matches(Figured { client, signs, .. }: &Figured, query: &ClientQuery) -> bool {
    let has_text = |text: &String| {
        let address = client.pass.address().map(|address| address.to_string());
        client.pass.account().label().contains(&**text) || address.is_some_and(|address| address.contains(&**text))
    };
    let has_kind = |name: &String| {
        let mut kinds = Kind::ALL.into_iter();
        kinds.any(|kind| kind.label() == name && client.writer.live(kind) > 0)
    };
    query.min_queue.is_none_or(|least| signs.waiting_bytes as u64 >= least)
        && query.kind.as_ref().is_none_or(has_kind)
        && query.text.as_ref().is_none_or(has_text)
}

fn view_of(client: &ConnectedClient, signs: &LivenessSigns, now: Moment) -> ClientView {
    let ConnectedClient { writer, pass, since } = client;
    let live = Kind::ALL
        .into_iter()
        .map(|kind| (kind.label().to_owned(), writer.live(kind)));
    ClientView {
        id: writer.id(),
        account: pass.account().label(),
        address: pass.address().map(|address| address.to_canonical().to_string()),
        plan: pass.terms().rights.plan.name.to_string(),
        connected_ms: millis(now.since(*since)),
        silent_ms: signs.last_activity.map_or(0, |last| millis(now.since(last))),
        subscriptions: live.filter(|(_, count)| *count > 0).collect(),
        calls_in_flight: writer.calls_in_flight(),
        queued_bytes: signs.waiting_bytes as u64,
        blocked_ms: signs.blocked_since.map(|since| millis(now.since(since))),
        notifications: signs.sent.notifications,
        sent_bytes: signs.sent.bytes,
        dropped: writer.shed(),
        compression: match writer.compression() {
            Compression::None => "none",
            Compression::NoTakeover => "noTakeover",
            Compression::Takeover => "takeover",
        }
        .to_owned(),
        closing: writer.phase() != Phase::Open,
    }
}

/// Returns a duration in whole milliseconds.
fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
