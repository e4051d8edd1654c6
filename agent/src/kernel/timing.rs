//! How often the hooks ran, and how long they took. The kernel keeps these numbers while somebody asks it to, because keeping them costs
//! each run two readings of the clock.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::Ebpf;

use super::sys;

/// One hook's runs since this agent loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookTime {
    /// Name of the program.
    pub hook: String,
    /// How often it ran.
    pub runs: u64,
    /// How long, altogether.
    pub took: Duration,
}

/// The programs of the kernel half.
#[derive(Debug)]
pub struct Timing {
    hooks: Vec<(String, OwnedFd)>,
    /// While it is open the kernel keeps the numbers, for every program of the host.
    measuring: Option<OwnedFd>,
}

impl Timing {
    pub(super) fn new(ebpf: &Ebpf) -> Self {
        let hook = |(name, program): (&str, &aya::programs::Program)| {
            Some((name.to_owned(), program.fd().ok()?.as_fd().try_clone_to_owned().ok()?))
        };
        Self { hooks: ebpf.programs().filter_map(hook).collect(), measuring: None }
    }

    /// Has the kernel keep the numbers, or no more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: before Linux 5.8, or without CAP_SYS_ADMIN.
    pub fn measure(&mut self, wanted: bool) -> io::Result<()> {
        self.measuring = match (wanted, self.measuring.take()) {
            (false, _) => None,
            (true, Some(measuring)) => Some(measuring),
            (true, None) => Some(sys::measure_programs()?),
        };
        Ok(())
    }

    /// Every hook's numbers; none while nobody has the kernel keep them.
    pub fn read(&self) -> Vec<HookTime> {
        let time = |(hook, program): &(String, OwnedFd)| {
            let (runs, took_ns) = sys::run_time(program.as_fd()).ok()?;
            Some(HookTime { hook: hook.clone(), runs, took: Duration::from_nanos(took_ns) })
        };
        let times: Vec<HookTime> = self.hooks.iter().filter_map(time).collect();
        // An administrator may have asked for them as well (sysctl kernel.bpf_stats_enabled).
        let is_kept = self.measuring.is_some() || times.iter().any(|time| time.runs > 0);
        if is_kept { times } else { Vec::new() }
    }
}
