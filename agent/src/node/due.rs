//! Waiting for what is due next.

use std::time::Instant;

use tokio::time;

/// Waits until then; for ever if nothing is due. Dropping the future loses nothing.
pub async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
