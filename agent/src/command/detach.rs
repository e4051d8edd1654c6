//! `sockway detach`: takes away everything that outlives an agent: programs, links and maps pinned in bpffs, and its cgroup.

use std::path::Path;

use super::{Failure, Which, say};
use crate::{kernel, node::runfile};

/// Takes away what is pinned; nothing being there is well.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn run(which: &Which) -> Result<u8, Failure> {
    let (instance, capture) = which.find()?;
    if let Some(running) = runfile::find(Path::new(runfile::DIRECTORY), &instance) {
        eprintln!(
            "sockway: the agent of instance {instance} (process {}) is running: it captures nothing from now on, until it is started again",
            running.pid
        );
    }
    runfile::remove_dead(Path::new(runfile::DIRECTORY), &instance);
    match kernel::detach(&capture, &instance) {
        Ok(0) => say(format_args!("nothing was attached for instance {instance}\n")),
        Ok(pins) => say(format_args!(
            "instance {instance} detached: {pins} pins removed; every connection goes on as plain TCP\n"
        )),
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}
