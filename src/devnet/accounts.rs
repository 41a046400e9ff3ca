//! The accounts that send transactions, and the contracts they call.

use alloy_consensus::{
    SignableTransaction, TxEip1559, TxEnvelope,
    crypto::secp256k1::{recover_signer, sign_message},
};
use alloy_primitives::{Address, B256, Bytes, Log, LogData, TxKind, U256, keccak256};
use rand::{Rng, RngExt};

use super::{abi, block::Transaction, config::Config};

/// The priority fee of every simulated transaction, in wei.
pub(super) const PRIORITY_FEE: u128 = 100_000_000;

/// The seeded accounts and token contracts.
///
/// The logs of a transaction follow from the transaction alone, so it emits the same logs on any branch: as on a real
/// chain, a reorg mostly brings the same events back under another block hash.
#[derive(Debug)]
pub(super) struct Accounts {
    chain_id: u64,
    keys: Vec<(Address, B256)>,
    tokens: Vec<Address>,
    /// Running sum of the tokens' popularity, for weighted draws.
    popularity: Vec<f64>,
    logs_per_transaction: usize,
    log_data_bytes: usize,
}

impl Accounts {
    pub(super) fn new(config: &Config) -> Self {
        let derive = |kind: &str, index: usize| keccak256(format!("headwater devnet {kind} {} {index}", config.seed));
        let keys = (0..config.accounts.max(1))
            .map(|index| {
                let key = derive("account", index);
                (address_of(key), key)
            })
            .collect();
        let tokens: Vec<_> = (0..config.tokens.max(1))
            .map(|index| Address::from_word(derive("token", index)))
            .collect();
        let popularity = (1..=tokens.len())
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / rank as f64;
                Some(*sum)
            })
            .collect();
        Self {
            chain_id: config.chain_id,
            keys,
            tokens,
            popularity,
            logs_per_transaction: config.logs_per_transaction,
            log_data_bytes: config.log_data_bytes.max(32),
        }
    }

    pub(super) fn senders(&self) -> impl ExactSizeIterator<Item = Address> + '_ {
        self.keys.iter().map(|(address, _)| *address)
    }

    pub(super) fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub(super) fn tokens(&self) -> &[Address] {
        &self.tokens
    }

    pub(super) fn is_sender(&self, address: Address) -> bool {
        self.keys.iter().any(|(sender, _)| *sender == address)
    }

    /// Draws a sender.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> Address {
        self.keys[rng.random_range(0..self.keys.len())].0
    }

    /// Signs a new ERC-20 call by `from`, which must be one of the senders.
    pub(super) fn sign(&self, from: Address, nonce: u64, base_fee: u64, rng: &mut impl Rng) -> Transaction {
        let key = self
            .keys
            .iter()
            .find(|(sender, _)| *sender == from)
            .map(|(_, key)| *key);
        let key = key.expect("only the accounts' own addresses are drawn as senders");
        let selector = if rng.random_ratio(3, 4) {
            abi::TRANSFER
        } else {
            abi::APPROVE
        };
        let amount = U256::from(rng.random_range(1..1_000_000u64)) * U256::from(1_000_000_000_000_000u64);
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce,
            gas_limit: self.gas() * 3 / 2,
            max_fee_per_gas: u128::from(base_fee) * 2 + PRIORITY_FEE,
            max_priority_fee_per_gas: PRIORITY_FEE,
            to: TxKind::Call(self.draw_token(rng)),
            value: U256::ZERO,
            access_list: Default::default(),
            input: abi::call_with_address_and_amount(selector, self.draw(rng), amount),
        };
        let signature = sign_message(key, transaction.signature_hash())
            .expect("a keccak hash is a valid secret key but for one chance in 2^128");
        Transaction::new(TxEnvelope::Eip1559(transaction.into_signed(signature)), from)
    }

    /// Returns the transaction's logs, the same on any branch: none unless it calls a token contract.
    pub(super) fn logs_of(&self, transaction: &Transaction) -> Vec<Log> {
        let Some(token) = transaction.to().filter(|to| self.tokens.contains(to)) else {
            return Vec::new();
        };
        let called = abi::decode_address_and_amount(transaction.input());
        let mut entropy = transaction.hash();
        (0..self.logs_per_transaction)
            .map(|index| {
                let (event, to, amount) = match (&called, index) {
                    // The first log follows the call's arguments, so that a client can find its own transfer.
                    (Some((abi::TRANSFER, to, amount)), 0) => (abi::transfer_event(), *to, *amount),
                    (Some((abi::APPROVE, to, amount)), 0) => (abi::approval_event(), *to, *amount),
                    _ => {
                        entropy = keccak256(entropy);
                        let event = if entropy[0] < 192 {
                            abi::transfer_event()
                        } else {
                            abi::approval_event()
                        };
                        let holder = usize::from(entropy[1]) % self.keys.len();
                        let amount = U256::from_be_slice(&entropy[2..10]);
                        (event, self.keys[holder].0, amount)
                    }
                };
                let topics = vec![event, transaction.from().into_word(), to.into_word()];
                Log {
                    address: token,
                    data: LogData::new_unchecked(topics, self.log_data(amount)),
                }
            })
            .collect()
    }

    /// Returns the gas of a token call: of the real order of magnitude, not from an execution.
    pub(super) fn gas(&self) -> u64 {
        GAS_TRANSFER + GAS_PER_LOG * self.logs_per_transaction as u64
    }

    fn log_data(&self, amount: U256) -> Bytes {
        let mut data = vec![0x5a; self.log_data_bytes];
        data[..32].copy_from_slice(&amount.to_be_bytes::<32>());
        data.into()
    }

    fn draw_token(&self, rng: &mut impl Rng) -> Address {
        let total = self.popularity.last().copied().unwrap_or_default();
        let drawn = rng.random_range(0.0..total);
        let index = self.popularity.partition_point(|sum| *sum <= drawn);
        self.tokens[index.min(self.tokens.len() - 1)]
    }
}

/// Gas of a plain transfer.
pub(super) const GAS_TRANSFER: u64 = 21_000;
/// Gas per log: a transfer's storage writes and the log itself.
pub(super) const GAS_PER_LOG: u64 = 12_000;

/// Derives the address of a secret key by recovering it from a signature.
fn address_of(key: B256) -> Address {
    let message = keccak256(b"whose key is this");
    sign_message(key, message)
        .ok()
        .and_then(|signature| recover_signer(&signature, message).ok())
        .expect("a keccak hash is a valid secret key but for one chance in 2^128")
}

#[cfg(test)]
mod tests {
    use alloy_consensus::transaction::SignerRecoverable;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn signer_recovers() {
        let accounts = Accounts::new(&Config::default());
        let mut rng = StdRng::seed_from_u64(7);
        let from = accounts.draw(&mut rng);
        let transaction = accounts.sign(from, 3, 1_000, &mut rng);
        assert_eq!(transaction.envelope().recover_signer().unwrap(), from);
    }

    #[test]
    fn first_log_is_what_the_call_says() {
        let accounts = Accounts::new(&Config::default());
        let mut rng = StdRng::seed_from_u64(7);
        let from = accounts.draw(&mut rng);
        let transaction = accounts.sign(from, 0, 1_000, &mut rng);
        let (_, to, amount) = abi::decode_address_and_amount(transaction.input()).unwrap();
        let logs = accounts.logs_of(&transaction);
        assert_eq!(logs.len(), 3);
        assert_eq!(logs[0].topics()[1..], [from.into_word(), to.into_word()]);
        assert_eq!(logs[0].data.data[..], amount.to_be_bytes::<32>());
    }

    #[test]
    fn first_token_is_the_busiest() {
        let accounts = Accounts::new(&Config::default());
        let mut rng = StdRng::seed_from_u64(7);
        let drawn: Vec<_> = (0..1_000).map(|_| accounts.draw_token(&mut rng)).collect();
        let share = |index: usize| drawn.iter().filter(|token| **token == accounts.tokens[index]).count();
        assert!(share(0) > 150 && share(0) > share(1) && share(1) > share(20));
    }
}
