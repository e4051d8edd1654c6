//! Who comes back is known: by a cookie that the agent gave, or by the address that the connection comes from.

use std::{collections::BTreeSet, net::SocketAddr};

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{field, status},
    peers::{self, Nghttpd},
    process::Room,
    stage::Stage,
    translation::HTTP2,
    web::Web,
};
use tempfile::TempDir;

const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const GIVES: &str =
    "hash_on: [{ header: x-user, terminal: on }, { cookie: sid, generate: { ttl_s: 600, path: /app } }]";

/// The same service for clients of HTTP/1 and of HTTP/2, and who dials it.
struct Sticky {
    _agent: Agent,
    services: [SocketAddr; 2],
    stage: Stage,
    webs: Vec<Web>,
}

impl Sticky {
    fn set(keys: &[&str]) -> Option<Self> {
        let stage = Stage::set()?;
        let webs: Vec<Web> = NAMES.iter().map(|name| stage.web(name)).collect();
        let services = [stage.address(), stage.address()];
        let with = |service: Service| {
            let service = keys.iter().fold(service, |service, key| service.set(key));
            service.to_all(webs.iter().map(Web::address))
        };
        let one = with(Service::http("web", services[0]));
        let two = with(Service::http2("web2", services[1]).set("upstream_protocol: http1"));
        let agent = Agent::start(&stage.config().service(one).service(two));
        Some(Self { _agent: agent, services, stage, webs })
    }

    /// What a curl of its own is told.
    #[track_caller]
    fn curl(&self, http: &[&str], path: &str, more: &[&str]) -> String {
        curl(&self.stage, self.services[usize::from(http == [HTTP2])], &[http, more].concat(), path)
    }
}

#[track_caller]
fn curl(stage: &Stage, service: SocketAddr, arguments: &[&str], path: &str) -> String {
    let url = format!("http://{service}{path}");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    let said = peers::stdout(&output).to_lowercase();
    assert!(said.starts_with("http/"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Who has answered.
#[track_caller]
fn who(said: &str) -> String {
    field(said, "x-origin").unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// Where a client keeps its cookies.
fn jar() -> (TempDir, String) {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("jar").to_string_lossy().into_owned();
    (directory, file)
}

#[test]
fn who_keeps_the_cookie_that_it_is_given_comes_back_to_the_same_endpoint() {
    for more in [&[][..], &["retry: { attempts: 2 }"], &["cluster: { strategy: forking }"], &["breaker: {}"]] {
        let keys = [&["balance: ring_hash", GIVES], more].concat();
        let Some(sticky) = Sticky::set(&keys) else { return };
        for http in BOTH {
            let mut met = BTreeSet::new();
            for _ in 0..12 {
                let (_directory, jar) = jar();
                let kept = ["-b", &jar, "-c", &jar];
                let first = sticky.curl(http, "/app/x", &kept);
                let given = field(&first, "set-cookie").unwrap_or_else(|| panic!("{more:?} {http:?}: {first}"));
                let (value, rest) = given.split_once(';').expect("more than a value");
                assert_eq!((value.len(), rest), (20, " max-age=600; path=/app; httponly"), "{given}");
                for _ in 0..3 {
                    let again = sticky.curl(http, "/app/y", &kept);
                    assert_eq!(field(&again, "set-cookie"), None, "{more:?} {http:?}: it has one");
                    if more != ["cluster: { strategy: forking }"] {
                        assert_eq!(who(&again), who(&first), "{more:?} {http:?}: {given}");
                    }
                }
                met.insert(who(&first));
            }
            assert!(met.len() > 1, "{more:?} {http:?}: who is new goes anywhere: {met:?}");
            let known = sticky.curl(http, "/app/x", &["-H", "X-User: me"]);
            assert_eq!(field(&known, "set-cookie"), None, "who is known otherwise needs none");
        }
    }
}

#[test]
fn a_grpc_call_and_an_endpoint_of_http2_give_cookies_as_well() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let _nghttpd = Nghttpd::start_answering(Room::of(&stage.origins), stage.origin(), endpoint);
    let services = [stage.address(), stage.address()];
    let with = |service: Service| service.set("balance: maglev").set(GIVES).to(endpoint);
    let config = stage
        .config()
        .service(with(Service::http("web", services[0]).set("upstream_protocol: http2")))
        .service(with(Service::http2("rpc", services[1])));
    let _agent = Agent::start(&config);
    let grpc =
        [HTTP2, "-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "x"];
    for (service, arguments) in [(services[0], &[][..]), (services[1], &[HTTP2]), (services[1], &grpc)] {
        let said = curl(&stage, service, arguments, "/");
        assert!(field(&said, "set-cookie").is_some_and(|given| given.starts_with("sid=")), "{said}");
        let again = curl(&stage, service, &[arguments, &["-b", "sid=x"]].concat(), "/");
        assert_eq!(field(&again, "set-cookie"), None, "{again}");
    }
}

#[test]
fn a_cookie_is_given_beside_what_the_endpoint_sets_and_kept_for_nobody_else() {
    let keys = ["balance: maglev", "hash_on: [{ cookie: sid, generate: {} }]", "filters: [{ kind: cache }]"];
    let Some(sticky) = Sticky::set(&keys) else { return };
    for web in &sticky.webs {
        web.say("/own", 200, "Set-Cookie: own=1", "own");
        web.say("/kept", 200, "Cache-Control: public, max-age=600", "kept");
        web.say("/kept2", 200, "Cache-Control: public, max-age=600", "kept");
    }
    for (http, path) in BOTH.into_iter().zip(["/kept", "/kept2"]) {
        let own = sticky.curl(http, "/own", &[]);
        let given = own.lines().filter(|line| line.starts_with("set-cookie: "));
        let names: BTreeSet<&str> = given.filter_map(|line| line.split([' ', '=']).nth(1)).collect();
        assert_eq!(names, BTreeSet::from(["own", "sid"]), "{own}");
        let first = sticky.curl(http, path, &[]);
        assert!(field(&first, "set-cookie").is_some(), "{first}");
        let second = sticky.curl(http, path, &[]);
        assert!(field(&second, "age").is_some(), "from the cache: {second}");
        assert_eq!(field(&second, "set-cookie"), None, "another's cookie: {second}");
    }
}

#[test]
fn the_requests_of_one_connection_are_given_the_same_cookie_and_the_agent_s_own_answers_give_none() {
    let Some(sticky) = Sticky::set(&["balance: source_hash", "hash_on: [{ cookie: sid, generate: {} }]"]) else {
        return;
    };
    let mut session = sticky.stage.session(sticky.services[0]);
    let given = |session: &mut sockway_tests::answer::Session| {
        session.get("/").expect("an answer").header("set-cookie").to_owned()
    };
    let first = given(&mut session);
    assert!(first.starts_with("sid=") && first.ends_with("; Path=/; HttpOnly"), "{first}");
    assert_eq!([given(&mut session), given(&mut session)], [first.clone(), first.clone()]);
    assert_ne!(given(&mut sticky.stage.session(sticky.services[0])), first);
    sticky.webs.into_iter().for_each(Web::die);
    let said = curl(&sticky.stage, sticky.services[0], &[], "/");
    assert_eq!((status(&said), field(&said, "set-cookie")), ("503", None), "{said}");
}

#[test]
fn who_has_bound_an_address_is_known_by_it_in_every_protocol() {
    let Some(stage) = Stage::set() else { return };
    let webs: Vec<Web> = NAMES.iter().map(|name| stage.web(name)).collect();
    let services = [(); 4].map(|()| stage.address());
    let with = |service: Service| {
        let service = service.set("balance: ring_hash").set("hash_on: [{ source_ip: on }]");
        service.to_all(webs.iter().map(Web::address))
    };
    let plain = Service::http("plain", services[3]).set("routes: [{ to: web }]").to(webs[0].address());
    let config = stage
        .config()
        .service(with(Service::http("web", services[0])))
        .service(with(Service::http2("web2", services[1]).set("upstream_protocol: http1")))
        .service(with(Service::agent_tcp("bytes", services[2])))
        .service(plain);
    let _agent = Agent::start(&config);
    let protocols: [(SocketAddr, &[&str]); 4] =
        [(services[0], &[]), (services[1], &[HTTP2]), (services[2], &[]), (services[3], &[])];
    let mut met = BTreeSet::new();
    for number in 1..=16 {
        let bound = format!("127.77.{number}.1");
        let ask = |(service, http): (SocketAddr, &[&str])| {
            who(&curl(&stage, service, &[http, &["--interface", &bound]].concat(), "/"))
        };
        let first = ask(protocols[0]);
        for protocol in protocols {
            assert_eq!(ask(protocol), first, "{bound} {protocol:?}");
        }
        met.insert(first);
    }
    assert!(met.len() > 2, "{met:?}");
    for (service, http) in protocols {
        let unbound: BTreeSet<String> = (0..4).map(|_| who(&curl(&stage, service, http, "/"))).collect();
        assert_eq!(unbound.len(), 1, "who has bound none is known as who dialled: {unbound:?}");
    }
}
