//! Effect of a method, judged by its name: it reads, or it acts (signs, writes or administers).
//!
//! A list of allowed methods cannot know the methods of every node. So a pattern (`eth_*`) covers methods that read
//! only, and a method that acts is served only where it is named in full. Names are compared without regard to case: a
//! node that reads `eth_SendTransaction` as `eth_sendTransaction` must not find more than the list allows.

/// Namespaces that all clients may call, unless `methods.allowed` is set; docs/methods.md gives the reasons.
pub const PUBLIC: &[&str] = &[
    "eth", "net", "web3", "rpc", "txpool", "trace", "ots", "erigon", "bor", "parlia", "zks", "arb", "optimism",
    "linea", "scroll", "taiko",
];

/// Namespaces whose methods all act, or whose reading methods cannot be told apart by name.
const ACTING: &[&str] = &[
    "account",
    "admin",
    "anvil",
    "clique",
    "db",
    "dev",
    "devnet",
    "eea",
    "engine",
    "ethash",
    "evm",
    "filecoin",
    "flashbots",
    "ganache",
    "hardhat",
    "ibft",
    "istanbul",
    "les",
    "miner",
    "parity",
    "perm",
    "personal",
    "plugins",
    "priv",
    "qbft",
    "quorumpermission",
    "raft",
    "shh",
    "signer",
    "taikoauth",
    "tenderly",
    "testing",
    "vflux",
    "wallet",
];

/// Known namespaces that read but are not public: tracing that costs a node minutes, and inspection by its operator.
const OPERATORS: &[&str] = &["arbdebug", "arbtrace", "debug", "health", "overlay", "proof"];

/// First words of the names of methods that act, in any namespace.
const VERBS: &[&str] = &[
    "clear",
    "compact",
    "delete",
    "drop",
    "export",
    "free",
    "import",
    "insert",
    "migrate",
    "reload",
    "reset",
    "sendtransaction",
    "sendunsignedtransaction",
    "set",
    "shutdown",
    "sign",
    "start",
    "stop",
    "unlock",
    "write",
];

/// Prefixes of further methods that act, among them the methods of mining rigs, and methods that write to a node's
/// disk or read files there.
const NAMES: &[&str] = &[
    "debug_blockprofile",
    "debug_chaindbcompact",
    "debug_cpuprofile",
    "debug_gotrace",
    "debug_mutexprofile",
    "debug_standardtrace",
    "debug_sync",
    "debug_traceblockfromfile",
    "debug_verbosity",
    "debug_vmodule",
    "eth_getwork",
    "eth_resend",
    "eth_submit",
    "reth_forkchoiceupdated",
    "reth_newpayload",
];

/// Namespaces of commands to a development chain.
const DEVELOPMENT: &[&str] = &["anvil", "devnet", "evm", "ganache", "hardhat"];

/// Checks if a method signs with a node's own accounts, writes to it or administers it.
#[must_use]
pub fn acts(method: &str) -> bool {
    let (namespace, name) = split(method);
    // No known method contains `__`; a node that reads such a name as another method must not get it.
    if method.as_bytes().windows(2).any(|two| two == b"__") {
        return true;
    }
    let of = |all: &[&str]| all.iter().any(|one| namespace.eq_ignore_ascii_case(one));
    of(ACTING) || VERBS.iter().any(|verb| begins(name, verb)) || NAMES.iter().any(|own| begins(method, own))
}

/// Checks if a method commands a development chain, or uses the unlocked accounts of a development node.
#[must_use]
pub(super) fn is_for_development(method: &str) -> bool {
    let (namespace, _) = split(method);
    DEVELOPMENT.contains(&namespace) || namespace == "eth" && acts(method)
}

/// Checks if the namespace of a method is known here, allowed or not.
#[must_use]
pub(super) fn is_known(method: &str) -> bool {
    let (namespace, _) = split(method);
    let mut all = [PUBLIC, ACTING, OPERATORS].into_iter().flatten();
    all.any(|one| namespace.eq_ignore_ascii_case(one))
}

/// Splits a method into its namespace and the name in it.
fn split(method: &str) -> (&str, &str) {
    method.split_once(['_', '.']).unwrap_or((method, ""))
}

/// Checks if a name begins with a word in lower case, the first byte first: each call costs about 35 of these checks.
fn begins(name: &str, word: &str) -> bool {
    let (name, word) = (name.as_bytes(), word.as_bytes());
    name.first().map(u8::to_ascii_lowercase) == word.first().copied()
        && name
            .get(..word.len())
            .is_some_and(|beginning| beginning.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_signs_writes_or_administers_is_told_by_its_name() {
        for method in [
            "eth_sendTransaction",
            "eth_sendTransactionAsync",
            "eth_SendTransaction",
            "eth_SENDTRANSACTION",
            "ETH_sendTransaction",
            "eth_sign",
            "eth_signTransaction",
            "eth_signTypedData_v4",
            "eth_resend",
            "eth_submitWork",
            "eth_getWork",
            "eth_sendUnsignedTransaction",
            "klay_signTransaction",
            "linea_setExtraData",
            "zks_setTime",
            "admin_peers",
            "Admin_peers",
            "admin.peers",
            "admin",
            "personal_listAccounts",
            "engine_getBlobsV1",
            "testing_commitBlockV1",
            "dev_addWithdrawal",
            "debug_setHead",
            "debug_writeMemProfile",
            "debug_standardTraceBlockToFile",
            "debug_deleteChainSlice",
            "reth_newPayload",
            "evm_mine",
            "wallet_sendTransaction",
            "Filecoin.WalletSign",
        ] {
            assert!(acts(method), "{method}");
        }
        for method in [
            "eth_call",
            "eth_accounts",
            "eth_fillTransaction",
            "eth_sendRawTransaction",
            "eth_sendRawTransactionSync",
            "eth_sendBundle",
            "eth_simulateV1",
            "eth_",
            "eth",
            "",
            "_",
            "txpool_status",
            "debug_traceCall",
            "debug_getRawBlock",
            "debug_subscribe",
            "reth_getBalanceChangesInBlock",
            "zks_sendRawTransactionWithDetailedOutput",
            "unheard_of",
        ] {
            assert!(!acts(method), "{method}");
        }
    }

    #[test]
    fn development_is_a_chain_at_command_and_a_nodes_own_accounts() {
        for method in [
            "evm_mine",
            "anvil_reorg",
            "hardhat_reset",
            "ganache_x",
            "devnet_mine",
            "eth_sendTransaction",
            "eth_sign",
        ] {
            assert!(is_for_development(method), "{method}");
        }
        for method in [
            "eth_call",
            "personal_sign",
            "debug_setHead",
            "admin_peers",
            "engine_x",
            "EVM_mine",
            "dev_x",
            "wallet_x",
        ] {
            assert!(!is_for_development(method), "{method}");
        }
    }

    #[test]
    fn each_namespace_is_known_once() {
        let all = [PUBLIC, ACTING, OPERATORS].concat();
        let once: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(once.len(), all.len());
        for method in ["eth_x", "debug_x", "Admin_x", "tenderly_x", "admin.x"] {
            assert!(is_known(method), "{method}");
        }
        for method in ["ethx_x", "chain_x", "", "x"] {
            assert!(!is_known(method), "{method}");
        }
        assert!(DEVELOPMENT.iter().all(|own| ACTING.contains(own)));
    }
}
