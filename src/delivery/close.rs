//! Reasons to close a connection. Close codes are an API: each reason has one code, one text and one metric label.

/// Reason for which headwater closes a client's connection.
///
/// Codes: RFC 6455 section 7.4 and its registry. headwater never sends 1000 or 1001 on its own initiative, because
/// web3.js 4 does not reconnect after these two (PROTOCOL 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Close frame from the client; its code (or none) is echoed.
    Goodbye(Option<u16>),
    /// Frame that violates RFC 6455.
    Protocol(&'static str),
    /// Text message or close reason that is not UTF-8.
    NotUtf8,
    /// Compressed message that cannot be inflated.
    Corrupt,
    /// Message longer than the limit.
    TooBig,
    /// Flood of control frames or fragments, which carry no data and so are not charged to the quota.
    Flood(&'static str),
    /// Message whose rest did not arrive in time.
    Unfinished,
    /// Unfinished message that exceeds the budget for inbound bytes of all clients.
    NoRoom,
    /// Queue of this client above its limit of bytes or age.
    SlowConsumer,
    /// Queues of all clients together above their limit, with this one the longest.
    LongestQueue,
    /// Socket that accepted no bytes before the deadline: the peer does not read.
    WriteDeadline,
    /// No frame from the client within the timeout, not even a pong.
    Silent,
    /// Gap in the stream that could not be repaired; the client should read the chain again and resubscribe.
    ContinuityLost,
    /// Reorg that dropped blocks which a stream of this level of finality had delivered, or stood behind.
    FinalityBroken,
    /// Position of a session that is not known any more, or cannot be served any more.
    PositionLost,
    /// Another connection with the token of the same session.
    Replaced,
    /// Session without room among those of its account, or of all.
    NoSession,
    /// Failover to a node that refuses a subscription which the previous node served.
    NotServed,
    /// Events that waited too long for the client's egress budget.
    OverBudget,
    /// Idle connection from the network with the most connections, closed to make room for another client.
    Displaced,
    /// Client that kept sending requests after repeated refusals.
    Abuse,
    /// Expired token.
    Expired,
    /// Revoked key, or a connection without one after keys became mandatory.
    Revoked,
    /// Panic in the task that served the client.
    Internal,
    /// Disconnection by the operator.
    Operator,
    /// Shutdown of headwater.
    Drain,
}

impl CloseReason {
    /// Returns the close code on the wire; `None` if the client's own close frame had none.
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
            | Self::Operator
            | Self::Flood(_)
            | Self::Unfinished => Some(1008),
            Self::TooBig => Some(1009),
            Self::Internal => Some(1011),
            Self::ContinuityLost
            | Self::FinalityBroken
            | Self::PositionLost
            | Self::Replaced
            | Self::NotServed
            | Self::Drain => Some(1012),
            Self::SlowConsumer
            | Self::LongestQueue
            | Self::WriteDeadline
            | Self::NoRoom
            | Self::NoSession
            | Self::Displaced => Some(1013),
        }
    }

    /// Returns the text on the wire, at most 123 bytes; empty for the echo of a client's close.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Goodbye(_) => "",
            Self::Protocol(what) | Self::Flood(what) => what,
            Self::NotUtf8 => "invalid UTF-8",
            Self::Corrupt => "invalid compressed data",
            Self::TooBig => "message too big",
            Self::Unfinished => "incomplete message: the rest did not arrive in time",
            Self::NoRoom => "too many bytes of incomplete messages: try again later",
            Self::SlowConsumer => "slow consumer: the queue of undelivered events is full",
            Self::LongestQueue => "slow consumer: all queues together are full, and this one is the longest",
            Self::WriteDeadline => "slow consumer: the client read nothing before the write deadline",
            Self::Silent => "no frame received, not even a pong",
            Self::ContinuityLost => "events were lost upstream and cannot be repaired: resubscribe",
            Self::FinalityBroken => "a reorg dropped blocks that were delivered as final: undo them and resubscribe",
            Self::PositionLost => "the position of this session is lost, events may be missing: read the chain again",
            Self::Replaced => "another connection uses the token of this session",
            Self::NoSession => "too many sessions: connect without a token, or try again later",
            Self::NotServed => "the active node does not serve one of your subscriptions: resubscribe",
            Self::OverBudget => "egress limit exceeded (bytes per second): subscribe to less",
            Self::Displaced => "idle connection closed to make room for others: reconnect when needed",
            Self::Abuse => "too many refused requests",
            Self::Expired => "the token has expired",
            Self::Revoked => "the key or token is no longer valid, or one is required now",
            Self::Internal => "internal error",
            Self::Operator => "disconnected by the operator",
            Self::Drain => "service restart",
        }
    }

    /// Returns the value of the `reason` label in the metrics.
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
            Self::FinalityBroken => "finality_broken",
            Self::PositionLost => "position_lost",
            Self::Replaced => "replaced",
            Self::NoSession => "no_session",
            Self::NotServed => "not_served",
            Self::OverBudget => "over_budget",
            Self::Displaced => "displaced",
            Self::Abuse => "abuse",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Internal => "internal",
            Self::Operator => "operator",
            Self::Drain => "drain",
        }
    }

    /// Checks if later input from the client is ignored, even its close frame: the client violated the framing, floods,
    /// or is in the middle of a message.
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

    /// Checks if the reason says that events were missed: such a client does not resume from its position.
    #[must_use]
    pub fn loses_events(self) -> bool {
        matches!(self, Self::ContinuityLost | Self::FinalityBroken)
    }

    /// Checks if the queue is still written before the close frame.
    #[must_use]
    pub fn flushes(self) -> bool {
        matches!(
            self,
            Self::Drain | Self::ContinuityLost | Self::FinalityBroken | Self::NotServed
        )
    }
}
