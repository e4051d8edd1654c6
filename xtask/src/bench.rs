//! `cargo xtask bench`: measures against the programs that do the same.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {}

/// Measures.
pub fn run(_: Args) -> Result<ExitCode> {
    bail!("there is no benchmark yet")
}
