//! Inside the guest: this same program is process 1. It mounts what Linux programs expect, brings up the loopback, and starts itself once
//! more to run `sockway doctor` and the tests; when that has ended, it switches the machine off.
//!
//! Everything is told on the second serial port: what the programs print, and lines of our own that begin with [`MARK`] (see `report.rs`).

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, mount},
    process::{Resource, Rlimit, WaitOptions, getpid, setrlimit, wait},
    system::{RebootCommand, reboot},
};

/// Where this program is in the guest.
pub const INIT: &str = "/init";
/// What is to be done, see [`Plan`].
pub const PLAN: &str = "/plan";
/// The tests look for the probe two folders above themselves, as cargo lays it out.
pub const BUILD_DEPS: &str = "/target/debug/deps";
/// The agent.
pub const AGENT: &str = "/target/debug/sockway";
/// The probe.
pub const PROBE: &str = "/target/debug/sockway-probe";
/// The agent of another layout, where a test takes over from it.
pub const NEXT: &str = "/target/next/debug/sockway";
/// The test that does.
pub const OF_NEXT: &str = "upgrade";

/// The agent's own unit tests, and which of them have to do with the kernel: the others say the same on every kernel, only later.
pub const UNIT_TESTS: &str = "agent";
const ROOMS_OF_THE_KERNEL: [&str; 4] = ["kernel::", "ring::", "accept::", "node::"];

/// Test programs that say nothing about the kernel, and whose peers would fill the guest's memory.
pub const OF_THE_AGENT_ALONE: &[&str] =
    &["clients", "conformance", "databases", "differential", "grpc_clients", "tunnels"];

/// The C program of the tests, which they compile where there is a compiler.
pub const WAYS: &str = "/target/debug/ways";

/// What a line of ours begins with.
pub const MARK: &str = "@guest ";

/// The second serial port: the first one is the kernel's console.
const REPORT: &str = "/dev/ttyS1";

/// What the agent answers when the host lacks something that it cannot do without (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: i32 = 69;

/// A test program that takes longer hangs: the slowest needs a few minutes on an emulated processor, and many times that where the host
/// has other work.
const PROGRAM_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// The hard limit that systemd gives: each connection through the agent takes two.
const DESCRIPTORS: u64 = 524_288;

/// A cgroup that nobody is in, and a configuration that captures it: with that the agent gets ready, or says why it cannot.
const NOBODY: &str = "/sys/fs/cgroup/nobody";
const CONFIG: &str =
    "instance: nobody\nadmin: { address: \"127.0.0.1:0\" }\ncapture: { cgroups: [ { path: /nobody } ] }\n";

/// What the guest is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Test programs, in order.
    pub tests: Vec<String>,
    /// Whether they were asked for by name.
    pub named: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// What deadlines of tests are multiplied with.
    pub patience: u32,
}

impl Plan {
    /// As text, a line for each thing.
    pub fn write(&self) -> String {
        let filter = self.filter.iter().map(|filter| format!("filter {filter}\n"));
        let tests = self.tests.iter().map(|test| format!("test {test}\n"));
        filter.chain(tests).chain([format!("named {}\npatience {}\n", self.named, self.patience)]).collect()
    }

    fn read(text: &str) -> Self {
        let mut plan = Self { patience: 1, ..Self::default() };
        for (word, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            match word {
                "filter" => plan.filter = Some(value.to_owned()),
                "test" => plan.tests.push(value.to_owned()),
                "named" => plan.named = value == "true",
                _ => plan.patience = value.parse().unwrap_or(1),
            }
        }
        plan
    }
}

/// Whether this program was started as the guest's.
pub fn is_here() -> bool {
    env::args_os().next().is_some_and(|name| name == INIT) && (getpid().is_init() || env::args_os().nth(1).is_some())
}

/// Process 1, or the process that it starts.
pub fn main() -> ExitCode {
    if !getpid().is_init() {
        return match run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{MARK}error {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Err(error) = first() {
        println!("{MARK}error {error:#}");
    }
    rustix::fs::sync();
    // Returns only when the machine cannot be switched off; then the end of process 1 is a panic, which ends it, too.
    let _ = reboot(RebootCommand::PowerOff);
    ExitCode::FAILURE
}

/// Prepares the machine, then buries whoever dies until the runner has.
fn first() -> Result<()> {
    mount_all()?;
    let all = Some(DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: all }).context("the limit of descriptors")?;
    let report = File::options().write(true).open(REPORT).with_context(|| format!("cannot open {REPORT}"))?;
    let mut runner = Command::new(INIT);
    runner.arg("run").env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    runner.envs([("HOME", "/root"), ("LANG", "C.UTF-8")]);
    let runner = runner.stdout(report.try_clone()?).stderr(report).spawn().context("cannot start the runner")?;
    let runner = rustix::process::Pid::from_child(&runner);
    // Whatever a test leaves behind becomes a child of process 1.
    while let Some((pid, _)) = wait(WaitOptions::empty()).context("waiting for the runner")? {
        if pid == runner {
            break;
        }
    }
    Ok(())
}

fn mount_all() -> Result<()> {
    let mounts = [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/dev/shm"),
        ("devpts", "/dev/pts"),
    ];
    for (kind, at) in mounts {
        fs::create_dir_all(at)?;
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("mounting {kind} at {at}"))?;
    }
    Ok(())
}

/// Doctor, then the tests; on a kernel that the agent cannot work on, how it says so.
fn run() -> Result<()> {
    let plan = Plan::read(&fs::read_to_string(PLAN).context("no plan")?);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("{MARK}kernel {}", release.trim());
    must(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    fs::create_dir(NOBODY)?;
    let config = Path::new("/run/nobody.yaml");
    fs::write(config, CONFIG)?;
    let mut doctor = Command::new(AGENT);
    // What its verifier looks at, each kernel has its own of.
    doctor.args(["doctor", "--config"]).arg(config).env("RUST_LOG", "sockway::kernel::load=debug");
    let unavailable = step("doctor", &mut doctor)? == Some(UNAVAILABLE);
    if unavailable {
        let mut agent = Command::new(AGENT);
        agent.args(["run", "--config"]).arg(config);
        step("refusal", &mut agent)?;
    }
    // A test that was asked for by name may say something about a kernel on which the agent cannot work.
    let tests = plan.tests.iter().filter(|_| plan.named || !unavailable);
    for name in tests {
        step(name, &mut test(name, &plan))?;
    }
    println!("{MARK}over");
    Ok(io::stdout().flush()?)
}

fn test(name: &str, plan: &Plan) -> Command {
    let mut command = Command::new(Path::new(BUILD_DEPS).join(name));
    // One at a time: a hang has a name, and what an emulated processor does slowly is not made slower. Why one failed is told at once:
    // the machine may be taken away before its program has ended.
    command.args(["--test-threads", "1", "--color", "never", "--nocapture"]);
    match &plan.filter {
        Some(filter) => drop(command.arg(filter)),
        None if name == UNIT_TESTS => drop(command.args(ROOMS_OF_THE_KERNEL)),
        None => {}
    }
    command
        .env("SOCKWAY_BIN", AGENT)
        .env("SOCKWAY_NEXT_BIN", NEXT)
        .env("SOCKWAY_TEST_WAYS", WAYS)
        .env("SOCKWAY_TEST_PATIENCE", plan.patience.to_string());
    command
}

/// Runs a program to its end and says how it ended; none when it had to be killed.
fn step(name: &str, command: &mut Command) -> Result<Option<i32>> {
    println!("{MARK}begin {name}");
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > PROGRAM_TIME_MAX {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(50));
    };
    println!("\n{MARK}end {name} {} {}", told(status), begun.elapsed().as_secs());
    Ok(status.and_then(|status| status.code()))
}

/// An exit code, a signal or `timeout`, in one word.
fn told(status: Option<ExitStatus>) -> String {
    match status {
        None => "timeout".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => code.to_string(),
            (None, signal) => format!("signal-{}", signal.unwrap_or(0)),
        },
    }
}

fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let plan = Plan {
            tests: vec!["capture".into(), "agent".into()],
            filter: Some("the_agent".into()),
            named: true,
            patience: 8,
        };
        assert_eq!(Plan::read(&plan.write()), plan);
    }

    #[test]
    fn nobody_outside_takes_this_program_for_process_1() {
        assert!(!is_here());
    }
}
