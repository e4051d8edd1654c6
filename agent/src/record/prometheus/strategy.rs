//! What the strategies of services did. The labels are bounded by what is configured.

use std::{fmt::Write, sync::Arc};

use crate::{
    cluster::{Cause, Effort, Service},
    config::{
        file::strategy_word,
        strategy::{Kind, Strategy},
    },
};

/// Writes the families, if a service has a strategy. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
    let of = || services.iter().filter_map(|service| Some((service, service.config.strategy.as_ref()?)));
    if of().next().is_some() {
        let name = "sockway_cluster_efforts_total";
        let help = "What the strategy of a service (its key cluster) did with requests; see the README for each.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (service, strategy) in of() {
            let (of, word) = (&service.config.name, strategy_word(strategy));
            for effort in Effort::ALL.into_iter().filter(|effort| is_of(*effort, strategy)) {
                let (effort, count) = (effort.word(), service.efforts.of(effort));
                let _ = writeln!(text, "{name}{{service=\"{of}\",strategy=\"{word}\",effort=\"{effort}\"}} {count}");
            }
        }
        text.push('\n');
    }
    write_retries(text, services);
    let mut waiting = of().filter(|(_, strategy)| matches!(strategy.kind, Kind::Failback(_))).peekable();
    if waiting.peek().is_some() {
        let name = "sockway_cluster_waiting";
        let _ = writeln!(text, "# HELP {name} Requests that failed and wait to be sent again.\n# TYPE {name} gauge");
        for (service, _) in waiting {
            let _ = writeln!(text, "{name}{{service=\"{}\"}} {}", service.config.name, service.efforts.waiting());
        }
        text.push('\n');
    }
}

/// Of services that retry, or have a route that does.
fn write_retries(text: &mut String, services: &[Arc<Service>]) {
    let retries = |strategy: &Strategy| matches!(strategy.kind, Kind::Failover(_));
    let is_one = |service: &&Arc<Service>| {
        service.config.strategy.as_ref().is_some_and(retries)
            || Cause::ALL.iter().any(|reason| service.efforts.retries(*reason) > 0)
    };
    let mut of = services.iter().filter(is_one).peekable();
    if of.peek().is_none() {
        return;
    }
    let name = "sockway_retries_total";
    let _ = writeln!(text, "# HELP {name} Requests that were sent again, by the reason.\n# TYPE {name} counter");
    for service in of {
        for reason in Cause::ALL {
            let (of, word, count) = (&service.config.name, reason.word(), service.efforts.retries(reason));
            let _ = writeln!(text, "{name}{{service=\"{of}\",reason=\"{word}\"}} {count}");
        }
    }
    text.push('\n');
}

/// Whether a strategy ever does this.
fn is_of(effort: Effort, strategy: &Strategy) -> bool {
    match effort {
        Effort::Retried | Effort::OverBudget => matches!(strategy.kind, Kind::Failover(_)),
        Effort::Absorbed => matches!(strategy.kind, Kind::Failsafe),
        Effort::Copied => matches!(strategy.kind, Kind::Forking(_) | Kind::Broadcast(_)),
        Effort::Deferred | Effort::Delivered | Effort::Dropped | Effort::Orphaned | Effort::Full => {
            matches!(strategy.kind, Kind::Failback(_))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Snapshot, config::file};

    #[test]
    fn what_a_strategy_did_is_told_and_outlives_a_reload() {
        let snapshot = |strategy: &str, previous: &Snapshot| {
            let keys = "name: a, address: 10.0.0.1:80, protocol: http, endpoints: [127.0.0.1:80]";
            let config = file::parse(&format!("services: [{{{keys}{strategy}}}]"), "F").expect("a good file");
            Snapshot::build(&config, previous)
        };
        let told = |snapshot: &Snapshot| {
            let mut text = String::new();
            write(&mut text, &snapshot.services);
            text
        };
        let first = snapshot(", cluster: failover", &Snapshot::default());
        first.services[0].efforts.count(Effort::Retried);
        let line = "{service=\"a\",strategy=\"failover\",effort=\"retried\"} ";
        assert!(told(&first).contains(line) && !told(&first).contains("waiting"));
        let none = snapshot("", &first);
        assert_eq!(told(&none), "");
        first.services[0].efforts.retried(Cause::Late);
        assert!(told(&none).contains("sockway_retries_total{service=\"a\",reason=\"late\"} 1\n"), "of its routes");
        let again = snapshot(", cluster: failover", &none);
        assert!(told(&again).contains(line), "{}", told(&again));
        assert!(
            told(&snapshot(", cluster: failback", &again)).contains("sockway_cluster_waiting{service=\"a\"} 0\n\n")
        );
    }
}
