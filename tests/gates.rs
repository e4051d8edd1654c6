//! Breakers of services that the kernel balances: judged by their handshakes, and enforced at connect() without a packet.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::socket::{Backlog, listen};
use sockway_tests::{
    agent::{Agent, sockway},
    config::Service,
    stage::Stage,
    wait,
};

/// The error number of a dial that fails.
fn errno(dialled: std::io::Result<TcpStream>) -> Option<i32> {
    dialled.err().and_then(|error| error.raw_os_error())
}

struct Field {
    agent: Agent,
    service: SocketAddr,
    endpoint: SocketAddr,
    stage: Stage,
}

impl Field {
    fn set(keys: &str) -> Option<Self> {
        let stage = Stage::set()?;
        let (service, endpoint) = (stage.address(), stage.address());
        let rule = format!("breaker: {{ kind: consecutive, failures: 3, {keys} }}");
        let database = Service::kernel_tcp("database", service).set(&rule).to(endpoint);
        let agent = Agent::start(&stage.config().service(database));
        Some(Self { agent, service, endpoint, stage })
    }

    fn state(&self) -> f64 {
        self.agent.metric("sockway_breaker_state", &[("service", "database")])
    }

    fn refused(&self) -> f64 {
        self.agent.metric("sockway_kernel_connects_total", &[("verdict", "breaker_open")])
    }

    /// Connects that were sent to the endpoint.
    fn sent(&self) -> f64 {
        self.agent.metric(
            "sockway_kernel_endpoint_connects_total",
            &[("service", "database"), ("endpoint", &self.endpoint.to_string())],
        )
    }

    /// Dials an endpoint where nobody listens until the breaker refuses.
    fn open(&self) {
        assert_eq!([(); 3].map(|()| errno(self.stage.dial(self.service))), [Some(libc::ECONNREFUSED); 3]);
        wait::until("it to open", wait::SOON, || self.state() == 2.0);
        assert_eq!(self.sent(), 3.0);
    }

    fn dials(&self) -> Option<i32> {
        errno(self.stage.client().begin(self.service))
    }
}

#[test]
fn an_open_breaker_refuses_at_connect_and_sends_nothing() {
    let Some(field) = Field::set("open_ms: 600000") else { return };
    field.open();
    let before = field.refused();
    assert_eq!([(); 5].map(|()| field.dials()), [Some(libc::ECONNREFUSED); 5]);
    assert_eq!((field.state(), field.refused() - before, field.sent()), (2.0, 5.0, 3.0), "nothing was sent");
    let told = || field.agent.metric("sockway_breaker_short_circuits_total", &[("service", "database")]);
    wait::until("the agent to have counted them", wait::SOON, || told() >= 5.0);
    let told = sockway(&["status", "--instance", field.agent.instance()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("the breaker of database is open"), "{told}");
}

#[test]
fn tries_that_succeed_close_it() {
    let Some(field) = Field::set("open_ms: 1000, half_open_requests: 2") else { return };
    field.open();
    let origin = field.stage.echo_at("database", field.endpoint);
    wait::until("two tries to close it", wait::SOON, || {
        drop(field.stage.dial(field.service));
        field.state() == 0.0
    });
    assert_eq!(field.stage.ask_name(field.service).expect("an answer"), "database");
    drop(origin);
}

/// From the failure that opens it to the first connect that is not sent any more, 20 ms of the agent's: of eight services the quickest, since
/// what else runs here is none of its doing.
#[test]
fn a_breaker_that_opens_is_felt_by_the_next_connects() {
    let Some(stage) = Stage::set() else { return };
    let names: Vec<String> = (0..8).map(|index| format!("s{index}")).collect();
    let places: Vec<_> = names.iter().map(|_| (stage.address(), stage.address())).collect();
    let config = names.iter().zip(&places).fold(stage.config(), |config, (name, (service, endpoint))| {
        let rule = "breaker: { kind: consecutive, failures: 3, open_ms: 600000 }";
        config.service(Service::kernel_tcp(name, *service).set(rule).to(*endpoint))
    });
    let agent = Agent::start(&config);
    let mut spans: Vec<Duration> = Vec::new();
    for (name, (service, endpoint)) in names.iter().zip(&places) {
        for _ in 0..3 {
            assert_eq!(errno(stage.dial(*service)), Some(libc::ECONNREFUSED));
        }
        let failed = Instant::now();
        let mut begun = Vec::new();
        while failed.elapsed() < Duration::from_millis(200) {
            begun.push(failed.elapsed());
            assert_eq!(errno(stage.dial(*service)), Some(libc::ECONNREFUSED));
        }
        let labels = [("service", name.as_str()), ("endpoint", &endpoint.to_string())];
        let sent = agent.metric("sockway_kernel_endpoint_connects_total", &labels) as usize - 3;
        spans.push(begun.get(sent).copied().unwrap_or(Duration::MAX));
    }
    spans.sort_unstable();
    println!("felt after {spans:?}");
    assert!(spans[0] <= Duration::from_millis(20), "{spans:?}");
}

#[test]
fn of_many_who_dial_a_half_open_service_as_many_pass_as_may() {
    let Some(field) = Field::set("open_ms: 1000, half_open_requests: 3") else { return };
    field.open();
    // Whose queue is full: who dials him hears nothing, so that nothing is learned meanwhile.
    let mute: TcpListener = field.stage.origin().listen(field.endpoint).expect("a free address");
    listen(&mute, Backlog::new(0).expect("a number")).expect("a shorter queue");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&field.endpoint, Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 8, "its queue is never full");
    }
    wait::until("it to be half-open", wait::SOON, || field.state() == 1.0);
    let dialled: Vec<std::io::Result<TcpStream>> = (0..12).map(|_| field.stage.client().begin(field.service)).collect();
    let passed = dialled.iter().filter(|dialled| dialled.is_ok()).count();
    assert_eq!((passed, field.sent()), (3, 6.0), "{dialled:?}");
}

#[test]
fn who_is_refused_by_an_agent_that_died_passes() {
    let Some(mut field) = Field::set("open_ms: 600000") else { return };
    field.open();
    let _origin = field.stage.echo_at("database", field.endpoint);
    assert_eq!(field.dials(), Some(libc::ECONNREFUSED));
    field.agent.sigkill();
    wait::until("the hooks to miss the agent", wait::SOON, || {
        field.stage.ask_name(field.service).is_ok_and(|name| name == "database")
    });
}
