//! Blocks older than memory, fetched from the nodes for clients that resume. Fetched blocks are cached for a while:
//! after a restart all clients resume at once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use moka::future::Cache;
use tokio::sync::Semaphore;

use super::contents::Silence;
use super::heights;
use super::inquiry::Missing;
use super::ranges::{Between, Ranges};
use super::source::{BadAnswer, Seek, Source};
use super::{
    AbandonedBranch, BlockLogs, BlockRef, Content, ContentKind, Fetch, Gap, Header, Page, PublishedBlock, Retraction,
    Tag, Tagged,
};
use crate::backoff::BLOCK;
use crate::shares::{FairPool, Full, Owner};

/// Blocks of one page that are fetched concurrently.
const AT_ONCE: usize = 8;

/// Bytes of JSON at which a page ends: a page is kept in memory for one client, which may not be reading.
const PAGE_BYTES: usize = 1 << 20;

/// Concurrent fetches for all clients together; the node has other work, too.
const FETCHES: usize = 32;

/// Concurrent searches for blocks that may not exist.
const SEEKS: usize = 8;

/// Searches of one account that may queue. A search takes a few round trips, and longer for a block that no node has.
const MAX_SEEKING: usize = 256;

/// Attempts to fetch one block; after that the page ends with the block before it.
const TRIES: u32 = 6;

/// Attempts for a block that may well not exist.
const LOCATE_TRIES: u32 = 3;

/// Time limit for an old block's logs, after which they count as served: a client waits for its subscription meanwhile.
const SERVES: Duration = Duration::from_secs(2);

/// Size of the cache of headers, of the cache of logs, and of the cache of other contents, in bytes; and the lifetime of an entry: longer than it takes
/// all clients to reconnect after a restart.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_FOR: Duration = Duration::from_secs(120);

/// Returns the weight of a cache entry in bytes: a block without logs has no JSON but takes memory, too.
fn weight(json: usize) -> u32 {
    const ENTRY: usize = 512;
    (json + ENTRY).try_into().unwrap_or(u32::MAX)
}

/// Past blocks and logs, fetched from the nodes and cached.
#[derive(Debug)]
pub struct Archive {
    source: Arc<Source>,
    /// First canonical block at or above each number.
    headers: Cache<u64, Header>,
    logs: Cache<B256, Arc<BlockLogs>>,
    contents: Cache<(B256, ContentKind), Content>,
    ranges: Ranges,
    /// Generation of the history from which `headers` and `ranges` were filled.
    generation: AtomicU64,
    room: Semaphore,
    /// Places for searches of blocks that may not exist, so that these wait only for each other.
    seeking: Arc<FairPool>,
}

/// Selection of the blocks of a page whose logs are fetched.
#[derive(Debug)]
enum NeededLogs {
    None,
    All,
    Of(HashSet<B256>),
}

/// Reason for which no node answered about a block; not evidence about the block.
#[derive(Debug)]
pub enum NoNodeAnswer {
    /// No node gave an answer about the block.
    Unavailable,
    /// Too many searches are queued.
    Busy(Full),
}

impl From<Full> for NoNodeAnswer {
    fn from(full: Full) -> Self {
        Self::Busy(full)
    }
}

/// Position of a block that is not in memory, relative to the canonical chain.
#[derive(Debug)]
pub struct Located {
    /// Logs to remove: those of the block and of its ancestors that are not canonical, oldest first; empty if the block
    /// is canonical.
    pub undo: VecDeque<Retraction>,
    /// Non-canonical blocks from the branch point up to the block; if the block is canonical, no blocks, and the block
    /// itself as the ancestor.
    pub left: AbandonedBranch,
}

impl Between for Archive {
    async fn logs(&self, first: BlockRef, last: BlockRef, criteria: &str) -> Result<Bytes, BadAnswer> {
        let _room = self.room.acquire().await.map_err(|_| BadAnswer::CallFailed)?;
        self.source.logs_between(first, last, criteria).await
    }
}

impl Archive {
    /// Creates an empty archive that fetches from `source`.
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
        let contents = Cache::builder()
            .weigher(|_, content: &Content| weight(content.json_len()))
            .max_capacity(KEPT_BYTES)
            .time_to_live(KEPT_FOR)
            .build();
        Self {
            source,
            headers,
            logs,
            contents,
            ranges: Ranges::new(KEPT_FOR),
            generation: AtomicU64::new(0),
            room: Semaphore::new(FETCHES),
            seeking: FairPool::new("too many wait for a block to resume from", SEEKS, MAX_SEEKING),
        }
    }

    /// Asks the node in use for the newest block of this tag.
    pub async fn tagged(&self, tag: Tag) -> Tagged {
        self.source.tagged(tag).await
    }

    /// Returns blocks that fill `gap`: at most one page, fewer if the nodes have no more, with the logs that `fetch`
    /// selects and the contents of other kinds in `extras`. Headers and ranges cached in another `generation` of the
    /// history are dropped first.
    pub async fn page(&self, generation: u64, gap: Gap, fetch: Fetch, extras: &[ContentKind]) -> Page {
        if self.generation.swap(generation, Ordering::Relaxed) != generation {
            self.forget();
        }
        let (from, headers, next, needed) = match gap {
            Gap::Below(first, above) => {
                let (headers, next) = self.headers(first, *above).await;
                let needed = self.needed(&headers, fetch).await;
                (first, headers, next, needed)
            }
            // Memory keeps all logs of these blocks, to be able to send their removals.
            Gap::Logs(headers) => {
                let from = headers.first().map_or(0, |own| own.block.number);
                (from, headers.into(), None, NeededLogs::All)
            }
            Gap::Contents(headers) => {
                let from = headers.first().map_or(0, |own| own.block.number);
                (from, headers.into(), None, NeededLogs::None)
            }
        };
        let mut last = headers.back().map(|own| own.block);
        let whole = |header| self.block_with(header, &needed, extras);
        let mut blocks = stream::iter(headers.into_iter().map(whole)).buffered(AT_ONCE);
        let (mut page, mut bytes, mut contents) = (VecDeque::new(), 0, HashMap::new());
        while let Some(Some((block, others))) = blocks.next().await {
            bytes += block.header.json.len() + block.logs.as_ref().map_or(0, |logs| logs.json_len());
            for (kind, content) in others {
                bytes += content.json_len();
                contents.insert((block.header.block.hash, kind), content);
            }
            last = last.filter(|last| *last != block.header.block);
            page.push_back(block);
            if bytes > PAGE_BYTES {
                break;
            }
            // Cached blocks are ready at once, so nothing else in this loop would yield.
            tokio::task::consume_budget().await;
        }
        drop(blocks);
        let page = match needed {
            NeededLogs::Of(_) => Page::new(from, page).sifted(),
            NeededLogs::None | NeededLogs::All => Page::new(from, page),
        };
        let page = page.with(contents).known_to_lead_to_memory(next.is_some());
        match next.filter(|_| last.is_none()) {
            Some(next) => page.joined(next),
            None => page,
        }
    }

    /// Selects the blocks whose logs are fetched.
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

    /// Returns the canonical blocks from number `first` on, each the parent of the next; and the hash of `above`, the
    /// oldest block in memory, if it is the child of the last one.
    async fn headers(&self, first: u64, above: Header) -> (VecDeque<Header>, Option<B256>) {
        let top = above.block.number;
        let end = top.min(first.saturating_add(Gap::MAX as u64));
        let mut by_number = stream::iter((first..end).map(|number| self.header(number))).buffered(AT_ONCE);
        let mut found = BTreeMap::new();
        while let Some(header) = by_number.next().await {
            let below = header.filter(|header| header.block.number < top);
            found.extend(below.map(|header| (header.block.number, header)));
            // Cached headers are ready at once, so nothing else in this loop would yield.
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
                    // What should lead to memory, and does not, may be of another branch.
                    None if end == top => return (VecDeque::new(), None),
                    None => return (linked, None),
                },
            };
            if linked.back().is_some_and(|last| !header.follows(last.block)) {
                // The headers are of two branches, and either may be another one than that of the published chain.
                self.forget();
                return (VecDeque::new(), None);
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

    /// Finds the first block at or above `number`, starting from a canonical block above it.
    async fn search(&self, number: u64, above: Header) -> Option<Header> {
        let search = async {
            let _room = self.room.acquire().await.ok()?;
            heights::first_from(&*self.source, number, above).await
        };
        self.headers.optionally_get_with(number, search).await
    }

    /// Fetches a block by its number. `None` if the node has none or answers with an error, or all [`TRIES`] calls
    /// fail; then [`Self::search`] finds out by parents if there is one.
    async fn header(&self, number: u64) -> Option<Header> {
        let fetch = async {
            for attempt in 0..TRIES {
                tokio::time::sleep(BLOCK.before(attempt)).await;
                let _room = self.room.acquire().await.ok()?;
                match self.source.seek(Seek::Number(number), attempt).await {
                    Err(BadAnswer::CallFailed) => {}
                    answer => return answer.ok().flatten(),
                }
            }
            None
        };
        self.headers.optionally_get_with(number, fetch).await
    }

    /// Drops all that is cached by number: it may be of a branch that was abandoned.
    pub fn forget(&self) {
        self.headers.invalidate_all();
        self.ranges.forget();
    }

    async fn block(&self, header: Header, needed: &NeededLogs) -> Option<PublishedBlock> {
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
        Some(PublishedBlock {
            header,
            logs,
            awaits_logs: false,
            lacks_logs: false,
            sequence: 0,
        })
    }

    /// Returns a block with its logs, if they are needed, and its other contents of these kinds.
    async fn block_with(
        &self,
        header: Header,
        needed: &NeededLogs,
        extras: &[ContentKind],
    ) -> Option<(PublishedBlock, Vec<(ContentKind, Content)>)> {
        let mut contents = Vec::new();
        for kind in extras {
            contents.push((*kind, self.content_of(*kind, &header).await?));
        }
        Some((self.block(header, needed).await?, contents))
    }

    async fn content_of(&self, kind: ContentKind, header: &Header) -> Option<Content> {
        let fetch = async {
            let _room = self.room.acquire().await.ok()?;
            self.source.content(kind, header, Silence::Ends).await.ok()
        };
        self.contents
            .optionally_get_with((header.block.hash, kind), fetch)
            .await
    }

    async fn logs_of(&self, header: &Header) -> Option<Arc<BlockLogs>> {
        let fetch = async {
            let _room = self.room.acquire().await.ok()?;
            self.source.logs(header, Silence::Ends).await.ok().map(Arc::new)
        };
        self.logs.optionally_get_with(header.block.hash, fetch).await
    }

    /// Asks up to [`LOCATE_TRIES`] times, each time another node if there is one. `None` if none has the block and at
    /// least one reports that it does not exist or is pruned. [`Seek::Number`] finds the first block at or above the
    /// number.
    async fn seek(&self, seek: Seek) -> Result<Option<Header>, NoNodeAnswer> {
        let mut said = Err(NoNodeAnswer::Unavailable);
        for attempt in 0..LOCATE_TRIES {
            tokio::time::sleep(BLOCK.before(attempt)).await;
            let answer = match seek {
                Seek::Hash(_) => self.source.seek(seek, attempt).await,
                Seek::Number(number) => self.source.first_from(number, attempt).await,
            };
            match answer {
                Ok(Some(header)) => return Ok(Some(header)),
                Ok(None) | Err(BadAnswer::Pruned) => said = Ok(None),
                Err(_) => {}
            }
        }
        said
    }

    /// Checks if a node still has the first block at or above `number` and, if `logs`, its logs. `false` only if the
    /// nodes have no such block, or its logs are pruned; logs missing for another reason may be served later, and count
    /// as there.
    ///
    /// # Errors
    /// [`NoNodeAnswer`] if too many searches are queued, or no node gives an answer.
    pub async fn serves(&self, owner: Owner, number: u64, logs: bool) -> Result<bool, NoNodeAnswer> {
        let _place = self.seeking.acquire(owner).await?;
        let Some(header) = self.seek(Seek::Number(number)).await? else {
            return Ok(false);
        };
        if !logs || self.logs.contains_key(&header.block.hash) {
            return Ok(true);
        }
        match tokio::time::timeout(SERVES, self.source.find_logs(&header, Silence::Ends)).await {
            Ok(Ok(logs)) => self.logs.insert(header.block.hash, Arc::new(logs)).await,
            Ok(Err(Missing::Pruned)) => return Ok(false),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(true)
    }

    /// Finds a block by its hash, and the way from the block back to the canonical chain, at most `reach` blocks long.
    /// `up_to` is the index of the last log delivered of the block; `None` for all. Returns `None` if the nodes do not
    /// have the block, or not all blocks (and, if `logs`, all logs) on the way, or if the way is longer.
    ///
    /// # Errors
    /// [`NoNodeAnswer`] if too many searches are queued, or no node gives an answer.
    pub async fn locate(
        &self,
        owner: Owner,
        hash: B256,
        up_to: Option<u64>,
        logs: bool,
        reach: usize,
    ) -> Result<Option<Located>, NoNodeAnswer> {
        let _place = self.seeking.acquire(owner).await?;
        let (mut hash, mut up_to) = (hash, up_to);
        let (mut undo, mut blocks) = (VecDeque::new(), VecDeque::new());
        for _ in 0..reach.max(1) {
            let Some(header) = self.seek(Seek::Hash(hash)).await? else {
                return Ok(None);
            };
            // Without this answer a canonical block might be removed.
            let Some(canonical) = self.seek(Seek::Number(header.block.number)).await? else {
                return Ok(None);
            };
            if canonical.block == header.block {
                let ancestor = header.block;
                let left = AbandonedBranch { blocks, ancestor };
                return Ok(Some(Located { undo, left }));
            }
            if logs {
                let Some(logs) = self.logs_of(&header).await else {
                    return Ok(None);
                };
                let header = header.clone();
                undo.push_front(Retraction { header, logs, up_to });
            }
            blocks.push_front(header.block);
            up_to = None;
            hash = match header.has_parent() {
                true => header.parent,
                // Its parent is the block of the number before, but off the canonical chain a number does not identify
                // a block.
                false => return Ok(None),
            };
        }
        Ok(None)
    }
}
