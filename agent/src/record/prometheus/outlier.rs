//! Endpoints that are left out for what became of their requests, of the services that have rules for it.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::cluster::{Reason, Service};

/// Writes the families, if there is anything in them.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
    let judged: Vec<&Arc<Service>> = services.iter().filter(|service| service.config.outlier.is_some()).collect();
    if judged.is_empty() {
        return;
    }
    let mut family = |name, kind, help, write: fn(&mut String, &str, &Service)| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        judged.iter().for_each(|service| write(text, name, service));
        text.push('\n');
    };
    let help = "Endpoints of the service that are left out now for what became of their requests.";
    family("sockway_ejections_active", "gauge", help, |text, name, service| {
        let active = service.ejections.active.load(Relaxed);
        let _ = writeln!(text, "{name}{{service=\"{}\"}} {active}", service.config.name);
    });
    let help = "Ejections of endpoints of the service, by their reason.";
    family("sockway_ejections_total", "counter", help, |text, name, service| {
        for reason in Reason::ALL {
            let (service, count) = (&service.config.name, service.ejections.of(reason));
            let _ = writeln!(text, "{name}{{service=\"{service}\",reason=\"{}\"}} {count}", reason.word());
        }
    });
    let help = "Ejections that did not take effect because too many endpoints of the service were ejected already.";
    family("sockway_ejections_overflow_total", "counter", help, |text, name, service| {
        let overflow = service.ejections.overflow.load(Relaxed);
        let _ = writeln!(text, "{name}{{service=\"{}\"}} {overflow}", service.config.name);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Snapshot, config::file};

    #[test]
    fn only_services_with_rules_have_them() {
        let service = |name: &str, last: u8, rules: &str| {
            format!("{{name: {name}, address: 10.0.0.{last}:80, protocol: http, {rules} endpoints: [10.0.1.1:80]}}")
        };
        let of = |services: String| {
            let config = file::parse(&format!("services: [{services}]"), "F").expect("a good file");
            let snapshot = Snapshot::build(&config, &Snapshot::default());
            for service in &snapshot.services {
                service.ejections.enforced[Reason::SuccessRate as usize].store(7, Relaxed);
            }
            let mut text = String::new();
            write(&mut text, &snapshot.services);
            text
        };
        assert_eq!(of(service("a", 1, "")), "");
        let text = of(format!("{}, {}", service("a", 1, ""), service("b", 2, "outlier: {interval_ms: 10},")));
        assert!(text.contains("sockway_ejections_total{service=\"b\",reason=\"success_rate\"} 7\n"), "{text}");
        assert!(text.contains("sockway_ejections_active{service=\"b\"} 0\n") && !text.contains("\"a\""), "{text}");
    }
}
