//! The rows as files: the `.io` format of execution-apis (`>>` a request, `<<` its answer, `//` a comment) with
//! extensions for conversations. `rows/README.md` describes the grammar.

use std::fmt;

use crate::pattern::Pattern;

/// A server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// headwater in front of its own simulated node.
    Devnet,
    /// headwater in front of anvil.
    Anvil,
    /// geth itself.
    Geth,
    /// headwater in front of geth.
    Proxied,
}

impl Target {
    pub const ALL: [Self; 4] = [Self::Devnet, Self::Anvil, Self::Geth, Self::Proxied];

    pub fn word(self) -> &'static str {
        match self {
            Self::Devnet => "devnet",
            Self::Anvil => "anvil",
            Self::Geth => "geth",
            Self::Proxied => "proxied",
        }
    }

    fn parse_all(words: &str) -> Result<Vec<Self>, String> {
        let mut targets = Vec::new();
        for word in words.split_whitespace() {
            match Self::ALL.into_iter().find(|target| target.word() == word) {
                Some(target) => targets.push(target),
                None if word == "headwater" => targets.extend([Self::Devnet, Self::Anvil, Self::Proxied]),
                None => return Err(format!("no target {word:?}")),
            }
        }
        Ok(targets)
    }
}

/// One section of PROTOCOL.
pub struct Section {
    /// Number and name, such as `1.3 envelope`.
    pub name: &'static str,
    /// Names and texts defined by `let` in the file.
    pub lets: Vec<(String, String)>,
    pub cases: Vec<Case>,
}

/// One row, or the part of it that one conversation covers.
pub struct Case {
    /// The ids of the covered rows.
    pub rows: Vec<String>,
    pub title: String,
    pub file: &'static str,
    pub line: usize,
    pub targets: Vec<Target>,
    /// Settings as TOML, for a separate headwater; empty for the shared one.
    pub config: String,
    pub steps: Vec<Step>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rows.join(", "), self.title)
    }
}

pub struct Step {
    /// The targets of this step; empty means all.
    pub targets: Vec<Target>,
    pub line: usize,
    pub act: Act,
}

impl Step {
    pub fn is_for(&self, target: Target) -> bool {
        self.targets.is_empty() || self.targets.contains(&target)
    }

    /// Returns `true` if geth and headwater in front of geth must give the same result.
    pub fn is_common(&self) -> bool {
        self.targets.is_empty() || self.targets.contains(&Target::Geth) && self.targets.contains(&Target::Proxied)
    }
}

pub enum Act {
    /// Switches to the connection with this name, and opens it if necessary.
    On(String),
    /// Sends a frame with this first byte.
    Frame {
        first: u8,
        payload: Pattern,
        escapes: bool,
    },
    /// Writes raw bytes.
    Raw(Vec<u8>),
    /// Expects this message, or this body of the last HTTP response.
    Message(Pattern),
    Nothing,
    Pong(Pattern),
    /// Expects a close frame with this code and reason.
    Close(Option<u16>, Pattern),
    End,
    Request(HttpRequest),
    Status(u16),
    /// Expects a header in the last response; `None` means that it must be absent.
    Header(String, Option<Pattern>),
    /// Expects no other headers than these.
    OnlyHeaders(Vec<String>),
    Check {
        left: Pattern,
        equal: bool,
        right: Pattern,
    },
    /// Executes a command on the node.
    Node(Vec<String>),
    /// Calls the node directly and stores its result or error under this name.
    Ask {
        name: String,
        method: String,
        params: Pattern,
    },
}

pub struct HttpRequest {
    /// Method and path, such as `POST /`.
    pub line: String,
    /// `true` to send upgrade headers, except those that `headers` removes.
    pub upgrade: bool,
    /// Headers that replace the defaults; `None` removes a header.
    pub headers: Vec<(String, Option<Pattern>)>,
    pub body: Option<Pattern>,
}

pub fn parse(name: &'static str, file: &'static str, text: &str) -> Result<Section, String> {
    let mut section = Section {
        name,
        lets: Vec::new(),
        cases: Vec::new(),
    };
    let mut differs = true;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let at = |why: String| format!("{file}:{number}: {why}");
        if let Some(rest) = line.strip_prefix("let ") {
            let (name, value) = rest.split_once(" = ").ok_or_else(|| at("let NAME = TEXT".into()))?;
            section.lets.push((name.to_owned(), value.to_owned()));
            continue;
        }
        if let Some(rest) = line.strip_prefix("== ") {
            check_last(&section, differs).map_err(at)?;
            differs = false;
            let (rows, title) = rest.split_once(": ").ok_or_else(|| at("== ROWS: TITLE".into()))?;
            section.cases.push(Case {
                rows: rows.split(", ").map(str::to_owned).collect(),
                title: title.to_owned(),
                file,
                line: number,
                targets: Target::ALL.to_vec(),
                config: String::new(),
                steps: Vec::new(),
            });
            continue;
        }
        let case = section
            .cases
            .last_mut()
            .ok_or_else(|| at("before the first case".into()))?;
        if let Some(rest) = line.strip_prefix("only ") {
            let (words, _why) = rest.split_once(": ").ok_or_else(|| at("only TARGETS: WHY".into()))?;
            case.targets = Target::parse_all(words).map_err(at)?;
        } else if line.starts_with("differs: ") {
            differs = true;
        } else if let Some(rest) = line.strip_prefix("config ") {
            case.config.push_str(rest);
            case.config.push('\n');
        } else {
            parse_step(case, number, line).map_err(at)?;
        }
    }
    check_last(&section, differs)?;
    Ok(section)
}

/// Checks the last case: if headwater's expected messages differ from geth's, the file must state a reason.
fn check_last(section: &Section, differs: bool) -> Result<(), String> {
    let Some(case) = section.cases.last() else {
        return Ok(());
    };
    let both = case.targets.contains(&Target::Geth) && case.targets.contains(&Target::Proxied);
    if both && !differs && case.steps.iter().any(|step| !step.is_common() && touches_geth(step)) {
        return Err(format!("{case}: geth and headwater differ, and there is no `differs:`"));
    }
    if case.steps.is_empty() {
        return Err(format!("{case}: nothing happens"));
    }
    Ok(())
}

fn touches_geth(step: &Step) -> bool {
    step.is_for(Target::Geth) != step.is_for(Target::Proxied)
}

fn parse_step(case: &mut Case, number: usize, line: &str) -> Result<(), String> {
    let (targets, line) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((words, rest)) => (Target::parse_all(words)?, rest),
        None => (Vec::new(), line),
    };
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let request = || match case.steps.last() {
        Some(Step {
            act: Act::Request(_), ..
        }) if targets.is_empty() => Ok(()),
        _ => Err(format!("{word} belongs right below a request")),
    };
    let frame = |first, payload, escapes| -> Result<Act, String> {
        let payload = Pattern::parse(payload)?;
        Ok(Act::Frame {
            first,
            payload,
            escapes,
        })
    };
    let act = match word {
        "on" => Act::On(rest.to_owned()),
        ">>" => frame(0x81, rest, false)?,
        ">>binary" => frame(0x82, rest, false)?,
        ">>escaped" => frame(0x81, rest, true)?,
        ">>frame" => {
            let (first, payload) = rest.split_once(' ').unwrap_or((rest, ""));
            frame(
                u8::from_str_radix(first, 16).map_err(|why| why.to_string())?,
                payload,
                true,
            )?
        }
        ">>raw" => Act::Raw(alloy_primitives::hex::decode(rest.replace(' ', "")).map_err(|why| why.to_string())?),
        "<<" => Act::Message(Pattern::parse(rest)?),
        "<<nothing" => Act::Nothing,
        "<<pong" => Act::Pong(Pattern::parse(rest)?),
        "<<close" => {
            let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let code = if code.is_empty() {
                None
            } else {
                Some(code.parse().map_err(|_| format!("no code: {code}"))?)
            };
            Act::Close(code, Pattern::parse(reason)?)
        }
        "<<end" => Act::End,
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" | "UPGRADE" => {
            let upgrade = word == "UPGRADE";
            Act::Request(HttpRequest {
                line: format!("{} {rest}", if upgrade { "GET" } else { word }),
                upgrade,
                headers: Vec::new(),
                body: None,
            })
        }
        "+" | "-" | "body" => {
            request()?;
            let Some(Step {
                act: Act::Request(request),
                ..
            }) = case.steps.last_mut()
            else {
                unreachable!("checked above")
            };
            match word {
                "body" => request.body = Some(Pattern::parse(rest)?),
                "-" => request.headers.push((rest.to_owned(), None)),
                _ => {
                    let (name, value) = rest.split_once(": ").ok_or("+ NAME: VALUE")?;
                    request.headers.push((name.to_owned(), Some(Pattern::parse(value)?)));
                }
            }
            return Ok(());
        }
        "=>" => Act::Status(rest.parse().map_err(|_| format!("no status: {rest}"))?),
        "=" => {
            let (name, value) = rest.split_once(": ").ok_or("= NAME: VALUE")?;
            Act::Header(name.to_owned(), Some(Pattern::parse(value)?))
        }
        "=no" => Act::Header(rest.to_owned(), None),
        "=only" => Act::OnlyHeaders(rest.split(", ").map(str::to_owned).collect()),
        "check" => {
            let (left, equal, right) = match (rest.split_once(" == "), rest.split_once(" != ")) {
                (Some((left, right)), _) => (left, true, right),
                (None, Some((left, right))) => (left, false, right),
                (None, None) => return Err("check LEFT == RIGHT".into()),
            };
            Act::Check {
                left: Pattern::parse(left)?,
                equal,
                right: Pattern::parse(right)?,
            }
        }
        "!" => Act::Node(rest.split_whitespace().map(str::to_owned).collect()),
        "ask" => {
            let mut words = rest.splitn(3, ' ');
            let mut word = || words.next().ok_or("ask NAME METHOD PARAMS");
            Act::Ask {
                name: word()?.to_owned(),
                method: word()?.to_owned(),
                params: Pattern::parse(word()?)?,
            }
        }
        _ => return Err(format!("what is {word:?}?")),
    };
    case.steps.push(Step {
        targets,
        line: number,
        act,
    });
    Ok(())
}
