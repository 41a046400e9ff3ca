//! Programs of a page, in the four languages.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::PATIENCE;

/// Options with which TypeScript's compiler checks a program.
const STRICT: [&str; 9] = [
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--module",
    "nodenext",
    "--target",
    "es2023",
    "--types",
    "node",
];

/// Returns the folder with the libraries of other languages.
pub fn interop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// Program under way; each line that it prints is an event.
pub struct Program {
    pub name: &'static str,
    process: Child,
    pub lines: mpsc::UnboundedReceiver<String>,
}

impl Program {
    fn start(name: &'static str, command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self { name, process, lines }
    }

    /// Returns the next line that it prints.
    pub async fn line(&mut self, awaited: &str) -> String {
        let line = timeout(PATIENCE, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("{}: no {awaited}", self.name));
        line.unwrap_or_else(|| panic!("{}: ended before {awaited}", self.name))
    }

    /// Checks that it prints these lines next.
    pub async fn expect(&mut self, story: &[String]) {
        for (at, expected) in story.iter().enumerate() {
            let line = self.line(&format!("line {at} of {story:?}")).await;
            assert_eq!(line, *expected, "{}: line {at} of {story:?}", self.name);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the first program of a page in this language.
fn code<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, after) = page.split_once(&format!("```{language}\n")).unwrap();
    after.split_once("```").unwrap().0
}

/// A page, and what is put around its programs: what a reader has of his own.
pub struct Frame {
    pub page: &'static str,
    /// Behind the program; `None` where another test runs it.
    pub typescript: Option<&'static str>,
    /// Behind the program; `None` where another test runs it.
    pub python: Option<&'static str>,
    /// Before the program: the package, imports and `main`.
    pub go: &'static str,
    /// The command of `examples/streams`, and its source.
    pub rust: (&'static str, &'static str),
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Checks the types of a program and returns it without them: Node.js 20 runs no TypeScript.
fn javascript(source: &Path) -> PathBuf {
    let modules = interop().join("node_modules");
    let compiler = modules.join("typescript/bin/tsc");
    let mut check = Command::new("node");
    check.current_dir(interop()).arg(compiler).args(STRICT).arg(source);
    let checked = check.output().unwrap();
    let complaints = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{complaints}");
    let script = source.with_extension("mjs");
    let mut strip = Command::new(modules.join(".bin/esbuild"));
    strip.arg(source).arg(format!("--outfile={}", script.display()));
    assert!(strip.arg("--log-level=error").status().unwrap().success());
    script
}

/// Returns the binary of `examples/streams`.
fn example() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_headwater")).with_file_name("examples");
    let example = folder.join("streams");
    assert!(example.exists(), "no {}: run cargo build --examples", example.display());
    example
}

impl Frame {
    /// Starts the programs of the page, in a folder where their libraries are found; `arguments` returns those of the next one.
    pub fn start(&self, folder: &TempDir, mut arguments: impl FnMut() -> Vec<String>) -> Vec<Program> {
        let (folder, interop) = (folder.path(), interop());
        let mut programs = Vec::new();
        let mut run = |name, command: &mut Command| programs.push(Program::start(name, command.args(arguments())));
        if let Some(own) = self.typescript {
            if interop.join("node_modules/viem").exists() {
                let text = format!("{}\n{own}", code(self.page, "ts"));
                let script = javascript(&file(folder, "follow.ts", &text));
                run("TypeScript", Command::new("node").arg(script));
            } else {
                println!("skipped: no viem, see tests/interop/README.md");
            }
        }
        if let Some(own) = self.python {
            let python = interop.join(".venv/bin/python");
            if python.exists() {
                let script = file(
                    folder,
                    "follow.py",
                    &own.replace("{program}", code(self.page, "python")),
                );
                run("Python", Command::new(python).arg(script));
            } else {
                println!("skipped: no web3.py, see tests/interop/README.md");
            }
        }
        let source = file(folder, "follow.go", &format!("{}\n{}", self.go, code(self.page, "go")));
        let binary = folder.join("follow");
        let mut build = Command::new("go");
        let build = build.current_dir(interop.join("go")).args(["build", "-o"]);
        match build.arg(&binary).arg(source).status() {
            Ok(built) => {
                assert!(built.success());
                run("Go", &mut Command::new(binary));
            }
            Err(_) => println!("skipped: no Go"),
        }
        let (command, source) = self.rust;
        let (_, shown) = source.split_once("// docs/").unwrap();
        let (_, shown) = shown.split_once('\n').unwrap();
        let (shown, _) = shown.split_once("// end\n").unwrap();
        assert_eq!(shown, code(self.page, "rust"), "the page shows the example");
        run("Rust", Command::new(example()).arg(command));
        programs
    }
}
