//! bpf-linker, built for the LLVM of the compiler that feeds it: one that is older cannot read the compiler's bitcode.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    progress::{logged, say},
    setup::{compiler::cargo, packages, succeeds},
    workspace::{find_program, kept},
};

/// The version that knows LLVM 21 to 23, and that `aya-ebpf` 0.2 is linked with.
const VERSION: &str = "0.13.0";
/// LLVM versions that [`VERSION`] can be built for.
pub const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The folder of the linker for this LLVM. Its name is its stamp: another version or another LLVM is another folder.
pub fn folder(llvm: u32) -> PathBuf {
    kept().join(format!("tools/bpf-linker-{VERSION}-llvm-{llvm}/bin"))
}

/// Whether the linker for this LLVM is built, and still runs: the LLVM library it was linked with may have been upgraded away.
pub fn is_ready(llvm: u32) -> bool {
    let program = folder(llvm).join("bpf-linker");
    program.is_file() && succeeds(Command::new(program).arg("--version"))
}

/// Whether it can be built from what is installed.
pub fn can_build(llvm: u32) -> bool {
    LLVM.contains(&llvm) && llvm_prefix(llvm).join("bin/llvm-config").is_file()
}

/// Debian's package with the library of this LLVM.
pub fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// Installs the library of this LLVM.
pub fn install_llvm(llvm: u32) -> Result<()> {
    packages::install(&[&llvm_package(llvm)], &format!("bpf-linker is built with LLVM {llvm}, the compiler's"))
}

/// Builds the linker for this LLVM.
pub fn build(llvm: u32) -> Result<()> {
    let folder = folder(llvm);
    let home = folder.parent().expect("bin/ is in the linker's folder");
    say(format!(
        "bpf-linker {VERSION} for LLVM {llvm} links the kernel half: building it once into {}",
        home.display()
    ));
    let mut install = Command::new(cargo());
    install
        .args([
            "install",
            &format!("bpf-linker@{VERSION}"),
            "--locked",
            "--force",
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(home)
        .env("LLVM_PREFIX", llvm_prefix(llvm))
        // Not for a build of somebody else's program.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    logged("building bpf-linker (a minute or two)", "bpf-linker", &mut install).context("cannot build bpf-linker")
}

/// A linker that somebody put on the `PATH`.
pub fn on_path() -> Option<PathBuf> {
    let program = find_program("bpf-linker")?;
    let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output().ok()?;
    is_recent(&String::from_utf8_lossy(&output.stdout)).then(|| program.parent().map(Path::to_path_buf)).flatten()
}

fn is_recent(version: &str) -> bool {
    let mut numbers =
        version.trim().trim_start_matches("bpf-linker ").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (0, 13)
}

fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_linker_on_the_path_is_not_taken() {
        assert!(is_recent("bpf-linker 0.13.0\n"));
        assert!(is_recent("bpf-linker 0.14.1"));
        assert!(!is_recent("bpf-linker 0.9.15"));
        assert!(!is_recent("garbage"));
    }
}
