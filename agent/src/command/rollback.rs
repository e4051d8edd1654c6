//! `sockway rollback N`: goes back to what generation N said, as a new generation.

use super::{Failure, agent::Reach};

/// Which agent, and how far back.
#[derive(Clone, Debug, clap::Args)]
pub struct Rollback {
    /// The generation to go back to, as `sockway audit` tells; the last 16 are kept
    #[arg(value_name = "GENERATION")]
    generation: u64,
    #[command(flatten)]
    reach: Reach,
}

/// Prints what the way back changed.
///
/// # Errors
///
/// When that generation is not kept or no good any more, or the agent cannot be asked.
pub fn run(rollback: &Rollback) -> Result<u8, Failure> {
    rollback.reach.change("POST", &format!("/v1/rollback/{}", rollback.generation), None)
}
