//! The hop alone, for measuring: one worker, no kernel half. `hop LISTEN ORIGIN...` passes every connection to LISTEN on to the origins.
//!
//! `HOP_PROTOCOL=tcp` relays opaque bytes instead of HTTP/1, `HOP_PROTOCOL=http2` speaks HTTP/2.

use std::{
    error::Error,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use sockway::{
    cluster::Snapshot,
    config::{Capture, Config, Endpoint, Mode, Policy, Protocol, Service, Shortcut},
    kernel::{Flows, OriginalDst},
    node::worker::{Listening, Worker, WorkerShared},
    record::Slab,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut addresses = Vec::new();
    for argument in std::env::args().skip(1) {
        addresses.push(argument.parse::<SocketAddr>()?);
    }
    let [listen, origins @ ..] = &addresses[..] else { return Err("usage: hop LISTEN ORIGIN...".into()) };
    let protocol = match std::env::var("HOP_PROTOCOL").as_deref() {
        Ok("tcp") => Protocol::Tcp,
        Ok("http2") => Protocol::Http2,
        _ => Protocol::Http,
    };
    let config = config(*listen, origins, protocol);
    let snapshot = Snapshot::build(&config, &Snapshot::default());
    let service = snapshot.services[0].id;
    let (events, mut failures) = tokio::sync::mpsc::unbounded_channel();
    let shared = WorkerShared {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        flows: Flows::off(OriginalDst { address: *listen, service, source: 0 }),
        slab: Arc::new(Slab::default()),
        events,
    };
    let worker = Worker::spawn(0, shared)?;
    worker.listen(Listening { socket: TcpListener::bind(listen)?, netns: 0, place: None });
    writeln!(std::io::stdout(), "listening on {listen}")?;
    while let Some(event) = failures.blocking_recv() {
        writeln!(std::io::stdout(), "{event:?}")?;
    }
    Ok(())
}

fn config(listen: SocketAddr, origins: &[SocketAddr], protocol: Protocol) -> Config {
    Config {
        zone: None,
        instance: "hop".into(),
        workers: 1,
        drain_timeout: Duration::from_secs(1),
        admin: Default::default(),
        audit: Default::default(),
        hook_stats: false,
        maps: Default::default(),
        inbound: Vec::new(),
        capture: Capture {
            cgroup_mount: None,
            bpffs: PathBuf::new(),
            rules: Vec::new(),
            namespaces: Default::default(),
            except: Default::default(),
        },
        switches: Default::default(),
        services: vec![Arc::new(Service {
            name: "origin".into(),
            address: listen,
            protocol,
            upstream_protocol: None,
            mode: Mode::Agent,
            policy: Policy::default(),
            http: Default::default(),
            tls: Default::default(),
            shortcut: Shortcut::Off,
            original_dst: false,
            connect_timeout: Duration::from_secs(1),
            probe_interval: None,
            probe: None,
            outlier: None,
            strategy: None,
            timing: None,
            request_limits: Vec::new(),
            pending: None,
            filters: Vec::new(),
            guard: Default::default(),
            udp_idle_timeout: Duration::from_secs(30),
            endpoint_drain: None,
            routes: Vec::new(),
            endpoints: origins.iter().map(|address| Endpoint::at(*address)).collect(),
        })],
    }
}
