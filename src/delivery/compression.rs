//! Compression agreed with a client for messages to it (RFC 7692).

/// Compression of the messages to a client, by what back-references may point to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// Back-references within the same message only: the client asked for `server_no_context_takeover` (section
    /// 7.1.1.1).
    NoTakeover,
    /// Back-references also into the preceding 32 KiB of compressed messages.
    Takeover,
}
