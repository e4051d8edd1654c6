//! What a person at a terminal asks of Sockway: one file for each command. Each prints its answer, or gives the failure with its exit code.

pub mod agent;
pub mod audit;
pub mod check;
pub mod detach;
pub mod doctor;
pub mod drill;
pub mod explain;
pub mod flows;
pub mod rollback;
pub mod run;
pub mod set;
pub mod status;
pub mod switch;

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use crate::{
    config::{Capture, Config, ConfigError, file},
    kernel::{self, KernelError},
    node::runfile,
};

/// Bad usage or configuration (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// Something that is needed is not there (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// A broken invariant (`EX_SOFTWARE`).
pub const BUG: u8 = 70;
/// A system call failed (`EX_OSERR`).
pub const OS_ERROR: u8 = 71;
/// What is asked for is not allowed (`EX_NOPERM`).
pub const NO_PERMISSION: u8 = 77;

/// A command that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// By `sysexits.h`.
    pub code: u8,
    /// For standard error; empty if all is said already.
    pub text: String,
}

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::new(error.exit_code(), format!("sockway: {}", error.told()))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(USAGE, error.to_string())
    }
}

/// Whose agent is asked about.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Which {
    /// Name of the instance
    #[arg(long, value_name = "NAME", conflicts_with = "config", default_value = "default", value_parser = instance)]
    pub instance: String,
    /// The agent's configuration file, which names the instance
    #[arg(long, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
}

impl Which {
    fn find(&self) -> Result<(String, Capture), ConfigError> {
        let config = configuration(self.config.as_deref())?;
        let instance = if self.config.is_some() { config.instance } else { self.instance.clone() };
        Ok((instance, config.capture))
    }
}

/// [`Which::find`] for who looks at what the agent has left in the kernel: also where that is hidden from this shell.
fn seen(which: &Which) -> Result<(String, Capture), ConfigError> {
    let (instance, capture) = which.find()?;
    let agent = runfile::find(Path::new(runfile::DIRECTORY), &instance).map(|running| running.pid);
    Ok((instance, kernel::look_outside(capture, agent)))
}

/// The file's configuration, or the embedded default.
fn configuration(path: Option<&Path>) -> Result<Config, ConfigError> {
    match path {
        Some(path) => file::read(path),
        None => file::parse(file::DEFAULT, file::DEFAULT_NAME),
    }
}

fn instance(text: &str) -> Result<String, String> {
    match file::is_instance(text) {
        true => Ok(text.to_owned()),
        false => Err("write 1 to 32 of a-z, 0-9 and -".to_owned()),
    }
}

/// Prints an answer. Who reads may have seen enough (`| head`): that is no failure of ours.
fn say(text: impl Display) {
    let _ = write!(io::stdout().lock(), "{text}");
}

/// Widest column that is filled up with blanks: what is longer stands alone, and is no reason to move everything else.
const COLUMN_MAX: usize = 100;

/// Rows under a heading, every column as wide as its widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .min(COLUMN_MAX)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// In the largest unit that it has one of.
fn brief(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_digit_behind_the_point() {
        for (us, text) in [(7, "7us"), (999, "999us"), (1_234, "1.2ms"), (999_900, "999.9ms"), (12_340_000, "12.3s")] {
            assert_eq!(brief(Duration::from_micros(us)), text);
        }
    }

    #[test]
    fn a_cell_of_a_million_characters_is_told_whole() {
        // Of the formatter's widths, 65 535 is the largest.
        let long = "x".repeat(1_000_000);
        let rows = [vec![long.clone(), "b".to_owned()], vec!["a".to_owned(), long.clone()]];
        assert_eq!(table(&rows), format!("{long}  b\n{:<100}  {long}\n", "a"));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "BB"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "A    BB\nccc  d\n");
    }
}
