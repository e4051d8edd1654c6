//! `sockway check FILE`: is it good, and what does it mean?

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Failure, say};
use crate::{
    config::{Capture, Config, Mode, Protocol, Service, Shortcut, file},
    node::runfile,
};

/// Which file.
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// Configuration file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Prints what the file means.
///
/// # Errors
///
/// With everything that is wrong with the file.
pub fn run(check: &Check) -> Result<u8, Failure> {
    let config = file::read(&check.file)?;
    say(describe(&config, &check.file));
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
         workers   {}\ndrain     up to {:?}\nadmin     http://{}\ncgroup v2 {mount}\n\n",
        config.capture.bpffs.display(),
        runfile::DIRECTORY,
        config.workers,
        config.drain_timeout,
        config.admin_address,
    );
    describe_capture(&mut text, &config.capture);
    let _ = writeln!(text, "\nservices  {}", config.services.len());
    for service in &config.services {
        describe_service(&mut text, service);
        if config.capture.except.covers(service.address) {
            let _ = writeln!(text, "    never captured: capture.except names its port or address");
        }
    }
    text
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
    let path = match (service.mode, service.protocol) {
        (Mode::Kernel, Protocol::Udp) => "balanced in connect() and sendmsg(), straight to an endpoint",
        (Mode::Kernel, _) => "balanced in connect(), straight to an endpoint",
        (Mode::Agent, _) => "through the agent; balanced in connect() while no agent lives",
    };
    let probes = match (service.protocol, service.probe_interval) {
        (Protocol::Udp, _) => format!("a conversation is over after {:?}", service.udp_idle_timeout),
        (_, Some(interval)) => format!("probed every {interval:?}"),
        (_, None) => "probed after failures".to_owned(),
    };
    let _ = writeln!(
        text,
        "\n  {} at {}, {}: {path}\n    {}, {}, connect timeout {:?}, {probes}",
        service.name,
        service.address,
        file::protocol_word(service.protocol),
        file::balance_word(service.policy.balance),
        shortcut_text(if service.protocol == Protocol::Udp { Shortcut::Off } else { service.shortcut }),
        service.connect_timeout,
    );
    let sum: u64 = service.endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    for endpoint in &service.endpoints {
        let share = 100.0 * f64::from(endpoint.weight) / sum as f64;
        let _ = writeln!(text, "    {share:>6.2} %  {}", endpoint.address);
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
    fn a_file_is_told_in_words() {
        let text = "services: [{name: a, address: 10.0.0.1:80, protocol: http, shortcut: off, \
                    endpoints: [{address: 10.0.0.2:80, weight: 2}, 10.0.0.3:80]}]";
        let told = describe(&file::parse(text, "F").expect("a good file"), Path::new("F"));
        for part in [
            "F: good\n",
            "pins      /sys/fs/bpf/sockway/default\n",
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
