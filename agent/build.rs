//! Finds the kernel half's object, which the agent carries inside itself, and tells the crate where it is:
//! `cfg(sockway_ebpf)` and, with it, the environment variable `SOCKWAY_EBPF_OBJECT` for `include_bytes!(env!(..))`.
//!
//! The object is `target/ebpf/sockway.o`, put there by `cargo xtask build-ebpf`; the variable `SOCKWAY_EBPF_OBJECT` names another one.
//! Without an object the crate builds all the same, so that plain `cargo check`, `test` and `clippy` need no second compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "SOCKWAY_EBPF_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sockway_ebpf)");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let named = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let object = workspace().join(named.as_ref().map_or(Path::new("target/ebpf/sockway.o"), Path::new));
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        println!("cargo::rustc-cfg=sockway_ebpf");
        println!("cargo::rustc-env={VARIABLE}={}", object.display());
    } else if named.is_some() {
        println!("cargo::error={VARIABLE} names {}, which is not a file", object.display());
    } else {
        watch_for(&object);
    }
}

/// Runs this script again when the object appears. Cargo takes a missing file for a changed one, and would build the crate anew each time:
/// so it is the folder that is watched, and made if need be.
fn watch_for(object: &Path) {
    let folder = object.parent().expect("the object is in a folder");
    if fs::create_dir_all(folder).is_ok() {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn workspace() -> PathBuf {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets the package's folder"));
    package.parent().expect("the package is in the workspace").to_path_buf()
}
