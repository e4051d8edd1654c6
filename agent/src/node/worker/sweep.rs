//! The worker's clockwork: turns its coarse clock, shuts what is past its deadline, and shows the main thread that the loop turns.

use std::{
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::Inside;

/// How exact deadlines are. The main thread wants a sign of life every 250 ms.
const TURN: Duration = Duration::from_millis(100);
/// Unused upstream connections are looked at each so many turns: a second.
const POOL_TURNS: u64 = 10;

/// Runs as long as the worker.
pub(super) async fn sweep(inside: Rc<Inside>) {
    let began = Instant::now();
    loop {
        tokio::time::sleep(TURN).await;
        inside.hop.watch.turn(began.elapsed());
        inside.hop.upstreams.make_room();
        let turns = inside.vitals.progress.fetch_add(1, Relaxed);
        if turns.is_multiple_of(POOL_TURNS) {
            inside.hop.upstreams.sweep();
        }
    }
}
