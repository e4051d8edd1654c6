//! `SO_ORIGINAL_DST` and its IPv6 twin: a proxy that is the endpoint of a kernel-balanced service asks what its client dialled.

use std::{fs, net::SocketAddr, process::Command};

use sockway_tests::{
    address::mapped,
    agent::{self, Agent},
    config::Service,
    door::Door,
    netns::{Netns, Veth},
    origin::read_name,
    peers, pins,
    process::{Process, Room},
    stage::Stage,
    wait,
};
use tempfile::TempDir;

/// A server that tells each client what the socket's options say: the original destination of both levels, and others as they are.
const ASKS: &str = "import ctypes, socket, struct, sys
def ask(c, level, name, size):
    try: return c.getsockopt(level, name, size)
    except OSError as e: return e.errno
def show(v):
    if isinstance(v, int): return f'errno{v}'
    if len(v) == 16: return socket.inet_ntop(2, v[4:8]) + ' ' + str(struct.unpack('!H', v[2:4])[0])
    return socket.inet_ntop(10, v[8:24]) + ' ' + str(struct.unpack('!H', v[2:4])[0])
def long_info(c):
    size = ctypes.c_uint32(8192); buffer = ctypes.create_string_buffer(8192)
    result = ctypes.CDLL(None).getsockopt(c.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, buffer, ctypes.byref(size))
    return result == 0 and 100 < size.value < 1024 and buffer.raw[:1] == b'\\x01'
s = socket.socket(socket.AF_INET6); s.setsockopt(41, socket.IPV6_V6ONLY, 0)
s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(16); print('listening', flush=True)
while True:
    c, a = s.accept()
    others = [long_info(c), c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 9)[:1] == b'\\x01',
      len(c.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)), ask(c, 0, 80, 15) == 22 or isinstance(ask(c, 0, 80, 15), int), isinstance(ask(s, 0, 80, 16), int)]
    c.sendall(f'{show(ask(c, 0, 80, 16))}|{show(ask(c, 41, 80, 28))}|{others}\\n'.encode()); c.close()
";

fn asking(room: Room<'_>, address: SocketAddr) -> Process {
    let mut command = Command::new("python3");
    command.args(["-c", ASKS, &address.ip().to_string(), &address.port().to_string()]);
    let server = Process::spawn(room, command);
    wait::until("python to listen", wait::SOON, || server.stdout().contains("listening"));
    server
}

fn said(door: &Door, address: SocketAddr) -> Vec<String> {
    let mut stream = door.dial(address).unwrap();
    stream.set_read_timeout(Some(wait::soon())).unwrap();
    read_name(&mut stream).unwrap().split('|').map(str::to_owned).collect()
}

/// What else the server asked, where nothing of it is changed.
const OTHERS: &str = "[True, True, 16, True, True]";

#[test]
fn a_proxy_in_another_namespace_learns_what_its_client_dialled() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let client = Door::open(Room::of(&stage.clients).inside(&left));
    let _server = asking(Room::of(&stage.origins).inside(&right), SocketAddr::from(([0; 16], 8080)));
    let (v4, v6, quiet): (SocketAddr, SocketAddr, SocketAddr) =
        ("10.254.0.1:80".parse().unwrap(), "[fd00:254::1]:81".parse().unwrap(), "10.254.0.2:82".parse().unwrap());
    let at = |ip: std::net::IpAddr| SocketAddr::new(ip, 8080);
    let service = |name, address, ip| Service::kernel_tcp(name, address).to(at(ip));
    let config = stage
        .config()
        .capture(&stage.origins)
        .service(service("v4", v4, wire.right.into()).set("original_dst: on"))
        .service(service("v6", v6, wire.right_v6.into()).set("original_dst: on"))
        .service(service("quiet", quiet, wire.right.into()));
    let agent = Agent::start(&config);

    let answers = said(&client, v4);
    assert_eq!((answers[0].as_str(), answers[2].as_str()), ("10.254.0.1 80", OTHERS));
    let answers = said(&client, v6);
    assert_eq!((answers[1].as_str(), answers[2].as_str()), ("fd00:254::1 81", OTHERS));
    for untold in [said(&client, quiet), said(&client, at(wire.right.into()))] {
        assert!(untold[..2].iter().all(|answer| answer.starts_with("errno")), "{untold:?}");
        assert_eq!(untold[2], OTHERS);
    }
    agent.metric_comes_to("sockway_kernel_original_dst_answers_total", &[], 2.0);
}

#[test]
fn the_hook_on_options_is_there_only_while_a_service_wants_it() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let _server = asking(Room::of(&stage.origins), mapped(endpoint));
    let service = stage.address();
    let there = |key: Option<&str>| {
        let service = Service::kernel_tcp("proxy", service).to(endpoint);
        key.into_iter().fold(service, Service::set)
    };
    let config = stage.config().capture(&stage.origins);
    let agent = Agent::start(&config.with_services([there(None)]));
    let hooked = || pins::all(agent.instance()).iter().any(|pin| pin.to_string_lossy().ends_with("-getsockopt"));
    assert!(!hooked() && said(stage.client(), service)[0].starts_with("errno"));
    agent.reload(&config.with_services([there(Some("original_dst: on"))]));
    assert!(hooked());
    assert_eq!(said(stage.client(), service)[0], format!("{} {}", service.ip(), service.port()));
    agent.reload(&config.with_services([there(None)]));
    assert!(!hooked() && said(stage.client(), service)[0].starts_with("errno"));
}

#[test]
fn haproxy_logs_the_destination_that_was_dialled() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("haproxy.cfg");
    let soon = wait::soon().as_secs();
    let text = format!(
        "defaults\n  mode http\n  timeout client {soon}s\n  timeout connect {soon}s\n  timeout server {soon}s\n\
         frontend f\n  bind {endpoint}\n  http-request return status 200 content-type text/plain lf-string \"%[dst]:%[dst_port]\"\n"
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let _haproxy = Process::spawn(Room::of(&stage.origins), command);
    wait::until("haproxy to listen", wait::SOON, || stage.origin().dial(endpoint).is_ok());
    let service = stage.address();
    let config = stage.config().capture(&stage.origins);
    let proxy = Service::kernel_tcp("proxy", service).to(endpoint);
    let _agent = Agent::start(&config.service(proxy.set("original_dst: on")));
    let call = |address| peers::stdout(&peers::curl(Room::of(&stage.clients), &[&format!("http://{address}/")]));
    assert_eq!(call(service), service.to_string());
    assert_eq!(call(endpoint), endpoint.to_string(), "dialled directly, it is what it was");
}

/// Envoy with its `original_dst` listener filter at `{endpoint}`: it tells each client in a header for which address it takes itself.
fn envoy_config(endpoint: SocketAddr) -> String {
    format!(
        r#"
static_resources:
  listeners:
    - address: {{ socket_address: {{ address: "{}", port_value: {} }} }}
      listener_filters:
        - name: envoy.filters.listener.original_dst
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: all
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      response_headers_to_add:
                        - header: {{ key: x-destination, value: "%DOWNSTREAM_LOCAL_ADDRESS%" }}
                      routes:
                        - match: {{ prefix: "/" }}
                          direct_response: {{ status: 200 }}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#,
        endpoint.ip(),
        endpoint.port()
    )
}

#[test]
fn envoys_original_dst_filter_finds_the_destination_that_was_dialled() {
    let Some(stage) = Stage::set() else { return };
    let Some(binary) = agent::envoy() else { return };
    let endpoint = stage.address();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("envoy.yaml");
    fs::write(&file, envoy_config(endpoint)).unwrap();
    let mut command = Command::new(binary);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]).arg(&file);
    let mut envoy = Process::spawn(Room::of(&stage.origins), command);
    wait::until("envoy to listen", wait::SOON, || {
        assert!(envoy.ended().is_none(), "{}", envoy.stderr());
        stage.origin().dial(endpoint).is_ok()
    });
    let service = stage.address();
    let config = stage.config().capture(&stage.origins);
    let proxy = || Service::kernel_tcp("proxy", service).to(endpoint);
    let agent = Agent::start(&config.with_services([proxy().set("original_dst: on")]));
    let call = |address| {
        let url = format!("http://{address}/");
        let head = peers::stdout(&peers::curl(Room::of(&stage.clients), &["--dump-header", "-", &url]));
        let line = head.lines().find_map(|line| line.strip_prefix("x-destination: ").map(str::to_owned));
        line.unwrap_or_else(|| panic!("{head}\n{}", envoy.stderr()))
    };
    assert_eq!(call(service), service.to_string());
    assert_eq!(call(endpoint), endpoint.to_string(), "dialled directly, it is what it was");
    agent.reload(&config.with_services([proxy()]));
    assert_eq!(call(service), endpoint.to_string(), "a service that does not tell");
}
