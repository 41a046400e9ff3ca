//! The measured calls and their expected answers.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    ChainId,
    Latest,
    Same,
    Another,
    /// Method of an embedder's module, with an answer as short as that of `eth_chainId`.
    Module,
}

impl Call {
    /// The calls of the table.
    pub const ALL: [Self; 4] = [Self::ChainId, Self::Latest, Self::Same, Self::Another];

    pub fn title(self) -> &'static str {
        match self {
            Self::ChainId => "eth_chainId",
            Self::Latest => "eth_getBlockByNumber (latest)",
            Self::Same => "eth_call, the same",
            Self::Another => "eth_call, another each time",
            Self::Module => "a module's method",
        }
    }

    /// Returns `true` if headwater keeps the first answer, at least until the next head.
    pub fn is_kept(self) -> bool {
        !matches!(self, Self::Another | Self::Module)
    }

    pub fn method(self) -> &'static str {
        match self {
            Self::ChainId => "eth_chainId",
            Self::Latest => "eth_getBlockByNumber",
            Self::Same | Self::Another => "eth_call",
            Self::Module => "bench_answer",
        }
    }

    /// Returns the parameters of call `number`. The target of `eth_call` is the identity precompile at address 4,
    /// which exists on every chain and returns its input.
    pub fn params(self, number: u64) -> String {
        match self {
            Self::ChainId | Self::Module => "[]".to_owned(),
            Self::Latest => r#"["latest",false]"#.to_owned(),
            Self::Same => Self::Another.params(0),
            Self::Another => {
                format!(r#"[{{"to":"0x0000000000000000000000000000000000000004","data":"0x{number:064x}"}},"latest"]"#)
            }
        }
    }

    /// Checks the result of call `number`; `fixed` is the node's earlier answer.
    pub fn check(self, number: u64, result: &RawValue, fixed: &RawValue) -> Result<()> {
        let given = || format!("\"0x{number:064x}\"");
        let is_right = match self {
            Self::Another => result.get() == given(),
            // Equal JSON in other bytes is still right.
            _ => result.get() == fixed.get() || value(result)? == value(fixed)?,
        };
        ensure!(
            is_right,
            "a wrong answer to {}: {}",
            self.title(),
            quoted(result.get().as_bytes())
        );
        Ok(())
    }
}

fn value(json: &RawValue) -> Result<Value> {
    Ok(serde_json::from_str(json.get())?)
}

/// An answer, or a subscription event, which has no id.
#[derive(Deserialize)]
pub struct Message<'a> {
    pub id: Option<u64>,
    #[serde(borrow)]
    pub result: Option<&'a RawValue>,
    #[serde(borrow)]
    pub params: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    pub fn parse(json: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(json).with_context(|| format!("not JSON-RPC: {}", quoted(json)))
    }

    /// Returns the id and the result of an answer.
    ///
    /// # Errors
    ///
    /// If the message is not JSON-RPC, or has no id or no result.
    pub fn answer(json: &'a [u8]) -> Result<(u64, &'a RawValue)> {
        match Self::parse(json)? {
            Self {
                id: Some(id),
                result: Some(result),
                ..
            } => Ok((id, result)),
            _ => bail!("no result: {}", quoted(json)),
        }
    }
}

pub fn quoted(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(400).collect()
}
