//! The kernel half's compiler: a Rust compiler that takes unstable flags, with the source of `core` of its own version.
//!
//! Two kinds will do: rustup's nightly with `rust-src`, and Debian's `rustc-web` with `rust-web-src`. What is there is taken; if neither
//! is, Debian's is installed where apt has it, else rustup's.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    progress::{logged, say},
    setup::{linker, packages},
    workspace::find_program,
};

/// Debian's packages: compiler, cargo, and the source of the compiler's own library.
const DEBIAN: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";

/// A compiler of the kernel half, and its linker.
#[derive(Debug)]
pub struct Compiler {
    found: Found,
    /// Where its bpf-linker is.
    linker: PathBuf,
}

/// A compiler that has the source of its library.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    kind: Kind,
    release: String,
    llvm: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// rustup's toolchain `nightly`.
    Nightly,
    /// `/usr/bin/rustc`, told by `RUSTC_BOOTSTRAP` to take unstable flags.
    System,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.found.kind {
            Kind::Nightly => "rustup's nightly",
            Kind::System => SYSTEM_RUSTC,
        };
        write!(f, "{kind} ({}, LLVM {})", self.found.release, self.found.llvm)
    }
}

impl Compiler {
    /// This compiler's cargo, to be run in `ebpf/`.
    pub fn cargo(&self) -> Command {
        let mut command = match self.found.kind {
            Kind::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                rustup
            }
            Kind::System => {
                let mut cargo = Command::new(SYSTEM_CARGO);
                cargo.env("RUSTC", SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        // What the outer cargo and its user set is meant for the other compiler.
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "RUSTC_WRAPPER",
            "LD_LIBRARY_PATH",
        ] {
            command.env_remove(name);
        }
        let mut path = vec![self.linker.clone()];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        command.env("PATH", env::join_paths(path).unwrap_or_default());
        command
    }
}

/// The stable cargo that runs us, or the one on the `PATH`.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// What the agent's compiler says of itself.
#[derive(Debug)]
pub struct Told {
    /// Its release, commit and date.
    pub version: String,
    /// What it builds for unless told otherwise.
    pub host: String,
    /// The major version of its LLVM.
    pub llvm: u32,
    /// Where it has its libraries.
    pub sysroot: PathBuf,
}

/// Asks the agent's compiler.
pub fn told() -> Result<Told> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask = |arguments: &[&str]| {
        let output =
            Command::new(&rustc).args(arguments).stdin(Stdio::null()).output().context("cannot start rustc")?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = ask(&["-vV"])?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(Told {
        version: text.lines().next().unwrap_or_default().to_owned(),
        host: host.context("rustc does not say what it builds for")?.to_owned(),
        llvm: parse_version(&text).context("rustc does not say which LLVM it has")?.1,
        sysroot: ask(&["--print", "sysroot"])?.trim().into(),
    })
}

/// The compiler to use, installed with its linker if need be.
pub fn ready() -> Result<Compiler> {
    let mut found = candidates();
    if found.is_empty() {
        install_compiler()?;
        found = candidates();
    }
    if found.is_empty() {
        bail!(
            "no compiler for the kernel half: install rustup's nightly (`rustup toolchain install nightly --component rust-src`) \
             or Debian's {}",
            DEBIAN.join(" ")
        );
    }
    with_linker(&found)
}

fn with_linker(found: &[Found]) -> Result<Compiler> {
    let take = |found: &Found| Compiler { found: found.clone(), linker: linker::folder(found.llvm) };
    if let Some(found) = found.iter().find(|found| linker::is_ready(found.llvm)) {
        return Ok(take(found));
    }
    if let Some(found) = found.iter().find(|found| linker::can_build(found.llvm)) {
        linker::build(found.llvm)?;
        return Ok(take(found));
    }
    for found in found.iter().filter(|found| linker::LLVM.contains(&found.llvm)) {
        if packages::is_known(&linker::llvm_package(found.llvm))? {
            linker::install_llvm(found.llvm)?;
            linker::build(found.llvm)?;
            return Ok(take(found));
        }
    }
    if let (Some(linker), Some(found)) = (linker::on_path(), found.first()) {
        return Ok(Compiler { found: found.clone(), linker });
    }
    let versions: Vec<String> = found.iter().map(|found| linker::llvm_package(found.llvm)).collect();
    bail!(
        "no bpf-linker for the kernel half: apt has no {}; put bpf-linker 0.13 or newer, built for that LLVM, on the PATH \
         (its project publishes binaries)",
        versions.join(" nor ")
    )
}

fn candidates() -> Vec<Found> {
    [nightly(), system()].into_iter().flatten().collect()
}

fn nightly() -> Option<Found> {
    let installed = Command::new("rustup").args(["toolchain", "list"]).stdin(Stdio::null()).output().ok()?;
    let installed = String::from_utf8_lossy(&installed.stdout).lines().any(|line| line.starts_with("nightly-"));
    let rustc = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "rustc"]);
        command
    };
    if installed { look_at(Kind::Nightly, rustc) } else { None }
}

fn system() -> Option<Found> {
    let there = Path::new(SYSTEM_RUSTC).is_file() && Path::new(SYSTEM_CARGO).is_file();
    if there { look_at(Kind::System, || Command::new(SYSTEM_RUSTC)) } else { None }
}

/// A compiler counts only with the source of its own library: `core` of another version does not build.
fn look_at(kind: Kind, rustc: impl Fn() -> Command) -> Option<Found> {
    let ask = |arguments: &[&str]| {
        let mut command = rustc();
        // The library path of the toolchain that runs us is not this compiler's.
        command.args(arguments).env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.is_file() {
        return None;
    }
    let (release, llvm) = parse_version(&ask(&["-vV"])?)?;
    let known = linker::LLVM.contains(&llvm) || linker::on_path().is_some();
    known.then_some(Found { kind, release, llvm })
}

/// Release and LLVM major from `rustc -vV`.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?.to_owned(), llvm))
}

fn install_compiler() -> Result<()> {
    say(
        "the kernel half needs a Rust compiler that takes unstable flags, and the source of its library; there is none yet",
    );
    match install_debians() {
        Ok(true) => return Ok(()),
        Ok(false) => say("apt has no compiler that will do: trying rustup's nightly"),
        Err(error) => say(format!("Debian's compiler could not be installed, trying rustup's nightly: {error:#}")),
    }
    if find_program("rustup").is_none() {
        bail!("there is no rustup either: install it (https://rustup.rs), or Debian's {}", DEBIAN.join(" "));
    }
    let arguments = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    say(format!("running rustup {}", arguments.join(" ")));
    logged("installing rustup's nightly", "nightly", Command::new("rustup").args(arguments))
        .context("cannot install rustup's nightly with rust-src")
}

/// Whether Debian's compiler is there now, and will do: an older release's has an LLVM that bpf-linker does not know.
fn install_debians() -> Result<bool> {
    if !packages::is_known(DEBIAN[0])? {
        return Ok(false);
    }
    packages::install(DEBIAN, "Debian has one that is kept current")?;
    Ok(system().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_llvm_are_read_from_the_compiler() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_version("rustc 1.96.0\n"), None);
    }
}
