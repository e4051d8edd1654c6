//! `cargo xtask profile`: shows the compiler where the agent spends its time (profile-guided optimisation). An agent that counts what it
//! executes goes through the scenarios of `bench`; the counts, [`COUNTS`], are what `cargo xtask build` hands to the optimiser from then on.
//!
//! Counts go by the names of functions, in which the compiler's release and every dependency have a part: counts of others say nothing.
//! So [`MADE_WITH`] says what they were made with, and a build with anything else goes without them, and says so. A function that was
//! changed since is left out by the compiler itself.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, locked},
    progress::{say, streamed},
    root::{self, as_root},
    setup::{
        Group,
        compiler::{self, Told, cargo},
        packages, ready,
    },
    workspace::{find_program, kept, root},
};

/// How often what was executed, below the repository's root.
const COUNTS: &str = "agent/profile/agent.profdata";
/// With which compiler and which dependencies that was counted.
const MADE_WITH: &str = "agent/profile/made-with";

/// What the counting agent goes through: every protocol that `bench` measures through the agent.
const SCENARIOS: [&str; 7] = ["l7-h1", "l7-h1-64k", "l7-h1-conns", "l7-h2", "grpc", "policies", "tcp"];
const WAYS: [&str; 4] = ["sockway", "sockway+shortcut", "sockway+policies", "sockway+joined"];
/// Of each way. Counts of a second differ from counts of a minute by a factor alone.
const SECONDS: &str = "3";

/// Counts anew.
pub fn run() -> Result<()> {
    ready(&[Group::Build, Group::Bench])?;
    let told = compiler::told()?;
    let merger = merger(&told)?;
    let made_with = made_with(&told)?;
    build::ebpf()?;
    let folder = kept().join("profile");
    let raw = folder.join("raw");
    let mut build = Command::new(cargo());
    build.current_dir(root()).args(["build", "--release", "--package", "sockway"]).args(locked());
    build.args(rustflags(&[&format!("-Cprofile-generate={}", raw.display())])).arg("--target-dir").arg(&folder);
    // Build scripts count as well, and nobody wants to know.
    build.env("LLVM_PROFILE_FILE", "/dev/null");
    streamed("building the agent that counts what it executes", &mut build)?;
    clear(&raw)?;
    let mut bench = as_root(std::env::current_exe().context("cannot find this program's own file")?)?;
    bench.arg("bench").args(SCENARIOS).args(["--rounds", "1", "--seconds", SECONDS, "--agent"]);
    bench.arg(folder.join("release/sockway")).arg("--way").args(WAYS).env(root::PREPARED, "1");
    streamed("sending load through it", &mut bench)?;
    let (counts, fresh) = (root().join(COUNTS), folder.join("agent.profdata"));
    let mut merge = Command::new(merger);
    merge.args(["merge", "--sparse", "--output"]).arg(&fresh).arg(&raw);
    streamed("adding the counts up", &mut merge)?;
    fs::create_dir_all(counts.parent().context("the counts are in a folder")?)?;
    fs::copy(&fresh, &counts).with_context(|| format!("cannot write {}", counts.display()))?;
    fs::write(root().join(MADE_WITH), made_with)?;
    say(format!("{COUNTS} is new; `cargo xtask build` uses it from now on"));
    Ok(())
}

/// What cargo is told of the counts when it builds what is shipped; nothing where they do not fit, which is said.
pub fn arguments() -> Result<Vec<OsString>> {
    let Ok(counts) = fs::read(root().join(COUNTS)) else { return Ok(Vec::new()) };
    let then = fs::read_to_string(root().join(MADE_WITH)).unwrap_or_default();
    let now = made_with(&compiler::told()?)?;
    if then != now {
        say(format!(
            "{COUNTS} was counted with other {}: this build goes without it, and will be some percent slower; \
             `cargo xtask profile` counts anew",
            difference(&then, &now)
        ));
        return Ok(Vec::new());
    }
    // Cargo knows the flag and not the file: other counts must be another flag, or nothing would be built anew.
    let mut hasher = DefaultHasher::new();
    counts.hash(&mut hasher);
    let copy = kept().join(format!("profile/{:016x}.profdata", hasher.finish()));
    fs::create_dir_all(copy.parent().context("the counts are in a folder")?)?;
    fs::write(&copy, counts).with_context(|| format!("cannot write {}", copy.display()))?;
    // Without a line for each function that was changed since.
    Ok(rustflags(&[&format!("-Cprofile-use={}", copy.display()), "-Cllvm-args=-no-pgo-warn-mismatch"]).to_vec())
}

/// As a setting of cargo's, which gives way to flags that somebody sets in the environment.
fn rustflags(flags: &[&str]) -> [OsString; 2] {
    // JSON's strings are TOML's, too.
    ["--config".into(), format!("build.rustflags={}", serde_json::json!(flags)).into()]
}

/// What has a part in the names of functions.
fn made_with(told: &Told) -> Result<String> {
    let mut tree = Command::new(cargo());
    tree.current_dir(root()).args(["tree", "--package", "sockway", "--edges", "normal,build", "--prefix", "none"]);
    let output = tree.args(["--format", "{p} {f}"]).args(locked()).output().context("cannot start cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut hasher = DefaultHasher::new();
    dependencies(&String::from_utf8_lossy(&output.stdout)).hash(&mut hasher);
    Ok(format!("{}\n{}\ndependencies {:016x}\n", told.version, told.host, hasher.finish()))
}

/// Each package with its version and features once, wherever the repository is.
fn dependencies(tree: &str) -> BTreeSet<String> {
    // What stands in parentheses is where it is, that it is a macro, or that it was named before.
    let behind = |part: &'_ str| part.split_once(')').map_or("", |(_, rest)| rest).to_owned();
    let plain = |line: &str| {
        let mut parts = line.split('(');
        let first = parts.next().unwrap_or_default().to_owned();
        let whole = parts.fold(first, |whole, part| whole + &behind(part));
        whole.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    tree.lines().map(plain).filter(|line| !line.is_empty()).collect()
}

/// What of it is another.
fn difference(then: &str, now: &str) -> &'static str {
    match then.lines().zip(now.lines()).position(|(then, now)| then != now) {
        Some(0 | 1) => "compilers",
        _ => "dependencies",
    }
}

/// The program that adds counts up: rustup's, or Debian's of the same LLVM.
fn merger(told: &Told) -> Result<PathBuf> {
    let rustups = told.sysroot.join("lib/rustlib").join(&told.host).join("bin/llvm-profdata");
    if rustups.is_file() {
        return Ok(rustups);
    }
    let (name, package) = (format!("llvm-profdata-{}", told.llvm), format!("llvm-{}", told.llvm));
    if find_program(&name).is_none() && packages::is_known(&package)? {
        packages::install(&[&package], &format!("{name} not found, which adds counts up"))?;
    }
    find_program(&name).with_context(|| format!("no {name}: run `rustup component add llvm-tools`"))
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_repository_is_and_how_often_a_package_is_named_makes_no_difference() {
        let here = dependencies(
            "sockway v0.1.0 (/here/agent) default\nserde v1.0.1 derive,std (*)\nserde_derive v1.0.1 (proc-macro) \n",
        );
        let there = dependencies(
            "serde_derive v1.0.1 (proc-macro) \nsockway v0.1.0 (/over there/agent) default\nserde v1.0.1 derive,std\nserde v1.0.1 derive,std (*)\n",
        );
        assert_eq!(here, there);
        assert_ne!(here, dependencies("sockway v0.1.0 (/here/agent) default\nserde v1.0.2 derive,std\n"));
    }

    #[test]
    fn what_is_another_is_named() {
        let made_with = "rustc 1.95.0\nx86_64-unknown-linux-gnu\ndependencies 1\n";
        assert_eq!(difference(made_with, "rustc 1.96.0\nx86_64-unknown-linux-gnu\ndependencies 1\n"), "compilers");
        assert_eq!(difference(made_with, "rustc 1.95.0\naarch64-unknown-linux-gnu\ndependencies 1\n"), "compilers");
        assert_eq!(difference(made_with, "rustc 1.95.0\nx86_64-unknown-linux-gnu\ndependencies 2\n"), "dependencies");
        assert_eq!(difference("", made_with), "dependencies");
    }

    #[test]
    fn a_folder_with_blanks_and_quotes_is_one_flag() {
        let [_, setting] = rustflags(&["-Cprofile-use=/a \"b\"/c"]);
        assert_eq!(setting, r#"build.rustflags=["-Cprofile-use=/a \"b\"/c"]"#);
    }
}
