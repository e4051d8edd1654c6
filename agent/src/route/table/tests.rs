//! The table against its definition: every route is tried, and of those that match the first by rank is taken.

use proptest::prelude::*;

use super::*;
use crate::config::route::{Action, Expression, HeaderChanges, Respond};

fn route(matches: Match) -> Route {
    let action = Action::Respond(Respond { status: 200, body: String::new() });
    let none = HeaderChanges::default;
    Route {
        name: String::new(),
        matches,
        action,
        timing: None,
        strategy: None,
        one_way: false,
        request_limits: Vec::new(),
        breaker: None,
        request_headers: none(),
        response_headers: none(),
    }
}

fn routes(matches: impl IntoIterator<Item = Match>) -> Vec<Route> {
    matches.into_iter().map(route).collect()
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.to_owned())
}

fn found(routes: &[Route], head: &str) -> Option<usize> {
    Table::new(routes).find(routes, &Request::of_http1(head.as_bytes(), false, 0))
}

fn asked(method: &str, target: &str, host: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
}

fn at(path: &str) -> Match {
    let path = match path.strip_suffix("/*") {
        Some(prefix) => PathMatch::Prefix(prefix.to_owned()),
        None => PathMatch::Exact(path.to_owned()),
    };
    Match { path: Some(path), ..Match::default() }
}

fn on(host: &str) -> Match {
    let host = match host.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
        None => HostMatch::Exact(host.to_owned()),
    };
    Match { host: Some(host), ..Match::default() }
}

#[test]
fn the_longest_path_wins_and_a_prefix_ends_at_a_slash() {
    let routes = routes([at("/*"), at("/api/*"), at("/api/v1/*"), at("/api/v1")]);
    for (path, expected) in
        [("/", 0), ("/apix", 0), ("/api", 1), ("/api/", 1), ("/api/v2", 1), ("/api/v1", 3), ("/api/v1/", 2)]
    {
        assert_eq!(found(&routes, &asked("GET", path, "a", "")), Some(expected), "{path}");
    }
    assert_eq!(found(&routes, &asked("OPTIONS", "*", "a", "")), None);
}

#[test]
fn the_host_comes_before_the_path_and_knows_no_case() {
    let mut all = vec![at("/x"), on("*.example"), on("*.b.example"), on("a.b.example")];
    let host = Some(HostMatch::Regex(Expression::whole_insensitive("[0-9]+.example").unwrap()));
    all.push(Match { host, ..Match::default() });
    let routes = routes(all);
    for (host, expected) in [
        ("A.b.example:80", Some(3)),
        ("c.B.Example", Some(2)),
        ("x.c.example", Some(1)),
        ("7.example", Some(1)),
        ("7xEXAMPLE", Some(4)),
        ("example", Some(0)),
    ] {
        assert_eq!(found(&routes, &asked("GET", "/x", host, "")), expected, "{host}");
    }
}

#[test]
fn conditions_make_a_route_more_specific_and_what_fails_one_falls_to_the_next() {
    let base = at("/a");
    let methods = Match { methods: vec!["GET".into()], ..base.clone() };
    let header = Match { headers: vec![("x".into(), exact("1"))], ..base.clone() };
    let two =
        Match { headers: vec![("x".into(), TextMatch::Present), ("y".into(), TextMatch::Absent)], ..base.clone() };
    let query = Match { query: vec![("q".into(), exact("1"))], ..base.clone() };
    let cookie = Match { cookies: vec![("c".into(), TextMatch::Prefix("1".into()))], ..base.clone() };
    let routes = routes([base, methods, header, two, query, cookie]);
    for (method, target, fields, expected) in [
        ("POST", "/a", "", 0),
        ("GET", "/a", "x: 1\r\n", 1),
        ("POST", "/a", "x: 1\r\n", 3),
        ("POST", "/a", "x: 1\r\ny: 1\r\n", 2),
        ("POST", "/a", "x: 2\r\ny: 1\r\n", 0),
        ("POST", "/a?q=1", "cookie: c=12\r\n", 4),
        ("POST", "/a?q=2", "cookie: c=12\r\n", 5),
    ] {
        assert_eq!(found(&routes, &asked(method, target, "h", fields)), Some(expected), "{method} {target} {fields}");
    }
}

#[test]
fn texts_are_compared_as_said() {
    let regex = TextMatch::Regex(Expression::whole("[a-c]+").unwrap());
    for (text, fits, fits_not) in [
        (exact("ab"), &["ab"][..], &["a", "abc", "AB"][..]),
        (TextMatch::Prefix("ab".into()), &["ab", "abc"], &["a", "cab"]),
        (TextMatch::Suffix("ab".into()), &["ab", "cab"], &["abc"]),
        (regex, &["abc"], &["abd", ""]),
        (TextMatch::Present, &["", "x"], &[]),
        (TextMatch::Absent, &[], &["", "x"]),
    ] {
        let is = |value: &&str| is_among(&text, [value.as_bytes()].into_iter());
        assert!(fits.iter().all(is) && !fits_not.iter().any(is), "{text:?}");
    }
    assert!(is_among(&exact("b"), [&b"a"[..], b"b"].into_iter()), "one of several values is enough");
}

#[test]
fn a_grpc_call_is_found_by_service_and_method() {
    let call = |service: Option<&str>, method: Option<&str>| Match {
        grpc: Some(GrpcMatch { service: service.map(str::to_owned), method: method.map(str::to_owned) }),
        ..Match::default()
    };
    let routes =
        routes([call(None, None), call(None, Some("Get")), call(Some("a.B"), None), call(Some("a.B"), Some("Get"))]);
    let grpc = "content-type: application/grpc\r\n";
    for (path, fields, expected) in
        [("/a.B/Get", grpc, Some(3)), ("/a.B/Put", grpc, Some(2)), ("/a.C/Put", grpc, Some(0)), ("/a.B/Get", "", None)]
    {
        assert_eq!(found(&routes, &asked("POST", path, "h", fields)), expected, "{path}");
    }
}

/// What the table is a quicker way to find.
fn defined(routes: &[Route], request: &Request<'_>) -> Option<usize> {
    let mut order: Vec<usize> = (0..routes.len()).collect();
    order.sort_by_cached_key(|index| Rank::of(&routes[*index].matches));
    order.into_iter().find(|index| {
        let matches = &routes[*index].matches;
        let host = String::from_utf8_lossy(request.host()).to_ascii_lowercase();
        let of_host = matches.host.as_ref().is_none_or(|it| match it {
            HostMatch::Exact(exact) => *exact == host,
            HostMatch::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            HostMatch::Regex(expression) => expression.regex().is_match(host.as_bytes()),
        });
        let path = String::from_utf8_lossy(request.path);
        let of_path = matches.path.as_ref().is_none_or(|it| match it {
            PathMatch::Exact(exact) => *exact == path,
            PathMatch::Prefix(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                    && path.starts_with('/')
            }
            PathMatch::Regex(expression) => expression.regex().is_match(path.as_bytes()),
            PathMatch::Template(segments) => {
                let parts: Vec<&str> = path.split('/').skip(1).collect();
                parts.len() == segments.len()
                    && segments.iter().zip(&parts).all(|(segment, part)| match segment {
                        Segment::Literal(text) => text == part,
                        Segment::Named(_) => !part.is_empty(),
                    })
            }
        });
        of_host && of_path && holds(matches, request)
    })
}

fn any_host() -> impl Strategy<Value = Option<HostMatch>> {
    prop_oneof![
        Just(None),
        "[ab](\\.[ab]){0,2}".prop_map(|host| Some(HostMatch::Exact(host))),
        "(\\.[ab]){1,2}".prop_map(|suffix| Some(HostMatch::Suffix(suffix))),
        "[ab.]{1,3}".prop_map(|text| Some(HostMatch::Regex(Expression::whole_insensitive(&text).unwrap()))),
    ]
}

fn any_path() -> impl Strategy<Value = Option<PathMatch>> {
    let segment = prop_oneof![
        "[ab]".prop_map(Segment::Literal),
        Just(Segment::Literal(String::new())),
        "[xy]".prop_map(Segment::Named)
    ];
    prop_oneof![
        Just(None),
        "(/[ab]{0,1}){1,3}".prop_map(|path| Some(PathMatch::Exact(path))),
        "(/[ab]){0,3}".prop_map(|prefix| Some(PathMatch::Prefix(prefix))),
        proptest::collection::vec(segment, 1..4).prop_map(|segments| Some(PathMatch::Template(segments))),
        "/[ab.]{0,3}".prop_map(|text| Some(PathMatch::Regex(Expression::whole(&text).unwrap()))),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let methods = prop_oneof![Just(Vec::new()), Just(vec!["GET".to_owned()])];
    let headers = proptest::collection::vec("[xy]".prop_map(|name| (name, exact("1"))), 0..2);
    (any_host(), any_path(), methods, headers).prop_map(|(host, path, methods, headers)| Match {
        host,
        path,
        methods,
        headers,
        ..Match::default()
    })
}

proptest! {
    #[test]
    fn the_table_finds_what_its_definition_says(
        matches in proptest::collection::vec(any_match(), 0..20),
        method in "GET|PUT",
        path in "(/[ab]{0,1}){1,4}",
        host in "[abA](\\.[ab]){0,3}",
        fields in "(x: 1\r\n)?(y: [12]\r\n)?",
    ) {
        let routes = routes(matches);
        let head = asked(&method, &path, &host, &fields);
        let request = Request::of_http1(head.as_bytes(), false, 0);
        prop_assert_eq!(Table::new(&routes).find(&routes, &request), defined(&routes, &request));
    }
}
