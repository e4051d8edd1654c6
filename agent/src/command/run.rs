//! `sockway run`: the agent itself.

use std::path::PathBuf;

use super::{BUG, Failure};
use crate::{
    config::file,
    node::{self, Ended, Start},
};

/// How the agent is to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// Configuration file; read again on SIGHUP and when it changes. Without it, the embedded default: nothing but the hooks
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Zone of this host, whatever the configuration says; empty: what that says
    #[arg(long, value_name = "ZONE", env = "SOCKWAY_ZONE", value_parser = zone)]
    pub zone: Option<String>,
    /// Take the kernel half away at the end: without it, services balanced in the kernel go on while no agent runs
    #[arg(long)]
    pub detach_on_exit: bool,
}

fn zone(text: &str) -> Result<String, String> {
    // A variable that is set from a label which the node does not have is empty.
    let good = (text.is_empty() || file::is_zone(text)).then(|| text.to_owned());
    good.ok_or_else(|| "no zone; write 1 to 63 of A-Z, a-z, 0-9 and . _ - /".to_owned())
}

/// Runs until a signal ends it. The exit code: 0, or 128 and the signal's number if a second one cut it short.
///
/// # Errors
///
/// When the configuration is bad, or the agent cannot start.
pub fn run(run: Run) -> Result<u8, Failure> {
    let (config, source) = match run.config {
        Some(path) => {
            let text = file::text(&path)?;
            (file::parse(&text, &path.display().to_string())?, Some((path, text)))
        }
        None => (file::parse(file::DEFAULT, file::DEFAULT_NAME)?, None),
    };
    let zone = run.zone.filter(|zone| !zone.is_empty());
    match node::run(Start { config, source, zone, detach_on_exit: run.detach_on_exit }) {
        Ok(Ended::Drained) => Ok(0),
        Ok(Ended::Cut(signal)) => Ok(u8::try_from(128 + signal).unwrap_or(BUG)),
        Err(error) => {
            let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
            Err(Failure::new(error.exit_code(), format!("sockway: {error}{remedy}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_zone_is_none_and_a_bad_one_is_refused() {
        assert_eq!(zone("eu-central-1a").as_deref(), Ok("eu-central-1a"));
        assert_eq!(zone("").as_deref(), Ok(""));
        assert!(zone("a b").is_err());
    }
}
