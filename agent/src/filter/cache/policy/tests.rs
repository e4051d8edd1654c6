//! Cases by the sections of RFC 9111, under a clock of the test's own.

use super::{super::Conditions, *};
use crate::config::filter::content;

const NOW: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
const DATE: &str = "date: Sun, 06 Nov 1994 08:49:37 GMT";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn config() -> content::Cache {
    content::Cache {
        bytes_max: 1 << 20,
        entry_bytes_max: 1 << 10,
        heuristic_percent: 0,
        heuristic_max: seconds(1_000),
        stale_if_error: Duration::ZERO,
        stale_while_revalidate: Duration::ZERO,
        wait: Duration::ZERO,
        responds: true,
    }
}

fn look(fields: &str) -> Look {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", fields.replace('\n', "\r\n"));
    let request = Request::of_http1(head.as_bytes(), false, 0);
    Look {
        key: b"a".to_vec(),
        is_head: false,
        conditions: Conditions::of(&request),
        directives: Directives::of_request(&request),
        is_authorized: request.header("authorization").is_some(),
        config: config(),
    }
}

fn headers(fields: &str) -> HeaderMap {
    let field = |line: &str| {
        let (name, value) = line.split_once(": ").expect("a field");
        (HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
    };
    fields.lines().map(field).collect()
}

fn ruled(look: &Look, status: u16, fields: &str) -> Option<Rules> {
    let status = StatusCode::from_u16(status).expect("a status");
    rules(look, status, &headers(fields), (seconds(NOW), seconds(NOW)))
}

/// How long it is fresh when it has just come; `None`: it is not kept.
fn fresh(look: &Look, status: u16, fields: &str) -> Option<u64> {
    ruled(look, status, fields).map(|rules| rules.lifetime.as_secs())
}

#[test]
fn section_3_what_may_be_kept() {
    let plain = look("");
    for (status, fields, expected) in [
        (200, "cache-control: max-age=10", Some(10)),
        (404, "cache-control: max-age=10", Some(10)),
        (500, "cache-control: max-age=10", Some(10)),
        (206, "cache-control: max-age=10", None),
        (304, "cache-control: max-age=10", None),
        (200, "cache-control: max-age=10, no-store", None),
        (200, "cache-control: max-age=10, private", None),
        (200, "cache-control: max-age=10, private=\"x\"", None),
        (200, "cache-control: max-age=10\nvary: *", None),
        (200, "cache-control: max-age=10\nset-cookie: a=b", None),
        (200, "cache-control: public, max-age=10\nset-cookie: a=b", Some(10)),
        // Nothing that could be used again, and nothing to ask about it with.
        (200, "cache-control: no-cache", None),
        (200, "cache-control: no-cache\netag: \"a\"", Some(0)),
        (200, "cache-control: max-age=0\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
        // Who says nothing of caching is not kept.
        (200, "etag: \"a\"", None),
        (200, "x-a: b", None),
    ] {
        assert_eq!(fresh(&plain, status, fields), expected, "{status} {fields}");
    }
}

#[test]
fn section_3_5_who_says_who_asks() {
    let known = look("Authorization: Basic x");
    for (fields, expected) in [
        ("cache-control: max-age=10", None),
        ("cache-control: max-age=10, public", Some(10)),
        ("cache-control: max-age=10, must-revalidate", Some(10)),
        ("cache-control: s-maxage=10", Some(10)),
        ("cache-control: max-age=10, proxy-revalidate", None),
    ] {
        assert_eq!(fresh(&known, 200, fields), expected, "{fields}");
    }
}

#[test]
fn section_4_2_1_how_long_it_is_fresh() {
    let plain = look("");
    for (fields, expected) in [
        ("cache-control: max-age=10, s-maxage=20", Some(20)),
        ("cache-control: max-age=10\nexpires: Sun, 06 Nov 1994 09:49:37 GMT", Some(10)),
        ("cache-control: max-age=x\netag: \"a\"", Some(0)),
        ("expires: Sun, 06 Nov 1994 09:49:37 GMT", Some(3_600)),
        ("expires: Sunday, 06-Nov-94 09:49:37 GMT", Some(3_600)),
        ("expires: Sun Nov  6 09:49:37 1994", Some(3_600)),
        ("expires: 0\netag: \"a\"", Some(0)),
        ("expires: Sun, 06 Nov 1994 09:49:37 GMT\nexpires: Sun, 06 Nov 1994 08:49:37 GMT\netag: \"a\"", Some(0)),
        ("expires: Sun, 06 Nov 1994 07:49:37 GMT\netag: \"a\"", Some(0)),
    ] {
        assert_eq!(fresh(&plain, 200, &format!("{DATE}\n{fields}")), expected, "{fields}");
    }
}

#[test]
fn section_4_2_2_it_is_guessed_only_if_that_is_wanted() {
    let modified = format!("{DATE}\nlast-modified: Sun, 06 Nov 1994 07:49:37 GMT");
    assert_eq!(fresh(&look(""), 200, &modified), None);
    let mut guesses = look("");
    guesses.config.heuristic_percent = 10;
    assert_eq!(fresh(&guesses, 200, &modified), Some(360));
    assert_eq!(fresh(&guesses, 302, &modified), None);
    assert_eq!(fresh(&guesses, 302, &format!("{modified}\ncache-control: public")), Some(360));
    guesses.config.heuristic_max = seconds(100);
    assert_eq!(fresh(&guesses, 200, &modified), Some(100));
}

#[test]
fn section_4_2_3_how_old_it_is() {
    let age = |fields: &str, delay: u64| {
        let came = seconds(NOW + delay);
        let rules = rules(&look(""), StatusCode::OK, &headers(fields), (seconds(NOW), came)).expect("it is kept");
        answer_age(&rules, came + seconds(5)).as_secs()
    };
    let fields = "cache-control: max-age=10";
    assert_eq!(age(fields, 0), 5);
    assert_eq!(age(fields, 3), 8, "it may have been made before it was sent");
    assert_eq!(age(&format!("{fields}\nage: 7"), 0), 12);
    assert_eq!(age(&format!("{fields}\nage: 7"), 2), 14);
    assert_eq!(age(&format!("{fields}\ndate: Sun, 06 Nov 1994 08:49:17 GMT"), 0), 25, "its date says more than it");
    assert_eq!(age(&format!("{fields}\ndate: Sun, 06 Nov 1994 08:59:17 GMT"), 0), 5, "a clock that is ahead");
}

#[test]
fn sections_4_and_5_2_1_what_may_be_given() {
    for (said, kept, after, expected) in [
        ("", "max-age=10", 9, Reuse::Fresh),
        ("", "max-age=10", 10, Reuse::Ask),
        ("", "max-age=10, no-cache", 1, Reuse::Ask),
        ("Cache-Control: no-cache", "max-age=10", 1, Reuse::Ask),
        ("Pragma: no-cache", "max-age=10", 1, Reuse::Ask),
        ("Pragma: no-cache\nCache-Control: max-age=5", "max-age=10", 1, Reuse::Fresh),
        ("Cache-Control: max-age=5", "max-age=10", 5, Reuse::Fresh),
        ("Cache-Control: max-age=5", "max-age=10", 6, Reuse::Ask),
        ("Cache-Control: min-fresh=5", "max-age=10", 5, Reuse::Fresh),
        ("Cache-Control: min-fresh=5", "max-age=10", 6, Reuse::Ask),
        ("Cache-Control: max-stale=5", "max-age=10", 15, Reuse::Stale),
        ("Cache-Control: max-stale=5", "max-age=10", 16, Reuse::Ask),
        ("Cache-Control: max-stale", "max-age=10", 1_000, Reuse::Stale),
        ("Cache-Control: max-stale", "max-age=10, must-revalidate", 11, Reuse::Ask),
        ("Cache-Control: max-stale", "max-age=10, proxy-revalidate", 11, Reuse::Ask),
        ("Cache-Control: max-stale", "s-maxage=10", 11, Reuse::Ask),
        ("", "max-age=10, must-revalidate", 9, Reuse::Fresh),
        ("", "max-age=10, proxy-revalidate", 9, Reuse::Fresh),
        ("", "max-age=10, stale-while-revalidate=5", 14, Reuse::WhileAsking),
        ("", "max-age=10, stale-while-revalidate=5", 15, Reuse::Ask),
        ("", "max-age=10, stale-while-revalidate=5, must-revalidate", 14, Reuse::Ask),
    ] {
        let rules = ruled(&look(""), 200, &format!("cache-control: {kept}\netag: \"a\"")).expect("it is kept");
        assert_eq!(reuse(&look(said), &rules, seconds(NOW + after)), expected, "{said} {kept} {after}");
    }
}

#[test]
fn rfc_5861_what_may_stand_in_for_an_error() {
    let stands = |kept: &str, look: &Look, after| {
        let rules = ruled(look, 200, &format!("cache-control: {kept}\netag: \"a\"")).expect("it is kept");
        may_stand_in(&rules, seconds(NOW + after))
    };
    let plain = look("");
    assert!(stands("max-age=10, stale-if-error=5", &plain, 14) && !stands("max-age=10, stale-if-error=5", &plain, 15));
    assert!(!stands("max-age=10", &plain, 11));
    let mut lax = look("");
    lax.config.stale_if_error = seconds(100);
    assert!(stands("max-age=10", &lax, 109) && !stands("max-age=10, must-revalidate", &lax, 11));
    assert!(!stands("max-age=10, stale-if-error=0", &lax, 11), "what it says itself comes first");
}

#[test]
fn sections_4_1_and_4_3_what_selects_what_is_asked_and_what_is_merged() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x,y\r\naccept: z\r\nAccept-Language:  de , en\r\n\r\n";
    let request = Request::of_http1(head, false, 0);
    let said = selecting(&headers("vary: Accept-Language, accept\nvary: X-None, accept"), &request);
    let text = |value: &Option<Vec<u8>>| value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    let said: Vec<(&str, Option<String>)> = said.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(said, [("accept", some("x,y,z")), ("accept-language", some("de,en")), ("x-none", None)]);

    let stored = headers("etag: \"a\"\nlast-modified: b\ncontent-length: 5\nx-a: 1\nx-b: 2");
    let stored = Stored {
        status: StatusCode::OK,
        headers: stored,
        body: Default::default(),
        selecting: Vec::new(),
        rules: Rules::default(),
    };
    let asked = conditional(Some(&stored));
    let told = crate::filter::tests::changed(&asked, "If-None-Match: \"mine\"\r\nX: y\r\n");
    assert_eq!(told, "X: y|if-none-match: \"a\"|if-modified-since: b");
    assert_eq!(crate::filter::tests::changed(&conditional(None), "If-None-Match: \"mine\"\r\n"), "");
    let merged = merged(&stored.headers, &headers("x-a: 3\nx-a: 4\ncontent-length: 0\nconnection: close\nx-c: 5"));
    let of = |name: &str| merged.get_all(name).iter().map(|value| value.to_str().expect("a text")).collect::<Vec<_>>();
    assert_eq!((of("x-a"), of("x-b"), of("x-c")), (vec!["3", "4"], vec!["2"], vec!["5"]));
    assert_eq!((of("content-length"), of("connection")), (vec!["5"], vec![]));
}
