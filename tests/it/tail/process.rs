//! A running `headwater tail`, whose lines are read as they come.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::cli::headwater;
use crate::harness::within;

/// The process; it is killed with the handle.
pub struct Tail {
    child: Child,
    output: mpsc::UnboundedReceiver<String>,
    errors: mpsc::UnboundedReceiver<String>,
}

impl Tail {
    /// Starts `headwater tail` with these arguments, of which a test writes the options in one text.
    pub fn start(url: &str, options: &str) -> Self {
        let options: Vec<&str> = options.split_whitespace().collect();
        Self::with(&[&["tail", url], options.as_slice()].concat(), &[])
    }

    pub fn with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = headwater(arguments, variables)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = lines(child.stdout.take().unwrap());
        let errors = lines(child.stderr.take().unwrap());
        Self { child, output, errors }
    }

    /// Returns the next line.
    pub async fn line(&mut self) -> String {
        let line = within("a line", self.output.recv()).await;
        match line {
            Some(line) => line,
            None => panic!("the output ended; standard error: {:?}", self.errors.recv().await),
        }
    }

    pub async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"))
    }

    /// Reads as many JSON lines as the story has, and compares each.
    pub async fn expect(&mut self, story: &[String]) {
        for (i, line) in story.iter().enumerate() {
            let received = received(&self.json().await);
            assert_eq!(received, *line, "after {:?}", &story[i.saturating_sub(8)..i]);
        }
    }

    /// Returns the next line of standard error.
    pub async fn notice(&mut self) -> String {
        within("a notice", self.errors.recv()).await.expect("a notice")
    }

    /// Waits for a notice that contains this.
    pub async fn notices(&mut self, what: &str) {
        while !self.notice().await.contains(what) {}
    }

    /// Waits for the end; returns the lines that were not read, standard error likewise, and the exit code.
    pub async fn ended(mut self) -> (Vec<String>, Vec<String>, i32) {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        within("the end", async {
            while let Some(line) = self.output.recv().await {
                output.push(line);
            }
            while let Some(line) = self.errors.recv().await {
                errors.push(line);
            }
        })
        .await;
        let code = self.child.wait().unwrap().code().expect("an exit code");
        (output, errors, code)
    }

    /// Waits for the end, which must print nothing more; returns the exit code and the last line of standard error.
    pub async fn fails(self) -> (i32, String) {
        let (output, mut errors, code) = self.ended().await;
        assert!(output.is_empty(), "{output:?}");
        (code, errors.pop().unwrap_or_default())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (to, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from).lines();
        while let Some(Ok(line)) = from.next() {
            if to.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Returns a JSON line as a line of a story: `head`, `log` as in [`crate::harness::adopted`], `gone` for a removed head,
/// `undo` for a removed log.
pub fn received(line: &Value) -> String {
    let short = |name: &str| line[name].as_str().unwrap()[..10].to_owned();
    let removed = line["removed"] == true;
    match line["kind"].as_str().unwrap() {
        "head" => format!(
            "{} {:#x} {}",
            if removed { "gone" } else { "head" },
            line["number"].as_u64().unwrap(),
            short("hash")
        ),
        "log" => format!(
            "{} {:#x} {} {:#x}",
            if removed { "undo" } else { "log" },
            line["blockNumber"].as_u64().unwrap(),
            short("blockHash"),
            line["logIndex"].as_u64().unwrap()
        ),
        other => format!("{other} {}", short("transactionHash")),
    }
}
