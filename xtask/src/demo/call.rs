//! Calls by unmodified programs, and what came of them.

use std::{
    collections::BTreeMap,
    fmt,
    os::unix::process::CommandExt,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    demo::{
        interrupt,
        stage::{Place, Stage},
    },
    setup::python,
};

const CLIENT: &str = include_str!("client.py");

/// A program that calls; nothing in it knows of Sockway.
#[derive(Clone, Copy, Debug)]
pub enum Caller {
    /// curl: a process for each call.
    Curl,
    /// Python's `http.client`, which also says whom its socket takes for its peer.
    Python,
}

/// A service of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name in the configuration.
    pub name: &'static str,
    /// What programs dial; nobody listens there.
    pub ip: &'static str,
}

/// Both services are dialled at this port.
pub const PORT: u16 = 80;
/// Connections are balanced in the kernel.
pub const L4: Service = Service { name: "hello-l4", ip: "127.66.0.10" };
/// Requests go through the agent.
pub const HTTP: Service = Service { name: "hello-http", ip: "127.66.0.20" };

/// What came of several calls.
#[derive(Debug, Default)]
pub struct Batch {
    /// How often each answer came.
    pub answers: BTreeMap<String, u32>,
    /// What the program said of each call that failed.
    pub failures: Vec<String>,
    slowest: Duration,
}

impl Batch {
    /// An error if a call failed.
    pub fn none_failed(&self) -> Result<()> {
        match self.failures.first() {
            None => Ok(()),
            Some(first) => Err(anyhow::anyhow!("{} calls failed; the first: {first}", self.failures.len())),
        }
    }

    /// An error unless these answers came, all of them and no other.
    pub fn came_from(&self, expected: &[&str]) -> Result<()> {
        self.none_failed()?;
        let came: Vec<&str> = self.answers.keys().map(String::as_str).collect();
        ensure!(came == expected, "expected answers of {expected:?}, had answers of {came:?}");
        Ok(())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers = self.answers.iter().map(|(answer, count)| format!("{count} × {answer}"));
        let failures = self.failures.first().map(|first| format!("{} FAILED: {first}", self.failures.len()));
        let parts: Vec<String> = answers.chain(failures).collect();
        write!(f, "{} (slowest {} ms)", parts.join(", "), self.slowest.as_millis())
    }
}

/// Calls a service several times, one call after the other.
pub fn call(stage: &Stage, place: Place, caller: Caller, service: Service, times: u32) -> Result<Batch> {
    let mut batch = Batch::default();
    for _ in 0..times {
        interrupt::check()?;
        let started = Instant::now();
        let output = command(stage, place, caller, service)
            .stdin(Stdio::null())
            .process_group(0)
            .output()
            .with_context(|| format!("cannot start {}", caller.name()))?;
        batch.slowest = batch.slowest.max(started.elapsed());
        match judge(&output, caller, service) {
            Ok(answer) => *batch.answers.entry(answer).or_default() += 1,
            Err(failure) => batch.failures.push(failure),
        }
    }
    Ok(batch)
}

fn command(stage: &Stage, place: Place, caller: Caller, service: Service) -> Command {
    match caller {
        Caller::Curl => {
            let mut command = stage.captured(place, "curl");
            command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5"]);
            command.arg(url(service));
            command
        }
        Caller::Python => {
            let mut command = stage.captured(place, &python().to_string_lossy());
            command.args(["-c", CLIENT, service.ip, &PORT.to_string()]);
            command
        }
    }
}

/// What a person would type.
pub fn url(service: Service) -> String {
    format!("http://{}/", service.ip)
}

fn judge(output: &Output, caller: Caller, service: Service) -> Result<String, String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // A traceback's last line is the error.
        return Err(said.trim().lines().last().unwrap_or("nothing was said").to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let answer = lines.next().unwrap_or_default().to_owned();
    let dialled = format!("{}:{PORT}", service.ip);
    match (caller, lines.next()) {
        (Caller::Python, Some(peer)) if peer != dialled => Err(format!("it dialled {dialled}, and its peer is {peer}")),
        (Caller::Python, None) => Err("it did not say who its peer is".to_owned()),
        _ => Ok(answer),
    }
}

impl Caller {
    /// As it stands in the demo's lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Python => "python3",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn output(code: i32, stdout: &str, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn a_peer_other_than_the_dialled_address_is_a_failure() {
        let judged = |text| judge(&output(0, text, ""), Caller::Python, L4);
        assert_eq!(judged("endpoint one\n127.66.0.10:80\n"), Ok("endpoint one".to_owned()));
        assert!(judged("endpoint one\n127.0.0.1:18081\n").is_err());
        assert!(judged("endpoint one\n").is_err());
    }

    #[test]
    fn a_failed_call_is_told_by_its_last_line() {
        let failure =
            judge(&output(1, "", "Traceback\n  File x\nConnectionRefusedError: refused\n"), Caller::Python, L4);
        assert_eq!(failure, Err("ConnectionRefusedError: refused".to_owned()));
    }

    #[test]
    fn an_unexpected_answer_or_a_missing_one_does_not_pass() {
        let batch = Batch { answers: [("one".to_owned(), 3)].into(), ..Batch::default() };
        assert!(batch.came_from(&["one"]).is_ok());
        assert!(batch.came_from(&["one", "two"]).is_err());
        assert!(batch.came_from(&[]).is_err());
    }
}
