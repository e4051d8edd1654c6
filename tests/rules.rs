//! Which programs are captured: by cgroup, with patterns and exceptions, by network namespace, and never by port, address or user; each
//! changed without a restart.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use sockway_tests::{
    address::Block,
    agent::Agent,
    cgroup::Cgroup,
    config::{Config, Service},
    datagram::name_of,
    door::Door,
    netns::Netns,
    origin::{Origin, echoes, read_name},
    pins,
    process::Room,
    stage::Stage,
    wait,
};

/// A user that no test host gives to anybody.
const USER: u32 = 3_000_017;

/// Whether a program behind this door is captured: nobody listens at the service's own address.
fn is_captured(door: &Door, service: SocketAddr) -> bool {
    let Ok(mut stream) = door.dial(service) else { return false };
    stream.set_read_timeout(Some(wait::soon())).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    assert_eq!(stream.peer_addr().unwrap(), service);
    true
}

fn excluded(agent: &Agent) -> f64 {
    agent.metric("sockway_kernel_connects_total", &[("verdict", "excluded")])
}

/// The pinned links of a cgroup.
fn links_of(instance: &str, id: u64) -> Vec<PathBuf> {
    let is_its = |path: &Path| {
        path.parent().is_some_and(|parent| parent.ends_with("links"))
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{id}-")))
    };
    pins::all(instance).into_iter().filter(|path| is_its(path)).collect()
}

fn id_of(cgroup: &Cgroup) -> u64 {
    use std::os::unix::fs::MetadataExt;
    cgroup.directory().metadata().unwrap().ino()
}

/// A stage with one kernel-balanced service whose only endpoint is `origin`.
struct Scene {
    service: SocketAddr,
    config: Config,
    _origin: Origin,
}

/// Captures what `config` says.
fn scene(stage: &Stage, config: Config) -> Scene {
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = config.service(Service::kernel_tcp("pipe", service).to(origin.address()));
    Scene { service, config, _origin: origin }
}

/// How many descriptors the agent may have from now on.
fn allow_descriptors(agent: &Agent, most: u32) {
    let (pid, most) = (agent.pid().to_string(), format!("--nofile={most}:"));
    let output = Command::new("prlimit").args(["--pid", &pid, &most]).output().expect("util-linux");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_agent_that_cannot_look_for_want_of_descriptors_lets_go_of_no_cgroup() {
    let Some(stage) = Stage::set() else { return };
    let Scene { service, config, _origin } = scene(&stage, stage.config());
    let agent = Agent::start(&config);
    assert!(is_captured(stage.client(), service));
    allow_descriptors(&agent, 8);
    wait::until("it to look in vain", wait::SOON, || agent.log().contains("are not followed"));
    assert!(is_captured(stage.client(), service));
    allow_descriptors(&agent, 1024);
    let later = stage.clients.child("later");
    assert!(is_captured(&Door::open(Room::of(&later)), service));
    agent.reload(&config.without_rules());
    wait::until("it to let go when it is told to", wait::SOON, || agent.log().contains("no longer captured"));
    assert_eq!(agent.log().matches("no longer captured").count(), 1, "{}", agent.log());
}

#[test]
fn a_cgroup_that_appears_and_matches_a_pattern_is_captured_at_once_and_let_go_with_it() {
    let Some(stage) = Stage::set() else { return };
    let pattern = format!("{}/**/cri-*.scope", stage.clients.path());
    let Scene { service, config, _origin } = scene(&stage, Config::new().rule(&pattern, "shortcut: off"));
    let agent = Agent::start(&config);
    let slice = stage.clients.child("burst.slice");
    let (pod, other) = (slice.child("cri-1f.scope"), slice.child("docker-1f.scope"));
    wait::until("the cgroup to be attached", wait::SOON, || !links_of(agent.instance(), id_of(&pod)).is_empty());
    let (inside, beside) = (Door::open(Room::of(&pod)), Door::open(Room::of(&other)));
    wait::until("programs in it to be captured", wait::SOON, || is_captured(&inside, service));
    assert!(!is_captured(&beside, service) && !is_captured(stage.client(), service), "what the pattern does not match");
    let below = pod.child("nested");
    assert!(is_captured(&Door::open(Room::of(&below)), service), "descendants are captured");

    // Trap T36: a cgroup of the same name is another one, and attached anew.
    let id = id_of(&pod);
    drop((inside, below));
    drop(pod);
    wait::until("its links to go", wait::SOON, || links_of(agent.instance(), id).is_empty());
    let again = slice.child("cri-1f.scope");
    let door = Door::open(Room::of(&again));
    wait::until("the new one to be captured", wait::SOON, || is_captured(&door, service));
    assert_ne!(id_of(&again), id);
    drop((door, again, beside, other));
}

#[test]
fn many_cgroups_that_come_at_the_same_time_are_all_captured() {
    let Some(stage) = Stage::set() else { return };
    let pattern = format!("{}/*/pod-?", stage.clients.path());
    let Scene { service, config, _origin } = scene(&stage, Config::new().rule(&pattern, "shortcut: off"));
    let agent = Agent::start(&config);
    let slices: Vec<Cgroup> = (0..20).map(|index| stage.clients.child(&format!("slice-{index}"))).collect();
    let pods: Vec<Cgroup> =
        slices.iter().flat_map(|slice| (0..5).map(|index| slice.child(&format!("pod-{index}")))).collect();
    let attached = || pods.iter().filter(|pod| !links_of(agent.instance(), id_of(pod)).is_empty()).count();
    wait::until("each to be attached", wait::SOON, || attached() == pods.len());
    assert!(is_captured(&Door::open(Room::of(&pods[99])), service));
    drop(pods);
}

#[test]
fn a_cgroup_that_was_made_anew_while_no_agent_ran_is_captured_by_the_next() {
    let Some(stage) = Stage::set() else { return };
    let pod = stage.clients.child("pod");
    let Scene { service, config, _origin } = scene(&stage, Config::new().capture(&pod));
    let mut agent = Agent::start(&config);
    let id = id_of(&pod);
    agent.sigkill();
    drop(pod);
    // Trap T36: the link that is pinned belongs to a cgroup that is gone. Nothing of its name is there when the agent starts.
    agent.start_again();
    wait::until("the dead pins to go", wait::SOON, || links_of(agent.instance(), id).is_empty());
    let pod = stage.clients.child("pod");
    let door = Door::open(Room::of(&pod));
    wait::until("the new cgroup to be captured", wait::SOON, || is_captured(&door, service));
    agent.sigkill();
    drop(door);
    drop(pod);
    let pod = stage.clients.child("pod");
    agent.start_again();
    assert!(is_captured(&Door::open(Room::of(&pod)), service));
}

#[test]
fn the_nearest_rule_holds_where_rules_nest() {
    let Some(stage) = Stage::set() else { return };
    let quiet = stage.clients.child("quiet");
    let loud = quiet.child("loud");
    let config = stage.config().rule(quiet.path(), "capture: off").rule(loud.path(), "shortcut: off");
    let Scene { service, config, _origin } = scene(&stage, config);
    let mut agent = Agent::start(&config);
    let doors = [&quiet, &loud].map(|cgroup| Door::open(Room::of(cgroup)));
    let below = quiet.child("below");
    let below_door = Door::open(Room::of(&below));
    let held = |when: &str| {
        assert!(is_captured(stage.client(), service), "{when}: around both");
        assert!(!is_captured(&doors[0], service), "{when}: left out");
        assert!(!is_captured(&below_door, service), "{when}: below what is left out");
        assert!(is_captured(&doors[1], service), "{when}: captured within what is left out");
    };
    held("with the agent");
    assert_eq!(excluded(&agent), 2.0);
    agent.sigkill();
    held("without it");
    agent.start_again();
    held("with another");
    drop((doors, below_door, below, loud));
}

#[test]
fn a_rule_that_is_added_or_withdrawn_takes_effect_without_a_restart() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (stage.clients.child("left"), stage.clients.child("right"));
    let doors = [&left, &right].map(|cgroup| Door::open(Room::of(cgroup)));
    let Scene { service, config, _origin } = scene(&stage, Config::new());
    let captured = || doors.each_ref().map(|door| is_captured(door, service));
    let agent = Agent::start(&config.clone().capture(&left));
    assert_eq!(captured(), [true, false]);
    let mut open = doors[0].dial(service).unwrap();
    assert_eq!(read_name(&mut open).unwrap(), "origin");

    agent.reload(&config.clone().capture(&right));
    assert_eq!(captured(), [false, true]);
    assert_eq!(open.peer_addr().unwrap(), service, "what was captured before is served to its end");
    assert!(echoes(&open, &[5; 100_000]).unwrap());
    agent.reload(&config.clone().capture(&left).capture(&right));
    assert_eq!(captured(), [true, true]);
    agent.reload(&config.clone().capture(&stage.clients).rule(left.path(), "capture: off"));
    assert_eq!(captured(), [false, true]);
    agent.reload(&config.clone().capture(&stage.clients));
    assert_eq!(captured(), [true, true]);
    assert!(is_captured(stage.client(), service));
    let mut reused = doors[0].dial(service).unwrap();
    assert_eq!(read_name(&mut reused).unwrap(), "origin");

    // A cgroup that is not there is refused, and everything stays as it is.
    let refused = agent.metric("sockway_config_reloads_total", &[("result", "refused")]);
    agent.write_config(&config.clone().rule("/sockway-no-such-cgroup", "shortcut: off").yaml());
    wait::until("the file to be refused", wait::SOON, || {
        agent.metric("sockway_config_reloads_total", &[("result", "refused")]) > refused
    });
    assert!(agent.log().contains("/sockway-no-such-cgroup"), "{}", agent.log());
    assert_eq!(captured(), [true, true]);
    drop(doors);
}

#[test]
fn a_refused_file_leaves_captured_what_was_though_a_cgroup_of_it_is_gone() {
    let Some(stage) = Stage::set() else { return };
    let (left, right, gone) = (stage.clients.child("left"), stage.clients.child("right"), stage.clients.child("gone"));
    let doors = [&left, &right].map(|cgroup| Door::open(Room::of(cgroup)));
    let Scene { service, config, _origin } = scene(&stage, Config::new().set("maps: { endpoints: 1 }"));
    let captured = || doors.each_ref().map(|door| is_captured(door, service));
    let before = config.clone().capture(&left).capture(&gone);
    let agent = Agent::start(&before);
    let (gone_path, gone_id) = (gone.path().to_owned(), id_of(&gone));
    drop(gone);
    wait::until("the cgroup to be let go", wait::SOON, || links_of(agent.instance(), gone_id).is_empty());

    // Refused by a table (the endpoint that leaves needs its place for a while), when the rules of the file are in force already.
    let moved = Service::kernel_tcp("pipe", service).to(stage.address());
    agent.write_config(&config.with_services([moved]).capture(&right).yaml());
    wait::until("the file to be refused", wait::SOON, || agent.log().contains("has no room for"));
    assert_eq!(captured(), [true, false], "{}", agent.log());
    assert!(!agent.log().contains("not whole again"), "{}", agent.log());

    // What the agent is told now may still name it, and it is captured when it is there again.
    let named = config.clone().capture(&left).capture(&right).rule(&gone_path, "shortcut: off");
    agent.reload(&named);
    assert_eq!(captured(), [true, true]);
    let again = stage.clients.child("gone");
    wait::until("the cgroup to be attached", wait::SOON, || !links_of(agent.instance(), id_of(&again)).is_empty());
    assert!(is_captured(&Door::open(Room::of(&again)), service));
    drop(doors);
}

#[test]
fn hooks_of_a_withdrawn_rule_go_with_the_last_socket() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (stage.clients.child("left"), stage.clients.child("right"));
    let door = Door::open(Room::of(&left));
    let Scene { service, config, _origin } = scene(&stage, Config::new());
    let agent = Agent::start(&config.clone().capture(&left));
    let open = door.dial(service).unwrap();
    agent.reload(&config.clone().capture(&right));
    let links = || links_of(agent.instance(), id_of(&left)).len();
    wait::throughout("hooks to serve the open socket", 3 * std::time::Duration::from_secs(1), || {
        links() > 0 && open.peer_addr().unwrap() == service
    });
    drop(open);
    wait::until("the hooks to go", wait::SOON, || links() == 0);
    drop(door);
}

#[test]
fn ports_addresses_and_users_that_are_excepted_are_never_captured() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let (plain, port, block) = (stage.address(), stage.address(), Block::take().next());
    let config = stage.config().with_services([
        Service::kernel_tcp("plain", plain).to(origin.address()),
        Service::kernel_tcp("port", port).to(origin.address()),
        Service::agent_tcp("block", block).to(origin.address()),
    ]);
    let except = format!(
        "except: {{ ports: [22, {}-{}], cidrs: [\"{}/32\"], uids: [0, {}-{}] }}",
        port.port(),
        port.port(),
        block.ip(),
        USER,
        USER + 3
    );
    let user = |user: u32| Door::open(Room::of(&stage.clients).as_user(user));
    let (root, first, last, after) = (stage.client(), user(USER), user(USER + 3), user(USER + 4));
    let captured = |service| [root, &first, &last, &after].map(|door| is_captured(door, service));
    let mut agent = Agent::start(&config);
    for service in [plain, port, block] {
        assert_eq!(captured(service), [true; 4]);
    }
    agent.reload(&config.clone().set_capture(&except));
    let held = |when: &str| {
        assert_eq!(captured(plain), [false, false, false, true], "{when}");
        assert_eq!(captured(port), [false; 4], "{when}");
        assert_eq!(captured(block), [false; 4], "{when}");
    };
    held("after a reload");
    assert!(excluded(&agent) >= 3.0);
    agent.sigkill();
    held("without the agent");
    agent.start_again();
    held("with another agent");
    agent.reload(&config);
    for service in [plain, port, block] {
        assert_eq!(captured(service), [true; 4], "the exceptions are gone again");
    }
}

#[test]
fn a_service_that_is_left_out_for_a_while_goes_on_counting_what_is_open() {
    let Some(stage) = Stage::set() else { return };
    let (origins, service) = ([stage.echo("a"), stage.echo("b")], stage.address());
    let least = Service::kernel_tcp("least", service).set("balance: least_connections");
    let config = stage.config().service(least.to_all(origins.each_ref().map(Origin::address)));
    let mut agent = Agent::start(&config);
    let except = format!("except: {{ ports: [{}] }}", service.port());
    let left_out = config.clone().set_capture(&except);
    let dial = |many: usize| (0..many).map(|_| stage.dial(service).expect("dialled")).collect::<Vec<TcpStream>>();
    let open = |agent: &Agent| agent.metric("sockway_kernel_endpoint_open", &[("service", "least")]);
    let held = dial(6);
    for _ in 0..2 {
        agent.reload(&left_out);
        assert!(!is_captured(stage.client(), service));
        agent.reload(&config);
        assert_eq!(open(&agent), 6.0, "those that were open all the while");
    }
    // By another agent, too, which finds it left out.
    agent.reload(&left_out);
    agent.sigkill();
    agent.start_again();
    agent.reload(&config);
    drop(held);
    wait::until("what is closed to be given back", wait::SOON, || open(&agent) == 0.0);
    let _again = dial(10);
    wait::until("each to have as many", wait::SOON, || origins.iter().all(|origin| origin.open() == 5));
}

#[test]
fn datagrams_of_what_is_left_out_go_where_they_are_addressed() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.datagrams("origin"), stage.address());
    let _direct = stage.datagrams_at("direct", service);
    let quiet = stage.clients.child("quiet");
    let config = stage.config().service(Service::udp("names", service).to(origin.address()));
    let agent = Agent::start(&config.clone().rule(quiet.path(), "capture: off"));
    let door = Door::open(Room::of(&quiet));
    let left_out = door.bind(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
    left_out.set_read_timeout(Some(wait::soon())).unwrap();
    let captured = stage.socket("0.0.0.0:0");
    assert_eq!((name_of(&left_out, service), name_of(&captured, service)), ("direct".into(), "origin".into()));
    agent.metric_comes_to("sockway_kernel_sends_total", &[("verdict", "excluded")], 1.0);

    // The mark that the socket bears is one of rules that are no longer in force.
    agent.reload(&config);
    assert_eq!((name_of(&left_out, service), name_of(&captured, service)), ("origin".into(), "origin".into()));
    agent.reload(&config.clone().rule(quiet.path(), "capture: off").set_capture("except: { uids: [0] }"));
    assert_eq!((name_of(&left_out, service), name_of(&captured, service)), ("direct".into(), "direct".into()));
    drop(door);
}

/// A program in a namespace, and an origin beside it that a kernel-balanced service leads to.
struct Pod {
    netns: Netns,
    door: Door,
    _origin: Origin,
}

impl Pod {
    fn new(stage: &Stage) -> Self {
        let netns = Netns::new();
        let door = Door::open(Room::of(&stage.clients).inside(&netns));
        let origin = Origin::echo(door.listen(SocketAddr::from(([127, 0, 0, 1], 8080))).unwrap(), "origin");
        Self { netns, door, _origin: origin }
    }
}

#[test]
fn namespaces_are_captured_by_name() {
    let Some(stage) = Stage::set() else { return };
    let service = SocketAddr::from(([10, 254, 0, 9], 80));
    let through_agent = SocketAddr::from(([10, 254, 0, 10], 80));
    let endpoint = SocketAddr::from(([127, 0, 0, 1], 8080));
    let config = stage.config().with_services([
        Service::kernel_tcp("kernel", service).to(endpoint),
        Service::agent_tcp("agent", through_agent).to(stage.echo("origin").address()),
    ]);
    let pods = [Pod::new(&stage), Pod::new(&stage)];
    let captured = || pods.each_ref().map(|pod| is_captured(&pod.door, service));
    let name = pods[0].netns.name();
    let mut agent = Agent::start(&config.clone().set_capture(&format!("namespaces: {{ only: [{name}] }}")));
    assert_eq!(captured(), [true, false]);
    agent.sigkill();
    assert_eq!(captured(), [true, false], "without the agent");
    agent.start_again();
    assert_eq!(captured(), [true, false], "with another agent");
    agent.reload(&config.clone().set_capture(&format!("namespaces: {{ except: [{name}] }}")));
    assert_eq!(captured(), [false, true]);
    wait::until("the agent to leave a namespace that is not captured", wait::SOON, || {
        agent.metric("sockway_namespaces", &[]) >= 1.0 && pods[0].door.dial(through_agent).is_err()
    });
    agent.reload(&config);
    assert_eq!(captured(), [true, true]);

    // A namespace that gets its name later is known at the next look.
    let prefix = name.rsplit_once('-').map_or(name, |(prefix, _)| prefix);
    agent.reload(&config.clone().set_capture(&format!("namespaces: {{ only: [\"{prefix}-*\"], except: [{name}] }}")));
    assert_eq!(captured(), [false, true]);
    let later = Pod::new(&stage);
    wait::until("the new namespace to be captured", wait::SOON, || is_captured(&later.door, service));
    agent.reload(&config.clone().set_capture("namespaces: { only: [host] }"));
    assert_eq!(captured(), [false, false]);
    assert!(!is_captured(&later.door, service));
}
