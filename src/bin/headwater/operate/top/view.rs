//! Drawing of the page: figures in, widgets out.

use headwater::operator::{Entry, Event, Status, UpstreamState, UpstreamView};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Sparkline, Table};

use super::super::lines::state;
use super::super::table::{bytes, count, latency, printable, time};
use super::Figures;

/// Lines of the panels of sums and clients.
const SUMS: u16 = 9;

/// Draws the page.
pub(super) fn draw(frame: &mut Frame<'_>, figures: &Figures) {
    let Some(status) = &figures.status else {
        frame.render_widget("waiting for the first status; q ends this", frame.area());
        return;
    };
    let upstreams = u16::try_from(status.upstreams.len()).unwrap_or(u16::MAX).min(12);
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(upstreams + 2),
        Constraint::Length(SUMS),
        Constraint::Length(3),
        Constraint::Min(3),
    ]);
    let [head, nodes, sums, blocks, events] = rows.areas(frame.area());
    frame.render_widget(Paragraph::new(header(status)), head);
    frame.render_widget(upstream_table(&status.upstreams), nodes);
    let thirds = [
        Constraint::Min(46),
        Constraint::Percentage(25),
        Constraint::Percentage(35),
    ];
    let [left, middle, right] = Layout::horizontal(thirds).spacing(2).areas(sums);
    frame.render_widget(Paragraph::new(sum_lines(figures, status)).block(titled("sums")), left);
    deliveries(frame, figures, middle);
    frame.render_widget(busiest(status), right);
    frame.render_widget(
        Paragraph::new(block_line(status, blocks.width)).block(titled("blocks")),
        blocks,
    );
    let height = usize::from(events.height.saturating_sub(1));
    let newest = figures.events.iter().rev().take(height);
    let lines: Vec<Line<'_>> = newest.map(event_line).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("events")), events);
}

fn titled(title: &'static str) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().dim())
        .title(title)
}

fn header(status: &Status) -> Vec<Line<'static>> {
    let readiness = match &status.not_ready {
        None => Span::styled("ready", Color::Green),
        Some(why) => Span::styled(printable(&format!("not ready: {why}")), Color::Red),
    };
    let first = Line::from(vec![
        Span::from("headwater ").bold(),
        Span::from(printable(&format!(
            "{}  up {}  ",
            status.version,
            time(status.uptime_ms)
        ))),
        readiness,
        Span::from("  (q ends this)").dim(),
    ]);
    let head = match &status.head {
        None => "no head yet".to_owned(),
        Some(head) => format!("head {} {} {} ago", head.number, head.hash, time(head.age_ms)),
    };
    vec![first, Line::from(head)]
}

fn upstream_table(upstreams: &[UpstreamView]) -> Table<'static> {
    let rows = upstreams.iter().map(|one| {
        let colour = match one.state {
            UpstreamState::Active => Style::new().green(),
            UpstreamState::Standby => Style::new(),
            UpstreamState::Cordoned => Style::new().yellow(),
            UpstreamState::Refused | UpstreamState::Down => Style::new().red(),
        };
        Row::new([
            one.index.to_string(),
            state(one.state).to_owned(),
            one.head.map_or_else(String::new, |head| head.to_string()),
            one.lag_ms.map_or_else(String::new, time),
            latency(one.latency_ms),
            one.calls_in_flight.to_string(),
            printable(&one.address),
            printable(one.error.as_deref().unwrap_or_default()),
        ])
        .style(colour)
    });
    let widths = [
        Constraint::Length(2),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(5),
        Constraint::Fill(2),
        Constraint::Fill(1),
    ];
    let names = ["#", "state", "head", "lag", "latency", "calls", "upstream", "error"];
    Table::new(rows, widths)
        .header(Row::new(names).style(Style::new().dim()))
        .block(titled("upstreams"))
}

fn sum_lines(figures: &Figures, status: &Status) -> Vec<Line<'static>> {
    let rates = &figures.rates;
    let subscriptions = status.subscriptions.values().sum();
    let refused = status.refusals.values().sum();
    let per_second = |rate: f64| count(rate.round() as u64);
    [
        (
            "clients",
            format!("{}, {} subscriptions", status.clients, count(subscriptions)),
        ),
        (
            "events/s",
            format!(
                "{}, {} written",
                per_second(rates.deliveries),
                bytes(rates.sent.round() as u64)
            ),
        ),
        (
            "calls/s",
            format!(
                "{}, {} read",
                per_second(rates.requests),
                bytes(rates.received.round() as u64)
            ),
        ),
        (
            "latency",
            format!(
                "p50 {}, p99 {}",
                latency(status.latency.p50_ms),
                latency(status.latency.p99_ms)
            ),
        ),
        (
            "queues",
            format!(
                "{}, longest {}, {} slow",
                bytes(status.queues.bytes),
                bytes(status.queues.largest),
                status.queues.slow
            ),
        ),
        ("refused", count(refused)),
        (
            "reorgs",
            format!(
                "{}, {} failovers",
                status.reorgs,
                status.failovers.values().sum::<u64>()
            ),
        ),
    ]
    .map(|(name, text)| Line::from(vec![Span::from(format!("{name:<9} ")).dim(), Span::from(text)]))
    .into()
}

fn deliveries(frame: &mut Frame<'_>, figures: &Figures, area: Rect) {
    let width = usize::from(area.width.saturating_sub(2));
    let skipped = figures.deliveries.len().saturating_sub(width);
    let newest = figures.deliveries.iter().skip(skipped).copied();
    let peak = newest.clone().max().unwrap_or(0);
    let title = format!("events/s, at most {}", count(peak));
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().dim())
        .title(title);
    frame.render_widget(
        Sparkline::default().data(newest.collect::<Vec<u64>>()).block(block),
        area,
    );
}

fn busiest(status: &Status) -> Table<'static> {
    let rows = status
        .busiest
        .iter()
        .map(|busy| Row::new([busy.client.to_string(), printable(&busy.account), bytes(busy.bytes)]));
    let widths = [Constraint::Length(8), Constraint::Fill(1), Constraint::Length(9)];
    Table::new(rows, widths)
        .header(Row::new(["client", "account", "sent"]).style(Style::new().dim()))
        .block(titled("busiest clients"))
}

/// Lists the newest blocks that fit, newest first; dropped ones are struck out.
fn block_line(status: &Status, width: u16) -> Line<'static> {
    let mut spans = Vec::new();
    let mut room = usize::from(width);
    for block in status.blocks.iter().rev() {
        let text = format!("{} {}", block.number, &block.hash.to_string()[2..6]);
        if text.len() + 2 > room {
            break;
        }
        room -= text.len() + 2;
        let style = if block.dropped {
            Style::new().red().add_modifier(Modifier::CROSSED_OUT)
        } else {
            Style::new()
        };
        spans.push(Span::styled(text, style));
        spans.push(Span::from("  "));
    }
    Line::from(spans)
}

fn event_line(entry: &Entry) -> Line<'static> {
    let clock = entry.at / 1000 % 86_400;
    let clock = format!("{:02}:{:02}:{:02} ", clock / 3600, clock / 60 % 60, clock % 60);
    let (text, colour) = event_text(&entry.event);
    Line::from(vec![Span::from(clock).dim(), Span::styled(printable(&text), colour)])
}

/// Describes an event, with its colour.
fn event_text(event: &Event) -> (String, Color) {
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
    match event {
        Event::Failover { from, to, reason } => (
            format!("active upstream: {} > {} ({reason})", or_none(from), or_none(to)),
            Color::Yellow,
        ),
        Event::Reorg { fork, depth } => (format!("reorg: {depth} blocks above {fork} dropped"), Color::Yellow),
        Event::ContinuityLost => ("continuity lost: subscribers were closed".to_owned(), Color::Red),
        Event::Closed {
            client,
            account,
            reason,
            code,
        } => {
            let code = code.map_or_else(String::new, |code| format!(" {code}"));
            (
                format!("client {client} ({account}) closed: {reason}{code}"),
                Color::Reset,
            )
        }
        Event::Refused { counts } => {
            let counts: Vec<String> = counts
                .iter()
                .map(|(reason, count)| format!("{reason} {count}"))
                .collect();
            (format!("refused: {}", counts.join(", ")), Color::Yellow)
        }
        Event::Reloaded { needs_restart } if needs_restart.is_empty() => ("reloaded".to_owned(), Color::Green),
        Event::Reloaded { needs_restart } => (
            format!("reloaded; only a restart applies {}", needs_restart.join(", ")),
            Color::Yellow,
        ),
        Event::ReloadRefused { error } => (format!("not reloaded: {error}"), Color::Red),
        Event::Cordoned { upstream } => (format!("cordoned {upstream}"), Color::Yellow),
        Event::Uncordoned { upstream } => (format!("uncordoned {upstream}"), Color::Green),
        Event::Drained => ("drained".to_owned(), Color::Yellow),
        Event::Undrained => ("the drain has ended".to_owned(), Color::Green),
        Event::Missed { count } => (format!("{count} events missed"), Color::Red),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn status(edit: impl FnOnce(&mut serde_json::Value)) -> Status {
        let hash = |byte: &str| format!("0x{}", byte.repeat(32));
        let block = |number: u64, byte: &str, parent: &str, dropped: bool| {
            json!({
                "number": number, "hash": hash(byte), "parent": hash(parent), "timestamp": 0, "ageMs": 0,
                "dropped": dropped
            })
        };
        let upstream = |index: u64, state: &str| {
            json!({
                "index": index, "address": format!("ws://node-{index}:8546"), "state": state, "active": state == "active",
                "cordoned": false, "head": 120, "lagMs": 0, "latencyMs": 1.25, "callsInFlight": 3, "connects": 1,
                "announcements": null, "lanes": null, "error": null
            })
        };
        let mut status = json!({
            "version": "0.1.0", "atMs": 1000, "uptimeMs": 7_500_000, "ready": true, "notReady": null, "drained": false,
            "chainId": "0x1", "head": {"number": 120, "hash": hash("ab"), "ageMs": 1200},
            "upstreams": [upstream(0, "active"), upstream(1, "standby")],
            "clients": 4999, "connections": 6000, "accounts": 12,
            "subscriptions": {"newHeads": 4999, "logs": 120}, "logFilters": 90,
            "deliveries": {"newHeads": 1000}, "sentBytes": 0, "receivedBytes": 0, "savedBytes": 0,
            "requests": {"local_result": 10},
            "latency": {"p50Ms": 0.4, "p99Ms": 3.2, "buckets": []},
            "queues": {"bytes": 2048, "largest": 1024, "slow": 1},
            "closes": {}, "refusals": {"requests": 7}, "failovers": {"lost": 1}, "reorgs": 2,
            "blocks": [
                block(118, "a1", "a0", false), block(119, "b2", "a1", true), block(119, "a2", "a1", false),
                block(120, "ab", "a2", false)
            ],
            "busiest": [{"client": 17, "account": "key alice", "bytes": 123_456}]
        });
        edit(&mut status);
        serde_json::from_value(status).unwrap()
    }

    fn page(figures: &Figures, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, figures)).unwrap();
        let text = terminal.backend().to_string();
        let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[track_caller]
    fn check(figures: &Figures, width: u16, height: u16, expect: Expect) {
        expect.assert_eq(&page(figures, width, height));
    }

    fn figures() -> Figures {
        let mut figures = Figures::default();
        figures.update(status(|_| {}));
        figures.update(status(|status| {
            status["atMs"] = json!(3000);
            status["deliveries"]["newHeads"] = json!(11_000);
            status["sentBytes"] = json!(4 << 20);
            status["requests"]["local_result"] = json!(30);
        }));
        for (at, event) in [
            (36_061_000, Event::Reorg { fork: 118, depth: 1 }),
            (
                36_062_000,
                Event::Closed {
                    client: 9,
                    account: "203.0.113.7".into(),
                    reason: "slow_consumer".into(),
                    code: Some(1013),
                },
            ),
        ] {
            figures.enter(Entry { number: 1, at, event });
        }
        figures
    }

    #[test]
    fn the_page_shows_state_rates_blocks_and_events() {
        check(
            &figures(),
            110,
            22,
            expect![[r#"
                headwater 0.1.0  up 2h 5m  ready  (q ends this)
                head 120 0xabababababababababababababababababababababababababababababababab 1.2 s ago
                upstreams─────────────────────────────────────────────────────────────────────────────────────────────────────
                #  state    head        lag     latency   calls upstream                                  error
                0  active   120         0 ms    1.2 ms    3     ws://node-0:8546
                1  standby  120         0 ms    1.2 ms    3     ws://node-1:8546
                sums──────────────────────────────────────────  events/s, at most 5.0k──────  busiest clients─────────────────
                clients   4999, 5.1k subscriptions              █                             client   account       sent
                events/s  5.0k, 2.0 MiB written                 █                             17       key alice     121 KiB
                calls/s   10, 0 B read                          █
                latency   p50 0.4 ms, p99 3.2 ms                █
                queues    2.0 KiB, longest 1.0 KiB, 1 slow      █
                refused   7                                     █
                reorgs    2, 1 failovers                        █
                                                                █
                blocks────────────────────────────────────────────────────────────────────────────────────────────────────────
                120 abab  119 a2a2  119 b2b2  118 a1a1

                events────────────────────────────────────────────────────────────────────────────────────────────────────────
                10:01:02 client 9 (203.0.113.7) closed: slow_consumer 1013
                10:01:01 reorg: 1 blocks above 118 dropped
            "#]],
        );
    }

    #[test]
    fn texts_of_others_cannot_act_on_the_terminal() {
        let hostile = "a\u{1b}[2J\u{9b}\u{202e}";
        let mut figures = figures();
        figures.update(status(|status| {
            status["notReady"] = json!(hostile);
            status["upstreams"][0]["error"] = json!(hostile);
            status["busiest"][0]["account"] = json!(hostile);
        }));
        figures.enter(Entry {
            number: 2,
            at: 0,
            event: Event::ReloadRefused { error: hostile.into() },
        });
        let page = page(&figures, 200, 22);
        assert_eq!(page.matches(r"a\u{1b}[2J\u{9b}\u{202e}").count(), 4, "{page}");
    }

    #[test]
    fn a_small_terminal_shows_what_fits() {
        for (width, height) in [(1, 1), (20, 5), (40, 10), (300, 100)] {
            page(&figures(), width, height);
        }
        let waiting = page(&Figures::default(), 50, 1);
        assert_eq!(waiting, "waiting for the first status; q ends this");
        let mut figures = figures();
        figures.update(status(|status| {
            status["notReady"] = json!("drained by the operator");
            status["head"] = json!(null);
        }));
        let page = page(&figures, 110, 22);
        assert!(
            page.contains("not ready: drained by the operator") && page.contains("no head yet"),
            "{page}"
        );
    }

    #[test]
    fn events_and_rates_in_memory_are_bounded() {
        let mut figures = Figures::default();
        for at in 0..1000 {
            figures.update(status(|status| status["atMs"] = json!(at * 1000)));
            figures.enter(Entry {
                number: at,
                at,
                event: Event::Drained,
            });
        }
        assert_eq!((figures.events.len(), figures.deliveries.len()), (64, 240));
        assert_eq!(figures.events.back().unwrap().number, 999);
    }
}
