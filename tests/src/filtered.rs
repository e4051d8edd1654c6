//! Two services with the same filters, asked by curl: one of HTTP/1, and one of HTTP/2 whose endpoint speaks HTTP/1.

use std::net::SocketAddr;

use crate::{
    agent::Agent,
    config::{Config, Service},
    peers,
    process::Room,
    stage::Stage,
    translation::HTTP2,
    web::Web,
};

const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];

/// The two, and their endpoint.
pub struct Filtered {
    /// Whose they are.
    pub stage: Stage,
    /// The endpoint of both.
    pub web: Web,
    /// What clients dial.
    pub services: [SocketAddr; 2],
    /// What the agent is to be told.
    pub config: Config,
}

impl Filtered {
    /// With these filters; `None` where tests are skipped.
    pub fn by(filters: &str) -> Option<Self> {
        Self::with(filters, "")
    }

    /// With more keys of the services, each in a line.
    pub fn with(filters: &str, keys: &str) -> Option<Self> {
        let stage = Stage::set()?;
        let (web, one, two) = (stage.web("a"), stage.address(), stage.address());
        let filters = format!("filters: [{filters}]");
        let all = |service: Service| keys.lines().fold(service.set(&filters), Service::set).to(web.address());
        let second = all(Service::http2("two", two).set("upstream_protocol: http1"));
        let config = stage.config().service(all(Service::http("one", one))).service(second);
        Some(Self { stage, web, services: [one, two], config })
    }

    /// Asks one of them; what it answers, head and body, fields in lower case.
    pub fn ask(&self, index: usize, path: &str, arguments: &[&str]) -> String {
        let (head, body) = self.ask_bytes(index, path, arguments);
        format!("{head}\r\n\r\n{}", String::from_utf8_lossy(&body))
    }

    /// The same, apart: the head in lower case, and the body as it came. Nothing at all comes to nothing.
    pub fn ask_bytes(&self, index: usize, path: &str, arguments: &[&str]) -> (String, Vec<u8>) {
        let url = format!("http://{}{path}", self.services[index]);
        let all = [&["--include", &url], BOTH[index], arguments].concat();
        let bytes = peers::curl(Room::of(&self.stage.clients), &all).stdout;
        let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap_or(bytes.len());
        let body = bytes.get(end + 4..).unwrap_or_default().to_vec();
        (String::from_utf8_lossy(&bytes[..end]).to_lowercase(), body)
    }
}

/// The status of an answer.
pub fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

/// What an answer's head says in a field.
pub fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

/// What stands behind its head.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// How often a filter did this, of both services.
pub fn counted(agent: &Agent, filter: &str, outcome: &str) -> f64 {
    agent.metric("sockway_filter_requests_total", &[("filter", filter), ("outcome", outcome)])
}
