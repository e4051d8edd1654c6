//! Network namespaces of a run. Everything that is measured stands in a `node` namespace of its own, with nothing but its loopback
//! device, and, by its [`Layout`], in one or two more behind it, each on a veth that the node routes. None of them has a way out.

use std::{fs::File, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

const NAMES: [&str; 3] = ["sockway-bench-node", "sockway-bench-client", "sockway-bench-origin"];

/// One namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: &'static str,
}

impl Namespace {
    fn add(name: &'static str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self { name };
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Opened for `setns`.
    pub fn file(&self) -> Result<File> {
        let path = Path::new("/run/netns").join(self.name);
        File::open(&path).with_context(|| format!("{}", path.display()))
    }

    /// Sets a sysctl of this namespace.
    fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        let script = format!("echo {value} > {path}");
        ip(&["netns", "exec", self.name, "sh", "-c", &script])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", self.name]) {
            eprintln!("bench: left behind: {error:#}");
        }
    }
}

/// A namespace behind the node: its end of the veth and the node's.
#[derive(Debug)]
pub struct Pod {
    /// The namespace.
    pub namespace: Namespace,
    /// Its address.
    pub address: &'static str,
    /// The node's address on the same veth.
    pub gateway: &'static str,
}

impl Pod {
    fn add(name: &'static str, node: &Namespace, address: &'static str, gateway: &'static str) -> Result<Self> {
        let namespace = Namespace::add(name)?;
        // The veth goes when either of its namespaces does.
        let device = name.rsplit('-').next().unwrap_or(name);
        ip(&["-n", node.name, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["-n", node.name, "addr", "add", &format!("{gateway}/30"), "dev", device])?;
        ip(&["-n", node.name, "link", "set", device, "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{address}/30"), "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "route", "add", PODS, "via", gateway])?;
        Ok(Self { namespace, address, gateway })
    }
}

// TEST-NET-1 of RFC 5737: nobody's addresses.
const PODS: &str = "192.0.2.0/24";
const CLIENT: (&str, &str) = ("192.0.2.2", "192.0.2.1");
const ORIGIN: (&str, &str) = ("192.0.2.6", "192.0.2.5");

/// Who has a namespace of his own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nobody: client, proxy and origin share one loopback device.
    Flat,
    /// Client and origin, routed by the node, where the proxies stand.
    Pods,
    /// The origin, which the agent does not capture: as if it were on another machine.
    Remote,
}

/// The namespaces of one scenario.
#[derive(Debug)]
pub struct Landscape {
    // Before the node, so that they are dropped before it.
    client: Option<Pod>,
    origin: Option<Pod>,
    node: Namespace,
}

impl Landscape {
    /// Sets them up.
    pub fn of(layout: Layout) -> Result<Self> {
        clear()?;
        let node = Namespace::add(NAMES[0])?;
        if layout != Layout::Flat {
            node.sysctl("net/ipv4/ip_forward", "1")?;
        }
        let pod = |name, (address, gateway)| Pod::add(name, &node, address, gateway);
        let client = (layout == Layout::Pods).then(|| pod(NAMES[1], CLIENT)).transpose()?;
        let origin = (layout != Layout::Flat).then(|| pod(NAMES[2], ORIGIN)).transpose()?;
        Ok(Self { client, origin, node })
    }

    /// Where the proxies stand.
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// Where the client stands.
    pub fn client(&self) -> &Namespace {
        self.client.as_ref().map_or(&self.node, |pod| &pod.namespace)
    }

    /// Where the origin stands.
    pub fn origin(&self) -> &Namespace {
        self.origin.as_ref().map_or(&self.node, |pod| &pod.namespace)
    }

    /// The address at which the client reaches the node.
    pub fn node_ip(&self) -> &'static str {
        self.client.as_ref().map_or("127.0.0.1", |pod| pod.gateway)
    }

    /// The address at which everybody reaches the origin.
    pub fn origin_ip(&self) -> &'static str {
        self.origin.as_ref().map_or("127.0.0.1", |pod| pod.address)
    }
}

/// Removes what a run that was killed left behind.
fn clear() -> Result<()> {
    for name in NAMES.iter().rev().filter(|name| Path::new("/run/netns").join(name).exists()) {
        ip(&["netns", "del", name])?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("running ip: install iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
