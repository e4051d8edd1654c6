//! The capabilities that the agent needs, each with what does not work without it (found out by dropping one after the other on Linux 6.18).

use std::fs;

/// A capability of `capabilities(7)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Right {
    /// Its name.
    pub name: &'static str,
    /// Its number in `include/uapi/linux/capability.h`.
    bit: u32,
    /// The number of another that the kernel takes instead.
    or: Option<u32>,
    /// Whether the agent is of no use without it.
    pub is_needed: bool,
    /// What does not work without it.
    pub without: &'static str,
}

const SYS_ADMIN: u32 = 21;

/// All of them, the needed ones first.
pub const RIGHTS: [Right; 6] = [
    Right {
        name: "CAP_BPF",
        bit: 39,
        or: Some(SYS_ADMIN),
        is_needed: true,
        without: "the kernel half cannot be loaded",
    },
    Right {
        name: "CAP_PERFMON",
        bit: 38,
        or: Some(SYS_ADMIN),
        is_needed: true,
        without: "the verifier refuses the hooks, which read kernel memory",
    },
    Right {
        name: "CAP_NET_ADMIN",
        bit: 12,
        or: None,
        is_needed: true,
        without: "hooks cannot be attached, nor sockets listed or ended",
    },
    Right {
        name: "CAP_SYS_ADMIN",
        bit: SYS_ADMIN,
        or: None,
        is_needed: false,
        without: "network namespaces other than the agent's own cannot be entered: agent services are balanced in the kernel there, rules \
                  that name them have no effect, and bpffs must be mounted already",
    },
    Right {
        name: "CAP_SYS_PTRACE",
        bit: 19,
        or: None,
        is_needed: false,
        without: "network namespaces without a name are not found by the processes in them",
    },
    Right {
        name: "CAP_DAC_OVERRIDE",
        bit: 1,
        or: None,
        is_needed: false,
        without: "the agent cannot make a cgroup of its own: it must be there and writable",
    },
];

impl Right {
    /// Whether a set of effective capabilities has it.
    fn is_in(&self, effective: u64) -> bool {
        let has = |bit: u32| effective & (1 << bit) != 0;
        has(self.bit) || self.or.is_some_and(has)
    }
}

/// Each capability, and whether this process has it.
pub fn held() -> Vec<(&'static Right, bool)> {
    let effective = effective(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    RIGHTS.iter().map(|right| (right, right.is_in(effective))).collect()
}

/// Those that this process lacks.
pub fn lacking() -> Vec<&'static Right> {
    held().into_iter().filter(|(_, held)| !held).map(|(right, _)| right).collect()
}

/// Rights with what does not work without them.
pub fn told(rights: &[&Right]) -> String {
    let one = |right: &&Right| format!("without {} {}", right.name, right.without);
    rights.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn effective(status: &str) -> u64 {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map_or("", str::trim);
    u64::from_str_radix(text, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_told_by_the_effective_set() {
        let lacking = |effective: u64| -> Vec<&str> {
            RIGHTS.iter().filter(|right| !right.is_in(effective)).map(|right| right.name).collect()
        };
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(lacking(0x1ff_ffff_ffff), [""; 0]);
        assert_eq!(lacking(0).len(), RIGHTS.len());
        assert_eq!(lacking(1 << SYS_ADMIN | 1 << 12 | 1 << 1), ["CAP_SYS_PTRACE"], "CAP_SYS_ADMIN stands in for two");
        assert_eq!(lacking(1 << 39 | 1 << 38 | 1 << 12 | 1 << 19 | 1 << 1), ["CAP_SYS_ADMIN"]);
    }

    #[test]
    fn the_unit_and_the_daemon_set_ask_for_exactly_these() {
        let mut names: Vec<&str> = RIGHTS.iter().map(|right| right.name).collect();
        names.sort_unstable();
        let unit = include_str!("../../deploy/sockway.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
        let mut asked: Vec<&str> = line.split_whitespace().collect();
        asked.sort_unstable();
        assert_eq!(asked, names);
        let manifest = include_str!("../../deploy/daemonset.yaml");
        let line = manifest.lines().find_map(|line| line.trim().strip_prefix("add: [")).expect("capabilities");
        let mut asked: Vec<String> = line.trim_end_matches(']').split(", ").map(|name| format!("CAP_{name}")).collect();
        asked.sort_unstable();
        assert_eq!(asked, names);
    }
}
