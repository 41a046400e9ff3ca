//! List of all rows in PROTOCOL's order, including the rows outside this suite: each of those is covered by another
//! test, or has a reason why no test covers it.
//!
//! Rows numbered in PROTOCOL keep their numbers (H, F, J, B, O, R, U, C); the other numbers are our own. PROTOCOL's
//! statements on operators' subscriptions (section 2) are covered by S4, those on vendors' subscriptions (3) by
//! `tests/it/transactions.rs`, and those on libraries (4) by `tests/interop` and `tests/alloy`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::table::Section;

/// The place that covers a row.
enum By {
    /// A case in `rows/`.
    Us,
    /// A test elsewhere: its file below `tests/`, and its name.
    Test(&'static str, &'static str),
    /// Not covered, with the reason.
    Nobody(#[expect(dead_code, reason = "for those who read this list")] &'static str),
}

use By::{Nobody, Test, Us};

#[rustfmt::skip]
const ROWS: [(&str, &str, By); 179] = [
    ("H1", "an upgrade, in any case, among others", Us),
    ("H2", "paths and queries", Us),
    ("H3", "no origin", Us),
    ("H4", "an origin that is listed", Us),
    ("H5", "an origin that is not", Us),
    ("H6", "protocols are not invented", Us),
    ("H7", "extensions are declined by silence", Us),
    ("H8", "another version, no key", Us),
    ("H9", "who has to prove who they are does it before the upgrade", Us),
    ("H10", "the limit of connections", Us),
    ("F1", "text and binary", Us),
    ("F2", "fragments, with control frames between", Us),
    ("F3", "ping", Us),
    ("F3 overtaking", "a pong comes before what is queued", Test("it/frames.rs", "a_pong_overtakes_the_backlog")),
    ("F4", "pong", Us),
    ("F5", "close", Us),
    ("F6", "frames that break the rules", Us),
    ("F7", "text that is no UTF-8", Us),
    ("F8", "a message above the limit", Us),
    ("F9", "what is sent is text, one value in a message", Us),
    ("F10", "long answers leave in fragments", Test("it/frames.rs", "a_long_answer_leaves_in_fragments_of_one_message")),
    ("F11", "TCP_NODELAY", Nobody("the other end cannot see it for certain; src/server/listener.rs sets it")),
    ("J1", "white space", Us),
    ("J2", "what follows the first value", Us),
    ("J3", "no JSON", Us),
    ("J4", "half of it", Us),
    ("J5", "JSON that is no object", Us),
    ("J6", "no version, no method", Us),
    ("J7", "no id", Us),
    ("J8", "an id of null", Us),
    ("J9", "ids come back as they were written", Us),
    ("J10", "ids that are none", Us),
    ("J11", "responses", Us),
    ("J12", "two members of one name", Us),
    ("J13", "members in another case", Us),
    ("J14", "members that nobody knows", Us),
    ("J15", "no parameters", Us),
    ("J16", "parameters by name", Us),
    ("J17", "methods that are not there", Us),
    ("J18", "methods with long names", Us),
    ("J19", "parameters too many", Us),
    ("J20", "the order of an answer's members", Us),
    ("B1", "an empty batch", Us),
    ("B2", "a batch that is too long", Us),
    ("B3", "the order of answers", Us),
    ("B4", "what is no request", Us),
    ("B5", "answers that are too long", Test("it/envelope.rs", "a_batch_of_large_answers_ends_in_errors")),
    ("B6", "ids that are not unique", Us),
    ("B7", "subscriptions in a batch", Us),
    ("B8", "responses in a batch", Us),
    ("B9", "ending what the same batch begins", Us),
    ("S1", "all kinds: parameters that are no list", Us),
    ("S2", "no name", Us),
    ("S3", "a name that is not known", Us),
    ("S4", "namespaces", Us),
    ("S5", "over HTTP", Us),
    ("N1", "newHeads", Us),
    ("N2", "with more", Us),
    ("P1", "newPendingTransactions: hashes", Us),
    ("P2", "whole", Us),
    ("P3", "an argument that is no bool", Us),
    ("P4", "with more", Us),
    ("Y1", "syncing", Us),
    ("Y2", "with more", Us),
    ("T1", "transactionReceipts: hashes, null, nothing", Us),
    ("T2", "hashes too many", Us),
    ("T3", "a hash that cannot be read", Us),
    ("T4", "an argument that is none", Us),
    ("L1", "logs: a filter, null, nothing", Us),
    ("L2", "fields that nobody knows, and fields in any case", Us),
    ("L3", "a filter that is none", Us),
    ("L4", "with more", Us),
    ("L5", "no address", Us),
    ("L6", "an address", Us),
    ("L7", "addresses", Us),
    ("L8", "among them what is no text", Us),
    ("L9", "an address that is no text", Us),
    ("L10", "an address that cannot be read", Us),
    ("L11", "addresses too many", Us),
    ("L12", "no topics", Us),
    ("L13", "open positions", Us),
    ("L14", "one or several", Us),
    ("L15", "null among several", Us),
    ("L16", "a topic that is no text", Us),
    ("L17", "a topic that cannot be read", Us),
    ("L18", "topics that are no list", Us),
    ("L19", "positions too many", Us),
    ("L20", "too many in one position", Us),
    ("L21", "live", Us),
    ("L22", "bounded", Us),
    ("L23", "a range that is none", Us),
    ("L24", "earliest", Us),
    ("L25", "pending", Us),
    ("L26", "a number that is none", Us),
    ("L27", "a number without digits, or with a zero ahead", Us),
    ("L28", "a block alone", Us),
    ("L29", "a block and a range", Us),
    ("L30", "a block that cannot be read", Us),
    ("L31", "by address", Us),
    ("L32", "by topic", Us),
    ("L33", "more positions than a log has topics", Us),
    ("L34", "open positions count", Us),
    ("L35", "from below what geth keeps", Nobody("geth here keeps all; where it does not, headwater takes it for live as geth's own client means it")),
    ("I1", "ids: their form", Us),
    ("I2", "another each time", Us),
    ("I3", "none twice", Us),
    ("I4", "one connection's", Us),
    ("I5", "for as long as that", Us),
    ("I6", "nobody can guess one", Nobody("128 bits of the thread's cryptographic generator: src/delivery/recipient.rs")),
    ("X1", "eth_unsubscribe: what lives", Us),
    ("X2", "what does not", Us),
    ("X3", "nothing", Us),
    ("X4", "null", Us),
    ("X5", "what is no text", Us),
    ("X6", "more", Us),
    ("X7", "parameters by name", Us),
    ("X8", "another namespace", Us),
    ("X9", "over HTTP", Us),
    ("X10", "without an id", Us),
    ("X11", "nothing comes after its answer", Test("it/events.rs", "nothing_follows_the_answer_to_unsubscribe")),
    ("E1", "a notification's members", Us),
    ("E2", "newHeads", Us),
    ("E3", "logs", Us),
    ("E4", "newPendingTransactions: hashes", Us),
    ("E5", "whole", Us),
    ("E6", "syncing, where it is done", Us),
    ("E7", "syncing, where it is not", Nobody("none of these nodes has anything to fetch, and headwater says only false")),
    ("E8", "transactionReceipts", Us),
    ("O1", "the answer first", Us),
    ("O2", "then, after a while, the first event", Test("it/events.rs", "the_first_notification_waits_behind_its_answer")),
    ("O3", "in order, each once", Us),
    ("O4", "a head before its logs, these before the receipts", Us),
    ("O5", "equal subscriptions", Us),
    ("O6", "from the answer on", Us),
    ("R1", "a reorg of any depth", Test("it/events.rs", "a_reorg_of_any_depth_takes_back_the_old_logs_before_it_tells_the_new_blocks")),
    ("R2", "heads that the node did not announce", Us),
    ("R3", "logs are taken back", Us),
    ("R4", "no head twice in a row", Us),
    ("R5", "nothing is taken back of what is pending", Us),
    ("U1", "a client's connection outlives the node's", Us),
    ("U2", "from one node to another", Test("it/upstreams.rs", "the_stream_goes_on_from_the_second_node_without_a_seam")),
    ("U3", "what cannot be repaired", Test("it/events.rs", "what_cannot_be_repaired_ends_the_streams_that_it_touches")),
    ("U4", "subscribing without a node", Test("it/upstreams.rs", "who_subscribes_before_there_is_a_node_is_served_when_there_is_one")),
    ("U5", "what was pending is not made up for", Nobody("there is nobody to ask for it: a node knows only what is pending now")),
    ("U6", "what nodes do wrong", Test("it/events.rs", "what_nodes_do_wrong_does_not_reach_clients")),
    ("W1", "queues are bounded", Test("it/limits.rs", "when_all_queues_together_are_too_long_the_longest_is_closed_and_the_others_are_whole")),
    ("W2", "a slow client", Test("it/limits.rs", "a_client_that_does_not_read_is_closed_and_the_others_get_everything")),
    ("W3", "pings", Test("it/limits.rs", "clients_are_pinged_and_one_that_never_answers_is_cut")),
    ("W4", "shutdown", Test("it/shutdown.rs", "clients_get_what_was_queued_and_then_1012")),
    ("C1", "what libraries ask first", Us),
    ("C1 alone", "also while there is no node", Us),
    ("C2", "the number is not below the head that was received", Us),
    ("C3", "what was received can be asked for", Us),
    ("C3 among several", "of a node that has it", Test("it/upstreams.rs", "a_node_that_falls_behind_is_left_and_what_clients_ask_follows_what_they_were_shown")),
    ("C4", "filters", Us),
    ("C5", "errors are the node's", Us),
    ("K1", "own errors: limits", Us),
    ("K2", "no node", Us),
    ("K3", "a node that does not answer", Us),
    ("K4", "answers that are too long", Test("it/envelope.rs", "a_batch_of_large_answers_ends_in_errors")),
    ("K5", "a kind that is not allowed", Us),
    ("K6", "a method that is not allowed", Us),
    ("K7", "subscriptions over HTTP", Us),
    ("G1", "HTTP: requests and batches", Us),
    ("G2", "subscriptions", Us),
    ("G3", "no JSON", Us),
    ("G4", "nothing", Us),
    ("G5", "who looks whether somebody is there", Us),
    ("G6", "other methods", Us),
    ("G7", "what is no JSON by its name", Us),
    ("G8", "a body above the limit", Us),
    ("Z1", "details: compression", Us),
    ("Z2", "reserved bits, masks, UTF-8", Us),
    ("Z3", "lengths at the client", Test("it/frames.rs", "a_long_answer_leaves_in_fragments_of_one_message")),
    ("Z4", "control frames", Us),
    ("Z5", "close frames", Us),
    ("Z6", "peers that do not answer a close frame", Test("it/shutdown.rs", "a_client_that_never_leaves_is_cut_at_the_end_of_the_grace_period")),
    ("Z7", "what browsers send", Us),
    ("Z7 at once", "frames right behind the handshake", Test("it/handshake.rs", "the_first_frames_may_come_in_the_same_write_as_the_handshake")),
];

/// Checks that each row is covered exactly where the list says.
pub fn check(sections: &[Section]) -> Result<(), String> {
    let cases = sections.iter().flat_map(|section| &section.cases);
    let mut ours: BTreeSet<&str> = cases.flat_map(|case| case.rows.iter().map(String::as_str)).collect();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut wrong = Vec::new();
    for (row, what, by) in &ROWS {
        let covered = ours.remove(row);
        match by {
            Us if !covered => wrong.push(format!("{row} ({what}) is in no file")),
            Test(..) | Nobody(_) if covered => wrong.push(format!("{row} ({what}) is in a file, and excused")),
            Test(file, name) => {
                let text = std::fs::read_to_string(tests.join(file)).unwrap_or_default();
                if !text.contains(&format!("fn {name}()")) {
                    wrong.push(format!("{row} ({what}): there is no {name} in tests/{file}"));
                }
            }
            Us | Nobody(_) => {}
        }
    }
    wrong.extend(
        ours.iter()
            .map(|row| format!("{row} is in a file, and not in the list")),
    );
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n  "))
    }
}
