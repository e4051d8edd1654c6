//! Debian packages by apt-get: asks nobody anything, waits for another apt to finish, starts no service.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    progress::{log_tail, logged, say},
    root::{as_root, is_root},
    workspace::find_program,
};

/// How long another apt is waited for: unattended upgrades of a fresh machine take minutes.
const LOCK_WAIT: Duration = Duration::from_secs(300);

/// Packages that would start a service, and the service's name: neither now nor at the next boot, they are here to be started by hand.
const SERVICES: &[(&str, &str)] =
    &[("nginx", "nginx"), ("redis-server", "redis-server"), ("haproxy", "haproxy"), ("postgresql", "postgresql")];

/// Set once the package lists are fresh: once per run is enough.
static UPDATED: AtomicBool = AtomicBool::new(false);

/// What runs as root. Debian's packages ask policy-rc.d before they start a service; 101 means no.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
services=$1
shift
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l APT_LISTCHANGES_FRONTEND=none
apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
for service in $services; do
    systemctl disable --quiet "$service" 2>/dev/null || true
done
"#;

/// Installs packages; `why` is said before.
pub fn install(names: &[&str], why: &str) -> Result<()> {
    say(format!("{why}: installing {}", names.join(" ")));
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here: install by hand what Debian has in the packages {}", names.join(" "));
    }
    if !is_root() {
        say("apt-get needs root: using sudo");
    }
    let services: Vec<&str> =
        SERVICES.iter().filter(|(package, _)| names.contains(package)).map(|(_, service)| *service).collect();
    if !services.is_empty() {
        say(format!("the services {} are neither started nor enabled", services.join(" and ")));
    }
    update()?;
    let mut command = as_root("sh")?;
    command.args(["-c", INSTALL, "sh", &services.join(" ")]).args(names);
    waiting_for_lock("installing packages", "apt-install", &mut command)
}

/// Installs one package unless a file of it is there.
pub fn install_if_missing(name: &str, file: &Path) -> Result<()> {
    if file.exists() { Ok(()) } else { install(&[name], &format!("{} not found", file.display())) }
}

/// Whether apt knows a package, by fresh lists.
pub fn is_known(name: &str) -> Result<bool> {
    if find_program("apt-get").is_none() {
        return Ok(false);
    }
    update()?;
    let policy = Command::new("apt-cache").args(["policy", name]).output()?;
    Ok(has_candidate(&String::from_utf8_lossy(&policy.stdout)))
}

fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate:")).any(|version| version.trim() != "(none)")
}

fn update() -> Result<()> {
    if UPDATED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let mut command = as_root("apt-get")?;
    command.args(["update", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]);
    waiting_for_lock("reading the package lists", "apt-update", &mut command)
}

/// `DPkg::Lock::Timeout` covers dpkg's lock; the lock of the lists is not covered by every apt.
fn waiting_for_lock(what: &str, log: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    loop {
        match logged(what, log, command) {
            Err(_) if started.elapsed() < LOCK_WAIT && log_tail(log).contains("Could not get lock") => {
                say("another apt is at work: waiting for it");
                thread::sleep(Duration::from_secs(5));
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_not_known() {
        assert!(has_candidate("curl:\n  Installed: (none)\n  Candidate: 7.88.1-10\n"));
        assert!(!has_candidate("curl:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
