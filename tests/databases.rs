//! Databases and servers that greet through `protocol: auto`: real clients get what they ask for, and connecting takes hardly longer.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use sockway_tests::{
    agent::{self, Agent},
    config::Service,
    databases::{MariaDb, Postgres},
    origin::Origin,
    patience,
    peers::{self, Redis},
    process::Room,
    stage::{Stage, tell},
};

/// What may be added to a connection's first words, at the median, in microseconds; by an agent without optimisation, three times that.
const ADDED_MAX: f64 = 300.0;
/// The best round counts, on either way: in the others somebody else had the processor. There are more of them until it is good.
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 20;
const CONNECTIONS: usize = 60;

const GREET: &str = include_str!("databases/greet.py");

/// A server behind a service that is told nothing of its protocol.
struct Hop {
    agent: Agent,
    service: SocketAddr,
    server: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn to(stage: Stage, server: SocketAddr) -> Self {
        let service = stage.address();
        let config = stage.config().service(Service::auto("server", service).to(server));
        Self { agent: Agent::start(&config), service, server, stage }
    }

    fn room(&self) -> Room<'_> {
        Room::of(&self.stage.clients)
    }

    fn sniffed(&self, protocol: &str) -> f64 {
        self.agent.metric("sockway_connections_sniffed_total", &[("protocol", protocol)])
    }

    /// Fails when the agent adds more than [`ADDED_MAX`] to the time between `connect()` and the server's first words.
    #[track_caller]
    fn assert_adds_little(&self, who: &str, question: &str) {
        let added_max = if agent::is_optimised() { ADDED_MAX } else { 3.0 * ADDED_MAX };
        let mut best = (f64::INFINITY, f64::INFINITY);
        for round in 1..=ROUNDS_MAX {
            let (through, direct) = self.medians(question);
            best = (best.0.min(through), best.1.min(direct));
            if round >= ROUNDS_MIN && best.0 - best.1 < added_max {
                break;
            }
        }
        let (through, direct) = best;
        tell(&format!("first words of {who}: {through:.0} µs through the agent, {direct:.0} µs directly"));
        assert!(through - direct < added_max, "{who} takes {:.0} µs longer", through - direct);
    }

    /// Of one round: through the agent, and directly.
    fn medians(&self, question: &str) -> (f64, f64) {
        let address = |address: SocketAddr| [address.ip().to_string(), address.port().to_string()];
        let ([through, through_port], [direct, direct_port]) = (address(self.service), address(self.server));
        let connections = patience::load(CONNECTIONS).to_string();
        let arguments = [&through, &through_port, &direct, &direct_port, question, &connections];
        let said = peers::python(self.room(), GREET, &arguments.map(AsRef::as_ref));
        let mut medians = said.split_whitespace().map(|median| median.parse().expect("a median"));
        (medians.next().expect("of one way"), medians.next().expect("of the other"))
    }
}

#[test]
fn mariadb_answers_queries_and_greets_at_once() {
    let Some(stage) = Stage::set() else { return };
    let server = stage.address();
    let _mariadb = MariaDb::start(Room::of(&stage.origins), server);
    let hop = Hop::to(stage, server);
    let said = MariaDb::query(
        hop.room(),
        hop.service,
        "CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY AUTO_INCREMENT, what LONGTEXT);
         INSERT INTO shop.orders (what) VALUES ('tea'), ('coffee'), (REPEAT('x', 5000000));
         SELECT id, what FROM shop.orders WHERE id < 3; SELECT LENGTH(what), MD5(what) = MD5(REPEAT('x', 5000000)) FROM shop.orders WHERE id = 3",
    );
    assert_eq!(said, "1\ttea\n2\tcoffee\n5000000\t1\n");
    let long = MariaDb::query(hop.room(), hop.service, "SELECT what FROM shop.orders WHERE id = 3");
    assert_eq!(long.trim_end(), "x".repeat(5_000_000));
    assert_eq!(hop.sniffed("server_first"), 2.0);
    hop.assert_adds_little("MariaDB", "");
}

#[test]
fn postgresql_answers_queries_and_connects_at_once() {
    let Some(stage) = Stage::set() else { return };
    let server = stage.address();
    let _postgres = Postgres::start(Room::of(&stage.origins), server);
    let hop = Hop::to(stage, server);
    let said = Postgres::query(
        hop.room(),
        hop.service,
        "CREATE TABLE orders (id serial PRIMARY KEY, what text); INSERT INTO orders (what) VALUES ('tea'), (repeat('x', 5000000));
         SELECT id, length(what), md5(what) = md5(repeat('x', 5000000)) FROM orders ORDER BY id",
    );
    assert_eq!(said, "1|3|f\n2|5000000|t\n");
    let long = Postgres::query(hop.room(), hop.service, "SELECT what FROM orders WHERE id = 2");
    assert_eq!(long.trim_end(), "x".repeat(5_000_000));
    Postgres::pgbench(hop.room(), hop.service, &["--initialize", "--quiet", "--no-vacuum"]);
    // Clients that prepare their statements, and clients that dial anew for every transaction.
    let transactions = patience::load(50).to_string();
    for more in [&["--protocol", "prepared"][..], &["--connect"]] {
        let arguments = [&["--no-vacuum", "--client", "4", "--transactions", &transactions], more].concat();
        let report = Postgres::pgbench(hop.room(), hop.service, &arguments);
        assert!(report.contains("number of failed transactions: 0 "), "{report}");
    }
    assert_eq!(hop.sniffed("http1") + hop.sniffed("http2") + hop.sniffed("tls") + hop.sniffed("server_first"), 0.0);
    // SSLRequest (PostgreSQL's protocol 3.0, message formats): the server says in one byte whether it will.
    hop.assert_adds_little("PostgreSQL", "\\x00\\x00\\x00\\x08\\x04\\xd2\\x16\\x2f");
}

#[test]
fn redis_answers_and_connects_at_once() {
    let Some(stage) = Stage::set() else { return };
    let server = stage.address();
    let _redis = Redis::start(Room::of(&stage.origins), server);
    let hop = Hop::to(stage, server);
    assert_eq!(peers::redis(hop.room(), "redis-cli", hop.service, &["set", "key", "value"]), "OK\n");
    assert_eq!(peers::redis(hop.room(), "redis-cli", hop.service, &["get", "key"]), "value\n");
    let requests = patience::load(20_000).to_string();
    let arguments = ["-q", "-n", &requests, "-c", "20", "-P", "16", "-d", "1000", "-t", "set,get,lpush,mset"];
    let report = peers::redis(hop.room(), "redis-benchmark", hop.service, &arguments);
    assert_eq!(report.matches("requests per second").count(), 4, "{report}");
    assert_eq!(hop.sniffed("http1") + hop.sniffed("http2") + hop.sniffed("tls") + hop.sniffed("server_first"), 0.0);
    hop.assert_adds_little("Redis", "PING\\r\\n");
}

/// A mail server that takes every message and keeps it.
fn mail_server(stage: &Stage) -> (Origin, Arc<Mutex<Vec<String>>>) {
    let messages: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&messages);
    let origin = Origin::start(stage.origin().listen(stage.address()).unwrap(), move |mut stream, _| {
        stream.write_all(b"220 mail.test ESMTP\r\n")?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next().transpose()? {
            let answer = match line.to_ascii_lowercase().split(' ').next() {
                Some("ehlo") => "250-mail.test\r\n250 8BITMIME\r\n",
                Some("data") => {
                    stream.write_all(b"354 go on\r\n")?;
                    let message: Vec<String> =
                        lines.by_ref().map_while(Result::ok).take_while(|line| line != ".").collect();
                    kept.lock().unwrap().push(message.join("\n"));
                    "250 taken\r\n"
                }
                Some("quit") => return stream.write_all(b"221 bye\r\n"),
                _ => "250 ok\r\n",
            };
            stream.write_all(answer.as_bytes())?;
        }
        Ok(())
    });
    (origin, messages)
}

#[test]
fn a_mail_server_greets_at_once_and_takes_mail() {
    let Some(stage) = Stage::set() else { return };
    let (origin, messages) = mail_server(&stage);
    let hop = Hop::to(stage, origin.address());
    let program = "import smtplib, sys\n\
        with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=soon, local_hostname='client.test') as server:\n\
        \x20   for serial in range(3):\n\
        \x20       server.sendmail('a@client.test', ['b@mail.test'], f'Subject: {serial}\\n\\n' + 'x' * 100000)\n\
        print(server.ehlo_resp.decode())\n";
    let [ip, port] = [hop.service.ip().to_string(), hop.service.port().to_string()];
    assert_eq!(peers::python(hop.room(), program, &[&ip, &port]), "mail.test\n8BITMIME\n");
    let taken: Vec<usize> = messages.lock().unwrap().iter().map(String::len).collect();
    assert_eq!(taken, [100_012; 3]);
    assert_eq!(hop.sniffed("server_first"), 1.0);
    hop.assert_adds_little("a mail server", "");
}
