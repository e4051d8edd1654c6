//! Which way a request would take: the service it is for, the route of that, what becomes of it, and which endpoints may get it. By the
//! running agent's configuration, or a file's.

mod hashed;

use std::{collections::HashMap, fmt::Write as _, path::Path};

use http::{Request as HttpRequest, Uri, header, request::Parts};
use serde_json::{Value, json};

use super::Args;
use crate::{
    cluster::{Dialler, Service, Snapshot},
    command::{Failure, UNAVAILABLE, USAGE, agent, say},
    config::{
        Config, Route, file,
        route::{Action, Forward, Match, Mirror, Target},
    },
    kernel::{self, Caller, cgroup},
    node::runfile,
    proxy::members,
    route::{Request, Table, Taken},
};

/// What a running agent says.
#[derive(Default)]
struct States {
    /// Whether endpoints are up, by the names of their services and their addresses.
    up: HashMap<(String, String), bool>,
    /// What of a hundred requests canaries get, by the names of their services and routes.
    canaries: HashMap<(String, String), u32>,
    /// What timeouts have come to in milliseconds, by the names of their services and routes, a service's own by none.
    timeouts: HashMap<(String, String), f64>,
    /// Breakers that are not closed: of services, of their routes, of their endpoints.
    breakers: HashMap<(String, String), String>,
}

impl States {
    fn breaker(&self, service: &str, of: &str) -> Option<&str> {
        self.breakers.get(&(service.to_owned(), of.to_owned())).map(String::as_str)
    }

    fn canary(&self, service: &str, route: &str) -> Option<u32> {
        self.canaries.get(&(service.to_owned(), route.to_owned())).copied()
    }
}

/// Says what would become of a request.
///
/// # Errors
///
/// When it is none, no agent runs, or it is for no service.
pub fn run(args: &Args, text: &str) -> Result<u8, Failure> {
    let parts = parts(text, &args.headers)?;
    let (config, states) = configuration(args)?;
    let snapshot = Snapshot::build(&config, &Snapshot::default());
    let service = service(&snapshot, &parts.0, args)?;
    let answer = explain(service, &snapshot, parts.1, &states, dialler(args)?.as_ref())?;
    if args.json {
        say(format_args!("{answer:#}\n"));
    } else {
        say(format_args!("{text}\n\n{}", tell(&answer)));
    }
    Ok(0)
}

/// The request's address as it was written, and its head as a service gets it.
fn parts(text: &str, fields: &[String]) -> Result<(Uri, Parts), Failure> {
    let bad = |what: String| Failure::new(USAGE, format!("sockway: {what}"));
    let (method, url) = text.trim().split_once(' ').unwrap_or(("GET", text.trim()));
    let uri: Uri = url.trim().parse().map_err(|error| bad(format!("\"{url}\" is no address: {error}")))?;
    if uri.authority().is_none() || uri.scheme().is_none() {
        return Err(bad(format!("\"{text}\" is no request; write it as 'GET http://SERVICE/PATH'")));
    }
    let mut request = HttpRequest::builder().method(method).uri(uri.clone());
    for field in fields {
        let (name, value) =
            field.split_once(':').ok_or_else(|| bad(format!("\"{field}\" is no field; write 'NAME: VALUE'")))?;
        request = request.header(name.trim(), value.trim());
    }
    let request = request.body(()).map_err(|error| bad(format!("\"{text}\" is no request: {error}")))?;
    let mut parts = request.into_parts().0;
    if let Some(host) = parts.headers.remove(header::HOST) {
        let mut changed = parts.uri.into_parts();
        changed.authority = Some(host.as_bytes().try_into().map_err(|error| bad(format!("host: {error}")))?);
        parts.uri = Uri::from_parts(changed).map_err(|error| bad(error.to_string()))?;
    }
    Ok((uri, parts))
}

/// The configuration, and which endpoints are up if an agent says so.
fn configuration(args: &Args) -> Result<(Config, States), Failure> {
    let (instance, _) = args.which.find()?;
    let admin = runfile::find(Path::new(runfile::DIRECTORY), &instance).map(|running| running.admin);
    let ask = |path: &str| admin.and_then(|admin| agent::get(admin, path).ok());
    let running = ask("/config").and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let config = match (&args.which.config, running.map(|mut answer| of_requests(answer["config"].take()).to_string()))
    {
        (Some(path), _) => file::read(path)?,
        (None, Some(text)) => file::parse(&text, "the running agent's configuration")?,
        (None, None) => {
            let text = format!("sockway: no agent of instance {instance} answers; run one, or name a file by --config");
            return Err(Failure::new(UNAVAILABLE, text));
        }
    };
    let status: Value = ask("/status").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut states = States::default();
    for service in list(&status, "services") {
        let key = |it: &Value, name: &str| (word(&service["name"]), word(&it[name]));
        let up = |it: Value| (key(&it, "address"), it["up"] == true && it["ejected"] != true);
        states.up.extend(list(&service, "endpoints").into_iter().map(up));
        let canary = |it: Value| (key(&it, "route"), it["percent"].as_u64().map_or(0, |percent| percent as u32));
        states.canaries.extend(list(&service, "canaries").into_iter().map(canary));
        let timeout = |it: Value| (key(&it, "route"), it["timeout_ms"].as_f64().unwrap_or_default());
        states.timeouts.extend(list(&service, "timeouts").into_iter().map(timeout));
        let of_service = vec![json!({ "breaker": service["breaker"] })];
        let (routes, endpoints) = (list(&service, "route_breakers"), list(&service, "endpoints"));
        for (name, items) in [("", of_service), ("route", routes), ("address", endpoints)] {
            let not_closed = |it: &Value| it["breaker"].as_str().is_some_and(|phase| phase != "closed");
            let breaker = |it: Value| (key(&it, name), word(&it["breaker"]).replace('_', "-"));
            states.breakers.extend(items.into_iter().filter(not_closed).map(breaker));
        }
    }
    Ok((config, states))
}

/// A configuration without what an agent tells nobody, a digest or the path of a key: none of it says which way a request takes, and a text
/// that holds "(hidden)" in its place is no configuration.
fn of_requests(mut config: Value) -> Value {
    let take_away = |value: &mut Value, keys: &[&str]| {
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| !keys.contains(&key.as_str()));
        }
    };
    take_away(&mut config, &["admin", "inbound"]);
    let services = config["services"].as_array_mut().into_iter().flatten();
    services.for_each(|service| take_away(service, &["filters", "tls"]));
    config
}

/// By what is dialled, or by its name.
fn service<'s>(snapshot: &'s Snapshot, uri: &Uri, args: &Args) -> Result<&'s Service, Failure> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let dialled = args.connect.or_else(|| format!("{host}:{port}").parse().ok());
    let found = snapshot.services.iter().find(|service| match dialled {
        Some(address) => service.dialled() == (address, sockway_common::flow::TCP),
        None => service.config.name == host,
    });
    found.map(AsRef::as_ref).ok_or_else(|| {
        let what = dialled.map_or(host.to_owned(), |address| address.to_string());
        let text =
            format!("sockway: {what} is no service; write its name or address in the request, or --connect IP:PORT");
        Failure::new(UNAVAILABLE, text)
    })
}

/// Who asks, if that is said.
fn dialler(args: &Args) -> Result<Option<Dialler>, Failure> {
    let Some(from) = args.from.as_deref() else { return Ok(None) };
    let (_, capture) = crate::command::seen(&args.which)?;
    let mount = capture.cgroup_mount.or_else(cgroup::mount).unwrap_or_default();
    let Caller { process, netns_file, .. } = super::caller(Some(from), &mount)?;
    let cgroup = process.and_then(|process| process.cgroups.into_iter().next());
    let (namespaces, is_host) = kernel::names_of(&netns_file);
    Ok(Some(Dialler {
        namespaces,
        is_host,
        cgroup: cgroup.and_then(|(path, _)| path.to_str().map(str::to_owned)),
        address: None,
    }))
}

fn explain(
    service: &Service,
    snapshot: &Snapshot,
    parts: Parts,
    states: &States,
    dialler: Option<&Dialler>,
) -> Result<Value, Failure> {
    let routes = &service.config.routes;
    let request = Request::of_parts(&parts, parts.uri.scheme_str() == Some("https"), 0).by(dialler);
    let taken = Table::new(routes).find(routes, &request);
    let changed = taken.and_then(|index| changed(&routes[index], &request, &parts).transpose()).transpose()?;
    let passed = changed.as_ref().unwrap_or(&parts);
    let candidates = |target: &Target| candidates((service, snapshot), target, states, passed);
    let (action, targets) = match taken.map(|index| &routes[index]) {
        None => ("passed on to its own endpoints".to_owned(), vec![candidates(&own())]),
        Some(route) => match &route.action {
            Action::Forward(forward) => {
                let part = |(target, percent): (&Target, f64)| {
                    let mut shown = candidates(target);
                    shown["percent"] = json!(percent);
                    shown
                };
                let percents = percents(forward, states.canary(&service.config.name, &route.name));
                (onward(changed.as_ref()), forward.targets.iter().zip(percents).map(part).collect())
            }
            Action::Redirect(redirect) => {
                let taken = Taken { route, request: &request };
                let location = taken.location(redirect).map_err(unfit)?;
                (format!("redirected: {} {}", redirect.status, String::from_utf8_lossy(&location)), Vec::new())
            }
            Action::Respond(respond) => {
                (format!("answered: {}, a body of {} bytes", respond.status, respond.body.len()), Vec::new())
            }
        },
    };
    let passed_on = taken.is_none_or(|index| matches!(routes[index].action, Action::Forward(_)));
    let timeout = passed_on.then(|| timeout((service, snapshot), taken.map(|index| &routes[index]), states)).flatten();
    let mirrored = taken.and_then(|index| mirror(&routes[index])).map(|mirror| {
        let mut shown = candidates(&mirror.target);
        shown["percent"] = json!(mirror.percent);
        shown
    });
    let others = routes.iter().enumerate().filter(|(index, _)| Some(*index) != taken);
    Ok(json!({
        "service": service.config.name,
        "address": service.config.address,
        "route": taken.map(|index| routes[index].name.as_str()),
        "route_breaker": taken.and_then(|index| states.breaker(&service.config.name, &routes[index].name)),
        "routes": routes.len(),
        "action": action,
        "others": others.map(|(_, route)| json!({ "route": route.name, "why": why_not(route, &request) })).collect::<Vec<_>>(),
        "request_limits": taken.map(|index| routes[index].request_limits.iter().map(file::show_limit).collect::<Vec<_>>()),
        "targets": targets,
        "mirror": mirrored,
        "timeout": timeout,
    }))
}

/// Which parts of a hundred requests the targets get; of a canary that is at this part, or begins.
fn percents(forward: &Forward, canary: Option<u32>) -> Vec<f64> {
    let sum: u32 = forward.targets.iter().map(|target| target.weight).sum();
    match &forward.canary {
        Some(rules) => {
            let tried = f64::from(canary.or(rules.steps.first().copied()).unwrap_or(0));
            vec![100.0 - tried, tried]
        }
        None => forward.targets.iter().map(|target| f64::from(target.weight) * 100.0 / f64::from(sum)).collect(),
    }
}

/// How long a request may take that takes this route, in words: as the route says, or the service that it goes to, the first of several.
fn timeout((home, snapshot): (&Service, &Snapshot), route: Option<&Route>, states: &States) -> Option<String> {
    let of_route = route.and_then(|route| Some((route, route.timing.filter(|timing| timing.timeout.is_some())?)));
    let to = route.and_then(|route| match &route.action {
        Action::Forward(forward) => snapshot.by_name(forward.targets.first()?.to.as_deref()?),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    let asked = to.map_or(home, AsRef::as_ref);
    let (of, timing) = match of_route {
        Some((route, timing)) => ((&home.config.name, route.name.as_str()), timing),
        None => ((&asked.config.name, ""), asked.config.timing?),
    };
    let max = timing.timeout?.as_millis();
    let Some(auto) = timing.auto else { return Some(format!("{max} ms")) };
    let now = states.timeouts.get(&(of.0.clone(), of.1.to_owned()));
    let now = now.map_or("found by the agent".to_owned(), |millis| format!("{millis:.0} ms now"));
    Some(format!("{now}: {} × p99, from {} to {max} ms", auto.factor, auto.min.as_millis()))
}

/// Who gets copies of what takes a route.
fn mirror(route: &Route) -> Option<&Mirror> {
    match &route.action {
        Action::Forward(forward) => forward.mirror.as_ref(),
        Action::Redirect(_) | Action::Respond(_) => None,
    }
}

fn unfit(unfit: impl std::fmt::Display) -> Failure {
    Failure::new(USAGE, format!("sockway: the request would be refused: {unfit}"))
}

/// The service's endpoints, all of them.
fn own() -> Target {
    Target { to: None, weight: 1, subset: Default::default(), fallback: Default::default() }
}

/// What a route makes of a request, if it changes that.
fn changed(route: &Route, request: &Request<'_>, parts: &Parts) -> Result<Option<Parts>, Failure> {
    let Some(change) = (Taken { route, request }).change().map_err(unfit)? else { return Ok(None) };
    let mut parts = parts.clone();
    change.of_parts(&mut parts).map_err(unfit)?;
    Ok(Some(parts))
}

/// How a request goes on.
fn onward(changed: Option<&Parts>) -> String {
    changed.map_or("passed on".to_owned(), |parts| format!("passed on as {} {}", parts.method, parts.uri))
}

/// Why a route is not taken.
fn why_not(route: &Route, request: &Request<'_>) -> String {
    let fits = |matches: Match| {
        let alone = [Route { matches, ..route.clone() }];
        Table::new(&alone).find(&alone, request).is_some()
    };
    let said = route.matches.clone();
    let part = |name: &str, matches: Match| (!fits(matches)).then(|| format!("its {name} not match"));
    part("host does", Match { host: said.host.clone(), ..Match::default() })
        .or_else(|| part("path does", Match { path: said.path.clone(), ..Match::default() }))
        .or_else(|| part("method does", Match { methods: said.methods.clone(), ..Match::default() }))
        .or_else(|| part("headers do", Match { headers: said.headers.clone(), ..Match::default() }))
        .or_else(|| part("query does", Match { query: said.query.clone(), ..Match::default() }))
        .or_else(|| part("cookies do", Match { cookies: said.cookies.clone(), ..Match::default() }))
        .or_else(|| part("gRPC call does", Match { grpc: said.grpc.clone(), ..Match::default() }))
        .or_else(|| part("caller does", Match { caller: said.caller.clone(), ..Match::default() }))
        .unwrap_or_else(|| "matches, and is less specific or comes later".to_owned())
}

fn candidates((home, snapshot): (&Service, &Snapshot), target: &Target, states: &States, parts: &Parts) -> Value {
    let named = target.to.as_deref().and_then(|name| snapshot.services.iter().find(|it| it.config.name == name));
    let service = named.map_or(home, AsRef::as_ref);
    let members = if target.subset.is_empty() { None } else { members(service, &target.subset, &target.fallback) };
    let is_member = |place: usize| members.as_ref().is_none_or(|members| members[place]);
    let endpoints = service.endpoints.iter().enumerate().filter(|(place, _)| is_member(*place)).map(|(_, endpoint)| {
        let address = endpoint.address.to_string();
        let up = states.up.get(&(service.config.name.clone(), address.clone()));
        let breaker = states.breaker(&service.config.name, &address);
        let (weight, priority) = (endpoint.weight, endpoint.priority());
        json!({ "address": address, "weight": weight, "priority": priority, "up": up, "breaker": breaker })
    });
    let is_up = |place: usize| {
        let address = service.endpoints[place].address.to_string();
        states.up.get(&(service.config.name.clone(), address)).copied().unwrap_or(true)
    };
    json!({
        "service": service.config.name,
        "chosen": hashed::chosen(service, parts, |place| is_member(place) && is_up(place)),
        "subset": target.subset,
        "balance": file::balance_word(service.config.policy.balance),
        "cluster": service.config.strategy.as_ref().map(file::strategy_word),
        "breaker": states.breaker(&service.config.name, ""),
        "endpoints": endpoints.collect::<Vec<Value>>(),
    })
}

fn tell(answer: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<13}{what}");
    };
    line("service", &format!("{}, {}", word(&answer["service"]), word(&answer["address"])));
    let route = answer["route"].as_str().unwrap_or("none matches");
    let breaker = |of: &Value| of.as_str().map(|phase| format!(", its breaker is {phase}")).unwrap_or_default();
    match answer["routes"].as_u64() {
        Some(0) => line("route", "none: the service has no routes"),
        _ => line("route", &format!("{route} (of {}){}", answer["routes"], breaker(&answer["route_breaker"]))),
    }
    line("request", &word(&answer["action"]));
    if let Some(timeout) = answer["timeout"].as_str() {
        line("timeout", timeout);
    }
    for limit in list(&answer["request_limits"]) {
        // Kinds that find their number say none.
        let most = limit["limit"].as_u64().map(|most| format!(" of {most}")).unwrap_or_default();
        line("limited", &format!("{}, {}{most}", word(&limit["name"]), word(&limit["kind"])));
    }
    let copied = answer.get("mirror").filter(|mirror| !mirror.is_null()).map(|mirror| ("copied to", mirror.clone()));
    for (name, target) in list(&answer["targets"]).into_iter().map(|target| ("to", target)).chain(copied) {
        let percent = target["percent"].as_f64().map(|percent| format!("{percent:.1} % ")).unwrap_or_default();
        let endpoints: Vec<String> = list(&target["endpoints"])
            .iter()
            .map(|it| match it["up"].as_bool() {
                Some(true) if it["breaker"].is_string() => {
                    format!("{} (its breaker is {})", word(&it["address"]), word(&it["breaker"]))
                }
                Some(true) => word(&it["address"]) + " (up)",
                Some(false) => word(&it["address"]) + " (down)",
                None => word(&it["address"]),
            })
            .collect();
        let nobody = match target["subset"].as_object().is_some_and(|subset| !subset.is_empty()) {
            true => "nobody: 503, no endpoint has the labels of the subset",
            false => "nobody: 503",
        };
        let who = if endpoints.is_empty() { nobody.to_owned() } else { endpoints.join(", ") };
        let strategy = target["cluster"].as_str().map(|strategy| format!(", {strategy}")).unwrap_or_default();
        let how = word(&target["balance"]) + &strategy + &breaker(&target["breaker"]);
        line(name, &format!("{percent}{}, {how}: {who}", word(&target["service"])));
        hashed::tell(&target["chosen"]).iter().for_each(|chosen| line("chosen", chosen));
    }
    for other in list(&answer["others"]) {
        line("not", &format!("{}: {}", word(&other["route"]), word(&other["why"])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::history::diff::hide;

    const TEXT: &str = "services:
- name: orders
  address: 10.0.0.1:80
  protocol: http
  endpoints: [{ address: 10.0.0.2:80, labels: { v: a } }, 10.0.0.3:80]
  routes:
  - { name: api, match: { path: { prefix: /api } }, rewrite: { prefix: /v2 }, split: [{ weight: 3, subset: { v: a } }, { weight: 1, to: b }] }
  - { name: team, match: { path: { prefix: /api }, headers: { x-team: red } }, subset: { v: none } }
  - { name: old, match: { path: /old }, redirect: { path: /new } }
  - { name: shadowed, match: { path: /shadowed }, mirror: { to: b, percent: 5 } }
  - { name: tried, match: { path: /tried }, canary: { to: b }, timeout: { auto: {} } }
  - { name: begun, match: { path: /begun }, canary: { to: b } }
  - { name: sent, match: { path: /sent }, to: b }
- { name: b, address: 10.0.0.4:80, protocol: http, cluster: failfast, timeout_ms: 70, endpoints: [10.0.0.5:80] }
";

    fn told(text: &str, fields: &[&str]) -> String {
        let snapshot = Snapshot::build(&file::parse(TEXT, "F").unwrap(), &Snapshot::default());
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        let (_, parts) = parts(text, &fields).unwrap_or_else(|failure| panic!("{failure}"));
        let key = |of: &str, what: &str| (of.to_owned(), what.to_owned());
        let states = States {
            up: [(key("b", "10.0.0.5:80"), false)].into_iter().collect(),
            canaries: [(key("orders", "tried"), 25)].into_iter().collect(),
            timeouts: [(key("orders", "tried"), 812.4)].into_iter().collect(),
            breakers: [(key("orders", "10.0.0.2:80"), "open".to_owned())].into_iter().collect(),
        };
        tell(
            &explain(&snapshot.services[0], &snapshot, parts, &states, None)
                .unwrap_or_else(|failure| panic!("{failure}")),
        )
    }

    #[test]
    fn a_requests_way_is_told_and_why_no_other() {
        let expected = "service      orders, 10.0.0.1:80
route        api (of 7)
request      passed on as GET http://orders/v2/1?x
to           75.0 % orders, round_robin: 10.0.0.2:80
to           25.0 % b, round_robin, failfast: 10.0.0.5:80 (down)
not          team: its headers do not match
not          old: its path does not match
not          shadowed: its path does not match
not          tried: its path does not match
not          begun: its path does not match
not          sent: its path does not match
";
        assert_eq!(told("http://orders/api/1?x", &[]), expected);
        let told_red = told("GET http://orders/api/1", &["X-Team: red"]);
        assert!(told_red.contains("route        team (of 7)\n"), "{told_red}");
        assert!(
            told_red.contains("to           100.0 % orders, round_robin: nobody: 503, no endpoint has the labels"),
            "{told_red}"
        );
        assert!(told_red.contains("not          api: matches, and is less specific or comes later\n"), "{told_red}");
        assert!(told("http://orders/tried", &[]).contains("to           25.0 % b, "));
        assert!(told("http://orders/tried", &[]).contains("timeout      812 ms now: 3 × p99, from 250 to 15000 ms\n"));
        assert!(told("http://orders/begun", &[]).contains("to           5.0 % b, "));
        assert!(told("http://orders/sent", &[]).contains("timeout      70 ms\n"));
        let copied = "copied to    5.0 % b, round_robin, failfast: 10.0.0.5:80 (down)\n";
        assert!(told("http://orders/shadowed", &[]).contains(copied));
        assert!(told("http://orders/old", &[]).contains("request      redirected: 302 http://orders/new\n"));
        assert!(told("http://orders/", &[]).contains("round_robin: 10.0.0.2:80, 10.0.0.3:80\n"));
    }

    #[test]
    fn the_endpoint_is_told_that_what_is_hashed_leads_to() {
        let text = "services:
- name: a
  address: 10.0.0.1:80
  protocol: http
  balance: ring_hash
  hash_on: [{ header: x-user, terminal: on }, { cookie: sid, generate: {} }]
  endpoints: [10.0.0.2:80, 10.0.0.3:80, 10.0.0.4:80]
";
        let snapshot = Snapshot::build(&file::parse(text, "F").unwrap(), &Snapshot::default());
        let told = |fields: &[&str], down: Option<&str>| {
            let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
            let (_, parts) = parts("http://a/", &fields).unwrap_or_else(|failure| panic!("{failure}"));
            let up = down.map(|address| (("a".to_owned(), address.to_owned()), false)).into_iter().collect();
            let states = States { up, ..States::default() };
            let told = explain(&snapshot.services[0], &snapshot, parts, &states, None);
            let told = tell(&told.unwrap_or_else(|failure| panic!("{failure}")));
            told.lines().find_map(|line| line.strip_prefix("chosen       ")).expect("a choice").to_owned()
        };
        let of_me = told(&["X-User: me"], None);
        let (endpoint, by) = of_me.split_once(", ").expect("an endpoint");
        assert!(endpoint.starts_with("10.0.0.") && by == "by the header x-user", "{of_me}");
        assert_eq!(told(&["X-User: me", "Cookie: sid=1"], None), of_me);
        let other = told(&["X-User: me"], Some(endpoint));
        assert!(!other.starts_with(endpoint) && other.ends_with(", by the header x-user"), "{other}");
        assert!(told(&["Cookie: sid=1"], None).ends_with(":80, by the cookie sid"));
        assert_eq!(told(&[], None), "by the cookie sid, which it is given");
    }

    #[test]
    fn what_an_agent_tells_nobody_is_not_needed() {
        let digest = "ab".repeat(32);
        let filters = format!("filters: [{{kind: api_key, header: x-key, keys: {{ann: 'sha256:{digest}'}}}}]");
        let text = TEXT.replace("endpoints: [{", &format!("{filters}\n  endpoints: [{{"))
            + &format!(
                "admin: {{tokens: [{{name: ops, sha256: {digest}}}]}}\ninbound: [{{name: i, ports: [80], protocol: http}}]\n"
            );
        let config = file::parse(&text, "F").unwrap();
        let mut told = hide(file::show(&config));
        for (at, tls) in [("services", "terminate"), ("inbound", "terminate")] {
            told[at][0]["tls"] = json!({ tls: { "certificates": [{ "cert": "/c", "key": "(hidden)" }] } });
        }
        assert!(file::parse(&told.to_string(), "F").is_err());
        let read = file::parse(&of_requests(told).to_string(), "F").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.services[0].routes, config.services[0].routes);
        assert_eq!(read.services[1], config.services[1]);
    }

    #[test]
    fn limits_are_told_with_their_number_if_they_have_one() {
        let limits = json!([{ "name": "a", "kind": "token_bucket", "limit": 7 }, { "name": "b", "kind": "gradient" }]);
        let told = tell(&json!({ "request_limits": limits }));
        assert!(told.contains("limited      a, token_bucket of 7\nlimited      b, gradient\n"), "{told}");
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_remedy() {
        for text in ["", "/x", "GET orders", "G@T http://a/"] {
            assert!(parts(text, &[]).is_err(), "{text}");
        }
        assert!(parts("http://a/", &["x".to_owned()]).is_err());
    }
}
