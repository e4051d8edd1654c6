//! Builds the kernel half's object, and the release binary that carries it. An object that older kernels would refuse ([`older`]) is not
//! published.

mod older;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    profile,
    progress::{say, streamed},
    setup::{
        Group,
        compiler::{Compiler, cargo},
        ready,
    },
    workspace::{ebpf_object, root},
};

/// For every compile of the kernel half. BTF needs debug info, which also puts Rust lines into the verifier's log;
/// v3 has the atomics that return a value (Linux 5.12). Expanding copies "in order" (bpf-linker's default) leaves moves and fills to
/// functions that take a byte at a time, each of which the verifier follows, and every `connect()` pays for.
const RUSTFLAGS: [&str; 4] =
    ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order", "-Ctarget-cpu=v3"];

/// What cargo makes of `ebpf/`, below its target folder.
const BUILT: &str = "ebpf/target/bpfel-unknown-none/release/sockway";

/// `cargo xtask build-ebpf`.
pub fn ebpf() -> Result<()> {
    let compiler = ready(&[Group::Build])?.context("no compiler for the kernel half")?;
    let mut command = compiler.cargo();
    command.current_dir(root().join("ebpf")).args(["build", "--release"]).args(locked());
    for_kernel(&mut command, &[]);
    streamed("building the kernel half", &mut command)?;
    publish(&root().join(BUILT), &ebpf_object())
}

/// The agent of tomorrow: the same with another layout of what lives with sockets, for the tests of taking over. It is built beside today's,
/// with which it has all but a few crates in common, and put below `target/next`; where it is.
pub fn next() -> Result<PathBuf> {
    let compiler = ready(&[Group::Build])?.context("no compiler for the kernel half")?;
    let mut command = compiler.cargo();
    command.current_dir(root().join("ebpf")).args(["build", "--release", "--features", "next-layout"]).args(locked());
    for_kernel(&mut command, &[]);
    streamed("building the kernel half of another layout", &mut command)?;
    let object = root().join("target/next/sockway.o");
    publish(&root().join(BUILT), &object)?;
    let mut command = Command::new(cargo());
    command.current_dir(root()).env("SOCKWAY_EBPF_OBJECT", object).args(locked());
    command.args(["build", "--workspace", "--bin", "sockway", "--features", "sockway/next-layout"]);
    // Cargo leaves the program where today's is, which is put back.
    let (built, next) = (root().join("target/debug/sockway"), root().join("target/next/debug/sockway"));
    fs::create_dir_all(next.parent().context("a program is in a folder")?)?;
    let kept = built.with_extension("kept");
    let is_kept = fs::rename(&built, &kept).is_ok();
    let result = streamed("building the agent of another layout", &mut command).and_then(|()| {
        fs::rename(&built, &next)
            .with_context(|| format!("cannot put the agent of another layout to {}", next.display()))
    });
    if is_kept {
        fs::rename(&kept, &built).with_context(|| format!("cannot put {} back", built.display()))?;
    }
    result.map(|()| next)
}

/// Compiles the kernel half with warnings denied, beside the real build so as not to disturb it.
pub fn ebpf_without_warnings(compiler: &Compiler) -> Result<()> {
    let mut command = compiler.cargo();
    command
        .current_dir(root().join("ebpf"))
        .args(["check", "--release", "--target-dir", "target/check"])
        .args(locked());
    for_kernel(&mut command, &["-Dwarnings"]);
    streamed("checking the kernel half", &mut command)
}

/// `cargo xtask build`: one file to ship.
pub fn release() -> Result<()> {
    ebpf()?;
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["build", "--release", "--package", "sockway"]).args(locked());
    command.args(profile::arguments()?);
    streamed("building the agent (release, link-time optimisation)", &mut command)
}

/// Where cargo must not change `Cargo.lock`: in CI, what is tested is what is committed.
pub fn locked() -> &'static [&'static str] {
    if env::var_os("CI").is_some() { &["--locked"] } else { &[] }
}

fn for_kernel(command: &mut Command, more: &[&str]) {
    let flags: Vec<OsString> = RUSTFLAGS.iter().chain(more).map(OsString::from).collect();
    command
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        // Cargo's own separator, so that no flag is split at a blank.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\x1f")));
}

/// Puts the object where the agent's build looks for it; the same object again is no change, or the agent would be linked anew.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let object = fs::read(from).with_context(|| format!("no object in {}", from.display()))?;
    older::check(&object)?;
    if fs::read(to).is_ok_and(|old| old == object) {
        return Ok(());
    }
    let folder = to.parent().context("the object is in a folder")?;
    fs::create_dir_all(folder)?;
    // Renamed into place: a build that runs meanwhile sees the old object or the new one.
    let fresh = folder.join("fresh.tmp");
    fs::write(&fresh, &object)?;
    fs::rename(&fresh, to).with_context(|| format!("cannot write {}", to.display()))?;
    say(format!("the kernel half's object is {} ({} KiB)", to.display(), object.len() / 1024));
    Ok(())
}
