//! The response cache, through the agent: RFC 9111 by its sections, in HTTP/1 and HTTP/2, with an endpoint that counts what it is asked.

use std::thread;

use sockway_tests::{
    agent::Agent,
    filtered::{Filtered, body, counted, field, status},
    wait,
};

const CACHE: &str = "{ kind: cache }";
const FRESH: &str = "cache-control: max-age=600\netag: \"1\"";

#[track_caller]
fn how(answer: &str) -> &str {
    field(answer, "cache-status").unwrap_or("nothing")
}

/// Asks one of the services, with fields.
fn ask(pair: &Filtered, index: usize, path: &str, fields: &[&str]) -> String {
    let arguments: Vec<&str> = fields.iter().flat_map(|field| ["--header", field]).collect();
    pair.ask(index, path, &arguments)
}

#[test]
fn section_4_what_is_fresh_is_given_again_and_tells_its_age() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let agent = Agent::start(&pair.config);
    pair.web.say("/a", 200, &format!("{FRESH}\nx-a: b\nage: 100"), "hello");
    for index in [0, 1] {
        let first = ask(&pair, index, "/a", &[]);
        assert_eq!((status(&first), body(&first), how(&first)), ("200", "hello", "sockway; fwd=uri-miss; stored"));
        let again = ask(&pair, index, "/a", &[]);
        assert_eq!((status(&again), body(&again), field(&again, "x-a")), ("200", "hello", Some("b")), "{again}");
        let age: u64 = field(&again, "age").and_then(|age| age.parse().ok()).expect("an age");
        assert!((100..130).contains(&age) && how(&again).starts_with("sockway; hit; ttl="), "{again}");
        assert!(field(&again, "date").is_some(), "{again}");
        // Of a head too, and of a query only by itself.
        let head = pair.ask(index, "/a", &["--head"]);
        assert_eq!((status(&head), field(&head, "content-length"), body(&head)), ("200", Some("5"), ""), "{head}");
        assert_eq!(status(&ask(&pair, index, "/a?b", &[])), "404");
        assert_eq!(pair.web.asked("/a"), index + 1);
        // Section 4.3.2: who has it is told so.
        for known in ["If-None-Match: \"x\", W/\"1\"", "If-None-Match: *"] {
            let told = ask(&pair, index, "/a", &[known]);
            assert_eq!((status(&told), body(&told), field(&told, "etag")), ("304", "", Some("\"1\"")), "{told}");
        }
        assert_eq!(status(&ask(&pair, index, "/a", &["If-None-Match: \"x\""])), "200");
    }
    assert_eq!(pair.web.asked("/a"), 2);
    assert_eq!((counted(&agent, "cache", "hit"), counted(&agent, "cache", "miss")), (10.0, 4.0));
    let of = |name: &str| agent.metric(name, &[("filter", "cache")]);
    assert_eq!((of("sockway_cache_stored_total"), of("sockway_cache_entries")), (2.0, 2.0));
    assert!(of("sockway_cache_bytes") > 0.0);
}

#[test]
fn section_3_what_may_not_be_kept_is_asked_for_each_time() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    for (path, code, fields, asks) in [
        ("/private", 200, "cache-control: private, max-age=60", &[][..]),
        ("/no-store", 200, "cache-control: no-store", &[]),
        ("/silent", 200, "etag: \"1\"", &[]),
        ("/cookie", 200, "cache-control: max-age=60\nset-cookie: a=b", &[]),
        ("/all", 200, "cache-control: max-age=60\nvary: *", &[]),
        ("/known", 200, "cache-control: max-age=60", &["Authorization: Basic x"]),
        ("/range", 206, "cache-control: max-age=60\ncontent-range: bytes 0-1/5", &["Range: bytes=0-1"]),
        ("/unasked", 200, "cache-control: max-age=60", &["Cache-Control: no-store"]),
    ] {
        pair.web.say(path, code, fields, "x");
        for index in [0, 1] {
            let before = pair.web.asked(path);
            for _ in 0..2 {
                let answer = ask(&pair, index, path, asks);
                assert_eq!((status(&answer), body(&answer)), (code.to_string().as_str(), "x"), "{path}");
            }
            assert_eq!(pair.web.asked(path) - before, 2, "{path}");
        }
    }
    pair.web.say("/shared", 200, "cache-control: s-maxage=60", "x");
    for _ in 0..2 {
        ask(&pair, 0, "/shared", &["Authorization: Basic x"]);
    }
    assert_eq!(pair.web.asked("/shared"), 1, "section 3.5");
}

#[test]
fn section_4_1_an_answer_is_for_those_who_say_the_same() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    for index in [0, 1] {
        for language in ["de", "en", "de", "en", "de"] {
            pair.web.say("/a", 200, &format!("{FRESH}\nvary: Accept-Language, X-None"), language);
            let answer = ask(&pair, index, "/a", &[&format!("Accept-Language: {language}")]);
            assert_eq!(body(&answer), language, "{answer}");
        }
        let other = ask(&pair, index, "/a", &["Accept-Language: fr"]);
        assert_eq!(how(&other), "sockway; fwd=vary-miss; stored", "{other}");
        assert_eq!(pair.web.asked("/a"), 3 * (index + 1));
    }
}

#[test]
fn section_4_3_what_is_stale_is_asked_about_and_given_if_it_holds() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let agent = Agent::start(&pair.config);
    let stale = "cache-control: max-age=0, must-revalidate\netag: \"1\"";
    for index in [0, 1] {
        pair.web.say("/a", 200, &format!("{stale}\nx-a: old\nx-b: kept"), "hello");
        ask(&pair, index, "/a", &[]);
        pair.web.say("/a", 200, &format!("{stale}\nx-a: new"), "is not sent");
        let answer = ask(&pair, index, "/a", &["If-None-Match: \"mine\""]);
        assert_eq!((status(&answer), body(&answer)), ("200", "hello"), "{answer}");
        assert_eq!((field(&answer, "x-a"), field(&answer, "x-b")), (Some("new"), Some("kept")), "{answer}");
        assert!(how(&answer).starts_with("sockway; hit; fwd=stale; fwd-status=304"), "{answer}");
        let asked = pair.web.last().expect("a request").0.to_lowercase();
        assert!(asked.contains("if-none-match: \"1\"") && !asked.contains("mine"), "{asked}");
        // Another one takes its place.
        pair.web.say("/a", 200, "cache-control: max-age=60\netag: \"2\"", "other");
        assert_eq!(body(&ask(&pair, index, "/a", &[])), "other");
        let before = pair.web.asked("/a");
        assert_eq!(body(&ask(&pair, index, "/a", &[])), "other");
        assert_eq!(pair.web.asked("/a"), before);
    }
    assert_eq!(counted(&agent, "cache", "revalidated"), 2.0);
}

#[test]
fn section_4_3_5_what_is_said_to_head_holds_of_what_is_kept() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    let made = "last-modified: Sun, 06 Nov 1994 08:49:37 GMT";
    let later = "last-modified: Mon, 07 Nov 1994 08:49:37 GMT";
    let head = |index: usize, path: &str| pair.ask(index, path, &["--head", "--header", "cache-control: no-cache"]);
    for index in [0, 1] {
        // It is the same, and from now on it is fresh.
        pair.web.say("/a", 200, &format!("cache-control: max-age=0\n{made}\nx-a: old"), "hello");
        ask(&pair, index, "/a", &[]);
        pair.web.say("/a", 200, &format!("cache-control: max-age=60\n{made}\nx-a: new"), "hello");
        assert_eq!(status(&head(index, "/a")), "200");
        let before = pair.web.asked("/a");
        let answer = ask(&pair, index, "/a", &[]);
        assert_eq!((body(&answer), field(&answer, "x-a")), ("hello", Some("new")), "{answer}");
        assert_eq!(pair.web.asked("/a"), before, "{answer}");
        // It is another, by what it is recognized by, or by its length.
        for (path, fields, text) in [("/b", later, "hello"), ("/c", made, "another"), ("/d", "etag: \"2\"", "hello")] {
            pair.web.say(path, 200, &format!("cache-control: max-age=60\n{made}"), "hello");
            ask(&pair, index, path, &[]);
            pair.web.say(path, 200, &format!("cache-control: max-age=60\n{fields}"), text);
            assert_eq!(status(&head(index, path)), "200");
            let before = pair.web.asked(path);
            assert_eq!(body(&ask(&pair, index, path, &[])), text, "{path}");
            assert_eq!(pair.web.asked(path), before + 1, "{path}");
        }
        // What is told that it still holds is kept, whoever asked.
        pair.web.say("/e", 200, "cache-control: max-age=60\netag: \"1\"", "hello");
        ask(&pair, index, "/e", &[]);
        assert_eq!(status(&head(index, "/e")), "200");
        let before = pair.web.asked("/e");
        assert_eq!((body(&ask(&pair, index, "/e", &[])), pair.web.asked("/e")), ("hello", before));
        // Of what nobody keeps nothing is kept.
        pair.web.say("/f", 200, "cache-control: max-age=60", "hello");
        head(index, "/f");
        assert_eq!(body(&ask(&pair, index, "/f", &[])), "hello");
        for path in ["/a", "/b", "/c", "/d", "/e", "/f"] {
            pair.ask(index, path, &["--request", "DELETE"]);
        }
    }
}

#[test]
fn section_5_2_1_a_client_says_what_it_takes() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    for index in [0, 1] {
        let none = ask(&pair, index, "/a", &["Cache-Control: only-if-cached"]);
        assert_eq!((status(&none), pair.web.asked("/a")), ("504", 3 * index), "{none}");
        pair.web.say("/a", 200, "cache-control: max-age=600", "hello");
        ask(&pair, index, "/a", &[]);
        let kept = ask(&pair, index, "/a", &["Cache-Control: only-if-cached"]);
        assert_eq!((status(&kept), body(&kept)), ("200", "hello"), "{kept}");
        let anew = ask(&pair, index, "/a", &["Cache-Control: no-cache"]);
        assert!(how(&anew).starts_with("sockway; fwd=request"), "{anew}");
        ask(&pair, index, "/a", &["Cache-Control: min-fresh=601"]);
        ask(&pair, index, "/a", &["Cache-Control: min-fresh=60, max-age=60"]);
        assert_eq!(pair.web.asked("/a"), 3 * (index + 1));
        // For the other service there is nothing yet.
        if index == 0 {
            pair.web.say("/b", 200, "cache-control: max-age=0\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT", "b");
            ask(&pair, index, "/b", &[]);
            let stale = ask(&pair, index, "/b", &["Cache-Control: max-stale=600"]);
            assert_eq!((body(&stale), pair.web.asked("/b")), ("b", 1), "{stale}");
        }
    }
}

#[test]
fn section_4_4_what_is_changed_is_forgotten() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let agent = Agent::start(&pair.config);
    for (path, text) in [("/a", "one"), ("/b", "two")] {
        pair.web.say(path, 200, FRESH, text);
    }
    for index in [0, 1] {
        let is_asked = |path: &str, expected: bool, why: &str| {
            let before = pair.web.asked(path);
            ask(&pair, index, path, &[]);
            assert_eq!(pair.web.asked(path) - before, usize::from(expected), "{why}");
        };
        is_asked("/a", true, "it is new");
        is_asked("/b", true, "it is new");
        // What goes wrong has changed nothing.
        pair.web.say("/a", 500, "", "");
        pair.ask(index, "/a", &["--data", "x"]);
        pair.web.say("/a", 200, FRESH, "one");
        is_asked("/a", false, "nothing was changed");
        pair.web.say("/c", 201, "location: /b", "");
        pair.ask(index, "/c", &["--data", "x"]);
        is_asked("/b", true, "an answer names it");
        is_asked("/a", false, "nobody names it");
        // Longer than what is kept of a body.
        let long = "x".repeat(100_000);
        pair.ask(index, "/c", &["--data", "x"]);
        pair.ask(index, "/a", &["--header", "expect:", "--data", &long]);
        wait::until("the change to be seen", wait::SOON, || {
            let before = pair.web.asked("/a");
            ask(&pair, index, "/a", &[]);
            pair.web.asked("/a") > before
        });
    }
    agent.metric_reaches("sockway_cache_invalidated_total", &[("filter", "cache")], 4.0);
}

#[test]
fn many_who_want_the_same_ask_once_and_get_what_the_first_one_gets() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let agent = Agent::start(&pair.config);
    pair.web.say_gated("/a", 200, FRESH, "hello");
    for index in [0, 1] {
        if index == 1 {
            pair.web.say_gated("/a", 200, FRESH, "hello");
        }
        let hits = counted(&agent, "cache", "hit");
        thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&pair, index, "/a", &[]))).collect();
            wait::until("one to ask", wait::SOON, || pair.web.waiting() == 1 || index == 1);
            // The others have come, and wait: each request is looked at before it waits.
            wait::until("all to have come", wait::SOON, || {
                let received = agent.metric("sockway_connections_opened_total", &[]);
                received >= 8.0 * (index + 1) as f64
            });
            pair.web.open_gate();
            for answer in all {
                let answer = answer.join().expect("an answer");
                assert_eq!((status(&answer), body(&answer)), ("200", "hello"), "{answer}");
            }
        });
        assert_eq!(pair.web.asked("/a"), index + 1, "{index}");
        assert_eq!(counted(&agent, "cache", "hit") - hits, 7.0);
    }
}

#[test]
fn what_is_not_kept_is_nobody_elses_and_holds_nobody_up() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    pair.web.say_gated("/a", 200, "cache-control: private", "mine");
    thread::scope(|scope| {
        let all: Vec<_> = (0..5).map(|_| scope.spawn(|| ask(&pair, 0, "/a", &[]))).collect();
        wait::until("one to ask", wait::SOON, || pair.web.waiting() >= 1);
        pair.web.open_gate();
        for answer in all {
            assert_eq!(body(&answer.join().expect("an answer")), "mine");
        }
    });
    assert_eq!(pair.web.asked("/a"), 5);
}

#[test]
fn the_first_client_gets_an_answer_as_it_comes() {
    let Some(pair) = Filtered::by(CACHE) else { return };
    let _agent = Agent::start(&pair.config);
    // Half of it comes, and the rest when the gate is opened: who waits for the whole of it would never open it.
    let url = format!("http://{}/gate", pair.services[0]);
    let program = "import sys, urllib.request\nanswer = urllib.request.urlopen(sys.argv[1], timeout=soon)\n\
                   print(len(answer.read1(500)), flush=True)\nprint(len(answer.read()))";
    let command = sockway_tests::peers::python_command(program, &[&url]);
    let room = sockway_tests::process::Room::of(&pair.stage.clients);
    let mut process = sockway_tests::process::Process::spawn(room, command);
    wait::until("the first half to arrive", wait::SOON, || process.stdout().starts_with("500"));
    assert_eq!(pair.web.waiting(), 1);
    pair.web.open_gate();
    wait::until("the rest", wait::SOON, || process.ended().is_some());
    assert_eq!(process.stdout(), "500\n500\n");
}

#[test]
fn rfc_5861_what_is_stale_stands_in_for_errors_and_while_another_is_fetched() {
    let filter = "{ kind: cache, stale_while_revalidate_s: 600, match: { path: /while } }, \
                  { kind: cache, name: lax, stale_if_error_s: 600, match: { path: { prefix: /error } } }";
    let Some(pair) = Filtered::by(filter) else { return };
    let agent = Agent::start(&pair.config);
    let stale = "cache-control: max-age=0\netag: \"1\"";
    for index in [0, 1] {
        pair.web.say("/while", 200, stale, "old");
        ask(&pair, index, "/while", &[]);
        pair.web.say("/while", 200, "cache-control: max-age=600\netag: \"2\"", "new");
        let answer = ask(&pair, index, "/while", &[]);
        assert_eq!(body(&answer), "old", "{answer}");
        wait::until("the new one to be there", wait::SOON, || body(&ask(&pair, index, "/while", &[])) == "new");
        assert_eq!(pair.web.asked("/while"), 2 * (index + 1), "it was fetched once");

        pair.web.say("/error", 200, stale, "old");
        ask(&pair, index, "/error", &[]);
        pair.web.say("/error", 503, "", "broken");
        let answer = ask(&pair, index, "/error", &[]);
        assert_eq!((status(&answer), body(&answer)), ("200", "old"), "{answer}");
        assert!(how(&answer).contains("fwd-status=503"), "{answer}");
        pair.web.say("/error", 404, "", "gone");
        assert_eq!(status(&ask(&pair, index, "/error", &[])), "404");
        pair.web.say("/error", 200, stale, "old");
        ask(&pair, index, "/error", &[]);
    }
    assert!(counted(&agent, "lax", "stale") >= 2.0);
    // Nobody is there any more.
    let Filtered { web, stage, services, config } = pair;
    let gone = stage.web("b");
    web.die();
    let pair = Filtered { web: gone, stage, services, config };
    for index in [0, 1] {
        let answer = ask(&pair, index, "/error", &[]);
        assert_eq!((status(&answer), body(&answer)), ("200", "old"), "{answer}");
        assert_ne!(status(&ask(&pair, index, "/error/other", &[])), "200");
    }
}

#[test]
fn a_cache_keeps_no_more_than_it_may() {
    let Some(pair) = Filtered::by("{ kind: cache, bytes_max: 20000, entry_bytes_max: 5000 }") else { return };
    let agent = Agent::start(&pair.config);
    let text = "x".repeat(4_000);
    for number in 0..10 {
        let path = format!("/{number}");
        pair.web.say(&path, 200, FRESH, &text);
        ask(&pair, 0, &path, &[]);
        assert!(agent.metric("sockway_cache_bytes", &[("service", "one")]) <= 20_000.0);
    }
    agent.metric_reaches("sockway_cache_evicted_total", &[("service", "one")], 5.0);
    ask(&pair, 0, "/9", &[]);
    ask(&pair, 0, "/0", &[]);
    assert_eq!((pair.web.asked("/9"), pair.web.asked("/0")), (1, 2), "the oldest has made room");
    // Longer than an entry may be, with a length and without.
    for path in ["/bytes/5001", "/chunked/5001"] {
        for _ in 0..2 {
            assert_eq!(pair.ask_bytes(0, path, &[]).1.len(), 5_001, "{path}");
        }
    }
    assert!(agent.metric("sockway_cache_bytes", &[("service", "one")]) <= 20_000.0);
}

/// What is left of a limit is told with every answer, also with one that the limit does not count, and kept with none.
#[test]
fn limits_tell_of_themselves_with_what_was_kept_and_do_not_count_it() {
    let window = |name: &str, limit: u32, more: &str| {
        format!("{{ name: {name}, kind: fixed_window, limit: {limit}, window_ms: 3600000, headers: on{more} }}")
    };
    let each = window("each", 3, ", by: { header: x-user }");
    let Some(pair) = Filtered::with(CACHE, &format!("request_limits: [{}, {each}]", window("all", 9, ""))) else {
        return;
    };
    let _agent = Agent::start(&pair.config);
    pair.web.say("/a", 200, FRESH, "hello");
    pair.web.say("/b", 200, FRESH, "hello");
    let left = |answer: &str| {
        let told = |name: &str| field(answer, name).map(str::to_owned);
        assert!(told("x-ratelimit-reset").is_some_and(|reset| reset.parse::<u32>().is_ok()), "{answer}");
        (status(answer).to_owned(), told("x-ratelimit-limit"), told("x-ratelimit-remaining"))
    };
    let was = |limit: &str, left: &str| ("200".to_owned(), Some(limit.to_owned()), Some(left.to_owned()));
    for index in [0, 1] {
        let asks = |path: &str, user: &str| left(&ask(&pair, index, path, &[&format!("x-user: {user}")]));
        assert_eq!(asks("/a", "ann"), was("3", "2"));
        for _ in 0..5 {
            assert_eq!(asks("/a", "ann"), was("3", "2"), "of what was kept");
        }
        assert_eq!(asks("/a", "bob"), was("3", "3"), "who was never counted");
        assert_eq!(asks("/b", "ann"), was("3", "1"));
        assert_eq!(asks("/a", "ann"), was("3", "1"));
    }
}
