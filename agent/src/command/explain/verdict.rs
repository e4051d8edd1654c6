//! What a situation means: the connect hooks' own decision (`ebpf/src/connect.rs`), made over again on what they would find, with its
//! reasons. Touches nothing.

use std::time::Duration;

use sockway_common::{capture::settings_flags, counter::Counter, limit::over, service::service_flags};

use crate::kernel::{Covered, Found, Situation};

/// Names of the programs of a captured cgroup and of one that is left out begin so (`kernel/hooks.rs`).
const CAPTURES: &str = "dial_";
const LEAVES_OUT: &str = "pass_dial_";
/// The program that watches sockets where the shortcut is allowed.
const ALLOWS_SHORTCUT: &str = "allow_shortcut";

/// Where a connection would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Where it was dialled to, untouched.
    Passed,
    /// To an endpoint that the kernel half chooses.
    Kernel,
    /// To the agent.
    Agent,
    /// Nowhere: `connect()` would fail at once.
    Refused,
}

impl Way {
    /// As `sockway flows` calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Refused => "refused",
        }
    }
}

/// The decision, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where it would go.
    pub way: Way,
    /// The label of the counter that the hook would count; `None` where no hook would run.
    pub counted: Option<&'static str>,
    /// Why, in a sentence.
    pub why: String,
}

impl Verdict {
    fn new(way: Way, counter: Counter, why: impl Into<String>) -> Self {
        Self { way, counted: counter.labels().first().map(|(_, label)| *label), why: why.into() }
    }

    fn unseen(why: impl Into<String>) -> Self {
        Self { way: Way::Passed, counted: None, why: why.into() }
    }
}

/// What the hooks would decide now.
pub fn now(situation: &Situation) -> Verdict {
    if let Err(verdict) = captured(situation) {
        return verdict;
    }
    let Some(found) = &situation.service else {
        let why = match situation.other {
            Some(other) => format!("the service at this address is one of {other} (--protocol {other})"),
            None => "no service stands at this address".to_owned(),
        };
        return Verdict::new(Way::Passed, Counter::ConnectNotService, why);
    };
    if let Err(verdict) = included(situation) {
        return verdict;
    }
    if found.is_open && is_alive(situation) {
        return Verdict::new(Way::Refused, Counter::ConnectOpen, "the service's breaker is open: ECONNREFUSED");
    }
    if let Err(verdict) = within_limits(found) {
        return verdict;
    }
    if found.service.flags & service_flags::AGENT == 0 {
        return by_kernel(found, Counter::ConnectBalanced, "the service is balanced in the kernel");
    }
    match agent(situation, found) {
        Ok(why) => Verdict::new(Way::Agent, Counter::ConnectAgent, why),
        Err((counter, why)) => by_kernel(found, counter, &why),
    }
}

/// What they would decide if the agent died now: its listeners go with it.
pub fn without_agent(situation: &Situation) -> Verdict {
    let mut situation = situation.clone();
    if let Some(listener) = situation.service.as_mut().and_then(|found| found.listener.as_mut()) {
        listener.is_tagged = false;
    }
    now(&situation)
}

/// Whether a hook captures what the caller dials. Where no process was named, somebody in a captured cgroup is meant.
fn captured(situation: &Situation) -> Result<(), Verdict> {
    if situation.is_own {
        let why = "the caller is in the agent's own cgroup, whose connections are never captured";
        return Err(Verdict::new(Way::Passed, Counter::ConnectOwn, why));
    }
    let Some(hooks) = &situation.hooks else { return Ok(()) };
    match hooks.iter().find_map(dialling) {
        None => Err(Verdict::unseen("no capture rule covers the caller's cgroup: no hook runs")),
        Some((cgroup, program)) if program.starts_with(LEAVES_OUT) => {
            Err(Verdict::unseen(format!("the rule of cgroup {cgroup} leaves the caller out (capture: off)")))
        }
        Some(_) => Ok(()),
    }
}

/// A cgroup with its program at `connect()`, if that is one of ours that decides.
fn dialling(covered: &Covered) -> Option<(&str, &str)> {
    let program = covered.dial.as_deref()?;
    let decides = program.starts_with(CAPTURES) || program.starts_with(LEAVES_OUT);
    decides.then_some((covered.cgroup.as_str(), program))
}

/// The cgroup whose rule captures the caller.
pub fn capturing(situation: &Situation) -> Option<&str> {
    let (cgroup, program) = situation.hooks.as_ref()?.iter().find_map(dialling)?;
    program.starts_with(CAPTURES).then_some(cgroup)
}

/// Whether no rule leaves the caller out by who it is or where.
fn included(situation: &Situation) -> Result<(), Verdict> {
    let passed = |why: &str| Err(Verdict::new(Way::Passed, Counter::ConnectExcluded, why));
    if situation.is_user_excluded {
        return passed("a rule leaves the caller's user out (capture.except.uids)");
    }
    match situation.namespace_rule {
        Some(false) => passed("a rule leaves the caller's network namespace out (capture.namespaces)"),
        _ => Ok(()),
    }
}

/// Whether the hooks take the agent for one that lives.
fn is_alive(situation: &Situation) -> bool {
    let most = Duration::from_nanos(situation.settings.heartbeat_max_age_ns);
    situation.heartbeat_age.is_some_and(|age| age <= most)
}

/// Whether one more connection is within the service's limits.
fn within_limits(found: &Found) -> Result<(), Verdict> {
    let Some(taken) = found.limits.taken.iter().find(|taken| taken.is_over) else { return Ok(()) };
    let whose = if taken.scope == "source" { "the caller's" } else { "the service's" };
    let what = if taken.open_max != 0 && taken.open >= taken.open_max {
        format!("{} of {} {whose} connections are open", taken.open, taken.open_max)
    } else {
        format!("{whose} connections come faster than one each {:?}", taken.interval)
    };
    Err(match found.limits.over {
        over::FORBID => Verdict::new(Way::Refused, Counter::ConnectForbidden, format!("{what}: EPERM")),
        over::PASS => Verdict::new(Way::Passed, Counter::ConnectOver, what),
        _ => Verdict::new(Way::Refused, Counter::ConnectRefused, format!("{what}: ECONNREFUSED")),
    })
}

/// Whether the hook would hand the connection to the agent; if not, why, and what it counts.
fn agent(situation: &Situation, found: &Found) -> Result<String, (Counter, String)> {
    let most = Duration::from_nanos(situation.settings.heartbeat_max_age_ns);
    match situation.heartbeat_age {
        Some(age) if age <= most => {}
        Some(age) => {
            let why = format!("the agent is dead or hangs: its last heartbeat is {} s old", age.as_secs());
            return Err((Counter::ConnectHung, why));
        }
        None => return Err((Counter::ConnectHung, "no agent has ever run".into())),
    }
    match found.listener {
        None => {
            let why = "the agent does not listen in the caller's network namespace (it begins to at the first connect)";
            Err((Counter::ConnectNoListener, why.into()))
        }
        Some(listener) if !listener.is_tagged => {
            let why = format!(
                "no socket with the agent's tag listens at {} in the caller's network namespace",
                listener.address
            );
            Err((Counter::ConnectNotTagged, why))
        }
        Some(listener) => {
            Ok(format!("the service is the agent's, and the agent lives and listens at {}", listener.address))
        }
    }
}

fn by_kernel(found: &Found, counter: Counter, why: &str) -> Verdict {
    if found.service.slots == 0 {
        let why = format!("{why}; but the kernel half has no endpoint for it (of the family that was dialled)");
        return Verdict::new(Way::Passed, Counter::ConnectNoEndpoint, why);
    }
    Verdict::new(Way::Kernel, counter, why)
}

/// Whether the connection's bytes may go from socket to socket, and why not. Whether its peer is on this host and may too is known
/// only when it dials.
pub fn shortcut(situation: &Situation) -> (bool, &'static str) {
    let allowed = |flags: u32, bit: u32| flags & bit != 0;
    let nearest = situation.hooks.as_ref().map(|hooks| hooks.iter().find_map(|covered| covered.sockets.as_deref()));
    if situation.service.as_ref().is_none_or(|found| !allowed(found.service.flags, service_flags::SHORTCUT)) {
        (false, "the service does not allow it, or this kernel fails its self-test")
    } else if !allowed(situation.settings.flags, settings_flags::SHORTCUT) {
        (false, "it is switched off")
    } else if nearest.is_some_and(|program| program != Some(ALLOWS_SHORTCUT)) {
        (false, "the rule of the caller's cgroup does not allow it")
    } else {
        (true, "if its peer is on this host, and the rule of its cgroup allows it, too")
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sockway_common::{
        capture::{Offsets, Settings},
        service::Service,
    };

    use super::*;
    use crate::kernel::{AgentListener, Choice};

    fn situation(flags: u32) -> Situation {
        let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let settings = Settings {
            abi_version: 0,
            flags: settings_flags::SHORTCUT,
            agent_cgroup: 1,
            heartbeat_max_age_ns: 2_000_000_000,
            shortcut_bytes_max: 0,
            offsets: Offsets::default(),
            rules: 0,
        };
        Situation {
            settings,
            heartbeat_age: Some(Duration::from_millis(200)),
            hooks: Some(vec![covered("/a", "dial_v4", "allow_shortcut")]),
            is_own: false,
            is_user_excluded: false,
            namespace_rule: None,
            service: Some(Found {
                service: Service {
                    id: 1,
                    generation: 1,
                    slots: 1,
                    flags,
                    algorithm: 0,
                    affinity_ms: 0,
                    udp_idle_ms: 0,
                    seal: 0,
                },
                name: None,
                listener: Some(AgentListener { address, is_tagged: true }),
                endpoints: vec![Choice { address, share: 1.0, state: "active", ejected_for: None, open: None }],
                affinity: None,
                limits: Default::default(),
                is_open: false,
            }),
            other: None,
        }
    }

    fn covered(cgroup: &str, dial: &str, sockets: &str) -> Covered {
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        Covered { cgroup: cgroup.into(), dial: some(dial), sockets: some(sockets) }
    }

    #[test]
    fn each_reason_leads_where_the_hook_would() {
        type Change = fn(&mut Situation);
        let agent = service_flags::AGENT;
        let cases: [(u32, Change, Way, Option<&str>); 13] = [
            (0, |_| {}, Way::Kernel, Some("balanced")),
            (agent, |_| {}, Way::Agent, Some("agent")),
            (0, |s| s.hooks = Some(vec![]), Way::Passed, None),
            (0, |s| s.hooks = None, Way::Kernel, Some("balanced")),
            (
                0,
                |s| s.hooks = Some(vec![covered("/a/b", "pass_dial_v4", ""), covered("/a", "dial_v4", "")]),
                Way::Passed,
                None,
            ),
            (
                0,
                |s| s.hooks = Some(vec![covered("/a/b", "", "deny_shortcut"), covered("/a", "dial_v4", "")]),
                Way::Kernel,
                Some("balanced"),
            ),
            (0, |s| s.is_own = true, Way::Passed, Some("own")),
            (0, |s| s.service = None, Way::Passed, Some("not_service")),
            (0, |s| s.is_user_excluded = true, Way::Passed, Some("excluded")),
            (0, |s| s.namespace_rule = Some(false), Way::Passed, Some("excluded")),
            (agent, |s| s.heartbeat_age = Some(Duration::from_secs(3)), Way::Kernel, Some("fail_open_hung")),
            (
                agent,
                |s| s.service.iter_mut().for_each(|f| f.listener = None),
                Way::Kernel,
                Some("fail_open_no_listener"),
            ),
            (0, |s| s.service.iter_mut().for_each(|f| f.service.slots = 0), Way::Passed, Some("no_endpoint")),
        ];
        for (index, (flags, change, way, counted)) in cases.into_iter().enumerate() {
            let mut situation = situation(flags);
            change(&mut situation);
            let verdict = now(&situation);
            assert_eq!((verdict.way, verdict.counted), (way, counted), "case {index}: {}", verdict.why);
        }
    }

    #[test]
    fn without_its_agent_a_service_is_balanced_in_the_kernel() {
        let verdict = without_agent(&situation(service_flags::AGENT));
        assert_eq!((verdict.way, verdict.counted), (Way::Kernel, Some("fail_open_not_tagged")));
        assert_eq!(without_agent(&situation(0)).counted, Some("balanced"));
    }

    #[test]
    fn the_shortcut_needs_the_service_the_switch_and_the_nearest_rule() {
        assert!(shortcut(&situation(service_flags::SHORTCUT)).0);
        assert!(!shortcut(&situation(0)).0);
        let mut off = situation(service_flags::SHORTCUT);
        off.settings.flags = 0;
        assert!(!shortcut(&off).0);
        let mut denied = situation(service_flags::SHORTCUT);
        denied.hooks = Some(vec![covered("/a/b", "", "deny_shortcut"), covered("/a", "dial_v4", "allow_shortcut")]);
        assert!(!shortcut(&denied).0);
    }
}
