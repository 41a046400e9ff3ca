//! The examples of docs/server-sent-events.md, run as they stand there, over a restart of the proxy and a reorg.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc;

use crate::harness::{Event, Proxy, dropped, node, within};

const PAGE: &str = include_str!("../../../docs/server-sent-events.md");

/// Returns the page's code in this language.
pub fn code(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let (_, after) = PAGE.split_once(&fence).unwrap();
    after.split_once("```").unwrap().0
}

/// Program under way, which prints the logs that it takes.
struct Program {
    name: &'static str,
    _process: Running,
    lines: mpsc::UnboundedReceiver<String>,
}

/// Process that ends with the test.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(name: &'static str, command: &mut Command) -> Self {
        let mut process = Running::start(command.stdout(Stdio::piped()));
        let output = BufReader::new(process.0.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        Self {
            name,
            _process: process,
            lines,
        }
    }

    async fn expect(&mut self, story: &[String]) {
        for (at, line) in story.iter().enumerate() {
            let text = within(self.name, self.lines.recv()).await;
            let payload = text.unwrap_or_else(|| panic!("{} has ended", self.name));
            let subscription = String::new();
            assert_eq!(Event { subscription, payload }.line(), *line, "{}: log {at}", self.name);
        }
    }
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Builds the example in Go; `None` if there is no Go.
fn go(folder: &Path) -> Option<PathBuf> {
    let text = format!(
        "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"io\"\n\t\"net/http\"\n\t\"os\"\n\t\"strings\"\n\t\"time\"\n)\n\n\
         var url = os.Args[1]\n\n{}\nfunc main() {{\n\
         \tpanic(follow(\"kind=logs&address=\"+os.Args[2], \"\", func(kind string, data []byte, _ string) {{\n\
         \t\tif kind == \"logs\" {{\n\t\t\tfmt.Println(string(data))\n\t\t}}\n\t}}))\n}}\n",
        code("go")
    );
    let (source, binary) = (file(folder, "follow.go", &text), folder.join("follow"));
    let mut build = Command::new("go");
    build.arg("build").arg("-o").arg(&binary).arg(&source);
    match build.status() {
        Ok(built) => {
            assert!(built.success());
            Some(binary)
        }
        Err(_) => None,
    }
}

#[tokio::test]
async fn the_examples_of_the_page_go_on_after_a_restart() {
    let node = node().await;
    let control = node.handle();
    let first = Proxy::start(&[node.ws_url()], |_| {}).await;
    first.settled(&control).await;
    let token = control.with_chain(|chain| chain.tokens()[0]);
    let (url, address) = (format!("http://{}", first.address), token.to_string());
    let folder = tempfile::tempdir().unwrap();

    let python = format!(
        "import sys\n\nurl, address = sys.argv[1:]\n\n\ndef take(log, _):\n    print(json.dumps(log), flush=True)\n\n\n{}",
        code("python")
    );
    let python = file(folder.path(), "follow.py", &python);
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/server_sent_events/event-source.mjs");
    let page = format!(
        "import {:?};\nconst [url, address] = process.argv.slice(2);\nconst take = (log) => console.log(JSON.stringify(log));\n{}",
        shim.to_str().unwrap(),
        code("ts")
    );
    let page = file(folder.path(), "follow.mjs", &page);
    let rust = include_str!("../../../examples/streams/server_sent_events.rs");
    let rust = rust.split_once("// docs/server-sent-events.md\n").unwrap().1;
    assert_eq!(
        rust.split_once("// end\n").unwrap().0,
        code("rust"),
        "the page shows the example"
    );
    let example = Path::new(env!("CARGO_BIN_EXE_headwater")).with_file_name("examples");
    let example = example.join("streams");
    assert!(example.exists(), "no {}: run cargo build --examples", example.display());

    let arguments = [&url, &address];
    let mut programs = vec![
        Program::start("Python", Command::new("python3").arg(python).args(arguments)),
        Program::start("TypeScript", Command::new("node").arg(page).args(arguments)),
        Program::start("Rust", Command::new(example).arg("server-sent-events").args(arguments)),
    ];
    if let Some(binary) = go(folder.path()) {
        programs.push(Program::start("Go", Command::new(binary).args(arguments)));
    }
    let sample = r#"headwater_subscriptions{kind="logs"}"#;
    let all = programs.len() as f64;
    crate::harness::eventually("all have subscribed", async || first.metric(sample).await == all).await;

    let of = |line: &str, blocks: &[std::sync::Arc<headwater::devnet::Block>]| -> Vec<String> {
        let all = blocks.iter().flat_map(|block| {
            let matching = block.logs().enumerate().filter(|(_, log)| log.address == token);
            let hash = block.hash().to_string()[..10].to_owned();
            matching.map(move |(at, _)| format!("{line} {:#x} {hash} {at:#x}", block.number()))
        });
        all.collect()
    };
    let blocks = control.mine_many(6);
    for program in &mut programs {
        program.expect(&of("log", &blocks)).await;
    }
    // The proxy restarts on its port; meanwhile the chain goes on, and drops what the programs have.
    let listen = first.address.to_string();
    first.stop();
    first.ended().await.unwrap();
    let reorg = control.reorg(3, 4).unwrap();
    let second = Proxy::start(&[node.ws_url()], |config| config.listen = listen).await;
    second.ready().await;
    assert!(!dropped(&reorg.dropped).is_empty());
    let mut undone = reorg.dropped.clone();
    undone.reverse();
    let story = [of("undo", &undone), of("log", &reorg.adopted)].concat();
    let block = control.mine();
    let story = [story, of("log", &[block])].concat();
    for program in &mut programs {
        program.expect(&story).await;
    }
}
