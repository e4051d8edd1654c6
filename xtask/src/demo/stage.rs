//! Where the demo plays: a cgroup below the cgroup v2 mount, a network namespace with nothing but its loopback device, a folder for files.
//! All of it goes when the stage is dropped, and what an earlier demo that was killed left goes when a new one is set up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{demo::tell, workspace::agent_binary};

const PREFIX: &str = "sockway-demo-";

/// Moves itself into the cgroup of its first argument and becomes the rest.
const ENTER: &str = r#"echo 0 > "$1/cgroup.procs" || exit 125; shift; exec "$@""#;

/// Where a program of the demo runs. Everything that is to be captured runs in the demo's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The network of the host.
    Host,
    /// A network namespace without any way out, as a pod's.
    Namespace,
}

impl Place {
    /// As it stands in the demo's lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Namespace => "namespace",
        }
    }
}

/// The stage of one demo.
#[derive(Debug)]
pub struct Stage {
    number: u32,
    mount: PathBuf,
    folder: PathBuf,
}

impl Stage {
    /// Sets it up.
    pub fn set_up() -> Result<Self> {
        let mount = mount()?;
        strike_abandoned(&mount);
        let stage = Self::of(process::id(), mount);
        fs::create_dir_all(&stage.folder).with_context(|| format!("making {}", stage.folder.display()))?;
        fs::create_dir(stage.cgroup()).with_context(|| format!("making the cgroup {}", stage.cgroup().display()))?;
        ip(&["netns", "add", &stage.namespace()])?;
        ip(&["-n", &stage.namespace(), "link", "set", "lo", "up"])?;
        Ok(stage)
    }

    fn of(number: u32, mount: PathBuf) -> Self {
        Self { number, mount, folder: std::env::temp_dir().join(format!("{PREFIX}{number}")) }
    }

    /// Name of the agent's instance.
    pub fn instance(&self) -> String {
        format!("demo-{}", self.number)
    }

    /// The cgroup's name below the mount, as a capture rule has it.
    pub fn cgroup_name(&self) -> String {
        format!("/{PREFIX}{}", self.number)
    }

    /// The cgroup's folder.
    pub fn cgroup(&self) -> PathBuf {
        self.mount.join(format!("{PREFIX}{}", self.number))
    }

    /// The network namespace's name.
    pub fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.number)
    }

    /// A file of the demo.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command that runs captured: in the demo's cgroup, at this place.
    pub fn captured(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh"]).arg(self.cgroup());
        if place == Place::Namespace {
            command.args(["ip", "netns", "exec", &self.namespace()]);
        }
        command.arg(program);
        command
    }

    /// What a person types to run something captured.
    pub fn captured_by_hand(&self, place: Place, rest: &str) -> String {
        let enter = format!("echo 0 > {}/cgroup.procs", self.cgroup().display());
        let inside = match place {
            Place::Host => rest.to_owned(),
            Place::Namespace => format!("ip netns exec {} {rest}", self.namespace()),
        };
        format!("sudo sh -c '{enter}; {inside}'")
    }

    /// What is still there of this demo's pins, cgroups and namespace.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let agents = self.mount.join(format!("sockway-agent-{}", self.instance()));
        let pins = Path::new("/sys/fs/bpf/sockway").join(self.instance());
        let namespace = Path::new("/run/netns").join(self.namespace());
        [self.cgroup(), agents, pins, namespace, self.folder.clone()].into_iter().filter(|path| path.exists()).collect()
    }

    /// Takes everything down; goes on after a failure, and reports the first.
    pub fn strike(&self) -> Result<()> {
        let agents = self.mount.join(format!("sockway-agent-{}", self.instance()));
        let detached = if agent_binary().is_file() { self.detach() } else { Ok(()) };
        // A killed agent leaves its run-time files, and any its history.
        for end in ["json", "sock"] {
            let _ = fs::remove_file(format!("/run/sockway/{}.{end}", self.instance()));
        }
        let _ = fs::remove_dir_all(Path::new("/var/lib/sockway").join(self.instance()));
        let steps = [
            detached,
            empty_and_remove(&self.cgroup()),
            empty_and_remove(&agents),
            if Path::new("/run/netns").join(self.namespace()).exists() {
                ip(&["netns", "del", &self.namespace()])
            } else {
                Ok(())
            },
            if self.folder.exists() {
                fs::remove_dir_all(&self.folder).context("removing the demo's files")
            } else {
                Ok(())
            },
        ];
        steps.into_iter().collect()
    }

    /// `sockway detach`: takes every program and pin of the instance away.
    pub fn detach(&self) -> Result<()> {
        let output = Command::new(agent_binary())
            .args(["detach", "--instance", &self.instance()])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sockway detach ended with {}: {}", output.status, said.trim());
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.strike() {
            tell(format!("left behind: {error:#}"));
        }
    }
}

/// Takes down the stage of every demo whose process is gone.
fn strike_abandoned(mount: &Path) {
    let Ok(entries) = fs::read_dir(mount) else { return };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for number in names.filter_map(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok()) {
        if !Path::new(&format!("/proc/{number}")).exists() {
            tell(format!("an earlier demo ({number}) was killed: removing what it left"));
            drop(Stage::of(number, mount.to_path_buf()));
        }
    }
}

/// A cgroup can be removed when the last process in it is reaped.
fn empty_and_remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    // Linux 5.14; an older kernel has no such file, and the guards of the processes have ended them already.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    for _ in 0..100 {
        if fs::remove_dir(cgroup).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    fs::remove_dir(cgroup).with_context(|| format!("removing the cgroup {}", cgroup.display()))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("cannot run ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// Where cgroup v2 is mounted: in hybrid mode not at `/sys/fs/cgroup`.
fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    match cgroup2(&mounts) {
        Some(path) => Ok(path),
        None => bail!(
            "cgroup v2 is not mounted: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
        ),
    }
}

fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", ..] => Some(path.into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_beside_v1() {
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }
}
