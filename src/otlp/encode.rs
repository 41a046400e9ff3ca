//! OTLP in protobuf, as far as spans need it: `ExportTraceServiceRequest` of opentelemetry-proto 1.x, and the counts in the
//! response to it. Numbers of fields are those of `collector/trace/v1/trace_service.proto`, `trace/v1/trace.proto`,
//! `resource/v1/resource.proto` and `common/v1/common.proto`.

use crate::telemetry::trace::{Attribute, Span, unix_nanos};

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `Status.StatusCode`: error.
const STATUS_ERROR: u64 = 2;

/// Resource that the spans are of.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) service: String,
    pub(super) instance: String,
}

/// Returns the request that exports these spans.
pub(super) fn request(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let mut out = Message::default();
    out.message(1, |resource_spans| {
        resource_spans.message(1, |own| {
            own.attribute(1, "service.name", &resource.service.as_str().into());
            own.attribute(1, "service.version", &env!("CARGO_PKG_VERSION").into());
            own.attribute(1, "service.instance.id", &resource.instance.as_str().into());
        });
        resource_spans.message(2, |scope_spans| {
            scope_spans.message(1, |scope| {
                scope.bytes(1, b"headwater");
                scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            for span in spans {
                scope_spans.message(2, |own| own.span(span));
            }
        });
    });
    out.0
}

/// Returns the number of spans that the collector did not take, from its response. What is not readable rejects none.
pub(super) fn rejected(response: &[u8]) -> u64 {
    let partial = field(response, 1).and_then(|value| match value {
        Value::Bytes(partial) => field(partial, 1),
        Value::Number(_) => None,
    });
    match partial {
        Some(Value::Number(count)) => count,
        _ => 0,
    }
}

/// Message that is being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3 | VARINT);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u64, value: u64) {
        self.varint(field << 3 | FIXED64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn attribute(&mut self, field: u64, key: &str, value: &Attribute) {
        self.message(field, |pair| {
            pair.bytes(1, key.as_bytes());
            pair.message(2, |any| match value {
                Attribute::Text(text) => any.bytes(1, text.as_bytes()),
                Attribute::Number(number) => any.number(3, number.cast_unsigned()),
            });
        });
    }

    fn span(&mut self, span: &Span) {
        self.bytes(1, &span.trace.bytes());
        self.bytes(2, &span.id.bytes());
        if let Some(parent) = span.parent {
            self.bytes(4, &parent.bytes());
        }
        self.bytes(5, span.name.as_bytes());
        self.number(6, span.kind as u64);
        self.fixed64(7, unix_nanos(span.begin));
        self.fixed64(8, unix_nanos(span.end));
        for (key, value) in &span.attributes {
            self.attribute(9, key, value);
        }
        if span.is_error {
            self.message(15, |status| status.number(3, STATUS_ERROR));
        }
    }
}

/// Value of a field that was read.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Returns the first value of a field; `None` if there is none, or the message is malformed before it.
fn field(mut message: &[u8], wanted: u64) -> Option<Value<'_>> {
    while !message.is_empty() {
        let tag = read_varint(&mut message)?;
        let value = match tag & 7 {
            VARINT => Value::Number(read_varint(&mut message)?),
            FIXED64 => Value::Bytes(message.split_off(..8)?),
            BYTES => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                Value::Bytes(message.split_off(..length)?)
            }
            FIXED32 => Value::Bytes(message.split_off(..4)?),
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(value);
        }
    }
    None
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rejected_spans_are_counted() {
        let mut response = Message::default();
        response.message(1, |partial| {
            partial.bytes(2, b"too many");
            partial.number(1, 300);
        });
        assert_eq!(rejected(&response.0), 300);
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(b"<html>"), 0);
    }

    proptest! {
        #[test]
        fn no_response_is_too_odd(response: Vec<u8>) {
            rejected(&response);
        }

        #[test]
        fn a_number_is_read_as_it_was_written(number: u64) {
            let mut message = Message::default();
            message.varint(number);
            prop_assert_eq!(read_varint(&mut &message.0[..]), Some(number));
        }
    }
}
