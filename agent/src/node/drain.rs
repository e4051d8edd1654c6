//! The end of an agent: no new connections, those in flight are finished, then it is over. What the kernel half balances goes on.

use std::time::Duration;

use tokio::time::{self, Instant};

use super::{
    Ended, Node, NodeError,
    senses::{News, Senses},
};

/// Connects that a hook has pointed at us just before it was told not to have arrived after this time: loopback takes microseconds, and a
/// program that a busy machine interrupts within `connect()` goes on after a few slices of its scheduler.
const ARRIVAL: Duration = Duration::from_millis(250);
/// How often the connections left are counted.
const LOOK: Duration = Duration::from_millis(20);

/// Ends the agent's service: waits until every connection is finished, but no longer than the configuration says, nor beyond a second
/// signal. Its admin endpoint answers all the while.
///
/// # Errors
///
/// When a worker dies.
pub async fn drain(node: &mut Node, senses: &mut Senses, signal: i32) -> Result<Ended, NodeError> {
    let patience = node.config.drain_timeout;
    tracing::info!(signal, connections = node.connections(), ?patience, "draining");
    node.not_ready = Some("draining".to_owned());
    // First the kernel half: from now on it balances by itself. Then the listeners, once nothing can be on its way to them.
    node.pulse = None;
    node.namespaces.close_all();
    node.inlets.pause();
    let arrived = Instant::now() + ARRIVAL;
    if let Some(cut) = hear_until(node, senses, arrived).await? {
        return Ok(cut);
    }
    node.workers.iter().for_each(super::Worker::drain);
    let deadline = Instant::now() + patience;
    while node.connections() > 0 && Instant::now() < deadline {
        if let Some(cut) = hear_until(node, senses, Instant::now() + LOOK).await? {
            return Ok(cut);
        }
    }
    match node.connections() {
        0 => tracing::info!("drained"),
        connections => tracing::warn!(connections, "the time to drain is over: these connections are closed"),
    }
    Ok(Ended::Drained)
}

/// Hears the news until `end`; what ends the draining at once, if something does.
async fn hear_until(node: &mut Node, senses: &mut Senses, end: Instant) -> Result<Option<Ended>, NodeError> {
    while let Ok(news) = time::timeout_at(end, senses.next()).await {
        match news {
            News::Stop(signal) => {
                tracing::warn!(signal, connections = node.connections(), "second signal: ending at once");
                return Ok(Some(Ended::Cut(signal)));
            }
            // Namespaces stay closed.
            News::Scan | News::Kernel(crate::kernel::Event::UnseenNamespace { .. }) => {}
            News::Look => node.check_workers()?,
            news => node.hear(news, senses)?,
        }
    }
    Ok(None)
}
