//! Topics that a `logs` filter allows, by position, in one allocation. No I/O, no clock.

use alloy_primitives::B256;

use super::filter::MAX_TOPICS;

/// Allowed topics for each position, and the number of positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Topics {
    /// Topics of all positions, one position after the other.
    words: Box<[B256]>,
    /// Number of words up to the end of each position; the last one's for positions that are not there.
    ends: [u16; MAX_TOPICS],
    positions: u8,
}

impl Topics {
    /// Joins the topics of at most [`MAX_TOPICS`] positions, each sorted and without duplicates; an empty position
    /// allows any topic.
    #[must_use]
    pub(super) fn new(positions: &[Box<[B256]>]) -> Self {
        let mut ends = [0; MAX_TOPICS];
        let mut end = 0;
        for (position, own) in ends.iter_mut().enumerate() {
            end += positions.get(position).map_or(0, |words| words.len());
            *own = u16::try_from(end).expect("a position has at most a thousand topics");
        }
        Self {
            words: positions.concat().into(),
            ends,
            positions: u8::try_from(positions.len()).expect("a filter has at most four positions"),
        }
    }

    /// Returns the number of positions.
    #[must_use]
    pub(super) fn positions(&self) -> usize {
        self.positions.into()
    }

    /// Returns the topics that are allowed at a position: sorted, without duplicates; empty means any.
    #[must_use]
    pub(super) fn at(&self, position: usize) -> &[B256] {
        let Some(&end) = self.ends.get(position) else {
            return &[];
        };
        let start = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.words[start.into()..end.into()]
    }

    /// Iterates over the positions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[B256]> {
        (0..self.positions()).map(|position| self.at(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_what_they_were_and_differ_by_their_number() {
        let word = B256::repeat_byte;
        let rows: [&[&[u8]]; 7] = [
            &[],
            &[&[]],
            &[&[1]],
            &[&[1], &[]],
            &[&[], &[1, 2]],
            &[&[], &[1], &[2]],
            &[&[1, 2, 3], &[], &[4], &[5, 6]],
        ];
        let topics = rows.map(|row| {
            let positions: Vec<Box<[B256]>> = row
                .iter()
                .map(|own| own.iter().map(|byte| word(*byte)).collect())
                .collect();
            let topics = Topics::new(&positions);
            assert_eq!(
                topics.iter().collect::<Vec<_>>(),
                positions.iter().map(|own| &own[..]).collect::<Vec<_>>()
            );
            assert_eq!(topics.positions(), positions.len());
            assert_eq!((topics.at(positions.len()), topics.at(9)), (&[][..], &[][..]));
            topics
        });
        for (one, first) in topics.iter().enumerate() {
            for (other, second) in topics.iter().enumerate() {
                assert_eq!(first == second, one == other);
            }
        }
    }
}
