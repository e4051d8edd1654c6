//! Packages of npm for the tests, below `target/tools/npm`. Without them their tests say that they are skipped.

use std::process::Command;

use anyhow::Result;

use crate::{
    progress::{logged, say},
    workspace::kept,
};

/// What is installed, each in one version.
const PACKAGES: &[(&str, &str)] = &[("@grpc/grpc-js", "1.14.7"), ("wscat", "6.1.0")];

/// Installs what is missing; what cannot be had is said.
pub fn ready() {
    let home = kept().join("tools/npm");
    // The name is the stamp: another version is installed anew.
    let is_there = |(name, version): &(&str, &str)| {
        let manifest = std::fs::read_to_string(home.join("node_modules").join(name).join("package.json"));
        manifest.is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\"")))
    };
    if PACKAGES.iter().all(is_there) {
        return;
    }
    let names: Vec<String> = PACKAGES.iter().map(|(name, version)| format!("{name}@{version}")).collect();
    say(format!("installing {} from npm into target/tools/npm: clients of the tests", names.join(" and ")));
    let install = || -> Result<()> {
        std::fs::create_dir_all(&home)?;
        let mut npm = Command::new("npm");
        npm.arg("install")
            .arg("--prefix")
            .arg(&home)
            .args(["--no-audit", "--no-fund", "--ignore-scripts"])
            .args(&names);
        logged("downloading them", "npm", &mut npm)
    };
    if let Err(error) = install() {
        say(format!("the tests that need them will be skipped: {error:#}"));
    }
}
