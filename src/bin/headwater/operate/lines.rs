//! Answers of the API as lines for people.

use std::collections::BTreeMap;

use headwater::operator::{ClientPage, Status, TapItem, UpstreamState, UpstreamView, UsageRow};
use headwater::webhooks::HookStatus;

use super::table::Align::{Left, Right};
use super::table::{bytes, count, hour, latency, printable, table, time};

/// Describes the status.
pub(super) fn status(status: &Status) -> String {
    let readiness = match &status.not_ready {
        None => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
    };
    let head = match &status.head {
        None => "none yet".to_owned(),
        Some(head) => format!("{} {} {} ago", head.number, head.hash, time(head.age_ms)),
    };
    let lines = [
        (
            "headwater",
            format!("{}, up {}, {readiness}", status.version, time(status.uptime_ms)),
        ),
        ("head", head),
        (
            "clients",
            format!(
                "{} of {} accounts; subscriptions: {}",
                status.clients,
                status.accounts,
                sums(&status.subscriptions)
            ),
        ),
        (
            "delivery",
            format!(
                "p50 {}, p99 {} within the last minute; {} written: {}",
                latency(status.latency.p50_ms),
                latency(status.latency.p99_ms),
                bytes(status.sent_bytes),
                sums(&status.deliveries)
            ),
        ),
        (
            "queues",
            format!(
                "{}, the longest {}; {} slow clients",
                bytes(status.queues.bytes),
                bytes(status.queues.largest),
                status.queues.slow
            ),
        ),
        ("refused", sums(&status.refusals)),
        ("closed", sums(&status.closes)),
        (
            "reorgs",
            format!("{}; failovers: {}", status.reorgs, sums(&status.failovers)),
        ),
    ];
    let mut out = String::new();
    for (name, text) in lines {
        out.push_str(&format!("{name:<10} {}\n", printable(&text)));
    }
    out.push('\n');
    out.push_str(&upstreams(&status.upstreams));
    if !status.webhooks.is_empty() {
        out.push('\n');
        out.push_str(&webhooks(&status.webhooks));
    }
    out
}

fn webhooks(all: &[HookStatus]) -> String {
    let row = |one: &HookStatus| {
        vec![
            one.name.clone(),
            one.kind.clone(),
            one.phase.label().to_owned(),
            one.behind.map_or_else(String::new, |blocks| blocks.to_string()),
            time(one.lag_ms),
            count(one.events),
            one.attempts.to_string(),
            one.error.clone().unwrap_or_default(),
        ]
    };
    let head = [
        ("WEBHOOK", Left),
        ("KIND", Left),
        ("STATE", Left),
        ("BEHIND", Right),
        ("LAG", Right),
        ("EVENTS", Right),
        ("ATTEMPTS", Right),
        ("ERROR", Left),
    ];
    table(&head, &all.iter().map(row).collect::<Vec<_>>())
}

/// Lists sums that are not 0.
fn sums(sums: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = sums
        .iter()
        .filter(|(_, sum)| **sum > 0)
        .map(|(name, sum)| format!("{name} {}", count(*sum)))
        .collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Returns the state of an upstream in one word.
pub(super) fn state(state: UpstreamState) -> &'static str {
    match state {
        UpstreamState::Active => "active",
        UpstreamState::Standby => "standby",
        UpstreamState::Cordoned => "cordoned",
        UpstreamState::Refused => "refused",
        UpstreamState::Down => "down",
    }
}

fn upstreams(all: &[UpstreamView]) -> String {
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|one| {
            vec![
                one.index.to_string(),
                one.address.clone(),
                state(one.state).to_owned(),
                one.head.map_or_else(String::new, |head| head.to_string()),
                one.lag_ms.map_or_else(String::new, time),
                latency(one.latency_ms),
                one.calls_in_flight.to_string(),
                one.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = [
        ("#", Right),
        ("UPSTREAM", Left),
        ("STATE", Left),
        ("HEAD", Right),
        ("LAG", Right),
        ("LATENCY", Right),
        ("CALLS", Right),
        ("ERROR", Left),
    ];
    table(&head, &rows)
}

/// Lists a page of clients, of which so many were skipped.
pub(super) fn clients(page: &ClientPage, offset: usize) -> String {
    let rows: Vec<Vec<String>> = page
        .clients
        .iter()
        .map(|client| {
            vec![
                client.id.to_string(),
                client.account.clone(),
                client.address.clone().unwrap_or_default(),
                client.plan.clone(),
                time(client.connected_ms),
                client.subscriptions.values().sum::<u32>().to_string(),
                client.calls_in_flight.to_string(),
                bytes(client.queued_bytes),
                count(client.notifications),
                bytes(client.sent_bytes),
                if client.closing {
                    "closing".to_owned()
                } else {
                    client
                        .blocked_ms
                        .map_or_else(String::new, |ms| format!("slow for {}", time(ms)))
                },
            ]
        })
        .collect();
    let head = [
        ("ID", Right),
        ("ACCOUNT", Left),
        ("ADDRESS", Left),
        ("PLAN", Left),
        ("AGE", Right),
        ("SUBS", Right),
        ("CALLS", Right),
        ("QUEUE", Right),
        ("EVENTS", Right),
        ("SENT", Right),
        ("", Left),
    ];
    let more = page.matching.saturating_sub(offset.saturating_add(page.clients.len()));
    let note = if more > 0 {
        format!("{more} more of {} clients: --limit, --offset\n", page.connected)
    } else {
        String::new()
    };
    table(&head, &rows) + &note
}

/// Lists usage.
pub(super) fn usage(rows: &[UsageRow], by_hour: bool) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.account.clone(),
                count(row.requests),
                count(row.refusals),
                count(row.notifications),
                bytes(row.bytes),
            ];
            if by_hour {
                cells.insert(0, hour(row.hour));
            }
            cells
        })
        .collect();
    let mut head = vec![
        ("ACCOUNT", Left),
        ("REQUESTS", Right),
        ("REFUSED", Right),
        ("EVENTS", Right),
        ("BYTES", Right),
    ];
    if by_hour {
        head.insert(0, ("HOUR (UTC)", Left));
    }
    table(&head, &rows)
}

/// Describes an item of a tap: `>` from the client, `<` to the client.
pub(super) fn tapped(item: &TapItem) -> String {
    let line = |mark: char, bytes: u64, text: &Option<String>| match text {
        Some(text) => format!("{mark} {}\n", printable(text)),
        None => format!("{mark} [{bytes} bytes]\n"),
    };
    match item {
        TapItem::Received { bytes, text } => line('>', *bytes, text),
        TapItem::Sent { bytes, text } => line('<', *bytes, text),
        TapItem::Missed { count } => format!("! {count} messages missed\n"),
        TapItem::Ended { reason } => match reason.as_str() {
            "time" => "! the time is over\n".to_owned(),
            "bytes" => "! the bytes are used up\n".to_owned(),
            _ => "! the client has left\n".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_clients_says_how_many_follow_it() {
        let client = serde_json::json!({
            "id": 1, "account": "anonymous", "address": null, "plan": "default", "connectedMs": 0, "silentMs": 0, "dropped": 0,
            "subscriptions": {}, "callsInFlight": 0, "queuedBytes": 0, "blockedMs": null, "sentBytes": 0,
            "notifications": 0, "compression": "none", "closing": false
        });
        let page = serde_json::json!({"matching": 5, "connected": 9, "clients": [client.clone(), client]});
        let page: ClientPage = serde_json::from_value(page).unwrap();
        for (offset, more) in [(0, "3 more of 9"), (1, "2 more of 9"), (3, ""), (usize::MAX, "")] {
            let note = clients(&page, offset);
            let note = note.lines().nth(3).unwrap_or_default();
            assert_eq!(note.split(" clients").next().unwrap(), more, "{offset}");
        }
    }

    #[test]
    fn messages_of_a_client_cannot_act_on_the_terminal() {
        let item = TapItem::Received {
            bytes: 9,
            text: Some("{\"\u{9b}31m\u{202e}\n\u{7f}\":1}".into()),
        };
        assert_eq!(tapped(&item), "> {\"\\u{9b}31m\\u{202e}\\n\\u{7f}\":1}\n");
    }
}
