//! Becoming root where a command needs it: what can be built is built before, as the user, so that no file of the tree ends up root's.

use std::{env, ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{progress::say, workspace};

/// Tells the re-run command that its user has set up and built already.
pub const PREPARED: &str = "SOCKWAY_XTASK_PREPARED";

/// Where Debian puts what only root needs; the `PATH` of a user, or of a root that came by plain `su`, leaves these out.
const ROOTS_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Starts this program again if its `PATH` lacks the folders of root's programs: everything it runs is found by name.
pub fn complete_path() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let missing: Vec<PathBuf> =
        ROOTS_FOLDERS.iter().map(PathBuf::from).filter(|folder| !folders.contains(folder)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let path = env::join_paths(folders.into_iter().chain(missing))?;
    let me = env::current_exe().context("cannot find this program's own file")?;
    Err(Command::new(me).args(env::args_os().skip(1)).env("PATH", path).exec()).context("cannot start again")
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process was started by [`elevate`], after setup and build.
pub fn is_prepared() -> bool {
    env::var_os(PREPARED).is_some()
}

/// Runs this same command again as root, unless it is root already. Returns only if it is.
pub fn elevate(why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    say(format!("{why}: running this command again with sudo (everything is built already)"));
    let me = env::current_exe().context("cannot find this program's own file")?;
    let error = as_root(&me)?.args(arguments).exec();
    Err(error).context("cannot start sudo")
}

/// A command that runs as root, through sudo if need be, in the environment that cargo and rustup need.
pub fn as_root(program: impl Into<OsString>) -> Result<Command> {
    let program = program.into();
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = workspace::find_program("sudo") else {
        bail!("this needs root, and there is no sudo: run it as root");
    };
    let mut command = Command::new(sudo);
    // sudo resets PATH and may reset HOME even with -E: without them neither cargo nor rustup's toolchains are found.
    command.args(["-E", "env"]).arg(format!("{PREPARED}=1"));
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR"] {
        if let Some(value) = env::var_os(name) {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
    }
    command.arg(program);
    Ok(command)
}
