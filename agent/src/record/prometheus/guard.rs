//! Breakers, isolation, fallbacks and switches, of the services that have any. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::{
    cluster::{BreakerPhase, BreakerState, Service, Snapshot},
    config::guard::Why,
};

type Line = fn(&mut String, &str, &Service) -> Option<()>;

/// The families: name, type, help, and what of a service belongs to it.
const FAMILIES: [(&str, &str, &str, Line); 10] = [
    ("sockway_breaker_state", "gauge", "What a breaker does: 0 closed, 1 half-open, 2 open.", state),
    ("sockway_breaker_transitions_total", "counter", "How often a breaker turned, by what to.", transitions),
    (
        "sockway_breaker_short_circuits_total",
        "counter",
        "Requests that a breaker kept from its service.",
        short_circuits,
    ),
    (
        "sockway_breaker_callers_deadlines_total",
        "counter",
        "Requests given up because the time that their callers gave was over: no breaker counts them.",
        callers_deadlines,
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
    write_breakers(text, snapshot);
    let mut lines = String::new();
    for switch in snapshot.switches.values() {
        let _ = writeln!(lines, "sockway_switch_on{{switch=\"{}\"}} {}", switch.name(), u8::from(switch.is_on()));
    }
    family(text, ("sockway_switch_on", "gauge", "Whether a switch is on."), &lines);
}

/// What is told of the breaker of a route or of an endpoint: name, help, and the samples of one, by what is added to its labels.
type Told = (&'static str, &'static str, &'static str, fn(&BreakerState) -> Vec<(String, u64)>);

const TOLD: [Told; 3] = [
    ("state", "gauge", "does: 0 closed, 1 half-open, 2 open", |breaker| vec![(String::new(), breaker.phase() as u64)]),
    ("transitions_total", "counter", "did: how often it turned, by what to", |breaker| {
        let to =
            |phase: BreakerPhase| (format!(",to=\"{}\"", phase.word()), breaker.turned[phase as usize].load(Relaxed));
        BreakerPhase::ALL.map(to).into()
    }),
    ("short_circuits_total", "counter", "did: requests that it kept from where they would have gone", |breaker| {
        vec![(String::new(), breaker.short_circuits.load(Relaxed))]
    }),
];

/// Those of routes and endpoints, of the services that have any.
fn write_breakers(text: &mut String, snapshot: &Snapshot) {
    let routes = |service: &Service| -> Vec<(String, Arc<BreakerState>)> {
        let routes = service.config.routes.iter().zip(&service.routes);
        routes.filter_map(|(route, state)| Some((route.name.clone(), Arc::clone(state.breaker.as_ref()?)))).collect()
    };
    let endpoints = |service: &Service| -> Vec<(String, Arc<BreakerState>)> {
        let endpoints = service.endpoints.iter().zip(&service.guard.endpoints);
        endpoints.map(|(endpoint, state)| (endpoint.address.to_string(), Arc::clone(state))).collect()
    };
    type Found<'f> = &'f dyn Fn(&Service) -> Vec<(String, Arc<BreakerState>)>;
    for (of, found) in [("route", &routes as Found<'_>), ("endpoint", &endpoints)] {
        for (name, kind, help, samples) in TOLD {
            let name = format!("sockway_{of}_breaker_{name}");
            let mut lines = String::new();
            for service in &snapshot.services {
                for (whose, breaker) in found(service) {
                    let labels = format!(",{of}=\"{whose}\"");
                    for (more, value) in samples(&breaker) {
                        let _ = sample(&mut lines, &name, service, &(labels.clone() + &more), value);
                    }
                }
            }
            family(text, (&name, kind, &format!("What the breaker of a service's {of} {help}.")), &lines);
        }
    }
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

fn callers_deadlines(text: &mut String, name: &str, service: &Service) -> Option<()> {
    let has_any = service.guard.breaker.is_some() || service.routes.iter().any(|route| route.breaker.is_some());
    has_any.then(|| sample(text, name, service, "", service.guard.usage.callers_deadlines.load(Relaxed)))?
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
