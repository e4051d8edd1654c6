//! `cargo xtask run`: builds the agent and becomes it.

use std::{os::unix::process::CommandExt, path::Path};

use anyhow::{Context, Result};

use crate::{
    build,
    progress::say,
    root::{as_root, is_root},
    workspace::agent_binary,
};

/// Returns only if the agent could not be started: it takes this process's place, so that signals reach it.
pub fn run(config: Option<&Path>) -> Result<()> {
    build::release()?;
    if !is_root() {
        say("the agent needs root to load its kernel half: using sudo");
    }
    let mut command = as_root(agent_binary())?;
    command.arg("run");
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    Err(command.exec()).context("cannot start the agent")
}
