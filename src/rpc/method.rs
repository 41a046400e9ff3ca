//! What is known of each method: what its answer stands on, which node can give it, and whether asking twice does harm.
//!
//! A method that is not in the table is asked of the node in use, once, and nothing of it is kept.

/// A method as it is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name, or the beginning of its name and `*`; the label of metrics.
    pub name: &'static str,
    /// What it does.
    pub role: Role,
}

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Asks for the chain's id, which is known.
    ChainId,
    /// Asks for the newest number, which is what clients were shown.
    BlockNumber,
    /// Asks for logs, of which the newest are held.
    Logs,
    /// Asks for what any node of the chain knows.
    Read(Basis),
    /// Asks for what one node knows: its pool of transactions, its sync state.
    OfNode,
    /// Hands in a signed transaction.
    Send,
    /// Makes a filter at a node.
    NewFilter,
    /// Asks such a filter, or ends it.
    UseFilter,
    /// Changes a development chain at will: nothing that was known of it may hold.
    Control,
    /// Nobody here knows.
    Unknown,
    /// A known name in other case: geth has no such method, and another node might take it for the known one, whose
    /// rules it would escape.
    Misspelt,
}

/// What the answer to a question stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The chain itself: it never changes.
    Chain,
    /// The node's software and settings.
    Software,
    /// The newest block.
    Head,
    /// The newest block, whichever the parameter at this place names, unless that is the pending one: a node may tell of
    /// what comes after its head (anvil, in `eth_feeHistory`).
    Recent(usize),
    /// A block that the parameter at this place names by hash.
    Hash(usize),
    /// A block that the parameter at this place names by number, tag or hash.
    Block(usize),
    /// As [`Self::Block`], and it needs that block's state; without the parameter it is the newest.
    State(usize),
    /// As [`Self::State`], but without the parameter nodes differ, and some take the pending one.
    Account(usize),
    /// Where a transaction was mined.
    Mined,
    /// As [`Self::Mined`]; before that it is in a node's pool.
    Sought,
    /// So many blocks that it is not worth keeping.
    Work,
}

impl Method {
    /// Whether `null` says that there is no such block, rather than that there is nothing in it.
    #[must_use]
    pub fn is_of_a_block_itself(&self) -> bool {
        matches!(
            self.name,
            "eth_getBlockByHash"
                | "eth_getBlockByNumber"
                | "eth_getBlockReceipts"
                | "eth_getBlockTransactionCountByHash"
                | "eth_getBlockTransactionCountByNumber"
                | "eth_getHeaderByHash"
                | "eth_getHeaderByNumber"
        )
    }

    /// What is known of this name.
    #[must_use]
    pub fn of(method: &str) -> Self {
        match TABLE.binary_search_by(|(name, _)| (*name).cmp(method)) {
            Ok(at) => Self {
                name: TABLE[at].0,
                role: TABLE[at].1,
            },
            Err(_) => PREFIXES
                .iter()
                .find(|(name, _)| method.starts_with(name.trim_end_matches('*')))
                .map_or_else(|| Self::unlisted(method), |&(name, role)| Self { name, role }),
        }
    }

    fn unlisted(method: &str) -> Self {
        let is_known = |name: &str| match name.strip_suffix('*') {
            Some(prefix) => method
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix.as_bytes())),
            None => method.eq_ignore_ascii_case(name),
        };
        if TABLE.iter().chain(PREFIXES).any(|(name, _)| is_known(name)) {
            return Self {
                role: Role::Misspelt,
                ..Self::UNKNOWN
            };
        }
        Self::UNKNOWN
    }

    const UNKNOWN: Self = Self {
        name: "other",
        role: Role::Unknown,
    };
}

use Basis::{Account, Block, Chain, Hash, Head, Mined, Recent, Software, Sought, State, Work};
use Role::{BlockNumber, ChainId, Control, Logs, NewFilter, OfNode, Read, Send, UseFilter};

/// Sorted by name (execution-apis, and what geth adds to it).
const TABLE: &[(&str, Role)] = &[
    ("debug_setHead", Control),
    ("eth_accounts", Read(Software)),
    ("eth_baseFee", Read(Head)),
    ("eth_blobBaseFee", Read(Head)),
    ("eth_blockNumber", BlockNumber),
    ("eth_call", Read(State(1))),
    ("eth_chainId", ChainId),
    ("eth_coinbase", Read(Software)),
    ("eth_createAccessList", Read(State(1))),
    ("eth_estimateGas", Read(Account(1))),
    ("eth_feeHistory", Read(Recent(1))),
    ("eth_gasPrice", Read(Head)),
    ("eth_getBalance", Read(Account(1))),
    ("eth_getBlockByHash", Read(Hash(0))),
    ("eth_getBlockByNumber", Read(Block(0))),
    ("eth_getBlockReceipts", Read(Block(0))),
    ("eth_getBlockTransactionCountByHash", Read(Hash(0))),
    ("eth_getBlockTransactionCountByNumber", Read(Block(0))),
    ("eth_getCode", Read(Account(1))),
    ("eth_getFilterChanges", UseFilter),
    ("eth_getFilterLogs", UseFilter),
    ("eth_getHeaderByHash", Read(Hash(0))),
    ("eth_getHeaderByNumber", Read(Block(0))),
    ("eth_getLogs", Logs),
    ("eth_getProof", Read(Account(2))),
    ("eth_getStorageAt", Read(Account(2))),
    ("eth_getTransactionByBlockHashAndIndex", Read(Hash(0))),
    ("eth_getTransactionByBlockNumberAndIndex", Read(Block(0))),
    ("eth_getTransactionByHash", Read(Sought)),
    ("eth_getTransactionCount", Read(Account(1))),
    ("eth_getTransactionReceipt", Read(Mined)),
    ("eth_getUncleByBlockHashAndIndex", Read(Hash(0))),
    ("eth_getUncleByBlockNumberAndIndex", Read(Block(0))),
    ("eth_getUncleCountByBlockHash", Read(Hash(0))),
    ("eth_getUncleCountByBlockNumber", Read(Block(0))),
    ("eth_maxPriorityFeePerGas", Read(Head)),
    ("eth_newBlockFilter", NewFilter),
    ("eth_newFilter", NewFilter),
    ("eth_newPendingTransactionFilter", NewFilter),
    ("eth_protocolVersion", Read(Software)),
    ("eth_sendRawTransaction", Send),
    ("eth_simulateV1", Read(State(1))),
    ("eth_syncing", OfNode),
    ("eth_uninstallFilter", UseFilter),
    ("net_listening", OfNode),
    ("net_peerCount", OfNode),
    ("net_version", Read(Chain)),
    ("rpc_modules", Read(Software)),
    ("web3_clientVersion", Read(Software)),
    ("web3_sha3", OfNode),
];

/// Beginnings of names, looked at where the table has nothing.
const PREFIXES: &[(&str, Role)] = &[
    ("anvil_*", Control),
    ("debug_trace*", Read(Work)),
    ("devnet_*", Control),
    ("evm_*", Control),
    ("hardhat_*", Control),
    ("ots_*", Read(Work)),
    ("tenderly_*", Control),
    ("trace_*", Read(Work)),
    ("txpool_*", OfNode),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_found() {
        assert!(TABLE.is_sorted_by(|(a, _), (b, _)| a < b));
        for (name, role) in TABLE {
            assert_eq!(Method::of(name), Method { name, role: *role });
        }
        assert_eq!(Method::of("debug_traceCall").name, "debug_trace*");
        assert_eq!(Method::of("evm_mine").role, Role::Control);
        for unknown in ["", "eth_", "eth_callMany", "debug_getRawBlock"] {
            assert_eq!(Method::of(unknown), Method::UNKNOWN, "{unknown}");
        }
        for misspelt in [
            "ETH_CALL",
            "eth_getfilterchanges",
            "Eth_call",
            "EVM_mine",
            "Trace_block",
            "DEBUG_traceCall",
        ] {
            assert_eq!(Method::of(misspelt).role, Role::Misspelt, "{misspelt}");
        }
    }
}
