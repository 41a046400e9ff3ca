//! The table of attacks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater::devnet::{Control, Devnet};

use crate::arena::{Arena, Form};
use crate::node::Node;
use crate::nodes::{self, Liar, Lie};
use crate::{calls, clients, streams, subscriptions};

/// A row: an attack, and the nodes behind the process.
pub struct Row {
    pub name: &'static str,
    pub attack: fn(Arena) -> BoxFuture<'static, ()>,
    /// Settings in TOML, in addition to the defaults.
    pub settings: &'static str,
    pub second: Kind,
    devnet: bool,
    /// `true` for an attack that is cheap enough for the row that plays many at once.
    together: bool,
    /// `true` for a row that takes the whole machine: played in the full form only.
    pub is_heavy: bool,
}

/// Kind of the second node, which gets no calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    None,
    /// Node of the same genesis, on a branch of its own as soon as the attack begins.
    Rival,
    /// Node that repeats the first one's messages until the attack begins.
    Liar(Lie),
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
            is_heavy: false,
        }
    }

    /// Skips the row with a real node.
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

    fn heavy(mut self) -> Self {
        self.is_heavy = true;
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
        Row::new("filters of one key", |arena| {
            subscriptions::filters_of_one_key(arena).boxed()
        })
        .on_devnet(),
        Row::new("filters of one topic", |arena| {
            subscriptions::filters_of_one_topic(arena).boxed()
        })
        .on_devnet(),
        Row::new("another client's filter", |arena| calls::foreign_filter(arena).boxed()).on_devnet(),
        Row::new("a branch that runs ahead", |arena| nodes::ahead(arena).boxed()).beside(Kind::Rival),
        Row::new("a height out of reach", |arena| nodes::lie(arena).boxed()).beside(Kind::Liar(Lie::Height)),
        Row::new("the last number there is", |arena| nodes::lie(arena).boxed()).beside(Kind::Liar(Lie::Last)),
        Row::new("a flood of unknown parents", |arena| nodes::lie(arena).boxed()).beside(Kind::Liar(Lie::Orphans)),
        Row::new("resumes after nothing", |arena| {
            subscriptions::resumes_after_nothing(arena).boxed()
        })
        .together(),
        Row::new("unread resumes", |arena| subscriptions::unread_resumes(arena).boxed()).together(),
        Row::new("slow calls", |arena| calls::slow(arena).boxed())
            .on_devnet()
            .together(),
        Row::new("silent connections", |arena| clients::silent(arena).boxed()),
        Row::new("unfinished messages", |arena| clients::unfinished(arena).boxed()).together(),
        Row::new("requests that cost nothing", |arena| clients::costless(arena).boxed()).together(),
        Row::new("unread batches", |arena| clients::unread_batches(arena).boxed())
            .on_devnet()
            .together(),
        Row::new("slow readers", |arena| subscriptions::slow_readers(arena).boxed()).together(),
        Row::new("storms of connections", |arena| clients::storm(arena).boxed()).together(),
        Row::new("pings without end", |arena| clients::pings(arena).boxed()).together(),
        Row::new("streams of HTTP/2", |arena| streams::streams(arena).boxed()).on_devnet(),
        Row::new("the operator's port", |arena| clients::admin(arena).boxed()),
        Row::new("everything at once", |arena| everything(arena).boxed())
            .on_devnet()
            .beside(Kind::Liar(Lie::Orphans))
            .heavy(),
    ]
}

/// All cheap attacks together, with a second node that lies.
async fn everything(arena: Arena) {
    let attacks: Vec<_> = all()
        .into_iter()
        .filter(|row| row.together)
        .map(|row| row.attack)
        .collect();
    let attacks = Arc::new(attacks);
    arena.lie();
    arena
        .all(attacks.len(), move |arena, number| (attacks[number])(arena))
        .await;
}

/// A running second node.
pub enum Second {
    None,
    Rival(Devnet),
    Liar(Liar),
}

impl Second {
    /// Starts the node on the current runtime.
    pub async fn start(kind: Kind, first: String, form: Form, lying: Arc<AtomicBool>) -> Result<Self, String> {
        Ok(match kind {
            Kind::None => Self::None,
            Kind::Rival => Self::Rival(Node::rival(form).await?),
            Kind::Liar(lie) => Self::Liar(Liar::start(first, lie, lying).await?),
        })
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Rival(node) => Some(node.ws_url()),
            Self::Liar(liar) => Some(liar.url()),
        }
    }

    pub fn control(&self) -> Option<Control> {
        match self {
            Self::Rival(node) => Some(node.handle()),
            Self::None | Self::Liar(_) => None,
        }
    }
}
