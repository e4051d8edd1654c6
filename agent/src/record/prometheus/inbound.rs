//! What came in, by rule.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::cluster::{Inbound, Refused};

/// Writes the families of all rules. Names of rules hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, rules: &[Arc<Inbound>]) {
    if rules.is_empty() {
        return;
    }
    let mut family = |name: &str, kind: &str, help: &str, value: fn(&Inbound) -> u64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for rule in rules {
            let _ = writeln!(text, "{name}{{inbound=\"{}\"}} {}", rule.config.name, value(rule));
        }
        text.push('\n');
    };
    let help = "Connections that came in and were let in by the agent.";
    family("sockway_inbound_connections_total", "counter", help, |rule| rule.state.accepted.load(Relaxed));
    let help = "Connections that came in and that the agent is serving now.";
    family("sockway_inbound_connections_active", "gauge", help, |rule| rule.state.open.load(Relaxed).into());
    let help = "Connections that came in and that the program did not accept.";
    family("sockway_inbound_connect_failures_total", "counter", help, |rule| {
        rule.service.endpoints[0].state.connect_failures.load(Relaxed)
    });
    let name = "sockway_inbound_refused_total";
    let help = "Connections that came in and were reset because a limit of the rule was reached.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for rule in rules {
        for (reason, count) in Refused::ALL.iter().zip(&rule.state.refused) {
            refused(text, name, &rule.config.name, reason.reason(), count);
        }
    }
    text.push('\n');
}

fn refused(text: &mut String, name: &str, rule: &str, reason: &str, count: &AtomicU64) {
    let _ = writeln!(text, "{name}{{inbound=\"{rule}\",reason=\"{reason}\"}} {}", count.load(Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Snapshot, config::file};

    #[test]
    fn every_rule_has_its_counts() {
        let text = "inbound: [{name: web, ports: [80], protocol: http}]";
        let config = file::parse(text, "F").expect("a good file");
        let snapshot = Snapshot::build(&config, &Snapshot::default());
        let state = &snapshot.inbound[0].state;
        state.accepted.store(7, Relaxed);
        state.refused[Refused::SourceRate as usize].store(2, Relaxed);
        let mut text = String::new();
        write(&mut text, &snapshot.inbound);
        assert!(text.contains("\nsockway_inbound_connections_total{inbound=\"web\"} 7\n"), "{text}");
        assert!(text.contains("\nsockway_inbound_refused_total{inbound=\"web\",reason=\"source_rate\"} 2\n"), "{text}");
        assert!(text.contains("\nsockway_inbound_refused_total{inbound=\"web\",reason=\"connections\"} 0\n"), "{text}");
    }
}
