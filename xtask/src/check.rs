//! `cargo xtask check`: formatting, lints with warnings denied, and the rules of the house. Everything is checked before it fails, so that
//! one run tells all.

mod imports;
mod judges;
mod shape;
mod source;
mod tree;
mod unsafety;

use std::{
    fmt,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};

use self::source::Source;
use crate::{
    build::{self, locked},
    progress::{say, seconds, streamed},
    setup::{Group, compiler::cargo, ready},
    workspace::root,
};

/// Something that breaks a rule: where, which, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    file: PathBuf,
    line: usize,
    rule: &'static str,
    remedy: String,
    /// Told, and no failure.
    only_a_warning: bool,
}

impl Finding {
    fn new(file: impl Into<PathBuf>, line: usize, rule: &'static str, remedy: impl Into<String>) -> Self {
        Self { file: file.into(), line, rule, remedy: remedy.into(), only_a_warning: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = if self.only_a_warning { "warning" } else { "error" };
        write!(f, "{grade}: {}:{}: {}: {}", self.file.display(), self.line, self.rule, self.remedy)
    }
}

/// Runs the rules of the house alone.
pub fn rules() -> Result<ExitCode> {
    house_rules().map(|()| ExitCode::SUCCESS)
}

/// Runs every check.
pub fn run() -> Result<ExitCode> {
    let started = Instant::now();
    let compiler = ready(&[Group::Build, Group::Check])?.context("no compiler for the kernel half")?;
    // With the object there, the agent's code that needs it is checked as well.
    build::ebpf()?;
    let checks: [(&str, Result<()>); 5] = [
        ("house rules", house_rules()),
        ("formatting", stable("formatting", &["fmt", "--all", "--check"])),
        ("formatting of the kernel half", stable("formatting of the kernel half", FMT_EBPF)),
        ("clippy", clippy()),
        ("warnings of the kernel half", build::ebpf_without_warnings(&compiler)),
    ];
    let failed: Vec<String> = checks
        .iter()
        .filter_map(|(name, done)| done.as_ref().err().map(|error| format!("{name}: {error:#}")))
        .collect();
    failed.iter().for_each(|failure| say(format!("FAILED {failure}")));
    say(format!(
        "{} checks passed, {} failed, in {}",
        checks.len() - failed.len(),
        failed.len(),
        seconds(started.elapsed())
    ));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const FMT_EBPF: &[&str] = &["fmt", "--manifest-path", "ebpf/Cargo.toml", "--check"];

fn clippy() -> Result<()> {
    let mut command = Command::new(cargo());
    command
        .current_dir(root())
        .args(["clippy", "--workspace", "--all-targets"])
        .args(locked())
        .args(["--", "-Dwarnings"]);
    streamed("clippy", &mut command)
}

fn stable(what: &str, arguments: &[&str]) -> Result<()> {
    streamed(what, Command::new(cargo()).current_dir(root()).args(arguments))
}

fn house_rules() -> Result<()> {
    let sources = source::read_all(&root())?;
    let mut findings = tree::check(&root())?;
    findings.extend(sources.iter().flat_map(check_one));
    findings.iter().for_each(|finding| say(finding.to_string()));
    let errors = findings.iter().filter(|finding| !finding.only_a_warning).count();
    say(format!("house rules: {} files, {errors} errors, {} warnings", sources.len(), findings.len() - errors));
    anyhow::ensure!(errors == 0, "{errors} errors");
    Ok(())
}

fn check_one(source: &Source) -> Vec<Finding> {
    let rules = [shape::check, imports::check, judges::check, unsafety::check];
    rules.iter().flat_map(|rule| rule(source)).collect()
}
