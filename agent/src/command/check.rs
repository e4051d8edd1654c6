//! `sockway check FILE`: is it good, and what does it mean?

mod requests;
mod subsets;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Failure, say};
use crate::{
    balance,
    cluster::{self, Snapshot},
    config::{
        Admin, Capture, Config, Endpoint, Mode, Protocol, Service, Shortcut, file,
        inbound::Inbound,
        policy::{Over, Source, Take},
    },
    node::runfile,
};

/// Which file.
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// Configuration file
    #[arg(value_name = "FILE", required_unless_present = "config", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same, as `sockway run` takes it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the whole meaning, every default written out, in the file's own shape (JSON, which YAML reads)
    #[arg(long)]
    pub show: bool,
}

/// Prints what the file means.
///
/// # Errors
///
/// With everything that is wrong with the file.
pub fn run(check: &Check) -> Result<u8, Failure> {
    // One of them is there.
    let path = check.file.as_deref().or(check.config.as_deref()).unwrap_or(Path::new(""));
    let config = file::read(path)?;
    if check.show {
        say(format!("{:#}\n", file::show(&config)));
        return Ok(0);
    }
    say(describe(&config, path));
    Ok(0)
}

fn describe(config: &Config, path: &Path) -> String {
    let instance = &config.instance;
    let mut text = format!("{}: good\n\n", path.display());
    let mount = config
        .capture
        .cgroup_mount
        .as_ref()
        .map_or("found in /proc/self/mounts".to_owned(), |mount| mount.display().to_string());
    let _ = write!(
        text,
        "instance  {instance}\n  pins      {}/sockway/{instance}\n  cgroup    /sockway-agent-{instance}\n  run-time  {}/{instance}.json\n\
         workers   {}\ndrain     up to {:?}\nadmin     http://{}{}\nsocket    {}\naudit     {}\ncgroup v2 {mount}\n\n",
        config.capture.bpffs.display(),
        runfile::DIRECTORY,
        config.workers,
        config.drain_timeout,
        config.admin.address,
        open_to_others(&config.admin),
        config
            .admin
            .socket
            .clone()
            .unwrap_or_else(|| runfile::socket(Path::new(runfile::DIRECTORY), instance))
            .display(),
        config.audit.path_of(instance).display(),
    );
    describe_capture(&mut text, &config.capture);
    let _ = writeln!(text, "\nservices  {}", config.services.len());
    // As they are when all are up.
    let snapshot = Snapshot::build(config, &Snapshot::default());
    for (service, running) in config.services.iter().zip(&snapshot.services) {
        describe_service(&mut text, service);
        describe_policy(&mut text, service, config.zone.as_deref());
        for line in requests::lines(service, &config.switches).into_iter().chain(subsets::lines(service, config)) {
            let _ = writeln!(text, "    {line}");
        }
        describe_endpoints(&mut text, service, running);
        if config.capture.except.covers(service.address) {
            let _ = writeln!(text, "    never captured: capture.except names its port or address");
        }
    }
    if !config.inbound.is_empty() {
        let _ = writeln!(text, "\ninbound   {}", config.inbound.len());
    }
    config.inbound.iter().for_each(|rule| describe_inbound(&mut text, rule));
    text
}

/// What becomes of connections that come in.
fn describe_inbound(text: &mut String, rule: &Inbound) {
    let tls = if rule.terminate.is_some() { " within TLS, which ends at the agent" } else { "" };
    let _ = writeln!(
        text,
        "\n  {} on ports {}, {}{tls}: through the agent first; straight to the program while no agent lives\n    connect timeout {:?}",
        rule.name,
        rule.ports.iter().map(file::range).collect::<Vec<_>>().join(", "),
        file::protocol_word(rule.protocol),
        rule.connect_timeout,
    );
    let (namespaces, sources) = (&rule.namespaces, &rule.sources);
    let lists = [
        ("only in network namespaces", listed(&namespaces.only)),
        ("not in network namespaces", listed(&namespaces.except)),
        ("straight to the program from", listed(&sources.pass)),
        ("refused from", listed(&sources.deny)),
        ("let in from, and from nowhere else:", listed(&sources.allow)),
    ];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| format!("{what} {list}"));
    let limits = [("all together", &rule.limits.all), ("each source address", &rule.limits.per_source)];
    let limits = limits
        .into_iter()
        .filter_map(|(who, take)| taken(take).map(|taken| format!("{who} may have {taken}; over that reset")));
    let filters = (!rule.filters.is_empty()).then(|| requests::filters(&rule.filters));
    for line in lists.chain(limits).chain(filters) {
        let _ = writeln!(text, "    {line}");
    }
}

/// What a person should know whose agent others can ask.
fn open_to_others(admin: &Admin) -> &'static str {
    match (admin.address.ip().is_loopback(), admin.has_tokens()) {
        (true, _) => "",
        (false, true) => " (WARNING: others can read it, and change things by a token that is sent in the clear)",
        (false, false) => {
            " (WARNING: others can read it; nobody can change anything but by the socket: there is no token)"
        }
    }
}

fn describe_capture(text: &mut String, capture: &Capture) {
    for rule in &capture.rules {
        let cgroups = if rule.path.is_plain() { "cgroup" } else { "cgroups" };
        let _ = if rule.capture {
            let shortcut = shortcut_text(rule.shortcut);
            writeln!(text, "captures  programs in {cgroups} {} and below; {shortcut}", rule.path)
        } else {
            writeln!(text, "but not   programs in {cgroups} {} and below", rule.path)
        };
    }
    let (namespaces, except) = (&capture.namespaces, &capture.except);
    let lists = [
        ("only in   network namespaces", listed(&namespaces.only)),
        ("not in    network namespaces", listed(&namespaces.except)),
        ("never to  ports", except.ports.iter().map(file::range).collect::<Vec<_>>().join(", ")),
        ("never to  addresses", listed(&except.cidrs)),
        ("never by  users", except.uids.iter().map(file::range).collect::<Vec<_>>().join(", ")),
    ];
    for (what, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let _ = writeln!(text, "{what} {list}");
    }
}

fn listed(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn describe_service(text: &mut String, service: &Service) {
    let spoken_with = match (&service.tls.terminate, &service.tls.originate) {
        (Some(_), Some(_)) => Some("clients and endpoints"),
        (Some(_), None) => Some("clients"),
        (None, Some(_)) => Some("endpoints"),
        (None, None) => None,
    };
    let path = match (service.mode, service.protocol, spoken_with) {
        (Mode::Kernel, Protocol::Udp, _) => "balanced in connect() and sendmsg(), straight to an endpoint".to_owned(),
        (Mode::Kernel, ..) => "balanced in connect(), straight to an endpoint".to_owned(),
        (Mode::Agent, _, None) => "through the agent; balanced in connect() while no agent lives".to_owned(),
        // What is protected goes nowhere in plain.
        (Mode::Agent, _, Some(whom)) => {
            format!("through the agent, which speaks TLS with {whom}; to no endpoint while no agent lives")
        }
    };
    let interval = service.probe.as_ref().map(|probe| probe.interval).or(service.probe_interval);
    let probes = match (service.protocol, interval) {
        (Protocol::Udp, _) => format!("a conversation is over after {:?}", service.udp_idle_timeout),
        (_, Some(interval)) => format!("probed every {interval:?}"),
        (_, None) => "probed after failures".to_owned(),
    };
    let strategy = service.strategy.as_ref().map(|strategy| format!(", {}", file::strategy_word(strategy)));
    let _ = writeln!(
        text,
        "\n  {} at {}, {}: {path}\n    {}{}, {}, connect timeout {:?}, {probes}",
        service.name,
        service.address,
        file::protocol_word(service.protocol),
        file::balance_word(service.policy.balance),
        strategy.unwrap_or_default(),
        shortcut_text(if service.protocol == Protocol::Udp { Shortcut::Off } else { service.shortcut }),
        service.connect_timeout,
    );
}

/// What the kernel half keeps of a service, a line for each.
fn describe_policy(text: &mut String, service: &Service, zone: Option<&str>) {
    let policy = &service.policy;
    let source = match policy.source {
        Source::Namespace => "network namespace",
        Source::Cgroup => "cgroup",
        Source::Uid => "user",
    };
    let affinity = policy.affinity_timeout.map(|timeout| {
        format!("each {source} stays with its endpoint until {timeout:?} after its last connect, while that takes any")
    });
    let limits = policy.limits.iter().flat_map(|limits| {
        let over = match limits.over {
            Over::Refuse => "refused (ECONNREFUSED)",
            Over::Forbid => "forbidden (EPERM)",
            Over::Pass => "passed untouched",
        };
        let line =
            |who: &str, take: &Take| taken(take).map(|taken| format!("{who} may have {taken}; over that {over}"));
        [line("all together", &limits.service), line(&format!("each {source}"), &limits.per_source)]
    });
    let eject = policy.eject.map(|eject| {
        format!("an endpoint with {} failed handshakes in a row is left out for {:?}", eject.failures, eject.period)
    });
    let zone = policy.prefer_zone.then(|| match zone {
        Some(zone) => format!("endpoints in zone {zone} before others"),
        None => {
            "endpoints of the own zone before others, and there is none: write zone, or start the agent with --zone"
                .to_owned()
        }
    });
    let slow_start = policy.slow_start.map(|slow| {
        let (least, window) = (slow.min_weight_percent, slow.window);
        format!(
            "an endpoint that comes, or comes back, has {least} % of its weight at first and all of it after {window:?}"
        )
    });
    let panic = policy.panic_threshold_percent;
    let panic = (panic > 0).then(|| format!("a level with less than {panic} % up uses those that are down as well"));
    let drain = match service.endpoint_drain {
        _ if service.protocol == Protocol::Udp => None,
        Some(time) => Some(format!("connections to an endpoint that leaves are ended after {time:?}")),
        None => Some("connections to an endpoint that leaves are never ended".to_owned()),
    };
    let lines = affinity.into_iter().chain(limits.flatten()).chain(eject).chain(zone).chain(slow_start).chain(panic);
    for line in lines.chain(drain) {
        let _ = writeln!(text, "    {line}");
    }
}

fn taken(take: &Take) -> Option<String> {
    let connections = take.connections.map(|connections| format!("{connections} connections at once"));
    let rate = take.rate.map(|rate| format!("{} a second ({} after a pause)", rate.per_second, rate.burst));
    let parts: Vec<String> = connections.into_iter().chain(rate).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn describe_endpoints(text: &mut String, service: &Service, running: &cluster::Service) {
    let shares = balance::shares::of(running, |_| true);
    let sum: u64 = shares.weights.iter().copied().map(u64::from).sum();
    let share = |endpoint: &Endpoint| {
        if endpoint.is_draining {
            return "draining".to_owned();
        }
        let index = running.endpoints.iter().position(|running| running.address == endpoint.address);
        match index.map_or(0, |index| shares.weights[index]) {
            0 => "standby".to_owned(),
            weight => format!("{:>6.2} %", 100.0 * f64::from(weight) / sum as f64),
        }
    };
    for endpoint in &service.endpoints {
        let priority = if endpoint.priority > 0 { format!(", priority {}", endpoint.priority) } else { String::new() };
        let zone = endpoint.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        let _ = writeln!(text, "    {:>8}  {}{priority}{zone}", share(endpoint), endpoint.address);
    }
}

fn shortcut_text(shortcut: Shortcut) -> &'static str {
    match shortcut {
        Shortcut::Auto => "shortcut if this kernel passes the self-test",
        Shortcut::On => "shortcut on, with this kernel's deviations",
        Shortcut::Off => "no shortcut",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_and_what_is_not_is_told() {
        let text = "capture: {cgroups: [{path: /a/**/b-*, shortcut: on}, {path: /a/c, capture: off}], \
                    namespaces: {only: [host, 'cni-*'], except: [cni-x]}, \
                    except: {ports: [22, 8000-8010], cidrs: [10.0.0.0/8], uids: [0, 1000-1010]}}\n\
                    services: [{name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [127.0.0.1:80]}]";
        let told = describe(
            &file::parse(&text.replace(", services", "\nservices"), "F").expect("a good file"),
            Path::new("F"),
        );
        for part in [
            "captures  programs in cgroups /a/**/b-* and below; shortcut on",
            "but not   programs in cgroup /a/c and below\n",
            "only in   network namespaces host, cni-*\nnot in    network namespaces cni-x\n",
            "never to  ports 22, 8000-8010\nnever to  addresses 10.0.0.0/8\nnever by  users 0, 1000-1010\n",
            "    never captured: capture.except names its port or address\n",
        ] {
            assert!(told.contains(part), "{part:?} in {told}");
        }
    }

    #[test]
    fn what_a_service_is_held_to_and_who_comes_first_is_told() {
        let text = "zone: east
services:
  - name: a
    address: 10.0.0.1:80
    protocol: tcp
    affinity_timeout_ms: 600000
    limits: {connections: 1000, connections_per_second: 50, per_source: {connections: 10}, over: forbid}
    eject: {failures: 5}
    prefer_zone: on
    slow_start: {}
    panic_threshold_percent: 50
    endpoint_drain_ms: never
    endpoints:
      - {address: 10.0.0.2:80, zone: east}
      - {address: 10.0.0.3:80, zone: west}
      - {address: 10.0.0.4:80, zone: east, priority: 1}
      - {address: 10.0.0.5:80, zone: east, state: draining}
";
        let told = describe(&file::parse(text, "F").expect("a good file"), Path::new("F"));
        for line in [
            "each network namespace stays with its endpoint until 600s after its last connect, while that takes any",
            "all together may have 1000 connections at once and 50 a second (50 after a pause); over that forbidden (EPERM)",
            "each network namespace may have 10 connections at once; over that forbidden (EPERM)",
            "an endpoint with 5 failed handshakes in a row is left out for 30s",
            "endpoints in zone east before others",
            "an endpoint that comes, or comes back, has 10 % of its weight at first and all of it after 60s",
            "a level with less than 50 % up uses those that are down as well",
            "connections to an endpoint that leaves are never ended",
            // Of the own zone one of two drains.
            " 70.00 %  10.0.0.2:80, zone east",
            " 30.00 %  10.0.0.3:80, zone west",
            " standby  10.0.0.4:80, priority 1, zone east",
            "draining  10.0.0.5:80, zone east",
        ] {
            assert!(told.contains(&format!("    {line}\n")), "{line:?} in {told}");
        }
        let (first, rest) = text.split_once('\n').expect("lines");
        let told = describe(&file::parse(rest, "F").expect("a good file"), Path::new("F"));
        assert!(told.contains("and there is none: write zone, or start"), "without {first}: {told}");
    }

    #[test]
    fn what_becomes_of_connections_that_come_in_is_told() {
        let text = "inbound:
  - name: web
    ports: [8080, 9000-9010]
    protocol: http
    namespaces: { only: [web-*, host], except: [web-old] }
    limits: { connections: 10000, per_source: { connections: 100 } }
    deny: [10.9.0.0/16]
    filters: [{ kind: request_id }]
  - { name: raw, ports: [5432], protocol: tcp, allow: [10.0.0.0/8, 192.0.2.0/24], pass: [10.1.0.0/16] }
";
        let told = describe(&file::parse(text, "F").expect("a good file"), Path::new("F"));
        let lines = "inbound   2

  web on ports 8080, 9000-9010, http: through the agent first; straight to the program while no agent lives
    connect timeout 5s
    only in network namespaces web-*, host
    not in network namespaces web-old
    refused from 10.9.0.0/16
    all together may have 10000 connections at once; over that reset
    each source address may have 100 connections at once; over that reset
    filters: request_id

  raw on ports 5432, tcp: through the agent first; straight to the program while no agent lives
    connect timeout 5s
    straight to the program from 10.1.0.0/16
    let in from, and from nowhere else: 10.0.0.0/8, 192.0.2.0/24
";
        assert!(told.ends_with(lines), "{told}");
        assert!(!describe(&file::parse("workers: 1", "F").expect("a good file"), Path::new("F")).contains("inbound"));
    }

    #[test]
    fn what_tls_protects_goes_to_nobody_without_an_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let (cert, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("a certificate");
        std::fs::write(&cert, made.cert.pem()).expect("writable");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("writable");
        let originate = format!("originate: {{roots: {}}}", cert.display());
        let terminate = format!("terminate: {{certificates: [{{cert: {}, key: {}}}]}}", cert.display(), key.display());
        for (tls, whom) in [
            (originate.clone(), "endpoints"),
            (terminate.clone(), "clients"),
            (format!("{terminate}, {originate}"), "clients and endpoints"),
        ] {
            let text = format!(
                "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], tls: {{{tls}}}}}]"
            );
            let told = describe(&file::parse(&text, "F").unwrap_or_else(|error| panic!("{error}")), Path::new("F"));
            let path =
                format!("http: through the agent, which speaks TLS with {whom}; to no endpoint while no agent lives\n");
            assert!(told.contains(&path), "{told}");
        }
    }

    #[test]
    fn an_admin_address_that_others_have_a_way_to_is_warned_of() {
        for (admin, warning) in [
            ("{address: '127.0.0.2:9901'}", None),
            ("{address: '[::1]:9901'}", None),
            ("{address: '0.0.0.0:9901'}", Some("there is no token")),
            ("{address: '0.0.0.0:9901', token_file: /t}", Some("sent in the clear")),
        ] {
            let told = describe(&file::parse(&format!("admin: {admin}"), "F").expect("a good file"), Path::new("F"));
            let line = told.lines().find(|line| line.starts_with("admin ")).expect("a line");
            match warning {
                Some(warning) => assert!(line.contains("WARNING") && line.contains(warning), "{line}"),
                None => assert!(!line.contains("WARNING"), "{line}"),
            }
        }
    }

    #[test]
    fn a_file_is_told_in_words() {
        let text = "services: [{name: a, address: 10.0.0.1:80, protocol: http, shortcut: off, \
                    endpoints: [{address: 10.0.0.2:80, weight: 2}, 10.0.0.3:80]}]";
        let told = describe(&file::parse(text, "F").expect("a good file"), Path::new("F"));
        for part in [
            "F: good\n",
            "pins      /sys/fs/bpf/sockway/default\n",
            "admin     http://127.0.0.1:9901\nsocket    /run/sockway/default.sock\naudit     /var/lib/sockway/default/audit.jsonl\n",
            "captures  programs in cgroup / and below; shortcut if this kernel passes the self-test\n",
            "services  1\n",
            "a at 10.0.0.1:80, http: through the agent",
            "round_robin, no shortcut, connect timeout 5s, probed after failures\n",
            "     66.67 %  10.0.0.2:80\n     33.33 %  10.0.0.3:80\n",
        ] {
            assert!(told.contains(part), "{part:?} in {told}");
        }
    }
}
