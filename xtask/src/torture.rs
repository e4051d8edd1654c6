//! `cargo xtask torture`: the correctness suite of every path, on the running kernel. Builds the agent and the two programs that check
//! every byte and every end (`sockway-probe`), then runs them as root in cgroups and namespaces of their own, which they take away.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, locked},
    progress::streamed,
    root,
    setup::{Group, compiler::cargo, ready},
    workspace,
};

/// What to do to the running kernel.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// How many transfers, shared evenly among the fields
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    transfers: u64,
    /// Repeat the plans of the run that printed this; a fresh one otherwise
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// On the field `killed`, go on until the agent was killed so often, however many transfers that are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    kills: Option<u64>,
    /// Only this field; may be given more than once
    #[arg(long = "field", value_name = "NAME")]
    fields: Vec<String>,
    /// The number of the first transfer of each field: with --transfers 1, the one that failed, alone
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    first: u64,
    /// Write a JSON object a field
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Torture this build of the agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

const HELP: &str = "\
Two programs exchange bytes over TCP connections in every way a program can: blocking and not, by poll, epoll level- and
edge-triggered; send, writev, sendfile, splice; recv, MSG_PEEK, MSG_WAITALL, splice; in pieces of one byte to 256 KiB, one byte
to 8 MiB each way; readers that are late, slow or pause; half-closes in either order, closes right behind the last byte, resets.
Every byte is a function of its place, and is checked; so is every end. The agent and its kernel half stand between, and the
connections take every path that they have:

Fields:
  shortcut  shortcut on, one namespace: three in four balanced in the kernel, one through the agent
  ipv6      the same over IPv6
  pods      shortcut on, between two namespaces, balanced in the kernel
  relay     opaque TCP through the agent, shortcut off
  joined    opaque TCP through the agent, shortcut on: past the agent once it has nothing more to pass on
  joined-v6 the same over IPv6
  joined-ns the same between two namespaces
  killed    balanced in the kernel, shortcut on, while the agent is killed and started over and over, in mid-start too
  off       as `shortcut`, but with it off: what goes wrong here is not its doing

On another kernel: run it there, as root, on a machine with cgroup v2, BTF and bpffs (`sockway doctor` says what is missing). It
dials loopback addresses and namespaces of its own, captures cgroups of its own, and takes everything away. A line for each
field says how many transfers and bytes there were, wrong bytes, lost ends and hangs (transfers with that fault, as either side
saw it), messages that the shortcut redirected, and how often a direction fell back to TCP. If `shortcut` fails and `off` does
not, the fault is in the kernel's sockmap or in our use of it; if both fail, look at the machine first.

Exit codes: 0 all as planned; 1 a wrong byte, a lost end or a hang, told with seed, field and the transfer's number:

  cargo xtask torture --seed S --field NAME                             the same plans again, all of them
  cargo xtask torture --seed S --field NAME --first NUMBER --transfers 1    that plan alone

A hang is a transfer that lives 45 s; the slowest plan takes less than one on an idle machine.";

/// Builds, becomes root, tortures.
pub fn run(args: Args) -> Result<ExitCode> {
    if !root::is_prepared() {
        ready(&[Group::Test])?;
        if args.agent.is_none() {
            build::release()?;
        }
        let mut build = Command::new(cargo());
        build.current_dir(workspace::root()).args(["build", "--profile", PROFILE, "--package", "sockway-tests"]);
        streamed("building the programs that check", build.args(["--bin", PROBE]).args(locked()))?;
    }
    root::elevate("torture captures connections and makes network namespaces")?;
    let agent = args.agent.unwrap_or_else(workspace::agent_binary);
    if !agent.is_file() {
        bail!("{} is no file; give --agent a build of sockway", agent.display());
    }
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
    let seed = args.seed.unwrap_or_else(fresh);
    let mut command = Command::new(workspace::cargo_target().join(PROFILE).join(PROBE));
    command.env("SOCKWAY_BIN", agent).arg("torture");
    command.args([seed, args.first, args.transfers].map(|number| number.to_string()));
    command.arg(args.kills.map_or("-".to_owned(), |kills| kills.to_string()));
    command.arg(args.json.unwrap_or_else(|| "-".into())).args(args.fields);
    let status = command.status().context("cannot start sockway-probe")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Optimised, and panics unwind: what was set up is taken away also when a check of the harness fails.
const PROFILE: &str = "torture";
const PROBE: &str = "sockway-probe";
