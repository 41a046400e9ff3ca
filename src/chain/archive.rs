//! Blocks older than memory, fetched from the nodes for clients that come back. What one of them asked for is kept for a
//! while, since after a restart all come back at once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use moka::future::Cache;
use tokio::sync::Semaphore;

use super::heights;
use super::inquiry::Missing;
use super::ranges::{Between, Ranges};
use super::source::{Refused, Seek, Source, wait_before};
use super::{BlockLogs, BlockRef, Fetch, Gap, Header, Left, Page, Published, Undo};
use crate::shares::{FairPool, Full, Owner};

/// Blocks of one page that are fetched at the same time.
const AT_ONCE: usize = 8;

/// A page ends when it has so many bytes of JSON: it is held for one client, which may not read.
const PAGE_BYTES: usize = 1 << 20;

/// Fetches for all clients together; a node has other things to do.
const FETCHES: usize = 32;

/// Searches for blocks that may not exist, at the same time.
const SEEKS: usize = 8;

/// Searches of one account that wait for their turn. One takes a few round trips, and longer for a block that no node has.
const MAX_SEEKING: usize = 256;

/// Tries for one block before the page ends with the one before it.
const TRIES: u32 = 6;

/// Tries for a block that may well not exist.
const LOCATE_TRIES: u32 = 3;

/// How long an old block's logs are waited for before they count as served: a client waits for its subscription meanwhile.
const SERVES: Duration = Duration::from_secs(2);

/// What is kept, in bytes, of headers and again of logs, and for how long: longer than a crowd takes to come back.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_FOR: Duration = Duration::from_secs(120);

/// What an entry counts for: blocks without logs have no JSON, and cost memory too.
fn weight(json: usize) -> u32 {
    const ENTRY: usize = 512;
    (json + ENTRY).try_into().unwrap_or(u32::MAX)
}

/// The nodes' past.
#[derive(Debug)]
pub struct Archive {
    source: Arc<Source>,
    /// The first canonical block at or above a number.
    headers: Cache<u64, Header>,
    logs: Cache<B256, Arc<BlockLogs>>,
    ranges: Ranges,
    /// Of the history that the headers are from.
    generation: AtomicU64,
    room: Semaphore,
    /// For blocks that may not exist: whoever asks for those waits for others of the kind.
    seeking: Arc<FairPool>,
}

/// Blocks of a page of which the logs are fetched.
#[derive(Debug)]
enum NeededLogs {
    None,
    All,
    Of(HashSet<B256>),
}

/// Reason why no node was asked; not evidence about the block.
#[derive(Debug)]
pub enum NotAsked {
    /// No node could be asked.
    Unavailable,
    /// Too many others wait to ask.
    Busy(Full),
}

impl From<Full> for NotAsked {
    fn from(full: Full) -> Self {
        Self::Busy(full)
    }
}

/// Where a block that memory does not know stands.
#[derive(Debug)]
pub struct Located {
    /// Logs of it and of its ancestors that are not canonical, oldest first; empty where it is canonical itself.
    pub undo: VecDeque<Undo>,
    /// These blocks; their ancestor is the block itself where it is canonical.
    pub left: Left,
}

impl Between for Archive {
    async fn logs(&self, first: BlockRef, last: BlockRef, criteria: &str) -> Result<Bytes, Refused> {
        let _room = self.room.acquire().await.map_err(|_| Refused::CallFailed)?;
        self.source.logs_between(first, last, criteria).await
    }
}

impl Archive {
    /// Asks these nodes.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Self {
        let headers = Cache::builder()
            .weigher(|_, header: &Header| weight(header.json.len()))
            .max_capacity(KEPT_BYTES)
            .time_to_live(KEPT_FOR)
            .build();
        let logs = Cache::builder()
            .weigher(|_, logs: &Arc<BlockLogs>| weight(logs.json_len()))
            .max_capacity(KEPT_BYTES)
            .time_to_live(KEPT_FOR)
            .build();
        Self {
            source,
            headers,
            logs,
            ranges: Ranges::new(KEPT_FOR),
            generation: AtomicU64::new(0),
            room: Semaphore::new(FETCHES),
            seeking: FairPool::new("too many wait for a block to resume from", SEEKS, MAX_SEEKING),
        }
    }

    /// What fills a gap of memory, as much as a page holds, and less where the node has no more. Logs are fetched where they
    /// are needed. What was kept in another generation of the history is forgotten.
    pub async fn page(&self, generation: u64, gap: Gap, fetch: Fetch) -> Page {
        if self.generation.swap(generation, Ordering::Relaxed) != generation {
            self.forget();
        }
        let (from, headers, next, needed) = match gap {
            Gap::Below(first, above) => {
                let (headers, next) = self.headers(first, *above).await;
                let needed = self.needed(&headers, fetch).await;
                (first, headers, next, needed)
            }
            // Memory keeps what was told, in order to take it back.
            Gap::Logs(headers) => {
                let from = headers.first().map_or(0, |own| own.block.number);
                (from, headers.into(), None, NeededLogs::All)
            }
        };
        let mut last = headers.back().map(|own| own.block);
        let mut blocks = stream::iter(headers.into_iter().map(|header| self.block(header, &needed))).buffered(AT_ONCE);
        let (mut page, mut bytes) = (VecDeque::new(), 0);
        while let Some(Some(block)) = blocks.next().await {
            bytes += block.header.json.len() + block.logs.as_ref().map_or(0, |logs| logs.json_len());
            last = last.filter(|last| *last != block.header.block);
            page.push_back(block);
            if bytes > PAGE_BYTES {
                break;
            }
            // A page that is kept is found without any wait.
            tokio::task::consume_budget().await;
        }
        drop(blocks);
        let page = match needed {
            NeededLogs::Of(_) => Page::new(from, page).sifted(),
            NeededLogs::None | NeededLogs::All => Page::new(from, page),
        };
        match next.filter(|_| last.is_none()) {
            Some(next) => page.joined(next),
            None => page,
        }
    }

    /// Blocks of which the logs are fetched.
    async fn needed(&self, headers: &VecDeque<Header>, fetch: Fetch) -> NeededLogs {
        let queries = match fetch {
            Fetch::Headers => return NeededLogs::None,
            Fetch::Logs => return NeededLogs::All,
            Fetch::LogsFor(queries) => queries,
        };
        let is_kept = |header: &Header| self.logs.contains_key(&header.block.hash);
        let needed = self.ranges.needed(headers, &queries, is_kept, self).await;
        needed.map_or(NeededLogs::All, NeededLogs::Of)
    }

    /// The canonical blocks from a number on, each the parent of the next; and the hash of `above`, the oldest block in memory,
    /// where that follows them.
    async fn headers(&self, first: u64, above: Header) -> (VecDeque<Header>, Option<B256>) {
        let top = above.block.number;
        let end = top.min(first.saturating_add(Gap::MAX as u64));
        let mut by_number = stream::iter((first..end).map(|number| self.header(number))).buffered(AT_ONCE);
        let mut found = BTreeMap::new();
        while let Some(header) = by_number.next().await {
            let below = header.filter(|header| header.block.number < top);
            found.extend(below.map(|header| (header.block.number, header)));
            // A page that is kept is found without any wait.
            tokio::task::consume_budget().await;
        }
        if end == top {
            found.insert(top, above.clone());
        }
        let (mut linked, mut from): (VecDeque<Header>, u64) = (VecDeque::new(), first);
        loop {
            let candidate = found.range(from..).next().map(|(_, header)| header);
            let header = match (linked.back(), candidate) {
                (Some(last), Some(header)) if header.follows(last.block) => header.clone(),
                (None, Some(header)) if header.block.number == first => header.clone(),
                (Some(_), None) => return (linked, None),
                (_, higher) => match self.search(from, higher.unwrap_or(&above).clone()).await {
                    Some(header) => header,
                    None => return (linked, None),
                },
            };
            if linked.back().is_some_and(|last| !header.follows(last.block)) {
                // They are of two branches.
                self.forget();
                return (linked, None);
            }
            let number = header.block.number;
            for proved in from..number.min(end) {
                self.headers.insert(proved, header.clone()).await;
            }
            if header.block == above.block {
                return (linked, Some(header.block.hash));
            }
            linked.push_back(header);
            from = number.saturating_add(1);
        }
    }

    /// The first block at or above this number, below one that is canonical.
    async fn search(&self, number: u64, above: Header) -> Option<Header> {
        let search = async {
            let _room = self.room.acquire().await.ok()?;
            heights::first_from(&*self.source, number, above).await
        };
        self.headers.optionally_get_with(number, search).await
    }

    /// A block by its number, from a node that can be asked. Where it has none the parents tell whether there is one.
    async fn header(&self, number: u64) -> Option<Header> {
        let fetch = async {
            for attempt in 0..TRIES {
                tokio::time::sleep(wait_before(attempt)).await;
                let _room = self.room.acquire().await.ok()?;
                match self.source.seek(Seek::Number(number), attempt).await {
                    Err(Refused::CallFailed) => {}
                    answer => return answer.ok().flatten(),
                }
            }
            None
        };
        self.headers.optionally_get_with(number, fetch).await
    }

    /// What is kept by number may be of a branch that was left.
    pub fn forget(&self) {
        self.headers.invalidate_all();
        self.ranges.forget();
    }

    async fn block(&self, header: Header, needed: &NeededLogs) -> Option<Published> {
        let is_needed = match needed {
            NeededLogs::None => false,
            NeededLogs::All => true,
            NeededLogs::Of(blocks) => blocks.contains(&header.block.hash),
        };
        let logs = if is_needed {
            Some(self.logs_of(&header).await?)
        } else {
            None
        };
        Some(Published {
            header,
            logs,
            awaits_logs: false,
            lacks_logs: false,
            sequence: 0,
        })
    }

    async fn logs_of(&self, header: &Header) -> Option<Arc<BlockLogs>> {
        let fetch = async {
            let _room = self.room.acquire().await.ok()?;
            self.source.logs(header).await.ok().map(Arc::new)
        };
        self.logs.optionally_get_with(header.block.hash, fetch).await
    }

    /// Asks a few times, each time another node as far as there are any; `None` where all say that there is no such block.
    /// By number it is the first block at or above it.
    async fn seek(&self, seek: Seek) -> Result<Option<Header>, NotAsked> {
        let mut said = Err(NotAsked::Unavailable);
        for attempt in 0..LOCATE_TRIES {
            tokio::time::sleep(wait_before(attempt)).await;
            let answer = match seek {
                Seek::Hash(_) => self.source.seek(seek, attempt).await,
                Seek::Number(number) => self.source.first_from(number, attempt).await,
            };
            match answer {
                Ok(Some(header)) => return Ok(Some(header)),
                Ok(None) | Err(Refused::Pruned) => said = Ok(None),
                Err(_) => {}
            }
        }
        said
    }

    /// Whether a node still has the first block at or above this number, with its logs where they are asked for. What it refuses for another reason than
    /// that it was pruned may be served later, and counts as there.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn serves(&self, owner: Owner, number: u64, logs: bool) -> Result<bool, NotAsked> {
        let _place = self.seeking.acquire(owner).await?;
        let Some(header) = self.seek(Seek::Number(number)).await? else {
            return Ok(false);
        };
        if !logs || self.logs.contains_key(&header.block.hash) {
            return Ok(true);
        }
        match tokio::time::timeout(SERVES, self.source.find_logs(&header)).await {
            Ok(Ok(logs)) => self.logs.insert(header.block.hash, Arc::new(logs)).await,
            Ok(Err(Missing::Pruned)) => return Ok(false),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(true)
    }

    /// Finds a block by its hash, and the way back from it to the canonical chain, at most `reach` blocks long. `None`
    /// where the node does not know it, or not all that was told of the branch.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn locate(
        &self,
        owner: Owner,
        hash: B256,
        up_to: Option<u64>,
        logs: bool,
        reach: usize,
    ) -> Result<Option<Located>, NotAsked> {
        let _place = self.seeking.acquire(owner).await?;
        let (mut hash, mut up_to) = (hash, up_to);
        let (mut undo, mut blocks) = (VecDeque::new(), VecDeque::new());
        for _ in 0..reach.max(1) {
            let Some(header) = self.seek(Seek::Hash(hash)).await? else {
                return Ok(None);
            };
            // Without this answer the block might be taken back for nothing.
            let Some(canonical) = self.seek(Seek::Number(header.block.number)).await? else {
                return Ok(None);
            };
            if canonical.block == header.block {
                let ancestor = header.block;
                let left = Left { blocks, ancestor };
                return Ok(Some(Located { undo, left }));
            }
            if logs {
                let Some(logs) = self.logs_of(&header).await else {
                    return Ok(None);
                };
                undo.push_front(Undo { logs, up_to });
            }
            blocks.push_front(header.block);
            up_to = None;
            hash = match header.has_parent() {
                true => header.parent,
                // The one of the number before is taken for it; on another branch than the canonical one nobody can name it.
                false => return Ok(None),
            };
        }
        Ok(None)
    }
}
