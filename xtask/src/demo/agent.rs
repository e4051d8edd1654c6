//! The demo's agent: its configuration, its process, its admin address.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    demo::{
        call::{HTTP, L4, PORT},
        interrupt::wait_for,
        process::{Process, tied},
        stage::Stage,
    },
    workspace::agent_binary,
};

/// What the agent runs with when it is given no configuration.
const DEFAULT: &str = include_str!("../../../agent/deploy/default.yaml");

/// How long the agent may take to load its programs, test the kernel and listen.
const START: Duration = Duration::from_secs(20);

/// The agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    admin: SocketAddr,
}

impl Agent {
    /// Starts it on the stage and waits until it is ready. What it says goes to a file of the stage.
    pub fn start(stage: &Stage, ports: [u16; 2]) -> Result<Self> {
        let config = stage.file("demo.yaml");
        fs::write(&config, configuration(stage, ports)?).with_context(|| format!("writing {}", config.display()))?;
        let log = File::options().create(true).append(true).open(stage.file("agent.log"))?;
        let mut command = tied(&agent_binary().to_string_lossy());
        command.args(["run", "--config"]).arg(&config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = Process::start("the agent", &mut command)?;
        let pid = process.pid();
        let runfile = format!("/run/sockway/{}.json", stage.instance());
        let admin = wait_for("the agent's run-time file", START, || {
            process.check_alive()?;
            Ok(fs::read_to_string(&runfile).ok().and_then(|text| admin_of(&text, pid)))
        })?;
        let mut agent = Self { process, admin };
        wait_for("the agent to be ready", START, || {
            agent.process.check_alive()?;
            Ok(agent.get("/ready").ok().filter(|(status, _)| *status == 200))
        })?;
        Ok(agent)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where `/metrics` and the rest are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM; then its exit status, which is to be success.
    pub fn stop(mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.ask_to_end()?;
        let status = wait_for("the agent's end", limit, || self.process.ended())?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(status)
    }

    /// What it counts.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answered {status}");
        Ok(Metrics(body))
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&self.admin, patience)?;
        stream.set_read_timeout(Some(patience))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    }
}

/// The end of the agent's log, for a step that failed.
pub fn last_words(stage: &Stage) -> String {
    let log = fs::read_to_string(stage.file("agent.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    format!("the agent's last words:\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n"))
}

/// The embedded default, made this demo's: its own instance and cgroup, any free admin port, two services.
fn configuration(stage: &Stage, ports: [u16; 2]) -> Result<String> {
    configured(DEFAULT, &stage.instance(), &stage.cgroup_name(), ports)
}

fn configured(default: &str, instance: &str, cgroup: &str, ports: [u16; 2]) -> Result<String> {
    let changes = [
        ("instance: default ", format!("instance: {instance} ")),
        ("address: 127.0.0.1:9901", "address: 127.0.0.1:0".to_owned()),
        ("- path: / ", format!("- path: {cgroup} ")),
        ("services: []", services(ports)),
    ];
    changes.into_iter().try_fold(default.to_owned(), |text, (from, to)| {
        ensure!(text.matches(from).count() == 1, "agent/deploy/default.yaml: expected `{from}` once; adapt the demo");
        Ok(text.replace(from, &to))
    })
}

fn services(ports: [u16; 2]) -> String {
    let endpoints = ports.map(|port| format!("127.0.0.1:{port}")).join(", ");
    [(L4, "tcp", "kernel"), (HTTP, "http", "agent")].iter().fold("services:".to_owned(), |text, (service, protocol, mode)| {
        format!(
            "{text}\n  - {{ name: {}, address: \"{}:{PORT}\", protocol: {protocol}, mode: {mode}, endpoints: [{endpoints}] }}",
            service.name, service.ip
        )
    })
}

/// The admin address in a run-time file, if it is this process's.
fn admin_of(text: &str, pid: u32) -> Option<SocketAddr> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    if json["pid"].as_u64()? != u64::from(pid) {
        return None;
    }
    json["admin"].as_str()?.parse().ok()
}

/// The text of `/metrics`.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum over every line of this metric that has all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let lines = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (its_name, its_labels) = series.split_once('{').unwrap_or((series, ""));
            let fits = labels.iter().all(|(label, value)| its_labels.contains(&format!("{label}=\"{value}\"")));
            (its_name == name && fits).then(|| value.parse::<f64>().ok()).flatten()
        });
        lines.sum()
    }

    /// Every counter of these names that is not zero, a line each.
    pub fn nonzero(&self, prefixes: &[&str]) -> Vec<String> {
        let counted = |line: &&str| {
            prefixes.iter().any(|prefix| line.starts_with(prefix))
                && line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok_and(|value| value != 0.0))
        };
        self.0.lines().filter(counted).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_default_becomes_the_demos_configuration() {
        let text = configured(DEFAULT, "demo-1", "/sockway-demo-1", [18081, 18082]).unwrap();
        assert!(text.contains("instance: demo-1 "), "{text}");
        assert!(text.contains("- path: /sockway-demo-1 "), "{text}");
        assert!(text.contains(
            "\"127.66.0.10:80\", protocol: tcp, mode: kernel, endpoints: [127.0.0.1:18081, 127.0.0.1:18082]"
        ));
    }

    #[test]
    fn the_run_time_file_of_an_earlier_agent_is_not_taken() {
        let text = r#"{"pid": 7, "admin": "127.0.0.1:4000"}"#;
        assert_eq!(admin_of(text, 7), Some("127.0.0.1:4000".parse().unwrap()));
        assert_eq!(admin_of(text, 8), None);
        assert_eq!(admin_of("{\"pid\"", 7), None);
    }

    #[test]
    fn metrics_are_summed_over_the_lines_that_have_the_labels() {
        let metrics =
            Metrics("# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"4\"} 4\nab{x=\"1\"} 100\nc 5\nd 0\n".to_owned());
        assert_eq!(metrics.sum("a", &[("x", "1")]), 7.0);
        assert_eq!(metrics.sum("a", &[("y", "2")]), 3.0);
        assert_eq!(metrics.sum("c", &[]), 5.0);
        assert_eq!(metrics.nonzero(&["c", "d"]), ["c 5"]);
    }
}
