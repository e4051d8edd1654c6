//! `cargo xtask fuzz`: searches for bytes that a decoder does not hold up to, by libFuzzer, from the corpus in `tests/corpus`.
//!
//! The targets are laid out as cargo-fuzz wants them, which has more to offer (minimizing, coverage); this needs a C++ compiler and nothing
//! else, so that it runs wherever the agent is built.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::locked,
    progress::{say, streamed},
    setup::compiler::{self, cargo},
    workspace,
};

/// What to search, and for how long.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds for each target; all of them run side by side
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Only this target, a folder of tests/corpus; may be given more than once
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
}

/// Coverage as libFuzzer reads it: the flags that cargo-fuzz gives.
const RUSTFLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    // Symbols for what libFuzzer prints of a crash.
    "-Cforce-frame-pointers",
];

/// Bytes of an input at most: more than two heads with all their fields.
const INPUT_BYTES_MAX: u32 = 16 * 1024;

/// Builds the targets, runs them side by side, and fails if one of them found anything.
pub fn run(args: &Args) -> Result<ExitCode> {
    let corpus = workspace::root().join("tests/corpus");
    let targets = if args.targets.is_empty() { names(&corpus)? } else { args.targets.clone() };
    if let Some(unknown) = targets.iter().find(|name| !corpus.join(name).is_dir()) {
        bail!("there is no target `{unknown}`; the targets are {}", names(&corpus)?.join(", "));
    }
    // Told, cargo leaves build scripts without coverage.
    let host = compiler::told()?.host;
    let built = workspace::kept().join("fuzz");
    let mut build = Command::new(cargo());
    build.current_dir(workspace::root().join("tests/fuzz")).args(["build", "--release", "--target", &host]);
    build.arg("--target-dir").arg(&built).args(locked()).env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    streamed("building the fuzz targets, with coverage", &mut build)?;
    let mut found = false;
    let runs = targets.iter().map(|name| Run::start(name, &built, &host, args.seconds));
    for run in runs.collect::<Result<Vec<_>>>()? {
        found |= !run.end()?;
    }
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn names(corpus: &PathBuf) -> Result<Vec<String>> {
    let entries = fs::read_dir(corpus).with_context(|| format!("no corpus in {}", corpus.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A target that runs.
struct Run {
    name: String,
    log: PathBuf,
    findings: PathBuf,
    process: Child,
}

impl Run {
    fn start(name: &str, built: &std::path::Path, host: &str, seconds: u32) -> Result<Self> {
        // What it learns goes where the next run finds it, and not into the repository.
        let (learned, findings) = (built.join("corpus").join(name), built.join("findings").join(name));
        fs::create_dir_all(&learned)?;
        fs::create_dir_all(&findings)?;
        let log = built.join(format!("{name}.log"));
        let process = Command::new(built.join(host).join("release").join(name))
            .arg(&learned)
            .arg(workspace::root().join("tests/corpus").join(name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-timeout=10"])
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .with_context(|| format!("cannot start the fuzz target {name}"))?;
        say(format!("{name}: {seconds} s, its log is {}", log.display()));
        Ok(Self { name: name.to_owned(), log, findings, process })
    }

    /// Waits for its end, and says what came of it: whether it found nothing.
    fn end(mut self) -> Result<bool> {
        let status = self.process.wait()?;
        let lines: Vec<String> = BufReader::new(File::open(&self.log)?).lines().map_while(Result::ok).collect();
        if status.success() {
            let stat = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim);
            let last = lines.iter().rev().find_map(|line| line.split_once(" cov: ")).map_or("?", |(_, rest)| rest);
            let coverage = last.split_whitespace().next().unwrap_or("?");
            say(format!(
                "{}: nothing found in {} runs, coverage {coverage}",
                self.name,
                stat("stat::number_of_executed_units:")
            ));
        } else {
            let panic = lines.iter().find(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
            say(format!(
                "{}: {}\n  the bytes are in {}, all that it said in {}",
                self.name,
                panic.map_or("ended abnormally", String::as_str),
                self.findings.display(),
                self.log.display()
            ));
        }
        Ok(status.success())
    }
}
