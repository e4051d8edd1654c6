//! What one limited service has given out, as `sockway explain` reads it in the pinned tables, also while no agent runs.

use std::{net::SocketAddr, net::TcpStream};

use crate::{agent::sockway, config::Service, door::Door, patience, wait};

/// Connections that a limited service may have, and each source of it.
pub const LIMIT: u64 = 12;

/// Everything of a service that can be taken and is to be given back: of its limit, of the source's, of the endpoint's open connections, and
/// of the endpoint's live state, which `least_connections` goes by.
pub fn limited(service: Service) -> Service {
    service
        .set(&format!("limits: {{ connections: {LIMIT}, per_source: {{ connections: {LIMIT} }} }}"))
        .set("balance: least_connections")
}

/// A limited service, seen from one caller.
#[derive(Debug)]
pub struct Counts {
    instance: String,
    service: SocketAddr,
    caller: u32,
}

impl Counts {
    /// Of the service at `service`, of this instance, for what is dialled from behind `door`.
    pub fn of(instance: &str, service: SocketAddr, door: &Door) -> Self {
        Self { instance: instance.to_owned(), service, caller: door.pid() }
    }

    /// What is taken: of the source, of the service, and of all endpoints together.
    #[track_caller]
    pub fn taken(&self) -> [u64; 3] {
        let (service, caller) = (self.service.to_string(), self.caller.to_string());
        let asked = ["explain", "--json", "--instance", &self.instance, "--connect", &service, "--from", &caller];
        let output = sockway(&asked);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let open = |of: &serde_json::Value| of["open"].as_u64().unwrap_or_else(|| panic!("a count in {told:#}"));
        let list = |name: &str| told["service"][name].as_array().unwrap_or_else(|| panic!("{name} in {told:#}"));
        let limit = |of: &str| list("limits").iter().find(|limit| limit["of"] == of).map_or(u64::MAX, open);
        [limit("source"), limit("service"), list("endpoints").iter().map(open).sum()]
    }

    /// Waits until so many are taken of everything.
    #[track_caller]
    pub fn expect(&self, count: u64, when: &str) {
        let mut last = [u64::MAX; 3];
        let all = wait::whether(patience::deadline(wait::SOON), || {
            last = self.taken();
            last == [count; 3]
        });
        assert!(all, "{when}: source, service and endpoints have {last:?} open instead of {count} each");
    }

    /// Waits until nothing is taken; then the whole limit can be had, and not one more, and is given back: no count can fake that.
    #[track_caller]
    pub fn expect_nothing(&self, door: &Door, when: &str) {
        self.expect(0, when);
        let held: Vec<TcpStream> = (0..LIMIT).map(|_| door.dial(self.service).expect("within the limit")).collect();
        let over = door.dial(self.service).expect_err("one too many").raw_os_error();
        assert_eq!(over, Some(libc::ECONNREFUSED), "{when}");
        self.expect(LIMIT, when);
        drop(held);
        self.expect(0, when);
    }
}
