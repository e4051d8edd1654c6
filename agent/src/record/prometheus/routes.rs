//! Requests by the route they took. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::{
    cluster::{CanaryStage, CanaryState, Service},
    config::Route,
};

/// Writes the family, if there is a route. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
    let mut routed = services.iter().filter(|service| !service.routes.is_empty()).peekable();
    if routed.peek().is_none() {
        return;
    }
    let name = "sockway_route_requests_total";
    let _ = writeln!(text, "# HELP {name} Requests that took a route of their service.\n# TYPE {name} counter");
    for service in routed {
        for (route, state) in service.config.routes.iter().zip(&service.routes) {
            let (of, route, requests) = (&service.config.name, &route.name, state.requests.load(Relaxed));
            let _ = writeln!(text, "{name}{{service=\"{of}\",route=\"{route}\"}} {requests}");
        }
    }
    text.push('\n');
    write_mirrored(text, services);
    write_one_way(text, services);
    write_canaries(text, services);
}

/// How far canaries have come, and what was seen of them.
fn write_canaries(text: &mut String, services: &[Arc<Service>]) {
    let of = |service: &Arc<Service>| -> Vec<(String, Arc<CanaryState>)> {
        let routes = service.config.routes.iter().zip(&service.routes);
        let labels = |route: &Route| format!("service=\"{}\",route=\"{}\"", service.config.name, route.name);
        routes.filter_map(|(route, state)| Some((labels(route), Arc::clone(state.canary.as_ref()?)))).collect()
    };
    let canaries: Vec<(String, Arc<CanaryState>)> = services.iter().flat_map(of).collect();
    type Read = fn(&CanaryState) -> u64;
    let families: [(&str, &str, &str, Read); 5] = [
        ("percent", "gauge", "Of a hundred requests of a route, its canary gets so many.", |it| it.percent().into()),
        ("rolled_back", "gauge", "Whether a route's canary was rolled back.", |it| {
            matches!(it.stage(), CanaryStage::RolledBack(_)).into()
        }),
        ("requests_total", "counter", "Attempts at a route's canary.", |it| it.counts().requests),
        ("errors_total", "counter", "Attempts at a route's canary that failed.", |it| it.counts().errors),
        ("slow_total", "counter", "Attempts at a route's canary that took too long.", |it| it.counts().slow),
    ];
    for (name, kind, help, read) in families.iter().filter(|_| !canaries.is_empty()) {
        let name = format!("sockway_route_canary_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, canary) in &canaries {
            let _ = writeln!(text, "{name}{{{labels}}} {}", read(canary));
        }
        text.push('\n');
    }
}

/// What became of requests whose answers nobody waits for.
fn write_one_way(text: &mut String, services: &[Arc<Service>]) {
    let (name, mut lines) = ("sockway_oneway_total", String::new());
    for service in services {
        for (route, state) in service.config.routes.iter().zip(&service.routes) {
            let Some(state) = &state.one_way else { continue };
            for (result, count) in [("sent", &state.sent), ("failed", &state.failed), ("busy", &state.busy)] {
                let (of, route, count) = (&service.config.name, &route.name, count.load(Relaxed));
                let _ = writeln!(lines, "{name}{{service=\"{of}\",route=\"{route}\",result=\"{result}\"}} {count}");
            }
        }
    }
    if !lines.is_empty() {
        let help = "Requests whose answers nobody waits for, by what became of them.";
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{lines}\n");
    }
}

/// What became of copies.
fn write_mirrored(text: &mut String, services: &[Arc<Service>]) {
    let routes = services
        .iter()
        .flat_map(|service| service.config.routes.iter().zip(&service.routes).map(move |it| (service, it)));
    let mut mirrored =
        routes.filter_map(|(service, (route, state))| Some((service, route, state.mirror.as_ref()?))).peekable();
    if mirrored.peek().is_none() {
        return;
    }
    let name = "sockway_route_mirrored_total";
    let help = "Requests of a route that were to be copied, by what became of the copy.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for (service, route, state) in mirrored {
        let outcomes = [
            ("answered", &state.answered),
            ("failed", &state.failed),
            ("too_large", &state.too_large),
            ("busy", &state.busy),
        ];
        for (outcome, count) in outcomes {
            let (of, route, count) = (&service.config.name, &route.name, count.load(Relaxed));
            let _ = writeln!(text, "{name}{{service=\"{of}\",route=\"{route}\",outcome=\"{outcome}\"}} {count}");
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Snapshot, config::file};

    #[test]
    fn a_routes_count_outlives_a_reload() {
        let snapshot = |routes: &str, previous: &Snapshot| {
            let keys = "name: a, address: 10.0.0.1:80, protocol: http, endpoints: [127.0.0.1:80]";
            let config = file::parse(&format!("services: [{{{keys}, routes: [{routes}]}}]"), "F").expect("a good file");
            Snapshot::build(&config, previous)
        };
        let first = snapshot("{name: x}, {name: y}", &Snapshot::default());
        first.services[0].routes[1].requests.store(7, Relaxed);
        let second = snapshot("{name: y}, {name: z}", &first);
        let mut text = String::new();
        write(&mut text, &second.services);
        assert!(
            text.ends_with(
                "{service=\"a\",route=\"y\"} 7\nsockway_route_requests_total{service=\"a\",route=\"z\"} 0\n\n"
            ),
            "{text}"
        );
    }
}
