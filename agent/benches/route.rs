//! `cargo bench -p sockway --bench route`: what it costs to find a request's route, among ten and among a thousand, and that nothing is
//! allocated for it. The profiler's columns say what was; there are none where nothing was.

use std::fmt::Write as _;

use divan::{AllocProfiler, Bencher, black_box};
use sockway::{
    config::{Route, file},
    route::{Request, Table},
};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const COUNTS: [usize; 2] = [10, 1_000];

fn main() {
    divan::main();
}

/// As many routes of all kinds: hosts and paths exact and by prefix, templates, and a field to look for in each.
fn routes(count: usize) -> Vec<Route> {
    let mut text = String::from(
        "services:\n- {name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], routes: [\n",
    );
    for index in 0..count {
        let matches = match index % 5 {
            0 => format!("host: h{index}.example, path: {{prefix: /api}}"),
            1 => format!("path: /exact/{index}"),
            2 => format!("path: {{prefix: /prefix/{index}}}"),
            3 => format!("path: {{template: '/template/{index}/{{id}}/items'}}"),
            _ => format!("host: '*.s{index}.example', path: {{prefix: /api/v1}}, methods: [GET]"),
        };
        let _ = writeln!(text, "  {{match: {{{matches}, headers: {{x-team: red}}}}}},");
    }
    text.push_str("]}\n");
    let config = file::parse(&text, "bench").expect("a good file");
    config.services[0].routes.clone()
}

/// A request for one of the routes of each kind, by its place among them.
fn heads(count: usize) -> Vec<String> {
    let last = count - 5;
    let targets = [
        (format!("/api/orders/{last}"), format!("h{last}.example")),
        (format!("/exact/{}", last + 1), "any.example".to_owned()),
        (format!("/prefix/{}/and/more", last + 2), "any.example".to_owned()),
        (format!("/template/{}/4711/items", last + 3), "any.example".to_owned()),
        ("/api/v1/orders?full=1".to_owned(), format!("a.s{}.example", last + 4)),
    ];
    let head = |(target, host)| {
        format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\nX-Team: red\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
        )
    };
    targets.map(head).to_vec()
}

/// One decision, the request's head looked at and its route found; the mean over requests for routes of each kind.
#[divan::bench(args = COUNTS)]
fn found(bencher: Bencher<'_, '_>, count: usize) {
    decide(bencher, count, &heads(count), true);
}

/// The same of a request that no route is for.
#[divan::bench(args = COUNTS)]
fn not_found(bencher: Bencher<'_, '_>, count: usize) {
    let head = "GET /nowhere/at/all HTTP/1.1\r\nHost: www.elsewhere.example\r\nAccept: */*\r\n\r\n".to_owned();
    decide(bencher, count, &[head], false);
}

fn decide(bencher: Bencher<'_, '_>, count: usize, heads: &[String], is_found: bool) {
    let routes = routes(count);
    let table = Table::new(&routes);
    let find = |head: &String| table.find(&routes, &Request::of_http1(black_box(head.as_bytes()), false, 0));
    assert!(heads.iter().all(|head| find(head).is_some() == is_found));
    let mut turn = 0;
    bencher.bench_local(|| {
        turn = (turn + 1) % heads.len();
        find(&heads[turn])
    });
}
