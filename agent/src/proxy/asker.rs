//! Who asks, as far as an endpoint is chosen by it: who dialled, from where, and the cookie that is given to who has none.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use http::{HeaderValue, header::SET_COOKIE};

use super::{Cluster, Hop};
use crate::{
    balance::Balancer,
    config::{
        Service,
        tuning::{GivenCookie, HashKey, Part},
    },
    kernel::peer_of,
    route::{Fields, Request},
};

/// Most bytes of an address as text, and of a cookie's value.
const TEXT_BYTES_MAX: usize = 48;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Who dialled, as the service's hashes know it.
    pub source: u64,
    /// The address that its connection comes from, if the service asked for it when that was made, and if it tells anything.
    address: Option<IpAddr>,
    /// Any number: the connection's own. What it is given as a cookie is this, for all of its requests: those that race must come to one
    /// endpoint, as with Envoy.
    number: u64,
    /// Its request was received before epoll had a turn: what has come on unused connections since the last turn is not told yet.
    pub is_untold: bool,
}

impl Asker {
    /// A question of the agent's own.
    pub fn ourselves(hop: &Hop) -> Self {
        Self { source: 0, address: None, number: hop.chance(), is_untold: false }
    }

    /// The hash of what it is known by.
    pub fn hash<'k>(&self, key: &'k HashKey, balancer: &Balancer, request: Option<&Request<'k>>) -> Option<u64> {
        let part = match key {
            HashKey::Address => return Some(self.hash_of_address(balancer)),
            HashKey::Part(Part::Source) => return Some(balancer.hash(&self.source.to_be_bytes())),
            HashKey::Part(part) => found(part, request?)?,
            HashKey::Given(cookie) => match had(cookie, request?) {
                None => return Some(written(format_args!("{:016x}", self.number), |text| balancer.hash(text))),
                Some(value) => value,
            },
        };
        Some(balancer.hash(part))
    }

    /// As text, which is what nginx hashes of `$remote_addr`, and Envoy.
    fn hash_of_address(&self, balancer: &Balancer) -> u64 {
        match self.address {
            Some(address) => written(format_args!("{address}"), |text| balancer.hash(text)),
            None => balancer.hash(&self.source.to_be_bytes()),
        }
    }

    /// The cookies that it is given with its answer, if it has to be: those that the choice of its endpoint goes by.
    pub fn given(&self, service: &Service, request: &Request<'_>) -> Option<Fields> {
        let mut fields = None;
        for rule in &service.policy.tuning.hash_on {
            let counts = match &rule.key {
                HashKey::Part(Part::Source) | HashKey::Address => true,
                HashKey::Part(part) => found(part, request).is_some(),
                HashKey::Given(cookie) => {
                    if let (None, Ok(value)) = (had(cookie, request), HeaderValue::from_str(&self.line(cookie))) {
                        fields = Some(fields.unwrap_or_else(Fields::default).append(SET_COOKIE, value));
                    }
                    true
                }
            };
            if counts && rule.terminal {
                break;
            }
        }
        fields
    }

    fn line(&self, cookie: &GivenCookie) -> String {
        let age = cookie.ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
        format!("{}={:016x}{age}; Path={}; HttpOnly", cookie.name, self.number, cookie.path)
    }
}

fn found<'r>(part: &'r Part, request: &Request<'r>) -> Option<&'r [u8]> {
    match part {
        Part::Header(name) => request.header(name),
        Part::Cookie(name) => request.cookie(name),
        Part::Query(name) => request.parameter(name),
        Part::Source => None,
    }
}

/// An empty one is none, as with Envoy: it would send all who have it to one endpoint.
fn had<'r>(cookie: &'r GivenCookie, request: &Request<'r>) -> Option<&'r [u8]> {
    request.cookie(&cookie.name).filter(|value| !value.is_empty())
}

fn written<T>(text: std::fmt::Arguments<'_>, told: impl FnOnce(&[u8]) -> T) -> T {
    let mut room = [0; TEXT_BYTES_MAX];
    let mut left = &mut room[..];
    // It fits: that is what the room was made for.
    let _ = left.write_fmt(text);
    let bytes = TEXT_BYTES_MAX - left.len();
    told(&room[..bytes])
}

/// An address that was bound by who dials, or is that of another host. All others have this one, since the agent listens there.
fn telling(address: IpAddr) -> bool {
    address != Ipv4Addr::LOCALHOST && address != Ipv6Addr::LOCALHOST
}

impl Cluster {
    /// Who asks on a connection that was accepted.
    pub(super) fn asker(&self, hop: &Hop, accepted: BorrowedFd<'_>, source: u64) -> Asker {
        let asks = self.service.config.policy.tuning.asks_address()
            || self.routes.as_ref().is_some_and(|routes| routes.asks_address);
        let address = if asks { peer_of(accepted).filter(|address| telling(*address)) } else { None };
        Asker { source, address, number: hop.chance(), is_untold: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{balance::Site, cluster::Shares, config::file};

    const ASKER: Asker = Asker { source: 7, address: None, number: 0xabc, is_untold: false };

    fn service(hash_on: &str) -> Service {
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, balance: maglev, hash_on: {hash_on}, \
             endpoints: [10.0.0.2:80, 10.0.0.3:80]}}]"
        );
        let config = file::parse(&text, "F").expect("a good file");
        config.services[0].as_ref().clone()
    }

    fn given(hash_on: &str, fields: &str) -> Option<String> {
        let head = format!("GET /?id=1 HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let given = ASKER.given(&service(hash_on), &Request::of_http1(head.as_bytes(), false, 7))?;
        let lines = String::from_utf8(given.of_lines(b"HTTP/1.1 200 OK\r\n\r\n")).expect("text");
        Some(lines["HTTP/1.1 200 OK\r\n".len()..].trim_end().to_owned())
    }

    #[test]
    fn a_cookie_is_given_to_who_has_none_where_the_choice_goes_by_it() {
        let all = "[{header: x-user, terminal: on}, {cookie: sid, generate: {ttl_s: 60, path: /app}, terminal: on}, \
                   {cookie: more, generate: {}}]";
        let line = "set-cookie: sid=0000000000000abc; Max-Age=60; Path=/app; HttpOnly";
        assert_eq!(given(all, "").as_deref(), Some(line));
        assert_eq!(given(all, "Cookie: a=b; sid=\r\n").as_deref(), Some(line), "an empty one is none");
        assert_eq!(given(all, "Cookie: a=b; sid=x\r\n"), None);
        assert_eq!(given(all, "X-User: me\r\n"), None, "what follows a terminal part says nothing");
        let session = "[{query: other, terminal: on}, {query: id}, {cookie: sid, generate: {}}]";
        assert_eq!(given(session, "").as_deref(), Some("set-cookie: sid=0000000000000abc; Path=/; HttpOnly"));
        assert_eq!(given("[{source_ip: on, terminal: on}, {cookie: sid, generate: {}}]", ""), None);
    }

    #[test]
    fn who_was_given_a_cookie_is_known_by_it_when_it_comes_back() {
        let service = service("[{cookie: sid, generate: {}}]");
        let sites = ["10.0.0.2:80", "10.0.0.3:80"].map(|text| Site::plain(text.parse().expect("an address")));
        let shares = Shares { weights: vec![1, 1], standby: Vec::new() };
        let balancer = Balancer::new(&service.policy, &sites, &shares);
        let hash = |asker: Asker, fields: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 7);
            asker.hash(&service.policy.tuning.hash_on[0].key, &balancer, Some(&request))
        };
        let other = Asker { number: 1, ..ASKER };
        assert_eq!(hash(ASKER, ""), hash(other, "Cookie: sid=0000000000000abc\r\n"));
        assert_ne!(hash(ASKER, ""), hash(other, ""));
    }

    #[test]
    fn an_address_is_hashed_as_text_and_who_has_none_of_his_own_is_known_as_who_dialled() {
        let service = service("[{source_ip: on}]");
        let sites = [Site::plain("10.0.0.2:80".parse().expect("an address"))];
        let shares = Shares { weights: vec![1], standby: Vec::new() };
        let balancer = Balancer::new(&service.policy, &sites, &shares);
        for (address, expected) in [
            (Some("192.0.2.7"), &b"192.0.2.7"[..]),
            (Some("2001:db8::1"), b"2001:db8::1"),
            (None, &[0, 0, 0, 0, 0, 0, 0, 7]),
        ] {
            let address = address.map(|text| text.parse().expect("an address"));
            let found = Asker { address, ..ASKER }.hash(&HashKey::Address, &balancer, None);
            assert_eq!(found, Some(balancer.hash(expected)));
        }
        let tells =
            ["127.0.0.1", "::1", "127.0.0.2", "10.1.2.3"].map(|text| telling(text.parse().expect("an address")));
        assert_eq!(tells, [false, false, true, true]);
    }
}
