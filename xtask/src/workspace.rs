//! Where things are: the repository, cargo's output, what setup built.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The repository's root.
pub fn root() -> PathBuf {
    // Fixed when xtask was compiled: cargo sets the variable to xtask/, and xtask is always run from the tree that built it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ is in the repository").to_path_buf()
}

/// What setup makes and keeps: tools, logs, the kernel half's object.
pub fn kept() -> PathBuf {
    root().join("target")
}

/// Where cargo puts what it builds.
pub fn cargo_target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The agent as it is shipped: release build, the kernel half's object inside.
pub fn agent_binary() -> PathBuf {
    cargo_target().join("release/sockway")
}

/// The kernel half's object, where `agent/build.rs` looks for it.
pub fn ebpf_object() -> PathBuf {
    kept().join("ebpf/sockway.o")
}

/// The program of this name on the `PATH`, or where Debian puts what only root needs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}
