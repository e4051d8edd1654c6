//! What the agent is told, as the YAML that a person would write.

use std::{
    fmt::Write,
    net::SocketAddr,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::cgroup::Cgroup;

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A configuration under construction.
#[derive(Clone, Debug)]
pub struct Config {
    instance: String,
    keys: Vec<String>,
    captured: Vec<(String, String)>,
    capture: Vec<String>,
    services: Vec<Service>,
    inbound: Vec<String>,
}

impl Config {
    /// A unique instance with two workers, any free admin port, and nothing captured yet.
    pub fn new() -> Self {
        let instance = format!("test-{}-{}", process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let keys = vec!["workers: 2".to_owned(), "admin: { address: 127.0.0.1:0 }".to_owned()];
        Self { instance, keys, captured: Vec::new(), capture: Vec::new(), services: Vec::new(), inbound: Vec::new() }
    }

    /// Its instance name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Captures a cgroup, with `shortcut: off`.
    pub fn capture(self, cgroup: &Cgroup) -> Self {
        self.capture_with(cgroup, "off")
    }

    /// Captures a cgroup, with the shortcut `auto`, `on` or `off`.
    pub fn capture_with(self, cgroup: &Cgroup, shortcut: &'static str) -> Self {
        self.rule(cgroup.path(), &format!("shortcut: {shortcut}"))
    }

    /// Adds a capture rule: a path, which may have holes, and a key, `capture: off` for example.
    pub fn rule(mut self, path: &str, key: &str) -> Self {
        self.captured.push((path.to_owned(), key.to_owned()));
        self
    }

    /// The same configuration without capture rules.
    pub fn without_rules(&self) -> Self {
        Self { captured: Vec::new(), ..self.clone() }
    }

    /// Adds a key below `capture`, `except: { ports: [22] }` for example.
    pub fn set_capture(mut self, key: &str) -> Self {
        self.capture.push(key.to_owned());
        self
    }

    /// Adds a service.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// The same configuration with other services.
    pub fn with_services(&self, services: impl IntoIterator<Item = Service>) -> Self {
        Self { services: services.into_iter().collect(), ..self.clone() }
    }

    /// Adds a rule for connections that come in: the keys of one, `name: web, ports: [80], protocol: tcp`.
    pub fn inbound(mut self, rule: &str) -> Self {
        self.inbound.push(rule.to_owned());
        self
    }

    /// The same configuration with other rules for connections that come in.
    pub fn with_inbound(&self, rules: &[&str]) -> Self {
        Self { inbound: rules.iter().map(|rule| (*rule).to_owned()).collect(), ..self.clone() }
    }

    /// Adds a top-level key, `drain_timeout_ms: 500` for example.
    pub fn set(mut self, key: &str) -> Self {
        let name = key.split(':').next();
        self.keys.retain(|known| known.split(':').next() != name);
        self.keys.push(key.to_owned());
        self
    }

    /// The file.
    pub fn yaml(&self) -> String {
        let mut text = format!("instance: {}\n{}\n", self.instance, self.keys.join("\n"));
        text.push_str("capture:\n");
        for key in &self.capture {
            let _ = writeln!(text, "  {key}");
        }
        text.push_str("  cgroups:\n");
        for (path, key) in &self.captured {
            let _ = writeln!(text, "    - {{ path: \"{path}\", {key} }}");
        }
        if !self.inbound.is_empty() {
            text.push_str("inbound:\n");
        }
        self.inbound.iter().for_each(|rule| {
            let _ = writeln!(text, "  - {{ {rule} }}");
        });
        if self.services.is_empty() {
            text.push_str("services: []\n");
        } else {
            text.push_str("services:\n");
        }
        self.services.iter().for_each(|service| text.push_str(&service.yaml()));
        text
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// One service of a configuration.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    address: SocketAddr,
    keys: Vec<String>,
    endpoints: Vec<String>,
}

impl Service {
    /// Opaque TCP, balanced in the kernel.
    pub fn kernel_tcp(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: tcp", "mode: kernel"])
    }

    /// Datagrams, balanced in the kernel.
    pub fn udp(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: udp"])
    }

    /// Opaque TCP through the agent.
    pub fn agent_tcp(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: tcp", "mode: agent"])
    }

    /// HTTP/1 through the agent.
    pub fn http(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: http", "mode: agent"])
    }

    /// HTTP/2 through the agent.
    pub fn http2(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: http2"])
    }

    /// Whichever protocol its connections begin with, through the agent.
    pub fn auto(name: &str, address: SocketAddr) -> Self {
        Self::new(name, address, &["protocol: auto"])
    }

    fn new(name: &str, address: SocketAddr, keys: &[&str]) -> Self {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { name: name.to_owned(), address, keys, endpoints: Vec::new() }
    }

    /// Adds a key, `balance: weighted_random` for example.
    pub fn set(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }

    /// Adds an endpoint.
    pub fn to(self, address: SocketAddr) -> Self {
        self.weighted(address, 1)
    }

    /// Adds an endpoint with a weight.
    pub fn weighted(mut self, address: SocketAddr, weight: u32) -> Self {
        self.endpoints.push(format!("{{ address: '{address}', weight: {weight} }}"));
        self
    }

    /// Adds an endpoint with more keys, `state: draining` for example.
    pub fn to_with(mut self, address: SocketAddr, keys: &str) -> Self {
        self.endpoints.push(format!("{{ address: '{address}', {keys} }}"));
        self
    }

    /// Adds several endpoints.
    pub fn to_all(self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        addresses.into_iter().fold(self, Service::to)
    }

    fn yaml(&self) -> String {
        let mut text = format!("  - name: {}\n    address: \"{}\"\n", self.name, self.address);
        for key in &self.keys {
            let _ = writeln!(text, "    {key}");
        }
        text.push_str("    endpoints:\n");
        for endpoint in &self.endpoints {
            let _ = writeln!(text, "      - {endpoint}");
        }
        text
    }
}
