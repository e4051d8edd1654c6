//! The admin endpoint from outside, and what is told of it.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use super::*;
use crate::{config::file, node::history::History};

/// An admin endpoint of a node that sees everything and changes nothing.
async fn serve(not_ready: Option<&str>) -> Doors {
    serve_for(not_ready, HOURS).await
}

async fn serve_for(not_ready: Option<&str>, hours: Hours) -> Doors {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("a.sock");
    let text = format!("{{admin: {{address: '127.0.0.1:0', socket: {}}}}}", socket.display());
    let config = Arc::new(file::parse(&text, "F").expect("a good file"));
    let history = History::open(directory.path().join("audit.jsonl"), 1 << 20);
    let (doors, mut questions) = open_for(&config, history.reader(), hours).await.expect("bindable");
    let observed = Observed { not_ready: not_ready.map(str::to_owned), ..Observed::default() };
    tokio::spawn(async move {
        let _directory = directory;
        while let Some(question) = questions.recv().await {
            if let Question::See(see) = question {
                let _ = see.reply.send((observed.clone(), Arc::clone(&config)));
            }
        }
    });
    doors
}

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(format!("{head} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("writable");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers and closes");
    answer
}

#[tokio::test]
async fn each_path_answers() {
    let doors = serve(None).await;
    let address = doors.address;
    for (path, starts, holds) in [
        ("/", "HTTP/1.1 200", "/metrics"),
        ("/metrics", "HTTP/1.1 200", "\nsockway_ready 1\n"),
        ("/ready", "HTTP/1.1 200", "ready"),
        ("/live", "HTTP/1.1 200", "live"),
        ("/config", "HTTP/1.1 200", "\"drain_timeout_ms\":10000"),
        ("/status", "HTTP/1.1 200", "\"ready\":true"),
        ("/openapi.json", "HTTP/1.1 200", "\"openapi\": \"3.1"),
        ("/v1/services", "HTTP/1.1 200", "\"services\":[]"),
        ("/v1/services/a", "HTTP/1.1 404", "there is no service a"),
        ("/v1/generations", "HTTP/1.1 200", "\"generations\":[]"),
        ("/v1/generations/7", "HTTP/1.1 404", "there is no generation 7"),
        ("/v1/generations/x", "HTTP/1.1 400", "{\"error\":\"/v1/generations/x: "),
        ("/v1/services/%ff", "HTTP/1.1 400", "{\"error\":\"/v1/services/%ff: "),
        ("/v1/generations/7/config", "HTTP/1.1 403", "admin.tokens"),
        ("/v1/switches", "HTTP/1.1 200", "\"switches\":{"),
        ("/v1/audit", "HTTP/1.1 200", "\"entries\":[]"),
        ("/nothing", "HTTP/1.1 404", "there is nothing at /nothing; /openapi.json"),
    ] {
        let answer = ask(address, &format!("GET {path}")).await;
        assert!(answer.starts_with(starts) && answer.contains(holds), "{path}: {answer}");
    }
}

#[tokio::test]
async fn an_agent_that_is_not_ready_says_why() {
    let answer = ask(serve(Some("draining")).await.address, "GET /ready").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready: draining\n"), "{answer}");
}

#[tokio::test]
async fn nothing_but_get_and_head_is_answered() {
    let doors = serve(None).await;
    let address = doors.address;
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = ask(address, &format!("{method} /ready")).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    let answer = ask(address, "HEAD /ready").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn visitors_that_say_nothing_give_their_places_back() {
    let (head_max, visit_max) = (Duration::from_millis(300), Duration::from_secs(3600));
    let doors = serve_for(None, Hours { head_max, visit_max }).await;
    let mut stream = TcpStream::connect(doors.address).await.expect("it listens");
    stream.write_all(b"GET /live HTTP/1.1\r\n").await.expect("writable");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert_eq!(answer, "", "it is over");
}

#[tokio::test]
async fn however_many_do_not_say_what_they_want_or_do_not_hear_who_does_is_answered() {
    let doors = serve(None).await;
    let mut stuck = Vec::new();
    for place in 0..10 * VISITORS_MAX {
        let mut stream = TcpStream::connect(doors.address).await.expect("it listens");
        let said: &[u8] = if place % 2 == 0 { b"GET /live HTTP/1.1\r\nhost:" } else { b"" };
        stream.write_all(said).await.expect("writable");
        stuck.push(stream);
        if place % 50 == 49 {
            let began = tokio::time::Instant::now();
            let answer = ask(doors.address, "GET /live").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            // All that are in line before it, with what the machine takes.
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test]
async fn who_is_being_answered_keeps_his_place() {
    let doors = serve(None).await;
    let mut dashboards = Vec::new();
    for _ in 0..hystrix::STREAMS_MAX {
        let mut stream = TcpStream::connect(doors.address).await.expect("it listens");
        stream.write_all(b"GET /hystrix.stream?delay=100 HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writable");
        assert_ne!(stream.read(&mut [0; 1024]).await.expect("it answers"), 0);
        dashboards.push(stream);
    }
    let mut stuck = Vec::new();
    for _ in 0..2 * VISITORS_MAX {
        stuck.push(TcpStream::connect(doors.address).await.expect("it listens"));
    }
    assert!(ask(doors.address, "GET /live").await.starts_with("HTTP/1.1 200"));
    for dashboard in &mut dashboards {
        for _ in 0..10 {
            assert_ne!(dashboard.read(&mut [0; 1024]).await.expect("it goes on"), 0, "it has ended");
        }
    }
}

#[tokio::test]
async fn who_comes_by_tcp_without_a_token_changes_nothing() {
    let doors = serve(None).await;
    for (method, path) in [("PUT", "/v1/config"), ("POST", "/v1/rollback/1"), ("PATCH", "/v1/nothing")] {
        let answer = ask(doors.address, &format!("{method} {path}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("by the Unix socket, or with a token"),
            "{answer}"
        );
    }
    let mut stream = UnixStream::connect(doors.socket()).await.expect("it listens");
    stream.write_all(b"POST /v1/rollback/1 HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writable");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers and closes");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("generation 1"), "{answer}");
}

#[test]
fn the_description_tells_every_path_and_method_and_no_other() {
    let described: Value = serde_json::from_str(include_str!("../../../deploy/openapi.json")).expect("JSON");
    let paths = described["paths"].as_object().expect("paths");
    let of = |(path, methods): (&String, &Value)| -> Vec<(String, String)> {
        let methods = methods.as_object().expect("methods").keys().filter(|key| *key != "parameters");
        methods.map(|method| (path.clone(), method.clone())).collect()
    };
    let told: BTreeSet<(String, String)> = paths.iter().flat_map(of).collect();
    let there: BTreeSet<(String, String)> = routes()
        .iter()
        .flat_map(|(path, methods, _)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(told, there);
    for (path, method) in &told {
        let operation = &described["paths"][path][method];
        assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
        let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        for name in names {
            let parameters = [&described["paths"][path]["parameters"], &operation["parameters"]];
            let has = |list: &&Value| list.as_array().is_some_and(|list| list.iter().any(|one| one["name"] == name));
            assert!(parameters.iter().any(has), "{name} of {path}");
        }
    }
}

#[tokio::test]
async fn every_method_that_is_told_of_a_path_is_taken_there() {
    let doors = serve(None).await;
    for (path, methods, _) in routes() {
        for method in methods {
            let mut stream = UnixStream::connect(doors.socket()).await.expect("it listens");
            let head = format!("{} {path} HTTP/1.1\r\nhost: a\r\nexpect: nothing\r\n\r\n", method.to_uppercase());
            stream.write_all(head.replace(['{', '}'], "").as_bytes()).await.expect("writable");
            // Not all of them come to an end.
            let mut answer = vec![0; 16];
            stream.read_exact(&mut answer).await.expect("it answers");
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.starts_with("HTTP/1.1 ") && !answer.starts_with("HTTP/1.1 405"),
                "{method} {path}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_stream_outlasts_any_other_visit_while_it_is_read() {
    let visit_max = Duration::from_millis(400);
    let doors = serve_for(None, Hours { head_max: visit_max / 4, visit_max }).await;
    let mut stream = TcpStream::connect(doors.address).await.expect("it listens");
    let head = b"GET /hystrix.stream?delay=100 HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(head).await.expect("writable");
    let (began, mut told) = (tokio::time::Instant::now(), Vec::new());
    while began.elapsed() < 4 * visit_max {
        assert_ne!(stream.read_buf(&mut told).await.expect("it goes on"), 0, "it has ended");
    }
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("content-type: text/event-stream") && told.contains("ping: \n\n"), "{told}");
}
