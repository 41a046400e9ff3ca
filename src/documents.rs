//! Checks of the documents against the sources: references resolve, link targets exist, tables are complete.
//!
//! Comments cite "PROTOCOL J17" and "E3"; the anchors are in `docs/protocol.md` and `docs/design.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Folders whose files are read, besides the files at the top.
const READ: [&str; 9] = [
    "src", "tests", "benches", "fuzz", "docs", "config", "deploy", "scripts", ".github",
];

/// Folders without files of ours.
const SKIPPED: [&str; 6] = [
    "target",
    "node_modules",
    ".venv",
    ".venv-web3-7",
    "corpus",
    "interop/go/bin",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// Returns all files with one of these endings, by their path from the root, sorted.
fn files(endings: &[&str]) -> Vec<String> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                if !SKIPPED.iter().any(|skipped| path.ends_with(skipped)) {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.to_string_lossy().ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in READ {
        walk(&root().join(folder), endings, &mut found);
    }
    for entry in std::fs::read_dir(root()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry.path());
        }
    }
    let from_root = |path: PathBuf| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let mut found: Vec<String> = found.into_iter().map(from_root).collect();
    found.sort();
    found
}

/// Returns the anchors of a document: those that are written out, and those that GitHub gives to headings.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, rest) in markdown
        .match_indices("<a id=\"")
        .map(|(at, mark)| markdown.split_at(at + mark.len()))
    {
        anchors.extend(rest.split_once('"').map(|(id, _)| id.to_owned()));
    }
    let mut slugs: HashMap<String, usize> = HashMap::new();
    for line in without_code_blocks(markdown) {
        let title = line.trim_start_matches('#');
        let level = line.len() - title.len();
        if !(1..=6).contains(&level) || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().chars().flat_map(char::to_lowercase);
        let slug: String = kept
            .filter(|letter| letter.is_alphanumeric() || "-_ ".contains(*letter))
            .map(|letter| if letter == ' ' { '-' } else { letter })
            .collect();
        let times = slugs.entry(slug.clone()).or_default();
        anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
        *times += 1;
    }
    anchors
}

fn without_code_blocks(markdown: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    markdown.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// Returns the targets of the links and pictures of a document.
fn links(markdown: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in without_code_blocks(markdown) {
        // Text between backticks is not a link; the text of a link may contain backticks.
        for (at, mark) in line.match_indices("](") {
            let before = line[..at].matches('`').count();
            if before.is_multiple_of(2) {
                links.extend(
                    line[at + mark.len()..]
                        .split_once(')')
                        .map(|(target, _)| target.to_owned()),
                );
            }
        }
        for mark in ["src=\"", "srcset=\"", "href=\""] {
            for (at, _) in line.match_indices(mark) {
                links.extend(
                    line[at + mark.len()..]
                        .split_once('"')
                        .map(|(target, _)| target.to_owned()),
                );
            }
        }
    }
    links
}

/// Returns the anchors that a text cites as `PROTOCOL …`: `j17`, `section-1.5`, `fact-14`.
///
/// "PROTOCOL 1.5 to 1.7", "PROTOCOL J3, J4" and "PROTOCOL 1.3 and 1.4" are two each; other words after the name cite
/// nothing.
fn cited(text: &str, document: &str) -> Vec<String> {
    let mut cited = Vec::new();
    for (at, _) in text.match_indices(document) {
        if text[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
            continue;
        }
        let mut rest = &text[at + document.len()..];
        let mut between: &[&str] = &[" "];
        while let Some(after) = between.iter().find_map(|between| rest.strip_prefix(between)) {
            let (prefix, after) = ["fact ", "section "]
                .iter()
                .find_map(|word| Some((word.trim_end(), after.strip_prefix(word)?)))
                .unwrap_or(("", after));
            let end = after
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.')
                .unwrap_or(after.len());
            let name = after[..end].trim_end_matches('.');
            let number = name.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
            let letters = name.len() - number.len();
            if letters > 1 || !number.starts_with(|letter: char| letter.is_ascii_digit()) {
                break;
            }
            cited.push(match (prefix, letters) {
                ("fact", _) => format!("fact-{name}"),
                (_, 0) => format!("section-{name}"),
                _ => name.to_lowercase(),
            });
            rest = &after[name.len()..];
            between = &[", ", " and ", " to "];
        }
    }
    cited
}

/// Returns the promises that a text cites: words of an E and one or two digits.
fn promises(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let is_promise = |word: &&str| {
        let number = word.strip_prefix('E').unwrap_or_default();
        !number.is_empty() && number.len() <= 2 && number.bytes().all(|digit| digit.is_ascii_digit())
    };
    words.filter(is_promise).map(str::to_lowercase).collect()
}

/// Fails with one line per violation.
#[track_caller]
fn none_of(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Checks the part between two marks of a document, or replaces it if `UPDATE_EXPECT` is set.
#[track_caller]
fn check_part(file: &str, mark: &str, fresh: &str) {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let text = read(file);
    let (before, rest) = text.split_once(&begin).expect("a mark before the part");
    let (_, after) = rest.split_once(&end).expect("a mark behind the part");
    let whole = format!("{before}{begin}{fresh}{end}{after}");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(root().join(file), whole).unwrap();
    } else {
        assert!(
            text == whole,
            "{file}: the table of {mark} is stale: UPDATE_EXPECT=1 cargo test --lib documents"
        );
    }
}

#[test]
fn citations_of_the_wire_resolve() {
    let mut violations = Vec::new();
    for (name, document) in [("PROTOCOL", "docs/protocol.md"), ("DESIGN", "docs/design.md")] {
        let anchors = anchors(&read(document));
        for file in files(&[".rs", ".io", ".md", ".mjs", ".py"]) {
            let missing = cited(&read(&file), name).into_iter();
            let missing = missing.filter(|anchor| !anchors.contains(anchor));
            violations
                .extend(missing.map(|anchor| format!("{file} cites {name} {anchor}: {document} has no such anchor")));
        }
    }
    none_of(&violations);
}

#[test]
fn citations_of_promises_resolve() {
    let anchors = anchors(&read("docs/design.md"));
    let mut violations = Vec::new();
    for file in files(&[".rs", ".io", ".md", ".mjs"]) {
        // In these files E is a row of PROTOCOL 1.8; this file has words for the test.
        if file.starts_with("tests/conformance") || file == "docs/protocol.md" || file == "src/documents.rs" {
            continue;
        }
        let missing = promises(&read(&file)).into_iter();
        let missing = missing.filter(|anchor| !anchors.contains(anchor));
        violations.extend(missing.map(|anchor| format!("{file} cites {anchor}: docs/design.md has no such promise")));
    }
    none_of(&violations);
}

/// Each row that the conformance suite covers is listed with its text, and no other row is.
#[test]
fn the_document_of_the_wire_has_the_rows_of_its_tests() {
    let coverage = read("tests/conformance/coverage.rs");
    let rows = coverage.lines().filter_map(|line| line.trim().strip_prefix("(\""));
    let tested: BTreeSet<String> = rows
        .filter_map(|row| row.split(['"', ' ']).next())
        .map(str::to_lowercase)
        .collect();
    let is_row = |anchor: &String| {
        let number = anchor.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
        anchor.len() - number.len() == 1 && number.bytes().all(|digit| digit.is_ascii_digit())
    };
    let described: BTreeSet<String> = anchors(&read("docs/protocol.md")).into_iter().filter(is_row).collect();
    assert!(tested.len() > 150, "the list of rows is read");
    assert_eq!(tested, described);
}

#[test]
fn links_lead_somewhere() {
    let mut violations = Vec::new();
    for file in files(&[".md", "llms.txt"]) {
        let text = read(&file);
        let folder = root().join(&file).parent().unwrap().to_owned();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                root().join(&file)
            } else {
                folder.join(path)
            };
            if !target.exists() {
                violations.push(format!("{file}: {link}: there is no such file"));
            } else if !anchor.is_empty() && (path.ends_with(".md") || path.is_empty()) {
                let known = anchors(&std::fs::read_to_string(&target).unwrap());
                if !known.contains(anchor) {
                    violations.push(format!("{file}: {link}: there is no such anchor"));
                }
            }
        }
    }
    none_of(&violations);
}

/// Every close reason has a row, with its text and its label.
#[test]
fn the_table_of_close_codes_is_complete() {
    let source = read("src/delivery/close.rs");
    let operations = read("docs/operations.md");
    let mut violations = Vec::new();
    for part in ["fn text(", "fn label("] {
        let (_, body) = source.split_once(part).expect("a function of CloseReason");
        let (body, _) = body.split_once("\n    }\n").expect("its end");
        let words: Vec<&str> = body
            .lines()
            .filter_map(|line| line.split_once("=> \"")?.1.split_once('"').map(|(word, _)| word))
            .filter(|word| !word.is_empty())
            .collect();
        assert!(words.len() > 10, "{part} is read");
        let missing = words
            .iter()
            .filter(|word| !operations.contains(&format!("| `{word}` |")));
        violations.extend(missing.map(|word| format!("docs/operations.md: no row of close codes has `{word}`")));
    }
    none_of(&violations);
}

/// `UPDATE_EXPECT=1 cargo test --lib documents` writes the table again.
#[test]
fn the_table_of_metrics_is_true() {
    check_part(
        "docs/operations.md",
        "metrics",
        &metrics_table(
            &[
                read("src/telemetry.rs"),
                read("src/telemetry/fleet.rs"),
                read("src/telemetry/webhook_metrics.rs"),
            ]
            .concat(),
        ),
    );
}

/// Returns the metrics that a source registers, as a table.
fn metrics_table(source: &str) -> String {
    let tokens: TokenStream = source.parse().expect("Rust");
    let (mut structs, mut rows) = (BTreeMap::new(), Vec::new());
    find_metrics(tokens, &mut structs, &mut rows);
    let metrics: Vec<_> = structs
        .iter()
        .filter(|(name, _)| name.ends_with("Metrics"))
        .flat_map(|(_, fields)| fields)
        .collect();
    let mut out = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for (name, words, field) in &rows {
        let own = metrics.iter().find(|(own, _)| own == field);
        let (_, form) = own.unwrap_or_else(|| panic!("{name}: Metrics has no field {field}"));
        let (form, labels) = match form.strip_prefix("Family<") {
            Some(family) => {
                let (label, metric) = family.split_once(',').expect("labels and a metric");
                let labels = structs[label].iter().map(|(label, _)| format!("`{label}`"));
                (metric, labels.collect::<Vec<_>>().join(", "))
            }
            None => (form.as_str(), String::new()),
        };
        let (form, suffix) = match form {
            form if form.starts_with("Counter") => ("counter", "_total"),
            form if form.starts_with("Gauge") => ("gauge", ""),
            form if form.starts_with("Histogram") => ("histogram", ""),
            other => panic!("{name} is a {other}"),
        };
        out.push_str(&format!("| `{name}{suffix}` | {form} | {labels} | {words} |\n"));
    }
    out
}

/// Collects the fields of structs with their types, by the struct's name, and the calls of `register(name, words,
/// metrics.field.clone())`.
fn find_metrics(
    tokens: TokenStream,
    structs: &mut BTreeMap<String, Vec<(String, String)>>,
    rows: &mut Vec<(String, String, String)>,
) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match (token, &tokens[at + 1..]) {
            (TokenTree::Ident(word), [TokenTree::Ident(name), TokenTree::Group(fields), ..]) if word == "struct" => {
                structs.insert(name.to_string(), fields_of(fields.stream()));
            }
            (TokenTree::Ident(word), [TokenTree::Group(arguments), ..]) if word == "register" => {
                let arguments: Vec<TokenTree> = arguments.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
                let [name, words, metric, ..] = &*arguments.split(is_comma).collect::<Vec<_>>() else {
                    panic!("register takes a name, words and a metric");
                };
                // metrics . field . clone ()
                rows.push((literal(name), literal(words), metric[2].to_string()));
            }
            _ => {}
        }
        if let TokenTree::Group(group) = token
            && group.delimiter() == Delimiter::Brace
        {
            find_metrics(group.stream(), structs, rows);
        }
    }
}

fn literal(tokens: &[TokenTree]) -> String {
    let [TokenTree::Literal(text)] = tokens else {
        panic!("{tokens:?} is not one string");
    };
    text.to_string().trim_matches('"').to_owned()
}

fn fields_of(tokens: TokenStream) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let (mut name, mut form, mut depth) = (String::new(), None::<String>, 0);
    for token in tokens {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == ':' && form.is_none() => form = Some(String::new()),
            TokenTree::Punct(punct) if punct.as_char() == ',' && depth == 0 => {
                fields.push((std::mem::take(&mut name), form.take().unwrap_or_default()));
            }
            token => match &mut form {
                Some(form) => {
                    depth += i32::from(token.to_string() == "<") - i32::from(token.to_string() == ">");
                    form.push_str(&token.to_string());
                }
                // The last word before the colon: attributes and visibility come before it.
                None => name = token.to_string(),
            },
        }
    }
    if let Some(form) = form {
        fields.push((name, form));
    }
    fields
}

#[test]
fn citations_are_found_in_running_text() {
    let text = "geth's words (PROTOCOL 1.5). PROTOCOL J3, J4: a. PROTOCOL 1.5 to 1.7, PROTOCOL fact 14; in PROTOCOL's order, \
                PROTOCOL, read; PROTOCOL numbers rows; SEC_WEBSOCKET_PROTOCOL 9; PROTOCOL 1.3 and 1.4 are";
    assert_eq!(
        cited(text, "PROTOCOL"),
        [
            "section-1.5",
            "j3",
            "j4",
            "section-1.5",
            "section-1.7",
            "fact-14",
            "section-1.3",
            "section-1.4"
        ]
    );
    assert_eq!(cited("DESIGN section 4, DESIGN E9", "DESIGN"), ["section-4", "e9"]);
    let found: Vec<String> = promises("(E3) and E10, not 1E3, E_5, EIP or OE2").into_iter().collect();
    assert_eq!(found, ["e10", "e3"]);
}

#[test]
fn anchors_and_links_are_those_of_github() {
    let page = "# The *one*: `a.b`\n## Twice\n## Twice\n```\n# no heading [no](link)\n```\n[a](b.md#c) and `[no](code)` [`x`](y)\n\
                <a id=\"own\"></a> <img src=\"z.svg\">\n#hash\n";
    let found: Vec<String> = anchors(page).into_iter().collect();
    assert_eq!(found, ["own", "the-one-ab", "twice", "twice-1"]);
    assert_eq!(links(page), ["b.md#c", "y", "z.svg"]);
}

#[test]
fn metrics_are_read_with_their_types_and_labels() {
    let source = r#"
        #[derive(Debug)]
        pub struct Why { /// Why.
            pub reason: &'static str, pub by: &'static str }
        struct Metrics { #[x] pub a: Counter, b: Family<Why, Gauge<f64, AtomicU64>>, pub c: Histogram }
        impl Metrics { fn new() { r.register("a", "One", metrics.a.clone(),); { r.register("b_x", "Two", metrics.b.clone()); } } }
    "#;
    assert_eq!(
        metrics_table(source),
        "| metric | type | labels | meaning |\n|---|---|---|---|\n| `a_total` | counter |  | One |\n\
         | `b_x` | gauge | `reason`, `by` | Two |\n"
    );
}

/// Words with which a doc comment does not begin: a relative clause where the field has a noun.
const QUESTION_WORDS: [&str; 11] = [
    "what", "who", "whom", "whose", "whether", "how", "where", "which", "when", "why", "whatever",
];

/// Returns the first line of each doc comment.
fn doc_comments(source: &str) -> impl Iterator<Item = &str> {
    let mut is_inside = false;
    source.lines().filter_map(move |line| {
        let line = line.trim_start();
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let is_first = comment.is_some() && !is_inside;
        is_inside = comment.is_some();
        comment.filter(|_| is_first).map(str::trim)
    })
}

#[test]
fn doc_comments_name_the_thing() {
    let is_question = |comment: &str| {
        let first = comment.split(|letter: char| !letter.is_alphabetic()).next();
        first.is_some_and(|first| QUESTION_WORDS.iter().any(|word| first.eq_ignore_ascii_case(word)))
    };
    let (mut all, mut questions) = (0, Vec::new());
    for file in files(&[".rs"]) {
        for comment in doc_comments(&read(&file)) {
            all += 1;
            if is_question(comment) {
                questions.push(format!("{file}: {comment}"));
            }
        }
    }
    assert!(all > 1000, "{all} doc comments");
    assert!(
        100 * questions.len() <= 3 * all,
        "more than 3 % of {all} doc comments begin with a question word:\n{}",
        questions.join("\n")
    );
}
