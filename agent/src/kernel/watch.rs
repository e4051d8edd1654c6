//! The watcher's end of the flows that the hooks tell about: asks for them, keeps asking, takes them out of the ring buffer.
//!
//! There is one watcher at a time, since a ring buffer has one reader.

use std::{net::SocketAddr, path::Path, process, time::Duration};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use sockway_common::{
    counter::Counter,
    flow::Address,
    watch::{Flow, SLICE_NS, Watch, slice},
};

use super::{KernelError, Pinned, flows, services::map_error};

/// How long the hooks go on telling a watcher that is not heard of any more.
const LEASE: Duration = Duration::from_secs(2);

/// Which flows are to be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Only those of this service, by id.
    pub service: Option<u32>,
    /// Only those of this process.
    pub pid: Option<u32>,
    /// Only those sent to this address.
    pub endpoint: Option<SocketAddr>,
    /// How many in a second on one CPU; the rest is counted.
    pub rate: u32,
}

/// How many flows were not told since the watch began, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// There were more than the rate.
    pub over_rate: u64,
    /// The watcher was slow.
    pub lost: u64,
}

/// A watch. When it is dropped the hooks stop telling.
pub struct Watcher {
    watch: Array<MapData, Watch>,
    flows: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    wanted: Watch,
    before: Untold,
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// When somebody else watches, or the tables cannot be opened.
    pub fn begin(pinned: &Pinned, wanted: &Wanted) -> Result<Self, KernelError> {
        let watch: Array<MapData, Watch> = pinned.table("WATCH")?;
        let current = watch.get(&0, 0).map_err(map_error("WATCH"))?;
        let is_alive = Path::new("/proc").join(current.watcher.to_string()).exists();
        if current.until_ns > super::monotonic_ns() && is_alive && current.watcher != process::id() {
            return Err(KernelError::Watched { watcher: current.watcher });
        }
        let mut watcher = Self {
            watch,
            flows: pinned.table("FLOWS")?,
            counters: pinned.table("COUNTERS")?,
            wanted: entry(wanted),
            before: Untold::default(),
        };
        // What was told to a watcher before this one.
        while watcher.flows.next().is_some() {}
        watcher.before = watcher.untold();
        watcher.write_lease()?;
        Ok(watcher)
    }

    /// Keeps the hooks telling: to be called more than once in two seconds.
    ///
    /// # Errors
    ///
    /// When another watcher has begun at the same moment as this one.
    pub fn renew(&mut self) -> Result<(), KernelError> {
        let current = self.watch.get(&0, 0).map_err(map_error("WATCH"))?;
        if current.watcher != self.wanted.watcher {
            return Err(KernelError::Watched { watcher: current.watcher });
        }
        self.write_lease()
    }

    /// The next flow that has been told; `None` when there is none for now.
    pub fn take(&mut self) -> Option<Flow> {
        loop {
            let record = self.flows.next()?;
            if record.len() == size_of::<Flow>() {
                // SAFETY: as long as the type, which takes every bit pattern; read unaligned.
                return Some(unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) });
            }
        }
    }

    /// How many flows were not told since the watch began.
    pub fn untold(&self) -> Untold {
        let sum = |counter: Counter| self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum());
        let now = Untold { over_rate: sum(Counter::FlowOverRate), lost: sum(Counter::FlowLost) };
        Untold { over_rate: now.over_rate - self.before.over_rate, lost: now.lost - self.before.lost }
    }

    /// Has the hooks tell no more; what they have told can still be taken.
    pub fn end(&mut self) {
        let is_ours = |watch: Watch| watch.watcher == self.wanted.watcher;
        if self.watch.get(&0, 0).is_ok_and(is_ours) {
            // If it fails the watch ends by itself.
            let _ = self.watch.set(0, Watch { until_ns: 0, ..self.wanted }, 0);
        }
    }

    fn write_lease(&mut self) -> Result<(), KernelError> {
        let until_ns = super::monotonic_ns() + LEASE.as_nanos() as u64;
        self.wanted.until_ns = until_ns;
        self.watch.set(0, self.wanted, 0).map_err(map_error("WATCH"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

fn entry(wanted: &Wanted) -> Watch {
    let nowhere = Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 };
    let slices = u64::from(wanted.rate) * SLICE_NS;
    Watch {
        until_ns: 0,
        // At least one in each slice, or the slowest rates would show nothing.
        flows_max: slices.div_ceil(Duration::from_secs(1).as_nanos() as u64).clamp(1, u64::from(u32::MAX)) as u32,
        watcher: process::id(),
        service: wanted.service.unwrap_or(0),
        pid: wanted.pid.unwrap_or(0),
        endpoint: wanted.endpoint.map_or(nowhere, flows::address),
        since: slice(super::monotonic_ns()) as u32,
    }
}

/// Stops the hooks telling a watcher that was killed: they would stop by themselves, but ask the clock at every flow until somebody does.
pub(super) fn end_stale(watch: &mut Array<MapData, Watch>) {
    if let Ok(current) = watch.get(&0, 0)
        && current.until_ns != 0
        && current.until_ns < super::monotonic_ns()
    {
        let _ = watch.set(0, Watch { until_ns: 0, ..current }, 0);
    }
}
