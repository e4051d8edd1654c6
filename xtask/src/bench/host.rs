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
    /// The congestion control of new sockets: some of them pace, at a cost to every way alike.
    pub congestion_control: String,
    /// What the self-test of the running kernel says about the shortcut.
    pub shortcut: String,
}

impl Host {
    /// Looks at this machine; `sockway` is asked for its self-test.
    pub fn look(sockway: &Path) -> Result<Self> {
        Ok(Self {
            kernel: sysctl("kernel/osrelease")?,
            congestion_control: sysctl("net/ipv4/tcp_congestion_control")?,
            cores: thread::available_parallelism()?.get(),
            shortcut: doctor(sockway),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}, {} cores, TCP {}", self.kernel, self.cores, self.congestion_control)?;
        writeln!(f, "client, proxy and origin share this machine")?;
        write!(f, "shortcut: {}", self.shortcut)
    }
}

fn sysctl(name: &str) -> Result<String> {
    let path = format!("/proc/sys/{name}");
    Ok(fs::read_to_string(&path).context(path)?.trim().to_owned())
}

fn doctor(sockway: &Path) -> String {
    // doctor's exit code speaks of the whole host; its lines are wanted in any case.
    match Command::new(sockway).arg("doctor").output() {
        Ok(output) => shortcut(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => format!("unknown ({}: {error})", sockway.display()),
    }
}

/// What `auto` comes to, and the tests that did not pass. A line of doctor is a verdict, a name, and what was found.
fn shortcut(doctor: &str) -> String {
    let mut verdict = None;
    let mut failed = Vec::new();
    for line in doctor.lines() {
        let Some((passed, rest)) = line.trim().split_once(' ') else { continue };
        let (name, found) = rest.trim().split_once("  ").unwrap_or((rest.trim(), ""));
        match name.strip_prefix("shortcut") {
            Some("") => verdict = Some(found.trim()),
            Some(_) if passed != "ok" => failed.push(name),
            _ => {}
        }
    }
    match (verdict, failed.is_empty()) {
        (None, _) => "unknown (doctor says nothing about it)".to_owned(),
        (Some(verdict), true) => verdict.to_owned(),
        (Some(verdict), false) => format!("{verdict} (self-test not passed: {})", failed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_on_the_shortcut_is_picked_from_what_doctor_says() {
        let doctor = "ok    kernel                  6.18\nok    shortcut_join           both directions\n\
                      warn  shortcut_fionread       FIONREAD says 0\nok    shortcut                `auto` means off\n";
        assert_eq!(shortcut(doctor), "`auto` means off (self-test not passed: shortcut_fionread)");
        assert_eq!(shortcut("ok    shortcut                `auto` means on\n"), "`auto` means on");
        assert!(shortcut("ok    kernel  6.18\n").starts_with("unknown"));
    }
}
