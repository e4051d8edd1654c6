//! Everything one does to the repository, a file per command: `cargo xtask --help`.
//!
//! What a command needs is set up and built before it runs; what needs root is run again with sudo, after the build.
#![deny(unsafe_code)]

// Places processes between fork and exec, and reads their CPU clocks.
#[allow(unsafe_code)]
mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod profile;
mod progress;
mod root;
mod run;
mod setup;
mod test;
mod test_kernel;
mod torture;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything one does to the repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building, testing and measuring need
    Setup,
    /// Build the kernel half's object: target/ebpf/sockway.o
    BuildEbpf,
    /// The agent with another layout, to target/next: for the tests of taking over
    BuildNext,
    /// Build the agent as it is shipped, the kernel half inside: target/release/sockway
    Build,
    /// Count anew where the agent spends its time, for the optimiser of `build`: agent/profile
    Profile,
    /// Build the agent and run it
    Run {
        /// Its configuration; without one, the embedded default
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show Sockway at work on this machine: real programs, two endpoints, one of them killed, then the agent
    Demo {
        /// Leave it running, with lines to try, until Ctrl-C
        #[arg(long)]
        stay: bool,
    },
    /// Run every test, those that need root included
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Run the tests on a kernel of Debian's in an emulated machine
    #[command(long_about = test_kernel::LONG)]
    TestKernel(test_kernel::Args),
    /// Formatting, lints, and the rules of the house
    Check {
        /// Only the rules of the house: a second instead of minutes
        #[arg(long)]
        rules: bool,
    },
    /// Measure against the programs that do the same
    Bench(bench::Args),
    /// Have one endpoint die, one become slow and one fail, under three times the load, with Sockway, with Envoy and without
    BadNight(bench::night::Args),
    /// Try every path on the running kernel with every way to use a socket, every byte and every end checked
    Torture(torture::Args),
    /// Search for bytes that a decoder does not hold up to (libFuzzer; needs a C++ compiler)
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    if test_kernel::guest::is_here() {
        return test_kernel::guest::main();
    }
    let command = Cli::parse().command;
    let done = root::complete_path().and_then(|()| run(command));
    done.unwrap_or_else(|error| {
        progress::say(format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => setup::run().map(success),
        Command::BuildEbpf => build::ebpf().map(success),
        Command::BuildNext => build::next().map(|_| ExitCode::SUCCESS),
        Command::Build => build::release().map(success),
        Command::Profile => profile::run().map(success),
        Command::Run { config } => run::run(config.as_deref()).map(success),
        Command::Demo { stay } => demo::run(stay),
        Command::Test { filter } => test::run(filter.as_deref()),
        Command::TestKernel(args) => test_kernel::run(&args),
        Command::Check { rules: true } => check::rules(),
        Command::Check { rules: false } => check::run(),
        Command::Bench(args) => measure(args),
        Command::BadNight(args) => bad_night(args),
        Command::Torture(args) => torture::run(args),
        Command::Fuzz(args) => fuzz::run(&args),
    }
}

fn measure(args: bench::Args) -> Result<ExitCode> {
    prepare("bench", args.agent.is_none())?;
    bench::run(args)
}

fn bad_night(args: bench::night::Args) -> Result<ExitCode> {
    prepare("bad-night", args.agent.is_none())?;
    bench::night::run(args)
}

/// Sets up what is measured with, and becomes root.
fn prepare(command: &str, builds: bool) -> Result<()> {
    if !root::is_prepared() {
        setup::ready(&[setup::Group::Bench])?;
        if builds {
            build::release()?;
        }
    }
    root::elevate(&format!("{command} captures connections and makes network namespaces"))
}

fn success((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
