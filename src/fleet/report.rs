//! Report of one headwater to another, and the answer, as parameters and result of [`FLEET_REPORT`].

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ledger::{Changes, MAX_MEMBERS, MemberId, PassedLine};
use crate::door::{AccountDigest, AccountUse, Places};

/// Method by which an edge reports to its root.
pub const FLEET_REPORT: &str = "fleet_report";

/// Most accounts of a report, or of an answer: a report of them is below 64 KiB, which any root takes from an edge.
pub(super) const MAX_ROWS: usize = 500;

/// Parameter of the method.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Run of the edge.
    pub(super) member: MemberId,
    /// Newest answer of the root that the edge has applied; `None` before any.
    pub(super) seen: Option<Seen>,
    /// Accounts whose use has changed.
    pub(super) accounts: Vec<Row>,
}

/// Place in the ledger of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Run of the root.
    pub(super) root: MemberId,
    /// Version up to which its lines are known.
    pub(super) version: u64,
}

/// Result of the method.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Place of the root's ledger up to which this answer goes.
    pub(super) seen: Seen,
    /// Members that the root hears, and their accounts whose use has changed.
    pub(super) members: Vec<MemberRows>,
}

/// Accounts of one member.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberRows {
    /// Run of the member.
    pub(super) member: MemberId,
    /// Accounts.
    pub(super) accounts: Vec<Row>,
}

/// Use of one account: its digest; number of this line at the member; units of requests, and the newest part of them; bytes of notifications, and the
/// newest part of them; connections, subscriptions, index entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row(AccountDigest, u64, u64, u64, u64, u64, u32, u32, u32);

impl From<PassedLine> for Row {
    fn from((account, number, used): PassedLine) -> Self {
        let places = used.places;
        Self(
            account,
            number,
            used.units,
            used.fresh_units,
            used.bytes,
            used.fresh_bytes,
            places.connections,
            places.subscriptions,
            places.index_entries,
        )
    }
}

impl From<Row> for PassedLine {
    fn from(row: Row) -> Self {
        let Row(account, number, units, fresh_units, bytes, fresh_bytes, connections, subscriptions, index_entries) =
            row;
        let places = Places {
            connections,
            subscriptions,
            index_entries,
        };
        let used = AccountUse {
            units,
            fresh_units,
            bytes,
            fresh_bytes,
            places,
        };
        (account, number, used)
    }
}

impl Report {
    /// Checks if the report is within its bounds.
    pub(super) fn is_bounded(&self) -> bool {
        self.accounts.len() <= MAX_ROWS
    }
}

impl Answer {
    pub(super) fn new(root: MemberId, changes: Changes) -> Self {
        let rows = |accounts: Vec<PassedLine>| accounts.into_iter().map(Row::from).collect();
        let members = changes.members.into_iter();
        Self {
            seen: Seen {
                root,
                version: changes.version,
            },
            members: members
                .map(|(member, accounts)| MemberRows {
                    member,
                    accounts: rows(accounts),
                })
                .collect(),
        }
    }

    /// Checks if the answer is within its bounds.
    pub(super) fn is_bounded(&self) -> bool {
        let rows: usize = self.members.iter().map(|member| member.accounts.len()).sum();
        self.members.len() <= MAX_MEMBERS && rows <= MAX_ROWS
    }
}

impl Serialize for MemberId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_report_is_within_what_a_root_takes_from_an_edge() {
        let digest: AccountDigest = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        // Ten million requests and ten terabytes, and as many places as a limit may allow.
        let row = Row(
            digest,
            1_000_000_000,
            10_000_000,
            10_000,
            10_000_000_000_000,
            10_000_000,
            10_000,
            100_000,
            1_000_000,
        );
        let report = Report {
            member: "0123456789abcdef".parse().unwrap(),
            seen: None,
            accounts: vec![row; MAX_ROWS],
        };
        let text = serde_json::to_string(&[&report]).unwrap();
        assert!(text.len() < 60 << 10, "{}", text.len());
        let [read]: [Report; 1] = serde_json::from_str(&text).unwrap();
        assert_eq!(read, report);
    }

    #[test]
    fn a_report_of_another_form_is_none() {
        for wrong in [
            "[]",
            "[{}]",
            r#"[{"member":"0123456789abcde","seen":null,"accounts":[]}]"#,
            r#"[{"member":"+123456789abcdef","seen":null,"accounts":[]}]"#,
            r#"[{"member":"0123456789abcdef","seen":null,"accounts":[["x",1,1,1,1,1,1,1,1]]}]"#,
            r#"[{"member":"0123456789abcdef","seen":null,"accounts":[["AAAAAAAAAAAAAAAAAAAAAA",-1,1,1,1,1,1,1,1]]}]"#,
            r#"[{"member":"0123456789abcdef","seen":null,"accounts":[["AAAAAAAAAAAAAAAAAAAAAA",1]]}]"#,
        ] {
            assert!(serde_json::from_str::<[Report; 1]>(wrong).is_err(), "{wrong}");
        }
    }
}
