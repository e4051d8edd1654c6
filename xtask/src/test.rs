//! `cargo xtask test`: every test of the workspace, those of the whole agent with real peers included.

use std::{
    io::{self, BufRead, BufReader, Write},
    mem,
    process::{ChildStdout, Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use crate::{
    build::{self, locked},
    progress::{SIGN_OF_LIFE, say, seconds, streamed},
    root,
    setup::{Group, compiler::cargo, httpwg_binary, ready},
    workspace,
};

/// Sets up, builds, becomes root, tests.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    if !root::is_prepared() {
        ready(&[Group::Test, Group::Peers])?;
        build::release()?;
        build::next()?;
        streamed("building the tests", cargo_test().args(locked()).arg("--no-run"))?;
    }
    root::elevate("the tests load programs into the kernel and make network namespaces")?;
    let started = Instant::now();
    let mut command = cargo_test();
    // One failing package must not hide another's result.
    command.args(locked()).arg("--no-fail-fast").args(filter);
    command.env("SOCKWAY_BIN", workspace::agent_binary()).env("SOCKWAY_HTTPWG", httpwg_binary());
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let sums = pass_on(child.stdout.take().context("cargo's output is a pipe")?);
    let status = child.wait()?;
    say(format!("{sums}, in {}", seconds(started.elapsed())));
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Passes cargo's lines on and adds them up; says that it goes on when none comes for long.
fn pass_on(output: ChildStdout) -> Sums {
    let started = Instant::now();
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut sums = Sums::default();
    loop {
        match lines.recv_timeout(SIGN_OF_LIFE) {
            Ok(line) => {
                // Whoever read them may have gone: the tests end in order all the same.
                let _ = writeln!(io::stdout(), "{line}");
                sums.read(&line);
            }
            Err(RecvTimeoutError::Timeout) => say(format!("… testing, {}", seconds(started.elapsed()))),
            Err(RecvTimeoutError::Disconnected) => return sums,
        }
    }
}

fn cargo_test() -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(workspace::root()).args(["test", "--workspace"]);
    command
}

/// What cargo's `test result` lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sums {
    passed: u64,
    failed: u64,
    ignored: u64,
    names: Vec<String>,
    /// The test under way: what it prints may stand between its name and its result.
    begun: String,
}

impl Sums {
    /// Tests that passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Tests that failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Takes a line of cargo's, or of a test program's.
    pub fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.passed += count(rest, "passed");
            self.failed += count(rest, "failed");
            self.ignored += count(rest, "ignored");
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            name.clone_into(&mut self.begun);
            self.names.extend((result == "FAILED").then(|| name.to_owned()));
        } else if line == "FAILED" {
            self.names.push(mem::take(&mut self.begun));
        }
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tests passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)?;
        self.names.iter().try_for_each(|name| write!(f, "\n  failed: {name}"))
    }
}

fn count(line: &str, what: &str) -> u64 {
    line.split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(what))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_packages_are_added_up() {
        let mut sums = Sums::default();
        sums.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        sums.read("test a::b ... FAILED");
        sums.read("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        assert_eq!((sums.passed, sums.failed, sums.ignored), (15, 1, 1));
        assert_eq!(sums.names, ["a::b"]);
    }

    #[test]
    fn a_failed_test_has_its_name_although_its_output_comes_between() {
        let mut sums = Sums::default();
        for line in ["test a ... ok", "test b ... ", "thread 'b' panicked", "FAILED", "test c ... why", "ok"] {
            sums.read(line);
        }
        assert_eq!(sums.names, ["b"]);
    }
}
