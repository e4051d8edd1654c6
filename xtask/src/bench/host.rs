//! Where it is measured: the head of every report.

use std::{fmt, fs, path::Path, process::Command, thread};

use anyhow::{Context, Result};

/// The facts without which no figure means anything.
#[derive(Debug)]
pub struct Host {
    /// The running kernel.
    pub kernel: String,
    /// How many CPUs this process may use.
    pub cores: usize,
    /// What the self-test of the running kernel says about the shortcut.
    pub shortcut: String,
}

impl Host {
    /// Looks at this machine; `sockway` is asked for its self-test.
    pub fn look(sockway: &Path) -> Result<Self> {
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's version")?.trim().to_owned(),
            cores: thread::available_parallelism()?.get(),
            shortcut: doctor(sockway),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kernel {}, {} cores; client, origin and proxy share them; shortcut: {}",
            self.kernel, self.cores, self.shortcut
        )
    }
}

fn doctor(sockway: &Path) -> String {
    // doctor's exit code speaks of the whole host; its lines are wanted in any case.
    match Command::new(sockway).arg("doctor").output() {
        Ok(output) => shortcut(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => format!("unknown ({}: {error})", sockway.display()),
    }
}

/// The lines about the shortcut, in one.
fn shortcut(doctor: &str) -> String {
    let lines: Vec<&str> = doctor.lines().map(str::trim).filter(|line| line.contains("shortcut")).collect();
    if lines.is_empty() { "unknown (doctor says nothing about it)".into() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_on_the_shortcut_is_picked_from_what_doctor_says() {
        assert_eq!(shortcut("ok kernel 6.18\n  warn shortcut: FIONREAD is 0\n"), "warn shortcut: FIONREAD is 0");
        assert!(shortcut("ok kernel 6.18\n").starts_with("unknown"));
    }
}
