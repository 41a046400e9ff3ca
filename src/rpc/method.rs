//! Table of methods: the state that an answer depends on, the node that can give it, and if a call may be repeated.
//!
//! A call of a method that is not in the table goes to the node in use, once, and its answer is not cached.

use std::borrow::Cow;

/// Method, as it is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    /// Name, or prefix and `*`; the label of metrics.
    pub name: &'static str,
    /// Role of the method.
    pub role: Role,
}

/// Role of a method, which decides how a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Asks for the chain's id, which is known.
    ChainId,
    /// Asks for the newest number: the published head's.
    BlockNumber,
    /// Asks for logs; those of the newest blocks are in memory.
    Logs,
    /// Asks for data that any node of the chain has.
    Read(Basis),
    /// Asks for data of one node: its transaction pool, its sync state.
    OfNode,
    /// Sends a signed transaction.
    Send,
    /// Makes a filter at a node.
    NewFilter,
    /// Polls a filter at its node, or ends it.
    UseFilter,
    /// Changes a development chain by command: all that was known of the chain may be void.
    Control,
    /// Has no entry in the table.
    Unknown,
    /// Known name in other case: geth has no such method, and another node might take it for the known method, whose
    /// rules the call would escape.
    Misspelt,
}

/// State that the answer to a call depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// The chain itself: it never changes.
    Chain,
    /// The node's software and settings.
    Software,
    /// The newest block.
    Head,
    /// The newest block, whichever block the parameter at this position names, unless that is the pending one: a node
    /// may report data from beyond its head (anvil, in `eth_feeHistory`).
    Recent(usize),
    /// A block that the parameter at this position names by hash.
    Hash(usize),
    /// A block that the parameter at this position names by number, tag or hash.
    Block(usize),
    /// The state of a block, named as for [`Self::Block`]; of the newest block without the parameter.
    State(usize),
    /// The state of a block, as for [`Self::State`]; without the parameter nodes differ, and some take the pending
    /// block.
    Account(usize),
    /// The block in which a transaction was mined.
    Mined,
    /// The block of a transaction, as for [`Self::Mined`]; until then the transaction is in a node's pool.
    Sought,
    /// So many blocks that the answer is not worth caching.
    Work,
}

impl Method {
    /// Checks if `null` means that there is no such block, rather than that the block has no such item.
    #[must_use]
    pub(super) fn is_of_a_block_itself(&self) -> bool {
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

    /// Returns the method of this name.
    #[must_use]
    pub(super) fn of(method: &str) -> Self {
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

    /// Returns a method's name that lives as long as the process, without a copy if the table has it.
    #[must_use]
    pub(super) fn static_name(method: &str) -> Cow<'static, str> {
        match TABLE.binary_search_by(|(name, _)| (*name).cmp(method)) {
            Ok(at) => Cow::Borrowed(TABLE[at].0),
            Err(_) => Cow::Owned(method.to_owned()),
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

/// Methods by name, sorted (execution-apis, and geth's additions).
pub(super) const TABLE: &[(&str, Role)] = &[
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

/// Prefixes of names, searched for a name that is not in the table.
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

/// Returns the names of all methods in the table.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

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
