//! The moments at which the clients have all of an event, as the load generator reports them.

use std::{fmt, str::FromStr, time::Duration};

use anyhow::{Result, bail};

/// Moments on the system's monotonic clock, or times since one of them.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    pub first: Duration,
    /// Moment at which half of the clients have the event.
    pub p50: Duration,
    pub p99: Duration,
    pub last: Duration,
}

impl Arrivals {
    /// Sorts the moments; `None` if there are none.
    pub fn of(moments: &mut [Duration]) -> Option<Self> {
        moments.sort_unstable();
        let at = |percent: usize| {
            moments
                .get((moments.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        Some(Self {
            first: at(0)?,
            p50: at(50)?,
            p99: at(99)?,
            last: at(100)?,
        })
    }

    /// Returns the times since a moment.
    pub fn since(self, moment: Duration) -> Self {
        let Self { first, p50, p99, last } = self;
        let [first, p50, p99, last] = [first, p50, p99, last].map(|at| at.saturating_sub(moment));
        Self { first, p50, p99, last }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, p50, p99, last] = [self.first, self.p50, self.p99, self.last].map(|at| at.as_nanos());
        write!(f, "{first} {p50} {p99} {last}")
    }
}

impl FromStr for Arrivals {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let nanos: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [first, p50, p99, last] = nanos[..] else {
            bail!("an odd line from the load generator: {line}")
        };
        let [first, p50, p99, last] = [first, p50, p99, last].map(Duration::from_nanos);
        Ok(Self { first, p50, p99, last })
    }
}
