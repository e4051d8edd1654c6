//! What goes into the guest, built: the agent, the probe, and every test program of the workspace that says something about the kernel.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::guest::{OF_NEXT, OF_THE_AGENT_ALONE, UNIT_TESTS};
use crate::{
    build::{self, locked},
    progress::{say, streamed},
    setup::compiler::cargo,
    workspace,
};

/// The programs, as cargo built them.
#[derive(Debug, PartialEq, Eq)]
pub struct Built {
    /// The agent, the kernel half inside.
    pub agent: PathBuf,
    /// `sockway-probe`.
    pub probe: PathBuf,
    /// The agent of another layout, where the tests that need one are among those to run.
    pub next: Option<PathBuf>,
    /// `tests/ways/ways.c`.
    pub ways: PathBuf,
    /// Test programs by name; the agent's own unit tests are `agent`.
    pub tests: BTreeMap<String, PathBuf>,
}

/// Builds; `debug` is an agent without optimisation, `agent` one that is there already, `only` the tests to run (all, where it is empty).
pub fn run(debug: bool, agent: Option<&Path>, only: &[String]) -> Result<Built> {
    let agent = if let Some(agent) = agent {
        agent.to_owned()
    } else if debug {
        build::ebpf()?;
        let mut command = Command::new(cargo());
        command.current_dir(workspace::root()).args(["build", "--package", "sockway"]).args(locked());
        streamed("building the agent (debug)", &mut command)?;
        workspace::cargo_target().join("debug/sockway")
    } else {
        build::release()?;
        workspace::agent_binary()
    };
    let needs_next = only.is_empty() || only.iter().any(|name| name == OF_NEXT);
    let next = if needs_next { Some(build::next()?) } else { None };
    say("building the tests …");
    let mut command = Command::new(cargo());
    command.current_dir(workspace::root()).args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
    command.args(["--package", "sockway-tests", "--package", "sockway", "--lib", "--bins", "--tests"]).args(locked());
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("building the tests failed ({})", output.status);
    }
    let (tests, probe) = programs(&String::from_utf8(output.stdout)?);
    let probe = probe.context("cargo built no sockway-probe")?;
    let ways = workspace::cargo_target().join("test-kernel/ways");
    fs::create_dir_all(ways.parent().context("a file is in a folder")?)?;
    let mut command = Command::new("cc");
    command.arg("-O1").arg("-o").arg(&ways).arg(workspace::root().join("tests/ways/ways.c"));
    streamed("compiling tests/ways/ways.c", &mut command)?;
    Ok(Built { agent, probe, next, ways, tests })
}

/// Reads cargo's messages: the test programs by name, and the probe.
fn programs(messages: &str) -> (BTreeMap<String, PathBuf>, Option<PathBuf>) {
    let (mut tests, mut probe) = (BTreeMap::new(), None);
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(path) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let (name, kind) = (message["target"]["name"].as_str(), message["target"]["kind"][0].as_str());
        match (name, kind, message["profile"]["test"].as_bool()) {
            (Some("sockway-probe"), Some("bin"), Some(false)) => probe = Some(path),
            (Some("sockway"), Some("lib"), Some(true)) => drop(tests.insert(UNIT_TESTS.to_owned(), path)),
            (Some(name), Some("test"), Some(true)) if OF_THE_AGENT_ALONE.contains(&name) => {}
            (Some(name), Some("test"), Some(true)) => drop(tests.insert(name.to_owned(), path)),
            _ => {}
        }
    }
    (tests, probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_and_the_probe_are_told_from_the_rest() {
        let line = |name: &str, kind: &str, test: bool| {
            format!(
                r#"{{"target":{{"name":"{name}","kind":["{kind}"]}},"profile":{{"test":{test}}},"executable":"/b/{name}-{kind}"}}"#
            )
        };
        let messages = [
            line("capture", "test", true),
            line("databases", "test", true),
            line("sockway", "lib", true),
            line("sockway", "bin", true),
            line("sockway_tests", "lib", true),
            line("sockway-probe", "bin", false),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let (tests, probe) = programs(&messages.join("\n"));
        assert_eq!(tests.into_keys().collect::<Vec<_>>(), ["agent", "capture"]);
        assert_eq!(probe, Some("/b/sockway-probe-bin".into()));
    }
}
