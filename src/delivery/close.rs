//! Why a connection ends. Close codes are an API: each reason has one code, one text and one metric label.

/// Every reason for which headwater closes a client's connection.
///
/// Codes: RFC 6455 section 7.4 and its registry. 1000 and 1001 are never sent on our own account, for web3.js 4
/// reconnects for every other code only (PROTOCOL 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client said goodbye; its code (or none) is echoed.
    Goodbye(Option<u16>),
    /// A frame that breaks RFC 6455.
    Protocol(&'static str),
    /// Text that is not UTF-8, or a close reason that is not.
    NotUtf8,
    /// A compressed message that cannot be inflated.
    Corrupt,
    /// A message above the limit.
    TooBig,
    /// Control frames or fragments without end, which carry nothing and so cost no quota.
    Flood(&'static str),
    /// A message was begun and not finished in time.
    Unfinished,
    /// A message was begun for which there is no more room among those of all clients.
    NoRoom,
    /// The queue grew past its bound in bytes or age.
    SlowConsumer,
    /// All clients' queues together grew past their bound, and this one was the longest.
    LongestQueue,
    /// No bytes could be written for too long: the peer does not read.
    WriteDeadline,
    /// Nothing was heard from the client, not even a pong.
    Silent,
    /// The stream has a gap that could not be repaired; the client should read the chain again and resubscribe.
    ContinuityLost,
    /// Another node is in use, and refuses a subscription that the one before served.
    NotServed,
    /// Events waited for the client's budget of bytes for as long as they may, and no longer.
    OverBudget,
    /// Idle connection of the network with most connections, closed to make room for another client.
    Displaced,
    /// Refused again and again, it went on.
    Abuse,
    /// The token that let it in has expired.
    Expired,
    /// The key that let it in was withdrawn, or it came without one and now needs one.
    Revoked,
    /// A bug of ours ended what served the client.
    Internal,
    /// We are shutting down.
    Drain,
}

impl CloseReason {
    /// The close code on the wire; `None` where the peer sent none.
    #[must_use]
    pub fn code(self) -> Option<u16> {
        match self {
            Self::Goodbye(code) => code,
            Self::Protocol(_) => Some(1002),
            Self::NotUtf8 | Self::Corrupt => Some(1007),
            Self::Silent
            | Self::OverBudget
            | Self::Abuse
            | Self::Expired
            | Self::Revoked
            | Self::Flood(_)
            | Self::Unfinished => Some(1008),
            Self::TooBig => Some(1009),
            Self::Internal => Some(1011),
            Self::ContinuityLost | Self::NotServed | Self::Drain => Some(1012),
            Self::SlowConsumer | Self::LongestQueue | Self::WriteDeadline | Self::NoRoom | Self::Displaced => {
                Some(1013)
            }
        }
    }

    /// The text on the wire, at most 123 bytes; a goodbye is echoed without one.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Goodbye(_) => "",
            Self::Protocol(what) | Self::Flood(what) => what,
            Self::NotUtf8 => "invalid UTF-8",
            Self::Corrupt => "invalid compressed data",
            Self::TooBig => "message too big",
            Self::Unfinished => "a message was begun and not finished in time",
            Self::NoRoom => "too many bytes of unfinished messages: try again later",
            Self::SlowConsumer => "slow consumer: the queue of undelivered events is full",
            Self::LongestQueue => "slow consumer: all queues together are full, and this one is the longest",
            Self::WriteDeadline => "slow consumer: nothing was read before the write deadline",
            Self::Silent => "no frame received, not even a pong",
            Self::ContinuityLost => "events were lost upstream and cannot be repaired: resubscribe",
            Self::NotServed => "the node that is in use now does not serve a subscription of yours: resubscribe",
            Self::OverBudget => "more events than the budget of bytes a second allows: subscribe to less",
            Self::Displaced => "idle, and others need the place: connect again when needed",
            Self::Abuse => "too many requests above the limit",
            Self::Expired => "the token has expired",
            Self::Revoked => "the key is not valid any more, or one is needed now",
            Self::Internal => "internal error",
            Self::Drain => "service restart",
        }
    }

    /// The value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Goodbye(_) => "goodbye",
            Self::Protocol(_) => "protocol",
            Self::NotUtf8 => "not_utf8",
            Self::Corrupt => "corrupt",
            Self::TooBig => "too_big",
            Self::Flood(_) => "flood",
            Self::Unfinished => "unfinished",
            Self::NoRoom => "inbound_bytes",
            Self::SlowConsumer => "slow_consumer",
            Self::LongestQueue => "longest_queue",
            Self::WriteDeadline => "write_deadline",
            Self::Silent => "silent",
            Self::ContinuityLost => "continuity_lost",
            Self::NotServed => "not_served",
            Self::OverBudget => "over_budget",
            Self::Displaced => "displaced",
            Self::Abuse => "abuse",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Internal => "internal",
            Self::Drain => "drain",
        }
    }

    /// Whether what the client sends afterwards is not read any more, not even its echo: it broke the rules of the
    /// framing, goes on without end, or is in the middle of a message.
    #[must_use]
    pub fn is_violation(self) -> bool {
        matches!(
            self,
            Self::Protocol(_)
                | Self::NotUtf8
                | Self::Corrupt
                | Self::TooBig
                | Self::Flood(_)
                | Self::Unfinished
                | Self::NoRoom
        )
    }

    /// Whether what is queued is still written before the close frame.
    #[must_use]
    pub fn flushes(self) -> bool {
        matches!(self, Self::Drain | Self::ContinuityLost | Self::NotServed)
    }
}
