//! Scenarios of the kind "the same load, by every way, in turn": a client against an origin, in both placements.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Bench,
    agent::{Agent, Forward, Path, Plan, Service, Witness},
    interrupt,
    namespace::Layout,
    process::{self, Process},
    report::Take,
    sample::{Figure, Placement, Sample},
    stand::Stand,
    traffic::{Phase, Traffic},
    way,
};

/// One such scenario.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Who forwards when the way is Sockway.
    pub forward: Forward,
    /// Who has a namespace of his own.
    pub layout: Layout,
    /// What flows.
    pub traffic: Traffic,
    /// The ways that make sense here.
    pub ways: &'static [&'static str],
    /// Sockway's ways beside the plain one and the one with the shortcut.
    pub extra: &'static [Extra],
}

/// A service of the agent that differs from the plain one in its keys.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// As which way it is measured.
    pub way: &'static str,
    /// What the client dials.
    pub address: &'static str,
    /// Its keys, each with a comma behind it.
    pub keys: &'static str,
}

/// How long each way is used before the first round.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long a server may take until it answers.
const READY: Duration = Duration::from_secs(15);
/// How long the agent may take until it has its listener in the client's namespace.
const CAPTURE: Duration = Duration::from_secs(15);
/// Sockway's ways are services of one agent: they differ in their shortcut and their policies only.
const PLAIN: &str = "127.66.0.1:80";
const SHORTCUT: &str = "127.66.0.2:80";

impl Load {
    /// Measures every way in both placements.
    pub fn run(&self, bench: &Bench, take: &mut Take) -> Result<()> {
        for placement in [Placement::Free, Placement::Pinned].into_iter().filter(|placement| bench.places(*placement)) {
            if placement == Placement::Pinned && bench.cores < 2 {
                take.skip("pinned: there is only one core");
                continue;
            }
            let stand = Stand::raise(bench, placement, self.layout)?;
            let mut cast = Cast::call(self, bench, &stand, placement, take)?;
            cast.warm_up(self, &stand, placement, take)?;
            for number in 1..=bench.rounds {
                cast.round(Round { load: self, stand: &stand, placement, number, length: bench.round }, take)?;
            }
        }
        Ok(())
    }

    fn extra(&self, way: &str) -> Option<&Extra> {
        self.extra.iter().find(|extra| extra.way == way)
    }

    fn plan(&self, stand: &Stand, origin: &str) -> Plan {
        let service = |name: &str, address: &str, shortcut, keys| Service {
            name: name.into(),
            address: address.into(),
            forward: self.forward,
            shortcut,
            endpoints: vec![origin.into()],
            keys,
        };
        let mut services = vec![service("plain", PLAIN, false, ""), service("shortcut", SHORTCUT, true, "")];
        services.extend(self.extra.iter().map(|extra| service(name(extra.way), extra.address, false, extra.keys)));
        Plan {
            instance: "bench".into(),
            workers: 1,
            admin_port: 9901,
            cgroups: stand.captured().into_iter().map(|group| (group.to_owned(), true)).collect(),
            services,
        }
    }
}

/// What a service is called that is measured as this way.
fn name(way: &'static str) -> &'static str {
    way.strip_prefix("sockway+").unwrap_or(way)
}

/// The processes of a scenario in one placement. The agent goes before the origin it forwards to.
struct Cast {
    agent: Option<Agent>,
    proxies: Vec<(&'static str, Process)>,
    // Held for their Drop: the scenario lasts as long as they do.
    _origins: Vec<Process>,
    parts: Vec<Part>,
    started: Instant,
}

/// One turn of all ways.
struct Round<'a> {
    load: &'a Load,
    stand: &'a Stand,
    placement: Placement,
    number: u32,
    length: Duration,
}

/// One way that works: where it is dialled, and how one knows that it was taken.
struct Part {
    way: &'static str,
    target: String,
    witness: Option<Witness>,
}

impl Cast {
    fn call(load: &Load, bench: &Bench, stand: &Stand, placement: Placement, take: &mut Take) -> Result<Self> {
        let origin = way::ORIGIN_PORTS.map(|port| format!("{}:{port}", stand.landscape().origin_ip()));
        let mut origins = vec![load.traffic.origin(stand, false, &origin[0])?];
        if placement == Placement::Pinned {
            origins.push(load.traffic.origin(stand, true, &origin[1])?);
        }
        for (address, process) in origin.iter().zip(&mut origins) {
            await_answer(load, stand, &load.traffic.target(address), process).context("the origin")?;
        }
        let mut cast =
            Self { agent: None, proxies: Vec::new(), _origins: origins, parts: Vec::new(), started: Instant::now() };
        for way in load.ways.iter().copied().filter(|way| bench.wants(way)) {
            if way == way::DIRECT_2CORE && placement == Placement::Free {
                continue;
            }
            if !way::is_installed(bench, way, load.traffic) {
                take.skip(&format!("{way}: not installed"));
                continue;
            }
            match cast.start(load, bench, stand, way, &origin) {
                Ok(part) => cast.parts.push(part),
                Err(error) => take.fail(way, placement, &error)?,
            }
        }
        Ok(cast)
    }

    fn start(
        &mut self,
        load: &Load,
        bench: &Bench,
        stand: &Stand,
        way: &'static str,
        origin: &[String; 2],
    ) -> Result<Part> {
        let part = |address: &str, witness| Part { way, target: load.traffic.target(address), witness };
        match way {
            way::DIRECT => Ok(part(&origin[0], None)),
            way::DIRECT_2CORE => Ok(part(&origin[1], None)),
            _ if way::is_sockway(way) => {
                let (address, path) = match (way, load.extra(way)) {
                    (_, Some(extra)) => (extra.address, Path::Tcp),
                    (way::SOCKWAY, _) => (PLAIN, Path::Tcp),
                    (way::SOCKWAY_JOINED, _) => (SHORTCUT, Path::Joined),
                    _ => (SHORTCUT, Path::Shortcut),
                };
                let part = part(address, Some(Witness { forward: load.forward, path }));
                if self.agent.is_none() {
                    self.agent = Some(Agent::start(bench, stand, &load.plan(stand, &origin[0]))?);
                }
                self.await_capture(load, stand, &part)?;
                Ok(part)
            }
            _ => {
                let (mut process, listen) = way::proxy(bench, stand, load.traffic, way, &origin[0])?;
                let part = part(&listen, None);
                await_answer(load, stand, &part.target, &mut process)?;
                self.proxies.push((way, process));
                Ok(part)
            }
        }
    }

    /// Until the agent has its listeners, connections go the way of fail-open: answered, but not by the agent.
    fn await_capture(&self, load: &Load, stand: &Stand, part: &Part) -> Result<()> {
        let (Some(agent), Some(witness)) = (&self.agent, part.witness) else { return Ok(()) };
        let mut last = None;
        let captured = interrupt::wait_for(CAPTURE, || {
            let before = agent.counters(stand)?;
            let called = load.traffic.call(stand, &part.target);
            last = called.and_then(|()| witness.check(&before, &agent.counters(stand)?, 1, 1)).err();
            Ok(last.is_none().then_some(()))
        })?;
        match last {
            Some(error) if captured.is_none() => Err(error).with_context(|| format!("not captured within {CAPTURE:?}")),
            _ => Ok(()),
        }
    }

    fn warm_up(&mut self, load: &Load, stand: &Stand, placement: Placement, take: &mut Take) -> Result<()> {
        self.each(placement, take, |_, part, _| {
            let phases = load.traffic.phases();
            let length = WARM_UP / phases.len() as u32;
            phases.iter().try_for_each(|phase| load.traffic.drive(*phase, stand, &part.target, length).map(drop))
        })
    }

    fn round(&mut self, round: Round, take: &mut Take) -> Result<()> {
        self.each(round.placement, take, |cast, part, take| {
            let mut values = BTreeMap::new();
            for phase in round.load.traffic.phases() {
                values.extend(cast.measure(&round, part, *phase)?);
            }
            take.add(Sample { way: part.way, placement: round.placement, round: round.number, values })
        })
    }

    /// Does something with every part, one after the other; a part that fails is reported and plays no more.
    fn each(
        &mut self,
        placement: Placement,
        take: &mut Take,
        mut act: impl FnMut(&Self, &Part, &mut Take) -> Result<()>,
    ) -> Result<()> {
        let parts = std::mem::take(&mut self.parts);
        for part in parts {
            match act(self, &part, take) {
                Ok(()) => self.parts.push(part),
                Err(error) => take.fail(part.way, placement, &error)?,
            }
        }
        Ok(())
    }

    fn measure(&self, round: &Round, part: &Part, phase: Phase) -> Result<BTreeMap<Figure, f64>> {
        let witnesses = || self.agent.as_ref().map(|agent| agent.counters(round.stand)).transpose();
        let seen = if part.witness.is_some() { witnesses()? } else { None };
        let traffic = round.load.traffic;
        let length = round.length / traffic.phases().len() as u32;
        let before = self.meters(round.stand, part)?;
        let moved = traffic.drive(phase, round.stand, &part.target, length)?;
        let spent = self.meters(round.stand, part)?.since(&before);
        if let (Some(witness), Some(before)) = (part.witness, seen) {
            let after = witnesses()?.context("the agent is gone")?;
            witness.check(&before, &after, moved.connections, moved.messages)?;
        }
        let mut values = moved.with_cpu(spent.proxy, spent.machine, spent.own);
        values.insert(Figure::Foreign, spent.foreign().as_secs_f64() / spent.elapsed.as_secs_f64() * 100.0);
        if let Some(server) = self.server(part.way) {
            values.insert(Figure::Rss, server.rss_kb()? as f64);
        }
        Ok(values)
    }

    fn server(&self, way: &str) -> Option<&Process> {
        if way::is_sockway(way) {
            return self.agent.as_ref().map(Agent::process);
        }
        self.proxies.iter().find(|(its_way, _)| *its_way == way).map(|(_, process)| process)
    }

    fn meters(&self, stand: &Stand, part: &Part) -> Result<Meters> {
        let proxy = self.server(part.way).map_or(Ok(Duration::ZERO), Process::cpu)?;
        let agent = self.agent.as_ref().map_or(Ok(Duration::ZERO), |agent| agent.process().cpu())?;
        // The agent has left the scenario's cgroups for one of its own.
        let own = stand.cpu_time()? + agent;
        Ok(Meters { proxy, own, machine: process::machine_cpu()?, elapsed: self.started.elapsed() })
    }
}

/// Waits until a server answers the client's call as it should.
fn await_answer(load: &Load, stand: &Stand, target: &str, server: &mut Process) -> Result<()> {
    let mut last = None;
    let answered = interrupt::wait_for(READY, || {
        server.check_alive()?;
        last = load.traffic.call(stand, target).err();
        Ok(last.is_none().then_some(()))
    })?;
    match last {
        Some(error) if answered.is_none() => Err(error).with_context(|| format!("no answer within {READY:?}")),
        _ => Ok(()),
    }
}

/// What was spent up to a moment.
#[derive(Clone, Copy, Debug)]
struct Meters {
    /// By the proxy.
    proxy: Duration,
    /// By everything that belongs to the scenario.
    own: Duration,
    /// By the whole machine.
    machine: Duration,
    elapsed: Duration,
}

impl Meters {
    fn since(&self, before: &Self) -> Self {
        Self {
            proxy: self.proxy.saturating_sub(before.proxy),
            own: self.own.saturating_sub(before.own),
            machine: self.machine.saturating_sub(before.machine),
            elapsed: self.elapsed.saturating_sub(before.elapsed),
        }
    }

    fn foreign(&self) -> Duration {
        self.machine.saturating_sub(self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_spent_is_the_machine_less_the_scenario() {
        let at = |proxy, own, machine, elapsed| Meters {
            proxy: Duration::from_secs(proxy),
            own: Duration::from_secs(own),
            machine: Duration::from_secs(machine),
            elapsed: Duration::from_secs(elapsed),
        };
        let spent = at(3, 10, 25, 100).since(&at(1, 4, 12, 95));
        assert_eq!((spent.proxy.as_secs(), spent.own.as_secs(), spent.elapsed.as_secs()), (2, 6, 5));
        assert_eq!(spent.foreign().as_secs(), 7);
        // Ticks of 10 ms on one side and microseconds on the other: never less than nothing.
        assert_eq!(at(0, 2, 1, 1).foreign(), Duration::ZERO);
    }
}
