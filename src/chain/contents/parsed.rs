//! Parsed contents of a block, weighed as evidence against its header.

use std::sync::atomic::Ordering;

use alloy_primitives::{B256, Bloom};
use tracing::debug;

use super::Oddity;
use crate::chain::evidence::{Amount, AnswerSummary, Fit, shared};
use crate::chain::inquiry::{AttemptError, FetchWay, Question};
use crate::chain::source::{BadAnswer, Source, Verify};
use crate::chain::transaction::{Root, RootClaim, claims, is_filled};
use crate::chain::{BlockLogs, BlockReceipts, BlockTransactions, Header, receipts};
use crate::upstream::UpstreamId;

/// Number of blocks below the newest requested one from which on a block's receipts count as written by all nodes.
const WRITTEN: u64 = 64;

/// Parsed contents, with their weight as evidence.
pub(super) struct ParsedContents<T> {
    pub(super) content: T,
    pub(super) said: AnswerSummary,
    /// Bloom of the logs, if it was computed.
    pub(super) bloom: Option<Bloom>,
    /// `true` if several logs have the same index.
    pub(super) repeats: bool,
}

impl<T> ParsedContents<T> {
    fn proven(repeats: bool, content: T) -> Self {
        Self {
            content,
            said: AnswerSummary::WHOLE,
            bloom: None,
            repeats,
        }
    }
}

impl Source {
    pub(super) async fn ask_logs(
        &self,
        header: &Header,
        question: Question,
    ) -> Result<ParsedContents<BlockLogs>, AttemptError> {
        let json = self.answer(header, question).await?;
        let block = header.block;
        match question.way {
            FetchWay::LogsByHash | FetchWay::LogsByNumber => {
                let logs =
                    BlockLogs::parse(block, &json, header.seen).map_err(|error| refused(header, "logs", &error))?;
                if self.level(header, question.node)? == Verify::Receipts {
                    undisputed(header, &logs)?;
                    let proof = Question {
                        way: FetchWay::ReceiptsByHash,
                        ..question
                    };
                    let receipts = self.answer(header, proof).await?;
                    receipts::verify(header, &receipts, &logs).map_err(|error| unproven(header, &error))?;
                    return Ok(ParsedContents::proven(logs.repeats_indices(), logs));
                }
                let amount = if logs.logs.is_empty() {
                    Amount::None
                } else {
                    Amount::Some
                };
                let (mut said, bloom) = self.weigh(header, question.way, &logs, amount, || logs.print())?;
                if &json[..] == b"null" && header.bloom.as_deref() != Some(&Bloom::ZERO) {
                    // `null`: some nodes mean by it that there are no logs, others that they do not know the block.
                    said = AnswerSummary {
                        print: logs.print(),
                        ..NOTHING
                    };
                }
                Ok(ParsedContents {
                    repeats: logs.repeats_indices(),
                    content: logs,
                    said,
                    bloom,
                })
            }
            _ => {
                let read = BlockReceipts::parse(header, &json).map_err(|error| refused(header, "receipts", &error))?;
                let logs = read.logs().map_err(|error| refused(header, "receipts", &error))?;
                if self.level(header, question.node)? == Verify::Receipts {
                    undisputed(header, &logs)?;
                    receipts::verify(header, &json, &logs).map_err(|error| unproven(header, &error))?;
                    return Ok(ParsedContents::proven(logs.repeats_indices(), logs));
                }
                let (said, bloom) = self.weigh_receipts(header, question.way, &read, &logs, || logs.print())?;
                Ok(ParsedContents {
                    repeats: logs.repeats_indices(),
                    content: logs,
                    said,
                    bloom,
                })
            }
        }
    }

    pub(super) async fn ask_receipts(
        &self,
        header: &Header,
        question: Question,
    ) -> Result<ParsedContents<BlockReceipts>, AttemptError> {
        let json = self.answer(header, question).await?;
        let read = BlockReceipts::parse(header, &json).map_err(|error| refused(header, "receipts", &error))?;
        if self.level(header, question.node)? == Verify::Receipts {
            receipts::verify_root(header, &json).map_err(|error| unproven(header, &error))?;
            return Ok(ParsedContents::proven(false, read));
        }
        let logs = read.logs().map_err(|error| refused(header, "receipts", &error))?;
        let (said, bloom) = self.weigh_receipts(header, question.way, &read, &logs, || read.print(&logs))?;
        Ok(ParsedContents {
            content: read,
            said,
            bloom,
            repeats: false,
        })
    }

    pub(super) async fn ask_transactions(
        &self,
        header: &Header,
        question: Question,
    ) -> Result<ParsedContents<BlockTransactions>, AttemptError> {
        let json = self.answer(header, question).await?;
        let content =
            BlockTransactions::parse(header, &json).map_err(|error| refused(header, "transactions", &error))?;
        let said = match claims(header, Root::Transactions) {
            RootClaim::Some if content.transactions.is_empty() => {
                return Err(AttemptError::Other(BadAnswer::Malformed));
            }
            RootClaim::Idle if content.transactions.is_empty() => NOTHING,
            _ => AnswerSummary::WHOLE,
        };
        Ok(ParsedContents {
            content,
            said,
            bloom: None,
            repeats: false,
        })
    }

    /// Returns the level of verification that is possible: receipts prove nothing on a chain whose headers have another
    /// kind of hash (zkSync, Filecoin). One header that hashes to its block's hash shows that this is not such a chain;
    /// from then on each header must.
    fn level(&self, header: &Header, node: UpstreamId) -> Result<Verify, AttemptError> {
        let verify = self.learned.verify();
        if verify != Verify::Receipts {
            return Ok(verify);
        }
        let hold = &self.experience.hashes_hold;
        match receipts::verify_hash(&header.json) {
            Ok(()) => hold.store(true, Ordering::Relaxed),
            Err(error) if hold.load(Ordering::Relaxed) => {
                debug!(block = %header.block, "header refused: {error}");
                return Err(AttemptError::Other(BadAnswer::Header));
            }
            Err(error) => {
                self.warn_once(
                    node,
                    Oddity::NoHash,
                    &format!("history.verify = \"receipts\" is not possible, checking logs against logsBloom: {error}"),
                );
                return Ok(Verify::Bloom);
            }
        }
        Ok(verify)
    }

    /// Checks if an empty answer about a block may be premature: the block is recent and not empty, and its bloom does
    /// not show whether it has logs.
    fn may_be_early(&self, header: &Header) -> bool {
        let is_unknown = match header.bloom.as_deref() {
            None => true,
            Some(bloom) => *bloom == Bloom::ZERO && self.experience.blooms.lock().are_left_empty(),
        };
        let newest = self.experience.newest.load(Ordering::Relaxed);
        is_unknown && newest.saturating_sub(header.block.number) < WRITTEN && is_filled(header)
    }

    fn bloom(&self, logs: &BlockLogs) -> Bloom {
        logs.bloom_with(&mut self.experience.bloom_bits.lock())
    }

    /// Checks logs against the header's bloom.
    fn weigh(
        &self,
        header: &Header,
        way: FetchWay,
        logs: &BlockLogs,
        amount: Amount,
        print: impl Fn() -> B256,
    ) -> Result<(AnswerSummary, Option<Bloom>), AttemptError> {
        if logs.is_disputed() {
            // Logs that were requested by hash and add up to the bloom are the block's, even if they carry another
            // hash.
            let own = self.bloom(logs);
            if !way.is_by_hash() || header.usable_bloom() != Some(&own) {
                undisputed(header, logs)?;
            }
            let (print, covers) = (print(), shared(&own, &own));
            return Ok((
                AnswerSummary {
                    fit: Fit::More,
                    amount,
                    print,
                    covers,
                },
                Some(own),
            ));
        }
        if self.learned.verify() == Verify::None {
            return Ok((AnswerSummary::WHOLE, None));
        }
        let own = self.bloom(logs);
        let Some(bloom) = header.usable_bloom() else {
            let said = match amount {
                Amount::Some => AnswerSummary::WHOLE,
                _ if !self.may_be_early(header) => AnswerSummary::WHOLE,
                _ => AnswerSummary {
                    fit: Fit::Less,
                    amount,
                    print: print(),
                    covers: 0,
                },
            };
            return Ok((said, Some(own)));
        };
        let said = match self.experience.blooms.lock().fit(bloom, &own) {
            Fit::Whole => AnswerSummary::WHOLE,
            fit => AnswerSummary {
                fit,
                amount,
                print: print(),
                covers: shared(bloom, &own),
            },
        };
        Ok((said, Some(own)))
    }

    /// Checks receipts as [`Self::weigh`] checks logs, and also against the header's claim that there are receipts.
    fn weigh_receipts(
        &self,
        header: &Header,
        way: FetchWay,
        read: &BlockReceipts,
        logs: &BlockLogs,
        print: impl Fn() -> B256,
    ) -> Result<(AnswerSummary, Option<Bloom>), AttemptError> {
        let claim = claims(header, Root::Receipts);
        match claim {
            // Hedera's relay, and nodes that have not written the receipts yet.
            RootClaim::Some if read.receipts.is_empty() => return Err(AttemptError::Other(BadAnswer::Receipts)),
            RootClaim::Idle if read.receipts.is_empty() => {
                let print = print();
                return Ok((AnswerSummary { print, ..NOTHING }, Some(Bloom::ZERO)));
            }
            _ => {}
        }
        let executed = !read.receipts.is_empty() || matches!(claim, RootClaim::None | RootClaim::Disputed);
        let amount = match (logs.logs.is_empty(), executed) {
            (false, _) => Amount::Some,
            (true, true) if !read.receipts.is_empty() && self.may_be_early(header) => Amount::NoneListed,
            (true, true) => Amount::NoneExecuted,
            (true, false) => Amount::None,
        };
        self.weigh(header, way, logs, amount, print)
    }
}

/// An empty answer although the header claims that there is something.
const NOTHING: AnswerSummary = AnswerSummary {
    fit: Fit::Less,
    amount: Amount::None,
    print: B256::ZERO,
    covers: 0,
};

fn refused(header: &Header, what: &str, error: &dyn std::error::Error) -> AttemptError {
    debug!(block = %header.block, "{what} refused: {error}");
    AttemptError::Other(BadAnswer::Malformed)
}

fn undisputed(header: &Header, logs: &BlockLogs) -> Result<(), AttemptError> {
    if logs.is_disputed() {
        debug!(block = %header.block, "logs refused: one names another block, or is marked removed");
        return Err(AttemptError::Other(BadAnswer::Malformed));
    }
    Ok(())
}

fn unproven(header: &Header, error: &dyn std::error::Error) -> AttemptError {
    debug!(block = %header.block, "receipts refused: {error}");
    AttemptError::Other(BadAnswer::Receipts)
}
