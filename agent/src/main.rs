//! The binary: takes the command line apart, sets up the log, gives the word to a command, ends with its exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use sockway::command::{
    self, Failure, Which, audit, check, detach, doctor, drill, explain, flows, rollback, run, set, status, switch,
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = sockway::kernel::memory::ALLOCATOR;

/// Transparent proxy agent: captures the connections of unmodified programs, balances them in the kernel or through io_uring.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 well, 64 bad configuration or usage, 69 something is not there, 70 a bug, 71 a system \
                                 call failed, 77 no permission. RUST_LOG sets the log's level (default: info)."
)]
struct Line {
    /// How the log is written, to standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(run::Run),
    /// Say what a configuration file means, or everything that is wrong with it
    Check(check::Check),
    /// Say what this host has and lacks
    Doctor(Which),
    /// Say what a running agent is doing
    Status(status::Status),
    /// Watch the connections of services as they end: who, to what, by which path, how much, how long, and how they ended
    Flows(flows::Args),
    /// Say which way a connection would take now, and why
    Explain(explain::Args),
    /// Change one key of a service, an endpoint or a request limit while the agent runs
    Set(set::Set),
    /// Leave an endpoint out for a while
    Eject(set::Eject),
    /// Tell the switches that services are degraded by, or turn one
    Switch(switch::Switch),
    /// Have requests go wrong on purpose, step by step, and report what became of them
    Drill(drill::Drill),
    /// Go back to what a generation of the configuration said
    Rollback(rollback::Rollback),
    /// Say what was changed, when and by whom
    #[command(visible_alias = "history")]
    Audit(audit::Audit),
    /// Take away what outlives an agent: every connection goes on as plain TCP
    Detach(Which),
}

fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(command::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log_to_stderr(line.log_format);
    exit_with_the_code_of_a_bug_on_panic();
    let done = match line.command {
        Command::Run(run) => run::run(run),
        Command::Check(check) => check::run(&check),
        Command::Doctor(which) => doctor::run(&which),
        Command::Status(status) => status::run(&status),
        Command::Flows(flows) => flows::run(&flows),
        Command::Explain(explain) => explain::run(&explain),
        Command::Set(set) => set::run(&set),
        Command::Eject(eject) => set::eject(&eject),
        Command::Switch(switch) => switch::run(&switch),
        Command::Drill(drill) => drill::run(&drill),
        Command::Rollback(rollback) => rollback::run(&rollback),
        Command::Audit(audit) => audit::run(&audit),
        Command::Detach(which) => detach::run(&which),
    };
    done.map_or_else(fail, ExitCode::from)
}

fn fail(failure: Failure) -> ExitCode {
    if !failure.text.is_empty() {
        eprintln!("{failure}");
    }
    ExitCode::from(failure.code)
}

const LIBRARY_OF_HTTP2: &str = "h2";

fn log_to_stderr(format: LogFormat) {
    let said = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    // What a peer sends must not fill the log: the library warns of every frame that it finds odd.
    let filter = EnvFilter::builder().parse_lossy(format!("info,{LIBRARY_OF_HTTP2}=off,{said}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// A thread that panics would otherwise leave an agent without it; the kernel half balances until the next one starts.
fn exit_with_the_code_of_a_bug_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(command::BUG.into());
    }));
}
