//! What was agreed on with a client about the messages to it (RFC 7692).

/// Whether messages are compressed, and what they may refer to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// They are not compressed.
    #[default]
    None,
    /// Each refers to itself alone: the client asked for `server_no_context_takeover` (section 7.1.1.1).
    NoTakeover,
    /// Each may refer to the 32 KiB of compressed messages before it.
    Takeover,
}
