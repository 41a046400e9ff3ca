//! Standard output: one line per event, up to a number of lines.

use std::io::{self, Write};

use super::abi::Events;
use super::error::{Stop, TailError};
use super::event::Event;
use super::{format, json};

/// Form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// For people; coloured if the output is a terminal, or `CLICOLOR_FORCE` is set, and `NO_COLOR` is not.
    Text,
    Json,
}

pub(super) struct Printer<W> {
    output: W,
    form: Form,
    events: Events,
    /// Lines that are still wanted.
    left: Option<u64>,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(output: W, form: Form, events: Events, count: Option<u64>) -> Self {
        Self {
            output,
            form,
            events,
            left: count,
        }
    }

    /// Prints an event, or that it was removed.
    pub(super) fn print(&mut self, event: &Event, removed: bool) -> Result<(), Stop> {
        if self.left == Some(0) {
            return Err(Stop::Done);
        }
        let line = match self.form {
            Form::Text => format::line(event, removed, &self.events),
            Form::Json => json::line(event, removed, &self.events),
        };
        match writeln!(self.output, "{line}").and_then(|()| self.output.flush()) {
            Ok(()) => {}
            // The reader has what it wanted, as with any filter.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Stop::Done),
            Err(error) => return Err(TailError::Output(error).into()),
        }
        match &mut self.left {
            Some(left) => {
                *left -= 1;
                if *left == 0 { Err(Stop::Done) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    /// Prints that these events were removed.
    pub(super) fn remove(&mut self, events: &[Event]) -> Result<(), Stop> {
        events.iter().try_for_each(|event| self.print(event, true))
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    struct Closed(io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_line_that_is_wanted_ends_it() {
        let mut output = Vec::new();
        let mut printer = Printer::new(&mut output, Form::Json, Events::default(), Some(2));
        let event = Event::Pending(B256::ZERO);
        assert!(printer.print(&event, false).is_ok());
        assert!(matches!(printer.print(&event, false), Err(Stop::Done)));
        assert!(matches!(printer.print(&event, false), Err(Stop::Done)));
        assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 2);
    }

    #[test]
    fn a_closed_pipe_is_the_end_and_a_full_disk_is_an_error() {
        let event = Event::Pending(B256::ZERO);
        let print = |kind| Printer::new(Closed(kind), Form::Text, Events::default(), None).print(&event, false);
        assert!(matches!(print(io::ErrorKind::BrokenPipe), Err(Stop::Done)));
        let full = print(io::ErrorKind::StorageFull);
        assert!(matches!(full, Err(Stop::Failed(TailError::Output(_)))), "{full:?}");
    }
}
