//! Who dialled a connection, as the kernel saw it.

use std::net::IpAddr;

/// A program, by where it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialler {
    /// The paths at which its network namespace stands, of those that somebody asks for: `/run/netns/NAME` for a name.
    pub namespaces: Vec<String>,
    /// Whether that is the host's own.
    pub is_host: bool,
    /// Its cgroup's path below the mount, if somebody asks for it and it is still there.
    pub cgroup: Option<String>,
    /// The address that its connection comes from, if somebody asks for it.
    pub address: Option<IpAddr>,
}
