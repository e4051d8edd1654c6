//! How busy those are who answer a service's requests: the processor time of their cgroups, for limits that go by it.
//!
//! Runs on the main thread, which reads a few small files twice a second; whose cgroup a service's endpoints are in is looked for on another.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::due::until;
use crate::{
    cluster::{LimitState, Measured, Service, Snapshot},
    config::route::{Action, Target},
    kernel::{cgroup, listening_cgroups},
    limit::bbr::smoothed,
};

/// aegis'.
const PAUSE: Duration = Duration::from_millis(500);
/// Endpoints move from cgroup to cgroup when they are started anew.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Which cgroups listen where.
type Found = HashMap<SocketAddr, Vec<PathBuf>>;

/// All limits that go by processor time.
#[derive(Default)]
pub struct Processors {
    mount: Option<PathBuf>,
    /// Those, and whose endpoints are meant.
    limits: Vec<(Vec<Arc<Service>>, Arc<LimitState>)>,
    /// When they are looked at next. `None`: there is none.
    due: Option<Instant>,
    looked_for: Option<Instant>,
    looking: Option<JoinHandle<io::Result<Found>>>,
    found: Found,
    /// What was used by each cgroup at the last look, in microseconds.
    used: HashMap<PathBuf, (Instant, u64)>,
}

impl Processors {
    /// Goes on with another snapshot; `mount` is where cgroup v2 is.
    pub fn follow(&mut self, snapshot: &Snapshot, mount: Option<&Path>, now: Instant) {
        let of = |service: &Arc<Service>| -> Vec<_> {
            let routes = service.config.routes.iter().zip(&service.routes);
            let of_routes = routes.flat_map(|(route, state)| {
                state.request_limits.iter().map(|limit| (targets(&route.action, service, snapshot), limit))
            });
            let own = service.request_limits.iter().map(|limit| (vec![Arc::clone(service)], limit));
            let limits = own.chain(of_routes).filter(|(_, limit)| busy(limit).is_some());
            limits.map(|(services, limit)| (services, Arc::clone(limit))).collect()
        };
        self.mount = mount.map(Path::to_owned);
        self.limits = snapshot.services.iter().flat_map(of).collect();
        self.looked_for = None;
        self.due = if self.limits.is_empty() { None } else { Some(self.due.unwrap_or(now)) };
    }

    /// Waits until it is time to look again, and does. Dropping the future loses nothing.
    pub async fn turn(&mut self) {
        until(self.due).await;
        let now = Instant::now();
        self.due = Some(now + PAUSE);
        self.look_for_cgroups(now).await;
        self.look(now);
    }

    async fn look_for_cgroups(&mut self, now: Instant) {
        if let Some(looking) = self.looking.take_if(|looking| looking.is_finished()) {
            match looking.await {
                Ok(Ok(found)) => self.found = found,
                Ok(Err(error)) => tracing::warn!(%error, "whose processor time a limit goes by is not known"),
                Err(_) => {}
            }
        }
        let is_due = self.looked_for.is_none_or(|looked_for| now.duration_since(looked_for) >= LOOK_AGAIN);
        let asking = self.limits.iter().filter(|(_, limit)| limit.config.cgroup.is_none());
        let wanted: Vec<SocketAddr> = asking.flat_map(|(services, _)| endpoints(services)).collect();
        if let (Some(mount), true, None, false) = (self.mount.clone(), is_due, &self.looking, wanted.is_empty()) {
            self.looked_for = Some(now);
            self.looking = Some(tokio::task::spawn_blocking(move || find(&mount, &wanted)));
        }
    }

    fn look(&mut self, now: Instant) {
        let mut permille_of: HashMap<PathBuf, Option<u32>> = HashMap::new();
        let mut used = HashMap::new();
        for (services, limit) in &self.limits {
            let cgroups: Vec<&PathBuf> = match &limit.config.cgroup {
                Some(cgroup) => vec![cgroup],
                None => endpoints(services).filter_map(|address| self.found.get(&address)).flatten().collect(),
            };
            let mut busiest = 0;
            for path in cgroups {
                let permille = permille_of.entry(path.clone()).or_insert_with(|| {
                    let at = cgroup::below(self.mount.as_deref()?, path);
                    let micros = usage(&fs::read_to_string(at.join("cpu.stat")).ok()?)?;
                    used.insert(path.clone(), (now, micros));
                    let (then, before) = self.used.get(path)?;
                    let passed = now.duration_since(*then);
                    Some(permille(micros.saturating_sub(*before), passed, allowed(self.mount.as_deref()?, &at)))
                });
                busiest = busiest.max(permille.unwrap_or(0));
            }
            if let Some(busy) = busy(limit) {
                busy.store(smoothed(busy.load(Relaxed), busiest), Relaxed);
            }
        }
        self.used = used;
    }
}

fn endpoints(services: &[Arc<Service>]) -> impl Iterator<Item = SocketAddr> {
    services.iter().flat_map(|service| service.endpoints.iter().map(|endpoint| endpoint.address))
}

/// The services that a route leads to.
fn targets(action: &Action, home: &Arc<Service>, snapshot: &Snapshot) -> Vec<Arc<Service>> {
    let Action::Forward(forward) = action else { return Vec::new() };
    let target = |target: &Target| match &target.to {
        None => Some(Arc::clone(home)),
        Some(name) => snapshot.by_name(name).cloned(),
    };
    forward.targets.iter().filter_map(target).collect()
}

fn busy(limit: &LimitState) -> Option<&std::sync::atomic::AtomicU32> {
    match &limit.adaptive()?.measured {
        Measured::Bbr(bbr) => Some(&bbr.busy_permille),
        _ => None,
    }
}

fn find(mount: &Path, wanted: &[SocketAddr]) -> io::Result<Found> {
    let found = listening_cgroups(wanted)?;
    let paths = |ids: Vec<u64>| ids.into_iter().filter_map(|id| cgroup::path_of(mount, id)).collect();
    Ok(found.into_iter().map(|(address, ids)| (address, paths(ids))).collect())
}

/// Processor time by a `cpu.stat`, in microseconds.
fn usage(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse().ok()
}

/// Of a thousand that it might have used.
fn permille(used_us: u64, passed: Duration, processors: f64) -> u32 {
    let most = passed.as_micros() as f64 * processors;
    if most > 0.0 { (used_us as f64 * 1_000.0 / most).round().min(1_000.0) as u32 } else { 0 }
}

/// How many processors a cgroup may use: the least that it, or one above it, is given; without a bound, all of the host.
fn allowed(mount: &Path, at: &Path) -> f64 {
    let all = thread::available_parallelism().map_or(1.0, |all| all.get() as f64);
    let within = at.ancestors().take_while(|path| path.starts_with(mount));
    within.filter_map(|path| quota(&fs::read_to_string(path.join("cpu.max")).ok()?)).fold(all, f64::min)
}

/// Processors by a `cpu.max`; `None`: as many as there are.
fn quota(max: &str) -> Option<f64> {
    let (quota, period) = max.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_as_the_kernel_writes_it() {
        assert_eq!(usage("usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"), Some(1234));
        assert_eq!(usage("user_usec 1000\n"), None);
        assert_eq!([quota("max 100000\n"), quota("150000 100000\n"), quota("x")], [None, Some(1.5), None]);
    }

    #[test]
    fn busy_is_what_of_the_time_that_it_may_take_is_taken() {
        let second = Duration::from_secs(1);
        for (used_us, processors, expected) in
            [(0, 2.0, 0), (1_000_000, 2.0, 500), (750_000, 0.75, 1_000), (9_000_000, 2.0, 1_000), (1, 0.0, 0)]
        {
            assert_eq!(permille(used_us, second, processors), expected, "{used_us} of {processors}");
        }
    }

    #[test]
    fn the_least_bound_on_the_way_up_holds() {
        let mount = tempfile::tempdir().expect("a folder");
        let inner = mount.path().join("outer/inner");
        fs::create_dir_all(&inner).expect("room");
        fs::write(mount.path().join("outer/cpu.max"), "50000 100000\n").expect("room");
        fs::write(inner.join("cpu.max"), "max 100000\n").expect("room");
        assert!((allowed(mount.path(), &inner) - 0.5).abs() < 1e-9);
        assert!(allowed(mount.path(), mount.path()) >= 1.0);
    }
}
