//! Ctrl-C, SIGTERM and SIGHUP: they end the demo at its next wait, as a failed step would, so that everything is taken down on the way out.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

const LOOK: Duration = Duration::from_millis(20);

/// From here on these signals are remembered, and no longer end the process by themselves.
pub fn catch() -> Result<()> {
    let flag = CAUGHT.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Whether one of them came, once.
pub fn take() -> bool {
    CAUGHT.get().is_some_and(|flag| flag.swap(false, Ordering::Relaxed))
}

/// An error once one of them has come.
pub fn check() -> Result<()> {
    if CAUGHT.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits until `ready` gives something. `what` is named when it takes longer than `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        check()?;
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_too_long_names_what_did_not_come() {
        let error = wait_for("the moon", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert_eq!(error.to_string(), "the moon: not within 0 s");
    }
}
