//! Bodies up and down, however long and however framed.

use super::*;

/// Reads a request with a body of this length, and answers with the sum of its bytes.
fn summing(mut client: Client, _: usize) {
    loop {
        let head = client.until("\r\n\r\n").to_ascii_lowercase();
        let body = match head.split("content-length: ").nth(1) {
            Some(rest) => client.exactly(rest.split("\r\n").next().unwrap().parse().unwrap()),
            None => unchunked(&mut client),
        };
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let text = format!("{} {sum}", body.len());
        client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    }
}

fn unchunked(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(client.until("\r\n").trim(), 16).unwrap();
        body.extend(client.exactly(size));
        assert_eq!(client.until("\r\n"), "\r\n");
        if size == 0 {
            return body;
        }
    }
}

fn summed(client: &mut Client) -> String {
    let head = client.until("\r\n\r\n");
    let length = head.split("Content-Length: ").nth(1).unwrap().trim().parse().unwrap();
    String::from_utf8(client.exactly(length)).unwrap()
}

#[test]
fn bodies_of_any_length_go_up_whole() {
    let origin = Origin::new(summing);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for length in [0, 1, 1000, 3900, 4096, 16_384, 65_536, 100_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        client.send(&body);
        assert_eq!(summed(&mut client), format!("{length} {sum}"));
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(7001) {
            client.send([format!("{:x};ext\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        client.send("0\r\n\r\n");
        assert_eq!(summed(&mut client), format!("{length} {sum}"));
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_request_behind_a_long_body_is_not_lost() {
    let origin = Origin::new(summing);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    let body = "a".repeat(100_000);
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}");
    client.send([request.as_bytes(), request.as_bytes()].concat());
    assert_eq!(summed(&mut client), "100000 9700000");
    assert_eq!(summed(&mut client), "100000 9700000");
}

/// Sends back what the path names: a body of so many bytes, framed as it says.
fn serving(mut client: Client, _: usize) {
    loop {
        let head = client.until("\r\n\r\n");
        let mut path = head.split(' ').nth(1).unwrap().trim_start_matches('/').split('/');
        let (framing, length) = (path.next().unwrap(), path.next().unwrap().parse().unwrap());
        let body: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
        match framing {
            "length" => {
                client.send([format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &body].concat())
            }
            "chunked" => {
                client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(5000) {
                    client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
                }
                client.send("0\r\n\r\n");
            }
            _ => {
                client.send("HTTP/1.0 200 OK\r\n\r\n");
                client.send(&body);
                return;
            }
        }
    }
}

#[test]
fn bodies_of_any_length_come_down_whole() {
    let origin = Origin::new(serving);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for length in [0, 1, 1000, 16_000, 16_384, 65_536, 100_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
        client.send(format!("GET /length/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.until("\r\n\r\n");
        assert!(client.exactly(length) == body, "{length}");
        client.send(format!("GET /chunked/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.until("\r\n\r\n");
        assert!(unchunked(&mut client) == body, "{length}");
        let mut other = hop.client();
        other.send(format!("GET /close/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(other.until("\r\n\r\n").contains("connection: close"));
        assert!(other.rest().unwrap() == body, "{length}");
    }
}

#[test]
fn a_client_of_http_1_0_gets_a_bare_body() {
    let origin = Origin::new(serving);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET /chunked/20000 HTTP/1.0\r\n\r\n");
    let head = client.until("\r\n\r\n");
    assert!(head.contains("connection: close") && !head.to_lowercase().contains("chunked"), "{head}");
    assert_eq!(client.rest().unwrap().len(), 20_000);
    let mut client = hop.client();
    for _ in 0..2 {
        client.send("GET /length/3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert!(client.until("\r\n\r\n").contains("connection: keep-alive"));
        client.exactly(3);
    }
}

#[test]
fn responses_without_a_body_end_at_their_head() {
    let origin = Origin::new(|mut client, number| {
        assert_eq!(number, 0, "one connection serves all");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 204 No Content\r\n\r\n");
        client.until("\r\n\r\n");
        client.send(OK);
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.until("\r\n\r\n").contains("999"));
    client.send(GET);
    assert!(client.until("\r\n\r\n").contains("304"));
    client.send(GET);
    assert!(client.until("\r\n\r\n").contains("204"));
    client.send(GET);
    assert_eq!(client.until("hi"), OK_PASSED_ON);
}

#[test]
fn continue_is_passed_on_before_the_body_is_sent() {
    let origin = Origin::new(|mut client, _| {
        assert!(client.until("\r\n\r\n").contains("Expect: 100-continue"));
        client.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(client.exactly(5), b"hello");
        client.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        client.until("\r\n\r\n");
        client.send(OK);
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    assert_eq!(client.until("hi"), OK_PASSED_ON);
    client.send(GET);
    assert_eq!(client.until("hi"), OK_PASSED_ON);
}

#[test]
fn a_final_response_before_the_body_ends_the_connection() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        let _ = client.rest();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 413") && head.contains("connection: close"), "{head}");
    assert_eq!(client.rest().unwrap(), b"no");
}

#[test]
fn an_early_response_reaches_a_client_that_is_still_sending() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
        let _ = client.rest();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    let mut writer = client.0.try_clone().unwrap();
    let sender = thread::spawn(move || while writer.write_all(&[b'x'; 1000]).is_ok() {});
    assert!(client.until("no").starts_with("HTTP/1.1 403"));
    drop(client);
    sender.join().unwrap();
}
