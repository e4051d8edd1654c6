//! Connections that outlive what they belong to (the program, its cgroup, its namespace, the capture rule, the agent): what they took of
//! limits and open counts is given back all the same, once (trap T30), and nothing stays behind for them.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::SockRef;
use sockway_tests::{
    agent::Agent,
    cgroup::Cgroup,
    config::{Config, Service},
    counts::{Counts, limited},
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes},
    pins,
    process::Room,
    stage::Stage,
    wait,
};

fn of_kernel(service: SocketAddr) -> Service {
    limited(Service::kernel_tcp("limited", service))
}

/// An endpoint that closes no connection before it is told to.
struct Patient {
    origin: Origin,
    may_close: Arc<AtomicBool>,
}

impl Patient {
    fn at(listener: std::net::TcpListener) -> Self {
        let may_close = Arc::<AtomicBool>::default();
        let told = Arc::clone(&may_close);
        let origin = Origin::start(listener, move |_, _| {
            while !told.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Self { origin, may_close }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    fn close(&self) {
        self.may_close.store(true, Ordering::SeqCst);
    }
}

/// Sends until no more can be sent: the endpoint reads nothing.
fn fill(stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    while (&*stream).write(&[0; 65_536]).is_ok() {}
}

fn links_of(instance: &str, id: u64) -> usize {
    let prefix = format!("{id}-");
    let is_its =
        |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    pins::all(instance).iter().filter(|path| is_its(path)).count()
}

fn id_of(cgroup: &Cgroup) -> u64 {
    cgroup.directory().metadata().expect("its directory").ino()
}

#[test]
fn sockets_that_outlive_their_cgroup_give_back_what_they_took_and_its_hooks_go_with_the_last() {
    // Trap T36: the kernel keeps a removed cgroup's hooks for the sockets that it left behind, if their links are left to it.
    let Some(stage) = Stage::set() else { return };
    let (patient, service) = (Patient::at(stage.origin().listen(stage.address()).unwrap()), stage.address());
    let pattern = format!("{}/pod-*", stage.clients.path());
    let config = Config::new().rule(&pattern, "shortcut: off").service(of_kernel(service).to(patient.address()));
    let mut agent = Agent::start(&config);
    let instance = agent.instance().to_owned();
    let begin = |agent: &Agent, name: &str| {
        let pod = stage.clients.child(name);
        let id = id_of(&pod);
        let said = format!("cgroup is attached cgroup={}", pod.directory().display());
        wait::until("the pod to be captured", wait::SOON, || agent.log().contains(&said));
        let door = Door::open(Room::of(&pod));
        let mut held: Vec<TcpStream> = (0..4).map(|_| door.dial(service).unwrap()).collect();
        let handed_on = held.pop().expect("four");
        held[1..].iter().for_each(fill);
        (pod, id, door, held, handed_on)
    };
    let (pod, id, door, held, handed_on) = begin(&agent, "pod-1");
    let counts = Counts::of(&instance, service, stage.client());
    counts.expect(4, "open");

    // The pod ends; of its sockets two have more to say than the endpoint takes (FIN_WAIT1), one lives on in another program.
    drop((door, held));
    drop(pod);
    wait::until("the agent to notice", wait::SOON, || agent.log().contains("cgroup is gone"));
    counts.expect(3, "closed, and waiting for the endpoint");
    assert_eq!(handed_on.peer_addr().unwrap(), service, "what was handed on sees what was dialled");
    patient.close();
    // Of the last the program has yet to close its side.
    counts.expect(1, "the endpoint has closed, too");
    assert!(links_of(&instance, id) > 0);
    drop(handed_on);
    counts.expect(0, "the last is closed");
    wait::until("the links of the pod to go", wait::SOON, || links_of(&instance, id) == 0);

    // The same while no agent runs, and the next one finds a cgroup that is gone.
    patient.may_close.store(false, Ordering::SeqCst);
    let (pod, id, door, held, handed_on) = begin(&agent, "pod-2");
    agent.sigkill();
    drop((door, held, handed_on));
    drop(pod);
    agent.start_again();
    counts.expect(2, "closed, and waiting for the endpoint");
    patient.close();
    counts.expect(0, "the endpoint has closed, too");
    wait::until("the links of the pod to go", wait::SOON, || links_of(&instance, id) == 0);
    let (pod, _, door, held, handed_on) = begin(&agent, "pod-3");
    drop((held, handed_on));
    counts.expect_nothing(&door, "two pods are gone");
    drop((door, pod));
}

#[test]
fn connections_that_are_open_when_their_capture_rule_is_withdrawn_give_back_what_they_took() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    let pipe = || of_kernel(service).to(origin.address());
    let config = stage.config().service(pipe());
    let agent = Agent::start(&config);
    let counts = Counts::of(agent.instance(), service, stage.client());
    let mut held: Vec<TcpStream> = (0..4).map(|_| stage.dial(service).unwrap()).collect();
    agent.reload(&config.without_rules().capture(&stage.origins));
    assert!(stage.dial(service).is_err(), "nothing is captured any more");
    counts.expect(4, "the rule is withdrawn");
    held.truncate(1);
    counts.expect(1, "three are closed");
    agent.reload(&config);
    drop(held);
    counts.expect_nothing(stage.client(), "the rule is back");
}

#[test]
fn connections_of_a_namespace_that_is_deleted_are_given_back_when_the_kernel_gives_them_up() {
    let Some(stage) = Stage::set() else { return };
    let (near, far) = (Netns::new(), Netns::new());
    let wire = Veth::between(&near, &far);
    // What nobody acknowledges is given up after the first retransmission, closed or not, and the namespace with it.
    near.sysctl("net.ipv4.tcp_orphan_retries", "1");
    let (endpoint, service) = (SocketAddr::new(wire.right.into(), 80), SocketAddr::from(([10, 254, 0, 1], 80)));
    let server = Door::open(Room::of(&stage.origins).inside(&far));
    let origin = Origin::echo(server.listen(endpoint).unwrap(), "far");
    let agent = Agent::start(&stage.config().service(of_kernel(service).to(endpoint)));
    let open = || agent.metric("sockway_kernel_endpoint_open", &[("service", "limited")]);

    let client = Door::open(Room::of(&stage.clients).inside(&near));
    let mut held: Vec<TcpStream> = (0..6).map(|_| client.dial(service).unwrap()).collect();
    wait::until("all to be counted", wait::SOON, || open() == 6.0);
    // From now on nothing arrives at the other end, and nobody is told so.
    far.ip(&["link", "set", "group", "default", "down"]);
    // Two whose program hears that they timed out, and keeps them; the others end with their program.
    let timed_out = held.split_off(4);
    for mut stream in &timed_out {
        SockRef::from(stream).set_tcp_user_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(b"anybody?").unwrap();
    }
    wait::until("two to time out", wait::SOON, || open() == 4.0);
    drop((held, timed_out));
    drop(client);
    near.delete();
    wait::until("the rest to be given up", wait::SOON, || open() == 0.0);
    drop((origin, server));
}

#[test]
fn connections_through_the_agent_are_given_back_when_it_is_killed() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    let pipe = limited(Service::agent_tcp("limited", service)).to(origin.address());
    let mut agent = Agent::start(&stage.config().service(pipe));
    let counts = Counts::of(agent.instance(), service, stage.client());
    let open = |agent: &Agent| agent.metric("sockway_kernel_endpoint_open", &[("service", "limited")]);
    let held: Vec<TcpStream> = (0..4).map(|_| stage.dial(service).unwrap()).collect();
    wait::until("all to be counted", wait::SOON, || open(&agent) == 4.0 && counts.taken()[..2] == [4, 4]);
    agent.sigkill();
    // Their other ends died with the agent; the programs still hold theirs.
    wait::until("all to be given back", wait::SOON, || counts.taken() == [0; 3]);
    drop(held);
    // Without the agent the service is balanced in the kernel.
    counts.expect_nothing(stage.client(), "the agent is dead");
    agent.start_again();
    let held = stage.dial(service).unwrap();
    assert!(echoes(&held, b"a").is_ok());
    held.shutdown(Shutdown::Both).unwrap();
    wait::until("all to be given back", wait::SOON, || counts.taken()[..2] == [0, 0]);
}
