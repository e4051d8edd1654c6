//! A service for clients of HTTP/1, and the same for clients of HTTP/2 whose endpoints speak HTTP/1: asked by curl.

use std::net::SocketAddr;

use crate::{
    agent::Agent,
    config::{Config, Service},
    peers,
    process::Room,
    stage::Stage,
    translation::HTTP2,
};

/// What makes curl a client of either.
pub const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];

/// What curl was told.
#[derive(Debug)]
pub struct Said {
    /// Of the answer; 0 where there was none.
    pub status: u16,
    /// All of it in lower case: head, body, trailers.
    pub text: String,
    /// What stands behind the head, as it came.
    pub body: Vec<u8>,
}

impl Said {
    fn read(bytes: Vec<u8>) -> Self {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let mut rest = bytes;
        loop {
            let end = rest.windows(4).position(|window| window == b"\r\n\r\n").map_or(rest.len(), |at| at + 4);
            let body = rest.split_off(end);
            let head = String::from_utf8_lossy(&rest);
            let status = head.split(' ').nth(1).and_then(|status| status.trim().parse().ok()).unwrap_or(0);
            // An interim answer stands before the one that counts.
            if !(100..200).contains(&status) {
                return Self { status, text, body };
            }
            rest = body;
        }
    }

    /// What its head says in a field, or its trailers where the body ends a line, behind which they stand.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    }

    /// The body as text; nothing where it is none.
    pub fn body(&self) -> &str {
        str::from_utf8(&self.body).unwrap_or_default()
    }
}

/// The two, named `web` and `web2`.
#[derive(Debug)]
pub struct Twice {
    /// The agent.
    pub agent: Agent,
    /// What clients dial, of HTTP/1 and of HTTP/2.
    pub services: [SocketAddr; 2],
    /// Where it all is.
    pub stage: Stage,
    config: Config,
    declared: Vec<Service>,
}

impl Twice {
    /// Sets them up, with these keys at the top of the configuration, beside these other services.
    #[track_caller]
    pub fn set(stage: Stage, top: &[&str], with: impl Fn(Service) -> Service, more: Vec<Service>) -> Self {
        let services = [stage.address(), stage.address()];
        let one = with(Service::http("web", services[0]));
        let two = with(Service::http2("web2", services[1]).set("upstream_protocol: http1"));
        let declared: Vec<Service> = [one, two].into_iter().chain(more).collect();
        let config = stage.config();
        let agent = Agent::start(&Self::told(&config, top, &declared));
        Self { agent, services, stage, config, declared }
    }

    fn told(config: &Config, top: &[&str], declared: &[Service]) -> Config {
        top.iter().fold(config.clone(), |config, key| config.set(key)).with_services(declared.to_vec())
    }

    /// Other keys at the top of the same services.
    #[track_caller]
    pub fn reload(&self, top: &[&str]) {
        self.agent.reload(&Self::told(&self.config, top, &self.declared));
    }

    /// The name of the service that curl asks with these arguments.
    pub fn name(arguments: &[&str]) -> &'static str {
        ["web", "web2"][usize::from(arguments.contains(&HTTP2))]
    }

    /// Asks the one that these arguments are for.
    #[track_caller]
    pub fn curl(&self, path: &str, arguments: &[&str]) -> Said {
        curl(&self.stage, self.services[usize::from(arguments.contains(&HTTP2))], path, arguments)
    }

    /// The same, of an answer that may be cut off, or none at all.
    pub fn heard(&self, path: &str, arguments: &[&str]) -> Said {
        heard(&self.stage, self.services[usize::from(arguments.contains(&HTTP2))], path, arguments).1
    }

    /// A metric of the service that these arguments are for.
    pub fn metric(&self, name: &str, arguments: &[&str], label: (&str, &str)) -> f64 {
        self.agent.metric(name, &[("service", Self::name(arguments)), label])
    }

    /// A metric of both together.
    pub fn sum(&self, name: &str, label: (&str, &str)) -> f64 {
        BOTH.iter().map(|http| self.metric(name, http, label)).sum()
    }
}

/// Asks a service; it must answer whole.
#[track_caller]
pub fn curl(stage: &Stage, service: SocketAddr, path: &str, arguments: &[&str]) -> Said {
    let (failure, said) = heard(stage, service, path, arguments);
    assert_eq!(failure, None, "{said:?}");
    said
}

/// What curl complained of, and what it was told.
fn heard(stage: &Stage, service: SocketAddr, path: &str, arguments: &[&str]) -> (Option<String>, Said) {
    let url = format!("http://{service}{path}");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    let failure = String::from_utf8_lossy(&output.stderr).into_owned();
    ((!output.status.success()).then_some(failure), Said::read(output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_bodies_and_trailers_are_told_apart() {
        let said = Said::read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2 200 \r\nA: b\r\n\r\nBody\r\n\r\n".to_vec());
        assert_eq!((said.status, said.field("a"), said.body()), (200, Some("b"), "Body\r\n\r\n"));
        let said = Said::read(b"HTTP/2 200 \r\na: b\r\n\r\ngrpc-status: 14\r\n".to_vec());
        assert_eq!((said.status, said.field("grpc-status")), (200, Some("14")));
        assert_eq!(Said::read(Vec::new()).status, 0);
    }
}
