//! Allowed dependencies between the modules of `src/`, and the tests that check the sources against them.
//!
//! Documentation and tests may name any module: neither is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

/// A row per module: its name, and the modules that it uses. Each of these has its row further down, so dependencies
/// point one way.
const LAYERS: &str = "
    # The binary: the command line, and its commands, which main starts.
    main          app config devnet door reload telemetry webhooks
    bench         deflate tls
    health
    # Messages to the service manager; knows nothing of the proxy.
    notify
    operate       operator text webhooks
    # Nodes write numbers in many ways; it reads them as the proxy does.
    tail          quantity text
    text

    app           admin backplane chain clock config devnet door extension fleet module operator otlp reload rpc server session subscription telemetry tls upstream webhooks
    # The operator's API reads the state of all modules and acts on them; admin serves it without knowing its methods.
    operator      admin chain clock delivery door file_replacement reload session telemetry upstream webhooks
    reload        config door telemetry tls upstream webhooks
    # A setting becomes what the module takes whose setting it is.
    config        admin chain delivery devnet door fleet method_pattern otlp rpc server session subscription telemetry tls upstream webhooks
    admin         chain door server session telemetry upstream webhooks
    devnet

    # Sessions within the process, whose events are posted to receivers.
    webhooks      backoff delivery door file_replacement jsonrpc panics server session subscription telemetry
    # Sessions within the process, for servers of other programs.
    module        delivery door extension jsonrpc rpc session shares
    server        content_coding delivery door extension jsonrpc panics pieces rpc session shares telemetry tls
    session       clock deflate delivery door extension file_replacement fleet jsonrpc panics rpc shares subscription telemetry
    # Callbacks of the embedding program: their outcomes are those of calls, their messages go into a client's queue.
    extension     clock delivery door jsonrpc panics rpc telemetry
    # Calls are answered from the published chain; the filter of a subscription finds the logs of its blocks.
    # Of delivery it takes the identifier of a subscription, for a polled filter is given one of the same kind.
    rpc           chain conduct content_coding delivery jsonrpc pieces quantity shares subscription telemetry upstream
    # What clients used at other headwaters comes by calls to and from these, and is charged to accounts.
    fleet         clock door jsonrpc telemetry upstream
    # An account holds what all connections of a client share, so the budget of its bytes (delivery's egress); a right is to
    # a kind of events, and a pass ends with a close reason.
    door          clock conduct delivery jsonrpc method_pattern shares

    # Not upstream: what comes from there and is no chain comes by the backplane.
    subscription  backoff backplane chain clock delivery jsonrpc panics shares telemetry
    delivery      clock deflate pieces shares telemetry
    backplane     chain upstream
    chain         backoff jsonrpc plain_json quantity shares telemetry upstream
    upstream      backoff clock conduct content_coding jsonrpc panics plain_json method_pattern quantity shares telemetry

    # Spans that have ended, on their way to a collector.
    otlp          backoff telemetry

    # Places and bytes that clients compete for.
    shares        jsonrpc
    backoff
    clock
    conduct
    content_coding
    deflate
    file_replacement
    jsonrpc
    panics        telemetry
    method_pattern
    pieces
    plain_json
    quantity
    telemetry
    tls
";

/// Returns the rows, from the top down: a module, and the modules that it uses.
fn layers() -> Vec<(&'static str, BTreeSet<&'static str>)> {
    let rows = LAYERS.lines().map(str::trim);
    rows.filter(|row| !row.is_empty() && !row.starts_with('#'))
        .map(|row| {
            let mut words = row.split_whitespace();
            (words.next().unwrap(), words.collect())
        })
        .collect()
}

/// A place where the code of one module names another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    by: String,
    of: String,
    file: String,
    line: usize,
}

/// The modules and uses found so far.
#[derive(Default)]
struct Sources {
    modules: BTreeSet<String>,
    uses: Vec<Use>,
}

impl Sources {
    /// Reads all files of the library and of the binary.
    fn of_this_crate() -> Self {
        let mut sources = Self::default();
        sources.file("src/lib.rs", &[]);
        sources.file("src/bin/headwater/main.rs", &[]);
        sources
    }

    /// Reads the file of this module, and the files of the modules that it declares.
    fn file(&mut self, file: &str, module: &[String]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{file}: {why}"));
        let tokens = text.parse().unwrap_or_else(|why| panic!("{file}: {why}"));
        self.tokens(tokens, file, module);
    }

    fn tokens(&mut self, tokens: TokenStream, file: &str, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut rest = tokens.as_slice();
        while let [token, after @ ..] = rest {
            rest = after;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' && is_of_tests(after) => {
                    let end = after[1..].iter().position(ends_item);
                    rest = end.map_or(&[], |end| &after[end + 2..]);
                }
                TokenTree::Ident(ident) if ident == "mod" => {
                    if let [TokenTree::Ident(name), body, after @ ..] = after {
                        self.module(&name.to_string(), body, file, module);
                        rest = after;
                    }
                }
                TokenTree::Ident(ident) if ident == "crate" || ident == "headwater" => {
                    self.names(after, file, module, &[]);
                }
                TokenTree::Ident(ident) if ident == "super" => {
                    let (mut base, mut after) = (parent(module), after);
                    while let [_, _, TokenTree::Ident(ident), further @ ..] = after
                        && ident == "super"
                    {
                        (base, after) = (parent(base), further);
                    }
                    self.names(after, file, module, base);
                    rest = after;
                }
                TokenTree::Group(group) => self.tokens(group.stream(), file, module),
                _ => {}
            }
        }
    }

    fn module(&mut self, name: &str, body: &TokenTree, file: &str, parent: &[String]) {
        let module = [parent, &[name.to_owned()]].concat();
        self.modules.insert(module[0].clone());
        if let TokenTree::Group(body) = body {
            return self.tokens(body.stream(), file, &module);
        }
        let (folder, own) = file.rsplit_once('/').unwrap();
        let folder = match own.trim_end_matches(".rs") {
            "lib" | "main" | "mod" => folder.to_owned(),
            own => format!("{folder}/{own}"),
        };
        let alone = format!("{folder}/{name}.rs");
        let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(&alone).exists();
        let file = if exists {
            alone
        } else {
            format!("{folder}/{name}/mod.rs")
        };
        self.file(&file, &module);
    }

    /// Records the modules named after `crate` or the last `super`. Both stand for the module `base`; only uses of the
    /// root count.
    fn names(&mut self, after: &[TokenTree], file: &str, module: &[String], base: &[String]) {
        let [TokenTree::Punct(first), TokenTree::Punct(second), named, ..] = after else {
            return;
        };
        if !base.is_empty() || first.as_char() != ':' || second.as_char() != ':' {
            return;
        }
        let named = match named {
            TokenTree::Group(group) => group.stream().into_iter().collect(),
            one => vec![one.clone()],
        };
        let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
        for first in named.split(is_comma).filter_map(<[_]>::first) {
            let by = module.first().map_or("main", String::as_str);
            let of = first.to_string();
            if of != by {
                self.uses.push(Use {
                    by: by.to_owned(),
                    of,
                    file: file.to_owned(),
                    line: first.span().start().line,
                });
            }
        }
    }
}

fn parent(module: &[String]) -> &[String] {
    module.split_last().map_or(&[], |(_, parent)| parent)
}

/// Checks if the attribute after a `#` is `cfg(test)`.
fn is_of_tests(after: &[TokenTree]) -> bool {
    matches!(after, [TokenTree::Group(attribute), ..]
        if attribute.stream().to_string().replace(' ', "") == "cfg(test)")
}

fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == proc_macro2::Delimiter::Brace,
        _ => false,
    }
}

/// Fails with one line per violation.
#[track_caller]
fn none_of(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn the_table_points_one_way() {
    let mut below = BTreeSet::new();
    let mut violations = Vec::new();
    for (module, uses) in layers().into_iter().rev() {
        violations.extend(
            uses.difference(&below)
                .map(|used| format!("src/layers.rs: {module} uses {used}, so {used} needs a row, below {module}'s")),
        );
        if !below.insert(module) {
            violations.push(format!("src/layers.rs: {module} has two rows"));
        }
    }
    none_of(&violations);
}

#[test]
fn a_module_uses_what_its_row_names() {
    let layers: BTreeMap<_, _> = layers().into_iter().collect();
    let mut sources = Sources::of_this_crate();
    sources.uses.sort();
    let mut violations = Vec::new();
    for Use { by, of, file, line } in &sources.uses {
        let allowed = layers.get(by.as_str()).cloned().unwrap_or_default();
        if !allowed.contains(of.as_str()) {
            let allowed = Vec::from_iter(allowed).join(", ");
            let allowed = if allowed.is_empty() { "nothing" } else { &allowed };
            violations.push(format!(
                "{file}:{line}: {by} uses {of}; src/layers.rs allows it {allowed}"
            ));
        }
    }
    none_of(&violations);
}

/// A row that allows more than is used would admit a dependency without a decision.
#[test]
fn the_table_allows_no_more_than_is_used() {
    let mut sources = Sources::of_this_crate();
    sources.modules.insert("main".to_owned());
    let mut violations = Vec::new();
    for (module, uses) in layers() {
        if !sources.modules.remove(module) {
            violations.push(format!("src/layers.rs: there is no module {module}; its row can go"));
        }
        for used in uses {
            if !sources.uses.iter().any(|a| a.by == module && a.of == used) {
                violations.push(format!(
                    "src/layers.rs: {module} does not use {used}; its row need not name it"
                ));
            }
        }
    }
    let missing = sources.modules.iter();
    violations.extend(missing.map(|module| format!("src/layers.rs: {module} has no row")));
    none_of(&violations);
}

#[test]
fn a_name_is_found_however_it_is_written_but_in_comments_strings_and_tests() {
    let text = r##"
        //! [`crate::not_in_documentation`]
        use crate::one::Thing; // crate::not_in_comments
        pub(crate) use crate::{two, three::{Inner, deeper::Thing}, four::*};
        use super::super::five::Thing;
        use super::own_to_the_parent::Thing;
        use crate::door::own::Thing;
        fn f(thing: crate::six::Thing) -> &'static str {
            select! { it = super::super::super::door::seven() => headwater::eight::of(it) }
            mod inside { use super::super::super::nine::Thing; use super::own; }
            "crate::not_in_strings"
        }
        #[cfg(test)]
        use crate::not_in_tests::Thing;
        #[cfg(test)]
        #[allow(unused)]
        mod tests { use crate::not_in_tests; }
        const TEN: Ten = crate::ten::TEN;
    "##;
    let mut sources = Sources::default();
    sources.tokens(text.parse().unwrap(), "src/door/key.rs", &["door".into(), "key".into()]);
    let found: Vec<_> = sources
        .uses
        .iter()
        .map(|found| (found.line, found.of.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (3, "one"),
            (4, "two"),
            (4, "three"),
            (4, "four"),
            (5, "five"),
            (8, "six"),
            (9, "eight"),
            (10, "nine"),
            (18, "ten")
        ]
    );
}
