//! `sockway-probe`: the test's own programs, for what curl and its kind do not do. It runs where a test puts it.
//!
//! - `door` (see [`sockway_tests::door`]): makes sockets where it runs and hands them to the test;
//! - `burst`: connects, writes and closes at once, as fast as the kernel goes;
//! - `crowd`: many threads that connect at once, and how many of them were connected at most;
//! - `torture-server`, `torture-client`: every way to use a socket, every byte checked; `torture` runs them on every kind of path.

mod burst;
mod crowd;
mod door;
mod torture;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result =
        match arguments.split_first() {
            Some((command, [])) if command == "door" => door::serve(),
            Some((command, rest)) if command == "burst" => burst::run(rest),
            Some((command, rest)) if command == "crowd" => crowd::run(rest),
            Some((command, rest)) if command == "torture-server" => torture::server::run(rest),
            Some((command, rest)) if command == "torture-client" => torture::client::run(rest),
            Some((command, rest)) if command == "torture" => torture::conduct::run(rest),
            _ => Err("usage: sockway-probe door | burst … | crowd … | torture-server … | torture-client … | torture …"
                .into()),
        };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sockway-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a subcommand gives back.
type Outcome = Result<(), Box<dyn std::error::Error>>;
