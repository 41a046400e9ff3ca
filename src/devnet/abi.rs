//! The ERC-20 surface of the simulated token contracts.

use std::sync::LazyLock;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};

/// `transfer(address,uint256)`
pub(super) const TRANSFER: [u8; 4] = [0xa9, 0x05, 0x9c, 0xbb];
/// `approve(address,uint256)`
pub(super) const APPROVE: [u8; 4] = [0x09, 0x5e, 0xa7, 0xb3];
/// `transferFrom(address,address,uint256)`
const TRANSFER_FROM: [u8; 4] = [0x23, 0xb8, 0x72, 0xdd];
const NAME: [u8; 4] = [0x06, 0xfd, 0xde, 0x03];
const SYMBOL: [u8; 4] = [0x95, 0xd8, 0x9b, 0x41];
const DECIMALS: [u8; 4] = [0x31, 0x3c, 0xe5, 0x67];
const TOTAL_SUPPLY: [u8; 4] = [0x18, 0x16, 0x0d, 0xdd];
const BALANCE_OF: [u8; 4] = [0x70, 0xa0, 0x82, 0x31];
const ALLOWANCE: [u8; 4] = [0xdd, 0x62, 0xed, 0x3e];
/// `Error(string)`, the revert data of Solidity's `require`.
const ERROR: [u8; 4] = [0x08, 0xc3, 0x79, 0xa0];

/// Code of the token contracts: not empty, but without meaning.
pub(super) const TOKEN_CODE: &[u8] = &[0x60, 0x80, 0x60, 0x40, 0x52, 0x00];

/// The revert of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Revert {
    pub(super) reason: &'static str,
    /// The reason as `Error(string)`, ABI-encoded.
    pub(super) data: Bytes,
}

pub(super) fn transfer_event() -> B256 {
    static TOPIC: LazyLock<B256> = LazyLock::new(|| keccak256("Transfer(address,address,uint256)"));
    *TOPIC
}

pub(super) fn approval_event() -> B256 {
    static TOPIC: LazyLock<B256> = LazyLock::new(|| keccak256("Approval(address,address,uint256)"));
    *TOPIC
}

pub(super) fn call_with_address_and_amount(selector: [u8; 4], address: Address, amount: U256) -> Bytes {
    [&selector[..], &address.into_word()[..], &amount.to_be_bytes::<32>()]
        .concat()
        .into()
}

/// Decodes the input of [`call_with_address_and_amount`]; returns `None` for input of any other length.
pub(super) fn decode_address_and_amount(input: &[u8]) -> Option<([u8; 4], Address, U256)> {
    let (selector, arguments) = input.split_first_chunk::<4>()?;
    let arguments: &[u8; 64] = arguments.try_into().ok()?;
    Some((
        *selector,
        Address::from_slice(&arguments[12..32]),
        U256::from_be_slice(&arguments[32..]),
    ))
}

/// Returns the result of a call to the `index`-th token contract. Unknown selectors return nothing, as a fallback
/// function would; `transferFrom` always reverts, to provide errors with data.
pub(super) fn call_token(token: Address, index: usize, input: &[u8]) -> Result<Bytes, Revert> {
    let Some((selector, arguments)) = input.split_first_chunk::<4>() else {
        return Ok(Bytes::new());
    };
    Ok(match *selector {
        NAME => encode_string(&format!("Token {index}")),
        SYMBOL => encode_string(&format!("TK{index}")),
        DECIMALS => encode_word(U256::from(18)),
        TOTAL_SUPPLY => encode_word(U256::from(10).pow(U256::from(27))),
        BALANCE_OF | ALLOWANCE => encode_word(balance(token, arguments)),
        TRANSFER | APPROVE => encode_word(U256::from(1)),
        TRANSFER_FROM => {
            let reason = "ERC20: insufficient allowance";
            let data = [&ERROR[..], &encode_string(reason)].concat().into();
            return Err(Revert { reason, data });
        }
        _ => Bytes::new(),
    })
}

/// Returns a balance or an allowance. Neither is tracked: each is a constant that follows from the token and the
/// arguments.
fn balance(token: Address, arguments: &[u8]) -> U256 {
    let hash = keccak256([token.as_slice(), arguments].concat());
    U256::from_be_slice(&hash[..10])
}

fn encode_word(value: U256) -> Bytes {
    value.to_be_bytes::<32>().to_vec().into()
}

fn encode_string(text: &str) -> Bytes {
    let mut encoded = U256::from(32).to_be_bytes::<32>().to_vec();
    encoded.extend(U256::from(text.len()).to_be_bytes::<32>());
    encoded.extend(text.as_bytes());
    encoded.resize(encoded.len().next_multiple_of(32), 0);
    encoded.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_the_hashes_of_their_signatures() {
        for (signature, selector) in [
            ("transfer(address,uint256)", TRANSFER),
            ("approve(address,uint256)", APPROVE),
            ("transferFrom(address,address,uint256)", TRANSFER_FROM),
            ("name()", NAME),
            ("symbol()", SYMBOL),
            ("decimals()", DECIMALS),
            ("totalSupply()", TOTAL_SUPPLY),
            ("balanceOf(address)", BALANCE_OF),
            ("allowance(address,address)", ALLOWANCE),
            ("Error(string)", ERROR),
        ] {
            assert_eq!(keccak256(signature)[..4], selector, "{signature}");
        }
    }

    #[test]
    fn strings_are_offset_length_and_padded_bytes() {
        let encoded = call_token(Address::ZERO, 7, &SYMBOL).unwrap();
        assert_eq!(encoded.len(), 96);
        assert_eq!((encoded[31], encoded[63]), (32, 3));
        assert_eq!(&encoded[64..68], b"TK7\0");
    }

    #[test]
    fn transfer_from_reverts_with_a_reason() {
        let revert = call_token(Address::ZERO, 0, &TRANSFER_FROM).unwrap_err();
        assert_eq!(revert.data[..4], ERROR);
        assert_eq!(&revert.data[68..68 + revert.reason.len()], revert.reason.as_bytes());
    }
}
