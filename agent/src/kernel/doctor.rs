//! What this host has and lacks: kernel, BTF, cgroup v2, bpffs, io_uring, capabilities; then the self-test. Each missing thing with its
//! remedy.

use std::{fs, path::Path, time::Instant};

use super::{
    cgroup, flows, load, offsets,
    parts::Part,
    pins,
    rights::{self, RIGHTS},
    selftest,
};
use crate::{
    config::{Capture, Shortcut},
    ring::{self, Form},
};

/// One line of the examination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do, unless all is well.
    pub remedy: Option<String>,
}

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As needed.
    Ok,
    /// The agent runs, with something less.
    Warn,
    /// The agent cannot do its work.
    Missing,
}

/// Oldest kernel that has everything that is needed: `bpf_get_netns_cookie()` in the hooks that watch sockets is of 5.15.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Looks at this host, and tries the kernel half in a scratch cgroup.
pub fn examine(capture: &Capture, instance: &str) -> Vec<Finding> {
    let mut findings = vec![kernel(), built(), btf(), capabilities(), io_uring(), bpffs(&capture.bpffs)];
    let mount = capture.cgroup_mount.clone().or_else(cgroup::mount);
    findings.push(cgroup_v2(mount.as_deref()));
    if let Some(mount) = mount {
        findings.extend(self_test(&mount, instance));
    }
    findings
}

fn finding(name: &'static str, detail: impl Into<String>, bad: Option<(Verdict, &str)>) -> Finding {
    let (verdict, remedy) = bad.map_or((Verdict::Ok, None), |(verdict, remedy)| (verdict, Some(remedy.to_owned())));
    Finding { name, verdict, detail: detail.into(), remedy }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let old = (version < KERNEL_MIN)
        .then_some((Verdict::Warn, "Linux 5.15 or later is needed; the checks below tell what this one really does"));
    finding("kernel", release, old)
}

fn built() -> Finding {
    match load::OBJECT {
        Some(object) => finding("kernel half", format!("embedded, {} KiB", object.len() / 1024), None),
        None => finding("kernel half", "not embedded", Some((Verdict::Missing, "build with `cargo xtask build`"))),
    }
}

fn btf() -> Finding {
    match offsets::of_running_kernel() {
        Ok(_) => finding("btf", offsets::VMLINUX, None),
        Err(why) => finding(
            "btf",
            why,
            Some((Verdict::Warn, "a kernel with CONFIG_DEBUG_INFO_BTF; without it the shortcut stays off")),
        ),
    }
}

fn capabilities() -> Finding {
    let lacking = rights::lacking();
    let names = |rights: &mut dyn Iterator<Item = &'static str>| rights.collect::<Vec<_>>().join(", ");
    if lacking.is_empty() {
        return finding("capabilities", names(&mut RIGHTS.iter().map(|right| right.name)), None);
    }
    let verdict = if lacking.iter().any(|right| right.is_needed) { Verdict::Missing } else { Verdict::Warn };
    let remedy = format!("run as root, or give {}", names(&mut lacking.iter().map(|right| right.name)));
    finding("capabilities", rights::told(&lacking), Some((verdict, &remedy)))
}

fn io_uring() -> Finding {
    match ring::form() {
        Ok(form) => {
            let less = (form != Form::SingleIssuer)
                .then_some((Verdict::Warn, "none needed: a request costs about a tenth more CPU than on Linux 6.0"));
            finding("io_uring", form.to_string(), less)
        }
        Err(error) => {
            let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            let detail = format!("{error} (kernel.io_uring_disabled = {})", disabled.trim());
            finding(
                "io_uring",
                detail,
                Some((Verdict::Missing, "sysctl kernel.io_uring_disabled=0; Linux 5.11 or later")),
            )
        }
    }
}

fn bpffs(path: &Path) -> Finding {
    if pins::is_bpffs(path) {
        finding("bpffs", path.display().to_string(), None)
    } else {
        finding(
            "bpffs",
            format!("not mounted at {}", path.display()),
            Some((Verdict::Warn, "the agent mounts it; by hand: mount -t bpf bpf /sys/fs/bpf")),
        )
    }
}

fn cgroup_v2(mount: Option<&Path>) -> Finding {
    match mount {
        Some(mount) => finding("cgroup v2", mount.display().to_string(), None),
        None => finding(
            "cgroup v2",
            "not mounted",
            Some((Verdict::Missing, "mount -t cgroup2 none /sys/fs/cgroup/unified")),
        ),
    }
}

fn self_test(mount: &Path, instance: &str) -> Vec<Finding> {
    let begun = Instant::now();
    // All of it is loaded nowhere else: what this kernel lacks is told whole.
    let capabilities = selftest::run(mount, instance, load::all);
    let took = begun.elapsed().as_millis();
    let auto = flows::allows(Shortcut::Auto, selftest::allows_shortcut(&capabilities));
    let mut findings: Vec<Finding> = capabilities
        .into_iter()
        .map(|capability| {
            let bad = match capability.part {
                Some(Part::Shortcut) if !capability.refused => {
                    (Verdict::Warn, "none needed: `shortcut: auto` stays off; `on` takes this deviation")
                }
                Some(part) => (Verdict::Warn, part.without()),
                None => (Verdict::Missing, "see the detail; Linux 5.15 or later with cgroup v2 and BPF is needed"),
            };
            finding(capability.name, capability.detail, (!capability.passed).then_some(bad))
        })
        .collect();
    let verdict = if auto { "on" } else { "off" };
    findings.push(finding("shortcut", format!("`auto` means {verdict}; the self-test took {took} ms"), None));
    findings
}
