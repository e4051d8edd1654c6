//! Sockway itself as one of the ways: its configuration for a scenario, the agent's process, and its counters as witnesses that the
//! connections really took the path that is being measured. An agent that fails open is very fast.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Bench, interrupt,
    process::{Place, Process},
    stand::Stand,
};

/// How long the agent may take from its start until it is ready, with the largest table.
const READY: Duration = Duration::from_secs(60);

/// What is written into the agent's configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names its pins and its cgroup.
    pub instance: String,
    /// How many workers.
    pub workers: usize,
    /// Port of the admin endpoint on 127.0.0.1.
    pub admin_port: u16,
    /// The captured cgroups, and whether their sockets may take the shortcut.
    pub cgroups: Vec<(String, bool)>,
    /// What can be dialled.
    pub services: Vec<Service>,
}

/// One service of the plan.
#[derive(Clone, Debug)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// What the client dials.
    pub address: String,
    /// Who forwards.
    pub forward: Forward,
    /// Whether its connections take the shortcut.
    pub shortcut: bool,
    /// Its endpoints.
    pub endpoints: Vec<String>,
    /// Further keys, each with a comma behind it.
    pub keys: &'static str,
}

/// Who forwards a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Balanced in the kernel half.
    Kernel,
    /// HTTP/1.1 through the agent.
    Http,
    /// HTTP/2 through the agent.
    Http2,
    /// Opaque TCP through the agent.
    Opaque,
}

impl Plan {
    /// The configuration.
    pub fn yaml(&self) -> String {
        let on_off = |shortcut: bool| if shortcut { "on" } else { "off" };
        let mut text = format!(
            "instance: {}\nworkers: {}\ndrain_timeout_ms: 500\nadmin: {{ address: 127.0.0.1:{} }}\ncapture:\n  cgroups:\n",
            self.instance, self.workers, self.admin_port
        );
        for (path, shortcut) in &self.cgroups {
            let _ = writeln!(text, "    - {{ path: {path}, shortcut: {} }}", on_off(*shortcut));
        }
        text.push_str("services:\n");
        for service in &self.services {
            let (protocol, mode) = match service.forward {
                Forward::Kernel => ("tcp", "kernel"),
                Forward::Http => ("http", "agent"),
                Forward::Http2 => ("http2", "agent"),
                Forward::Opaque => ("tcp", "agent"),
            };
            let _ = writeln!(
                text,
                "  - {{ name: {}, address: \"{}\", protocol: {protocol}, mode: {mode}, shortcut: {}, {}endpoints: [\"{}\"] }}",
                service.name,
                service.address,
                on_off(service.shortcut),
                service.keys,
                service.endpoints.join("\", \"")
            );
        }
        text
    }
}

/// A running agent; stopped and detached when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    binary: PathBuf,
    config: PathBuf,
    admin: String,
}

/// An agent about to be started: its configuration is written, and nothing of an earlier one is left.
#[derive(Debug)]
pub struct Prepared {
    instance: String,
    binary: PathBuf,
    config: PathBuf,
    admin: String,
}

impl Prepared {
    /// For a plan.
    pub fn new(bench: &Bench, stand: &Stand, plan: &Plan) -> Result<Self> {
        ensure!(bench.sockway.exists(), "{} is not built", bench.sockway.display());
        let config = stand.file(&format!("{}.yaml", plan.instance));
        fs::write(&config, plan.yaml()).with_context(|| format!("{}", config.display()))?;
        // What a run that was killed left attached.
        detach(&bench.sockway, &config)?;
        let admin = format!("http://127.0.0.1:{}", plan.admin_port);
        Ok(Self { instance: plan.instance.clone(), binary: bench.sockway.clone(), config, admin })
    }

    /// Starts it, and does not wait.
    pub fn start(self, stand: &Stand) -> Result<Agent> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(&self.config);
        let process = stand.serve(&self.instance, &mut command, &stand.proxy())?;
        Ok(Agent { process, binary: self.binary, config: self.config, admin: self.admin })
    }
}

impl Agent {
    /// Starts it and waits until it says that it is ready.
    pub fn start(bench: &Bench, stand: &Stand, plan: &Plan) -> Result<Self> {
        let mut agent = Prepared::new(bench, stand, plan)?.start(stand)?;
        agent.await_ready(stand)?;
        Ok(agent)
    }

    /// Waits until it says that it is ready.
    pub fn await_ready(&mut self, stand: &Stand) -> Result<()> {
        let ready = interrupt::wait_for(READY, || {
            self.process.check_alive()?;
            Ok(stand.get(&format!("{}/ready", self.admin)).ok())
        })?;
        match ready {
            Some(_) => Ok(()),
            None => bail!("the agent is not ready after {READY:?}"),
        }
    }

    /// Gives it another plan, in one step, and the signal to read it.
    pub fn reload(&self, yaml: &str) -> Result<()> {
        let fresh = self.config.with_extension("fresh");
        fs::write(&fresh, yaml).with_context(|| format!("{}", fresh.display()))?;
        fs::rename(&fresh, &self.config)?;
        self.process.signal(libc::SIGHUP)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its counters at this moment.
    pub fn counters(&self, stand: &Stand) -> Result<Counters> {
        Ok(Counters::parse(&stand.get(&format!("{}/metrics", self.admin))?))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A live agent would attach again what is taken away under it.
        if let Err(error) = self.process.stop().and_then(|()| detach(&self.binary, &self.config)) {
            eprintln!("bench: left behind: {error:#}");
        }
    }
}

fn detach(binary: &std::path::Path, config: &std::path::Path) -> Result<()> {
    let output = Command::new(binary).arg("detach").arg("--config").arg(config).output().context("sockway detach")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sockway detach: {}", said.trim());
    // Its history; the file has the instance's name.
    if let Some(instance) = config.file_stem() {
        let _ = fs::remove_dir_all(std::path::Path::new("/var/lib/sockway").join(instance));
    }
    Ok(())
}

/// The values of `/metrics`, by name with labels as they are written.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| {
                    let (name, value) = line.rsplit_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                })
                .collect(),
        )
    }

    /// The sum of all series of this name that carry this label, `key="value"`; an empty label takes all of them.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let matches = |series: &str| {
            let (its_name, labels) = series.split_once('{').unwrap_or((series, ""));
            its_name == name && labels.contains(label)
        };
        self.0.iter().filter(|(series, _)| matches(series)).map(|(_, value)| value).sum()
    }

    /// How much a sum grew.
    pub fn since(&self, earlier: &Self, name: &str, label: &str) -> f64 {
        self.sum(name, label) - earlier.sum(name, label)
    }
}

/// The path that connections of a way have to take.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    /// Who has to forward.
    pub forward: Forward,
    /// How messages have to get from socket to socket.
    pub path: Path,
}

/// How messages get from socket to socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By TCP.
    Tcp,
    /// Past it, by the shortcut.
    Shortcut,
    /// And past the agent.
    Joined,
}

impl Witness {
    /// An error when, between the two moments, not every connection took this path, or `requests` cannot have done so.
    pub fn check(self, before: &Counters, after: &Counters, connections: u32, requests: u64) -> Result<()> {
        let label = match self.forward {
            Forward::Kernel => "verdict=\"balanced\"",
            Forward::Http | Forward::Http2 | Forward::Opaque => "verdict=\"agent\"",
        };
        let taken = after.since(before, "sockway_kernel_connects_total", label);
        ensure!(taken >= f64::from(connections), "only {taken} connections had {label}: the others took another path");
        let shortcut = after.since(before, "sockway_kernel_shortcut_messages_total", "");
        let joined = after.since(before, "sockway_kernel_joined_messages_total", "");
        let enough = |messages: f64| messages >= requests as f64;
        match self.path {
            Path::Tcp => ensure!(shortcut + joined == 0.0, "{shortcut} messages took the shortcut, which is off"),
            Path::Shortcut => {
                ensure!(enough(shortcut), "{shortcut} messages took the shortcut, for {requests} requests")
            }
            Path::Joined => ensure!(enough(joined), "{joined} messages went past the agent, for {requests} requests"),
        }
        Ok(())
    }
}

/// A place in the client's namespace that belongs to another captured group.
pub fn in_group<'a>(stand: &'a Stand, cgroup: &'a super::cgroup::Cgroup) -> Place<'a> {
    Place { cgroup, ..stand.client() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP sockway_kernel_connects_total Verdicts.\n# TYPE sockway_kernel_connects_total counter\n\
        sockway_kernel_connects_total{verdict=\"agent\"} 40\nsockway_kernel_connects_total{verdict=\"balanced\"} 2\n\
        sockway_kernel_shortcut_messages_total 100\n";

    #[test]
    fn counters_are_added_up_by_name_and_label() {
        let counters = Counters::parse(METRICS);
        assert_eq!(counters.sum("sockway_kernel_connects_total", ""), 42.0);
        assert_eq!(counters.sum("sockway_kernel_connects_total", "verdict=\"agent\""), 40.0);
        assert_eq!(counters.sum("sockway_kernel_connects", ""), 0.0);
    }

    #[test]
    fn a_round_that_failed_open_has_no_witness() {
        let (before, after) = (Counters::default(), Counters::parse(METRICS));
        let agent = Witness { forward: Forward::Http, path: Path::Shortcut };
        assert!(agent.check(&before, &after, 32, 100).is_ok());
        assert!(agent.check(&before, &after, 41, 100).is_err(), "connections that did not reach the agent");
        assert!(agent.check(&before, &after, 32, 101).is_err(), "requests that did not take the shortcut");
        let kernel = Witness { forward: Forward::Kernel, path: Path::Tcp };
        assert!(kernel.check(&after, &after, 0, 100).is_ok());
        assert!(kernel.check(&before, &after, 2, 100).is_err(), "a shortcut that should be off");
        let joined = Witness { forward: Forward::Opaque, path: Path::Joined };
        assert!(joined.check(&before, &after, 1, 1).is_err(), "messages that went through the agent");
    }

    #[test]
    fn the_configuration_names_every_service_with_its_path() {
        let plan = Plan {
            instance: "bench".into(),
            workers: 1,
            admin_port: 9901,
            cgroups: vec![("/sockway-bench/client".into(), true)],
            services: vec![Service {
                name: "plain".into(),
                address: "127.66.0.1:80".into(),
                forward: Forward::Http,
                shortcut: false,
                endpoints: vec!["127.0.0.1:8080".into(), "127.0.0.1:8081".into()],
                keys: "balance: round_robin, ",
            }],
        };
        assert_eq!(
            plan.yaml(),
            "instance: bench\nworkers: 1\ndrain_timeout_ms: 500\nadmin: { address: 127.0.0.1:9901 }\ncapture:\n  cgroups:\n    \
             - { path: /sockway-bench/client, shortcut: on }\nservices:\n  - { name: plain, address: \"127.66.0.1:80\", \
             protocol: http, mode: agent, shortcut: off, balance: round_robin, endpoints: [\"127.0.0.1:8080\", \"127.0.0.1:8081\"] }\n"
        );
    }
}
