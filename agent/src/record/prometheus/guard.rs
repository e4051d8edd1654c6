//! Breakers, isolation, fallbacks and switches, of the services that have any. The labels are bounded by what is configured.

use std::{fmt::Write, sync::atomic::Ordering::Relaxed};

use crate::{
    cluster::{BreakerPhase, Service, Snapshot},
    config::guard::Why,
};

type Line = fn(&mut String, &str, &Service) -> Option<()>;

/// The families: name, type, help, and what of a service belongs to it.
const FAMILIES: [(&str, &str, &str, Line); 9] = [
    ("sockway_breaker_state", "gauge", "What a breaker does: 0 closed, 1 half-open, 2 open.", state),
    ("sockway_breaker_transitions_total", "counter", "How often a breaker turned, by what to.", transitions),
    (
        "sockway_breaker_short_circuits_total",
        "counter",
        "Requests that a breaker kept from its service.",
        short_circuits,
    ),
    ("sockway_isolation_active", "gauge", "Requests that have a place in the isolation of their service.", active),
    ("sockway_isolation_rejected_total", "counter", "Requests that found no place in it.", rejected),
    ("sockway_isolation_timeouts_total", "counter", "Requests whose answer did not begin in its time.", timeouts),
    ("sockway_fallbacks_total", "counter", "Requests that the fallback of their service stood in for.", fallbacks),
    ("sockway_fallbacks_rejected_total", "counter", "Those for which there was no room there.", fallbacks_rejected),
    ("sockway_degraded_requests_total", "counter", "Requests that a switch degraded.", degraded),
];

/// Writes the families that have anything in them. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, snapshot: &Snapshot) {
    for (name, kind, help, line) in FAMILIES {
        let mut lines = String::new();
        for service in &snapshot.services {
            line(&mut lines, name, service);
        }
        family(text, (name, kind, help), &lines);
    }
    let mut lines = String::new();
    for switch in snapshot.switches.values() {
        let _ = writeln!(lines, "sockway_switch_on{{switch=\"{}\"}} {}", switch.name(), u8::from(switch.is_on()));
    }
    family(text, ("sockway_switch_on", "gauge", "Whether a switch is on."), &lines);
}

fn family(text: &mut String, (name, kind, help): (&str, &str, &str), lines: &str) {
    if !lines.is_empty() {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}\n");
    }
}

fn sample(text: &mut String, name: &str, service: &Service, labels: &str, value: u64) -> Option<()> {
    writeln!(text, "{name}{{service=\"{}\"{labels}}} {value}", service.config.name).ok()
}

fn state(text: &mut String, name: &str, service: &Service) -> Option<()> {
    sample(text, name, service, "", service.guard.breaker.as_ref()?.phase() as u64)
}

fn transitions(text: &mut String, name: &str, service: &Service) -> Option<()> {
    let breaker = service.guard.breaker.as_ref()?;
    for phase in BreakerPhase::ALL {
        let to = format!(",to=\"{}\"", phase.word());
        sample(text, name, service, &to, breaker.turned[phase as usize].load(Relaxed))?;
    }
    Some(())
}

fn short_circuits(text: &mut String, name: &str, service: &Service) -> Option<()> {
    sample(text, name, service, "", service.guard.breaker.as_ref()?.short_circuits.load(Relaxed))
}

fn active(text: &mut String, name: &str, service: &Service) -> Option<()> {
    service.config.guard.isolation.as_ref()?.concurrency?;
    sample(text, name, service, "", service.guard.usage.active.now().into())
}

fn rejected(text: &mut String, name: &str, service: &Service) -> Option<()> {
    service.config.guard.isolation.as_ref()?;
    sample(text, name, service, "", service.guard.usage.rejected.load(Relaxed))
}

fn timeouts(text: &mut String, name: &str, service: &Service) -> Option<()> {
    service.config.guard.isolation.as_ref()?;
    sample(text, name, service, "", service.guard.usage.timeouts.load(Relaxed))
}

fn fallbacks(text: &mut String, name: &str, service: &Service) -> Option<()> {
    let guard = &service.config.guard;
    guard.fallback.as_ref().map(drop).or(guard.breaker.as_ref().map(drop))?;
    for why in Why::ALL.into_iter().filter(|why| *why != Why::Degraded) {
        let reason = format!(",reason=\"{}\"", why.word());
        sample(text, name, service, &reason, service.guard.usage.fallbacks[why as usize].load(Relaxed))?;
    }
    Some(())
}

fn fallbacks_rejected(text: &mut String, name: &str, service: &Service) -> Option<()> {
    service.config.guard.fallback.as_ref()?.concurrency?;
    sample(text, name, service, "", service.guard.usage.fallbacks_rejected.load(Relaxed))
}

fn degraded(text: &mut String, name: &str, service: &Service) -> Option<()> {
    let switch = format!(",switch=\"{}\"", service.config.guard.degrade.as_ref()?.switch);
    sample(text, name, service, &switch, service.guard.usage.degraded.load(Relaxed))
}
