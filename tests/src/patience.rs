//! How slow this machine is: what deadlines are multiplied with, and loads divided by.
//!
//! An emulated processor (`cargo xtask test-kernel`) is told by `SOCKWAY_TEST_PATIENCE`. What a test says of the kernel does not change; only
//! how often it is tried, and how long it may take.

use std::{env, sync::OnceLock, time::Duration};

/// The factor: 1 on a real processor.
fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let told = env::var("SOCKWAY_TEST_PATIENCE").ok();
        told.map_or(1, |told| told.parse().expect("SOCKWAY_TEST_PATIENCE is a whole number"))
    })
}

/// How long a deadline really is.
pub fn deadline(deadline: Duration) -> Duration {
    deadline * factor()
}

/// How much of a load is asked for: connections of a burst, requests of a benchmark.
pub fn load(count: usize) -> usize {
    (count / factor() as usize).max(1)
}
