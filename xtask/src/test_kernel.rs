//! `cargo xtask test-kernel`: boots a kernel of Debian's in an emulated machine and runs the tests there.
//!
//! The package is downloaded and unpacked, not installed ([`kernel`]); what the tests need is packed into an archive from which the kernel
//! boots ([`image`], [`archive`]); qemu runs it without the host's help ([`machine`]), so that it works in a virtual machine, too; this
//! program is process 1 there ([`guest`]) and tells on a serial port how it goes ([`report`]).

mod archive;
mod build;
pub mod guest;
mod image;
mod kernel;
mod machine;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use self::{
    guest::{Plan, UNAVAILABLE},
    kernel::Wanted,
    machine::Machine,
    report::{Report, Verdict},
};
use crate::{
    progress::{say, seconds},
    setup::{Group, ready},
    workspace::cargo_target,
};

/// How much slower than the deadlines of the tests assume an emulated processor is, on a machine that has other work, too.
const PATIENCE: u32 = 8;

/// How much of the kernel's log is shown when the machine did not reach its end.
const CONSOLE_LINES: usize = 40;

/// What `--help` says.
pub const LONG: &str = "\
Boots a kernel of Debian's in qemu (software emulation: no /dev/kvm, no root) with the agent and the test programs, runs `sockway doctor` and
then every test there, one at a time, and switches the machine off. The kernel is downloaded by apt from the mirror this host is configured
for, unpacked below target/kernels and not installed; the guest has no network and no disk.

Exit code: 0 every test passed; 69 the kernel lacks something without which the agent cannot work, and the agent says so by name; 1 a test
failed, the guest's kernel panicked, or the time was over. The kernel's log is target/test-kernel/RELEASE.log,
and what the guest said RELEASE.out beside it.

  cargo xtask test-kernel --kernel 6.1                   the latest 6.1: Debian 12
  cargo xtask test-kernel --kernel newest                the newest that Debian offers, in any suite
  cargo xtask test-kernel --kernel 6.12 --test capture   one test program; `agent` is its unit tests of kernel and ring
  cargo xtask test-kernel --list                         what there is";

/// The options of `test-kernel`.
#[derive(clap::Args)]
pub struct Args {
    /// Which kernel: a version (6.1, 6.12.107) or `newest`
    #[arg(long, value_name = "VERSION", value_parser = Wanted::read, required_unless_present = "list")]
    kernel: Option<Wanted>,
    /// Only this test program; may be given more than once
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Test this agent, and build none
    #[arg(long, value_name = "FILE", conflicts_with = "debug")]
    agent: Option<PathBuf>,
    /// Test the agent without optimisation: built sooner, and slower
    #[arg(long)]
    debug: bool,
    /// When the machine is taken away
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// The guest's memory in MiB, its file system included
    #[arg(long, value_name = "MIB", default_value_t = 3072, value_parser = clap::value_parser!(u32).range(1024..))]
    memory: u32,
    /// Further words of the kernel's command line, `lockdown=confidentiality` for example; may be given more than once
    #[arg(long, value_name = "WORD")]
    boot: Vec<String>,
    /// The guest's clock counts instructions, not the host's seconds: no deadline is missed because the host is busy. It has one processor
    #[arg(long)]
    own_time: bool,
    /// Say which kernels Debian offers, and do nothing
    #[arg(long)]
    list: bool,
}

/// Sets up, builds, boots, judges.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        bail!("test-kernel emulates x86-64 with the programs of this host, which is something else");
    }
    let Some(wanted) = args.kernel.as_ref().filter(|_| !args.list) else {
        kernel::offered()?.iter().for_each(|package| println!("{package}"));
        return Ok(ExitCode::SUCCESS);
    };
    ready(&[Group::Test, Group::Kernels])?;
    let kernel = kernel::ready(wanted)?;
    let mut built = build::run(args.debug, args.agent.as_deref(), &args.test)?;
    let names: Vec<&str> = built.tests.keys().map(String::as_str).collect();
    if let Some(unknown) = args.test.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no test program `{unknown}`; there are {}", names.join(", "));
    }
    if !args.test.is_empty() {
        // What is not run is not packed: the guest's kernel unpacks it at boot, and its memory holds it.
        built.tests.retain(|name, _| args.test.contains(name));
    }
    let tests = built.tests.keys().cloned().collect();
    let plan = Plan { tests, named: !args.test.is_empty(), filter: args.filter.clone(), patience: PATIENCE };
    let initrd = image::write(&kernel, &built, &plan)?;
    let file = |kind: &str| cargo_target().join("test-kernel").join(format!("{}.{kind}", kernel.package.release));
    let (console, transcript) = (file("log"), file("out"));
    let begun = Instant::now();
    let time_max = Duration::from_secs(args.minutes * 60);
    say(format!("booting {} in qemu; the kernel's log is {}", kernel.package, console.display()));
    let machine = Machine {
        kernel: &kernel,
        initrd: &initrd,
        console: &console,
        transcript: &transcript,
        words: &args.boot,
        own_time: args.own_time,
        memory_mib: args.memory,
        time_max,
    };
    let report = machine.run();
    show_trouble(&console, report.as_ref().is_ok_and(Report::is_over));
    let report = report?;
    say(format!("{report}, in {}", seconds(begun.elapsed())));
    Ok(match report.verdict() {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Unavailable => ExitCode::from(UNAVAILABLE as u8),
        Verdict::Failed => ExitCode::FAILURE,
    })
}

/// What the guest's kernel complained about; the end of its log when it did not live to the end.
fn show_trouble(console: &Path, over: bool) {
    let log = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).replace('\r', "");
    let trouble = report::trouble(&log);
    if !trouble.is_empty() {
        say(format!("the guest's kernel complained {} times:\n  {}", trouble.len(), trouble.join("\n  ")));
    }
    if !over {
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        say(format!("the guest did not get to its end; its kernel's last words:\n  {}", end.join("\n  ")));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Args;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn read(words: &[&str]) -> Result<Args, String> {
        let line = Line::try_parse_from([&["test-kernel"], words].concat());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kernel_must_be_named_unless_the_list_is_asked_for() {
        assert!(read(&[]).err().unwrap().contains("--kernel"));
        assert!(read(&["--list"]).unwrap().list);
        assert!(read(&["--kernel", "six"]).err().unwrap().contains("newest"));
        assert!(read(&["--kernel", "6.1", "--flag"]).err().unwrap().contains("--flag"));
        assert_eq!(read(&["--kernel", "6.1", "--test", "a", "--test", "b"]).unwrap().test, ["a", "b"]);
    }
}
