//! Reader of server-sent events, as headwater writes them. No I/O.

/// Longest block of lines, in bytes: the logs of a whole block with its receipts are shorter.
const LONGEST: usize = 64 << 20;

/// One block of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Position without an event.
    Mark(String),
    /// Event.
    Event {
        /// Name of its kind.
        kind: String,
        /// The node's JSON.
        data: Vec<u8>,
        /// Position behind it.
        id: Option<String>,
    },
    /// End of the stream, with the reason.
    Close(String),
}

/// Event that is too long to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {} MiB", LONGEST >> 20)]
pub(super) struct TooLong;

/// Bytes that are not read yet.
#[derive(Debug, Default)]
pub(super) struct EventText {
    bytes: Vec<u8>,
    /// Bytes that were read.
    read: usize,
    /// Bytes that were searched for the end of a block.
    searched: usize,
}

impl EventText {
    /// Adds bytes of the stream.
    ///
    /// # Errors
    /// [`TooLong`] if a block has not ended within its limit.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.bytes.drain(..self.read);
        self.searched -= self.read;
        self.read = 0;
        if self.bytes.len() + bytes.len() > LONGEST {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes the next item; `None` if its end has not come yet.
    pub(super) fn next(&mut self) -> Option<Item> {
        loop {
            let from = self.searched.saturating_sub(1).max(self.read);
            let Some(end) = memchr::memmem::find(&self.bytes[from..], b"\n\n") else {
                self.searched = self.bytes.len();
                return None;
            };
            let end = from + end;
            let item = read(&self.bytes[self.read..end]);
            self.read = end + 2;
            self.searched = self.read;
            if self.read == self.bytes.len() {
                // A quiet stream keeps no buffer.
                *self = Self::default();
            }
            if item.is_some() {
                return item;
            }
        }
    }
}

/// Reads one block of lines; `None` for a comment, or lines of no use here.
fn read(block: &[u8]) -> Option<Item> {
    let (mut kind, mut data, mut id) = (None, None::<Vec<u8>>, None);
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    for line in block.split(|byte| *byte == b'\n') {
        if let Some(value) = line.strip_prefix(b"data: ") {
            match &mut data {
                None => data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        } else if let Some(value) = line.strip_prefix(b"event: ") {
            kind = Some(text(value));
        } else if let Some(value) = line.strip_prefix(b"id: ") {
            id = Some(text(value));
        }
    }
    match (kind, data, id) {
        (Some(kind), Some(data), _) if kind == "close" => Some(Item::Close(reason(&data))),
        (Some(kind), Some(data), id) => Some(Item::Event { kind, data, id }),
        (_, _, Some(id)) => Some(Item::Mark(id)),
        _ => None,
    }
}

fn reason(data: &[u8]) -> String {
    let data: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
    data["reason"].as_str().unwrap_or("closed").to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "retry: 1000\nid: b1\n\n:\n\nevent: logs\ndata: {\"a\":1}\nid: l1.0\n\nevent: logs\ndata: \
                          {\ndata: }\n\nid: b2\n\nevent: close\ndata: {\"code\":1012,\"reason\":\"service restart\"}\n\n";

    fn items() -> Vec<Item> {
        let event = |data: &str, id: Option<&str>| Item::Event {
            kind: "logs".into(),
            data: data.into(),
            id: id.map(str::to_owned),
        };
        vec![
            Item::Mark("b1".into()),
            event("{\"a\":1}", Some("l1.0")),
            event("{\n}", None),
            Item::Mark("b2".into()),
            Item::Close("service restart".into()),
        ]
    }

    proptest! {
        #[test]
        fn a_stream_is_read_wherever_it_is_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..9)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let (mut text, mut found) = (EventText::default(), Vec::new());
            for pair in cuts.windows(2) {
                text.push(&STREAM.as_bytes()[pair[0]..pair[1]]).unwrap();
                while let Some(item) = text.next() {
                    found.push(item);
                }
            }
            prop_assert_eq!(found, items());
            prop_assert_eq!(text.bytes.capacity(), 0);
        }
    }

    #[test]
    fn an_event_without_an_end_is_bounded() {
        let mut text = EventText::default();
        let megabyte = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            text.push(&megabyte).unwrap();
            assert_eq!(text.next(), None);
        }
        assert_eq!(text.push(b"x"), Err(TooLong));
    }
}
