//! Whose connections are captured: by cgroup, by network namespace, and what is left out by port, address and user.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use super::{Shortcut, pattern::Pattern};

/// Whose connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Where cgroup v2 is mounted; `None` finds it in `/proc/self/mounts`, hybrid mode included.
    pub cgroup_mount: Option<PathBuf>,
    /// Where bpffs is, or is to be, mounted.
    pub bpffs: PathBuf,
    /// By cgroup, descendants included: the nearest rule above a program holds for it.
    pub rules: Vec<CaptureRule>,
    /// By network namespace.
    pub namespaces: NamespaceRules,
    /// What is never captured.
    pub except: Except,
}

/// One cgroup, or all whose path a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRule {
    /// Path below the cgroup v2 mount.
    pub path: Pattern,
    /// Whether its programs are captured; `false` leaves them out of what a rule further up captures.
    pub capture: bool,
    /// Whether sockets of these programs may be enrolled in the shortcut.
    pub shortcut: Shortcut,
}

/// Which network namespaces are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceRules {
    /// If there are any, only these.
    pub only: Vec<NamespaceName>,
    /// And never these.
    pub except: Vec<NamespaceName>,
}

/// How a rule names a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceName {
    /// The host's own: that of process 1.
    Host,
    /// By a path that its file stands at: `/run/netns/NAME` for a name.
    At(Pattern),
}

/// What is never captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Except {
    /// Ports that programs dial.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Addresses that programs dial.
    pub cidrs: Vec<Cidr>,
    /// Users, by their number on the host.
    pub uids: Vec<RangeInclusive<u32>>,
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    ip: IpAddr,
    prefix: u8,
}

impl NamespaceRules {
    /// Whether there is no rule: every namespace is captured.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.except.is_empty()
    }

    /// Whether a namespace that no rule names is captured.
    pub fn captures_unnamed(&self) -> bool {
        self.only.is_empty()
    }

    /// Whether the namespace that stands at these paths, or is the host's, is captured.
    pub fn captures(&self, paths: &[String], host: bool) -> bool {
        let named = |rules: &[NamespaceName]| rules.iter().any(|rule| rule.names(paths, host));
        (self.only.is_empty() || named(&self.only)) && !named(&self.except)
    }
}

impl NamespaceName {
    /// Whether it names the namespace that stands at these paths, or is the host's.
    pub fn names(&self, paths: &[String], host: bool) -> bool {
        match self {
            Self::Host => host,
            Self::At(pattern) => paths.iter().any(|path| pattern.matches(path)),
        }
    }
}

/// How many bits of an IPv6 address say that it is an IPv4 address in mapped form.
const MAPPED_BITS: u8 = 96;

/// Where `ip netns` keeps names.
pub const NAMED: &str = "/run/netns";

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::At(pattern) => {
                let name = pattern.as_str().strip_prefix(NAMED).and_then(|rest| rest.strip_prefix('/'));
                // A name of more than one component, or `host` itself, can only be told as a path.
                f.write_str(name.filter(|name| !name.contains('/') && *name != "host").unwrap_or(pattern.as_str()))
            }
        }
    }
}

impl Except {
    /// Whether connections to this destination are never captured.
    pub fn covers(&self, destination: SocketAddr) -> bool {
        self.ports.iter().any(|ports| ports.contains(&destination.port()))
            || self.cidrs.iter().any(|cidr| cidr.contains(destination.ip()))
    }
}

impl Cidr {
    /// The addresses that share the first `prefix` bits with `ip`. `None` when `ip` has fewer bits, or further ones that are set. IPv4
    /// addresses in mapped form are IPv4 addresses, as they are when somebody dials them.
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        let (ip, prefix) = match (ip.to_canonical(), prefix.checked_sub(MAPPED_BITS)) {
            (v4 @ IpAddr::V4(_), Some(prefix)) if ip.is_ipv6() => (v4, prefix),
            _ => (ip, prefix),
        };
        let cidr = Self { ip, prefix };
        let (bits, width) = bits(ip);
        (u32::from(prefix) <= width && bits & !mask(prefix.into(), width) == 0).then_some(cidr)
    }

    /// Where they begin.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// How many bits they share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is one of them; an IPv4-mapped address is the IPv4 address that it stands for.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ((own, width), (other, other_width)) = (bits(self.ip), bits(ip.to_canonical()));
        width == other_width && (own ^ other) & mask(self.prefix.into(), width) == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An address as a number, and how many bits it has.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u32::from(ip).into(), 32),
        IpAddr::V6(ip) => (ip.into(), 128),
    }
}

/// The first `prefix` of `width` bits.
fn mask(prefix: u32, width: u32) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & !all.checked_shr(prefix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(ip: &str, prefix: u8) -> Option<Cidr> {
        Cidr::new(ip.parse().expect("an address"), prefix)
    }

    #[test]
    fn a_block_holds_the_addresses_that_begin_like_it() {
        for (ip, prefix, other, held) in [
            ("10.0.0.0", 8, "10.255.0.1", true),
            ("10.0.0.0", 8, "11.0.0.0", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("0.0.0.0", 0, "255.1.1.1", true),
            ("0.0.0.0", 0, "::1", false),
            ("10.0.0.0", 8, "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.0", 104, "10.255.0.1", true),
            ("::ffff:10.0.0.0", 104, "11.0.0.1", false),
            ("::ffff:0.0.0.0", 96, "11.0.0.1", true),
            ("fd00::", 8, "fdff::1", true),
            ("fd00::", 8, "fe00::1", false),
            ("::", 0, "::1", true),
            ("::1", 128, "::1", true),
        ] {
            let held_there = cidr(ip, prefix).expect("a block").contains(other.parse().expect("an address"));
            assert_eq!(held_there, held, "{ip}/{prefix} {other}");
        }
        assert_eq!(cidr("10.0.0.1", 8), None, "a bit behind the prefix");
        assert_eq!(cidr("10.0.0.0", 33), None);
        assert_eq!(cidr("::ffff:10.0.0.1", 104), None, "the same in mapped form");
        assert_eq!(cidr("fd00::", 129), None);
    }

    #[test]
    fn a_destination_is_excepted_by_port_or_address() {
        let except = Except {
            ports: vec![22..=22, 8000..=8010],
            cidrs: cidr("10.0.0.0", 8).into_iter().collect(),
            uids: vec![],
        };
        for (destination, covered) in [
            ("127.0.0.1:22", true),
            ("127.0.0.1:8010", true),
            ("127.0.0.1:8011", false),
            ("10.2.3.4:80", true),
            ("[::1]:8000", true),
            ("[::1]:80", false),
        ] {
            assert_eq!(except.covers(destination.parse().expect("an address")), covered, "{destination}");
        }
    }

    #[test]
    fn namespaces_are_taken_by_name_path_or_as_the_hosts() {
        let at = |path| NamespaceName::At(Pattern::new(path).expect("short"));
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let rules = NamespaceRules {
            only: vec![at("/run/netns/cni-*"), NamespaceName::Host],
            except: vec![at("/run/netns/cni-bad")],
        };
        assert!(rules.captures(&paths(&["/run/netns/cni-1"]), false));
        assert!(!rules.captures(&paths(&["/run/netns/cni-bad"]), false));
        assert!(!rules.captures(&paths(&["/run/netns/cni-1", "/run/netns/cni-bad"]), false), "no stands");
        assert!(rules.captures(&[], true));
        assert!(!rules.captures(&[], false) && !rules.captures_unnamed());
        let except = NamespaceRules { only: vec![], except: vec![NamespaceName::Host] };
        assert!(except.captures(&[], false) && !except.captures(&[], true) && except.captures_unnamed());
        assert_eq!(
            [at("/run/netns/a*").to_string(), at("/run/netns/host").to_string(), at("/proc/1/ns/net").to_string()],
            ["a*", "/run/netns/host", "/proc/1/ns/net"]
        );
    }
}
