//! The table of attacks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater::devnet::{Control, Devnet};
use tokio::runtime::Runtime;

use crate::arena::Arena;
use crate::calls;
use crate::node::Node;

/// A row: what is done, and before which nodes.
pub struct Row {
    pub name: &'static str,
    pub attack: fn(Arena) -> BoxFuture<'static, ()>,
    /// TOML behind the defaults.
    pub settings: &'static str,
    pub second: Kind,
    devnet: bool,
    /// Cheap enough to be one of all at once.
    together: bool,
}

/// The second node, which no call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    None,
    /// Of the same genesis, on a branch of its own as soon as the attack begins.
    Rival,
}

impl Row {
    fn new(name: &'static str, attack: fn(Arena) -> BoxFuture<'static, ()>) -> Self {
        Self {
            name,
            attack,
            settings: "",
            second: Kind::None,
            devnet: false,
            together: false,
        }
    }

    /// Left out before a real node.
    fn on_devnet(mut self) -> Self {
        self.devnet = true;
        self
    }

    fn with(mut self, settings: &'static str) -> Self {
        self.settings = settings;
        self
    }

    fn beside(mut self, second: Kind) -> Self {
        self.second = second;
        self
    }

    fn together(mut self) -> Self {
        self.together = true;
        self
    }

    pub fn needs_devnet(&self) -> bool {
        self.devnet || self.second == Kind::Rival
    }
}

/// The rows, in the order of the table.
pub fn all() -> Vec<Row> {
    vec![
        Row::new("deep params", |arena| calls::deep(arena).boxed()).together(),
        Row::new("calls that break the connection", |arena| calls::poison(arena).boxed())
            .on_devnet()
            .together(),
        Row::new("methods that nobody may call", |arena| calls::methods(arena).boxed()).on_devnet(),
        Row::new("long answers in a loop", |arena| calls::long_answers(arena).boxed()).on_devnet(),
        Row::new("an answer above the limit", |arena| calls::too_long(arena).boxed())
            .on_devnet()
            .with("[node]\nmax_message_bytes = \"4 MiB\""),
    ]
}

/// A second node that runs.
pub enum Second {
    None,
    Rival(Devnet),
}

impl Second {
    pub async fn start(kind: Kind, node: &Node, runtime: &Runtime, lying: Arc<AtomicBool>) -> Result<Self, String> {
        let _inside = runtime.enter();
        let _ = lying;
        Ok(match kind {
            Kind::None => Self::None,
            Kind::Rival => Self::Rival(node.rival().await?),
        })
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Rival(node) => Some(node.ws_url()),
        }
    }

    pub fn control(&self) -> Option<Control> {
        match self {
            Self::Rival(node) => Some(node.handle()),
            Self::None => None,
        }
    }
}
