//! The ways to an origin, and how each of them is started.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use super::{
    Bench,
    process::{Place, Process},
    stand::Stand,
    traffic::Traffic,
};
use crate::workspace;

/// The client dials the origin.
pub const DIRECT: &str = "direct";
/// The same, each of them with a core of its own; only when pinned.
pub const DIRECT_2CORE: &str = "direct-2core";
/// Through Sockway, the shortcut off.
pub const SOCKWAY: &str = "sockway";
/// Through Sockway, the shortcut on.
pub const SOCKWAY_SHORTCUT: &str = "sockway+shortcut";
/// Through Sockway, the shortcut on, and the agent out of the way once it has nothing more to decide.
pub const SOCKWAY_JOINED: &str = "sockway+joined";
/// Through Sockway, the shortcut off, with everything that the scenario's service can have, none of which ever binds here.
pub const SOCKWAY_POLICIES: &str = "sockway+policies";
/// Through Sockway, the shortcut off, with what chooses an endpoint.
pub const SOCKWAY_CHOOSING: &str = "sockway+choosing";
/// Through nginx.
pub const NGINX: &str = "nginx";
/// Through HAProxy.
pub const HAPROXY: &str = "haproxy";
/// Through Envoy.
pub const ENVOY: &str = "envoy";

/// Every way, in the order of the reports.
pub const ALL: [&str; 10] = [
    DIRECT,
    DIRECT_2CORE,
    SOCKWAY,
    SOCKWAY_SHORTCUT,
    SOCKWAY_JOINED,
    SOCKWAY_POLICIES,
    SOCKWAY_CHOOSING,
    NGINX,
    HAPROXY,
    ENVOY,
];

/// Whether it is one of Sockway's.
pub fn is_sockway(way: &str) -> bool {
    way.starts_with(SOCKWAY)
}

/// nginx speaks TCP by this module, which Debian has in a package of its own.
pub const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The port of the origin, and of the second origin that has a core of its own.
pub const ORIGIN_PORTS: [u16; 2] = [8080, 8081];

/// Starts nginx with static bodies.
pub fn http_origin(stand: &Stand, name: &str, place: &Place, listen: &str) -> Result<Process> {
    let template = include_str!("../../bench/origin.nginx.conf");
    let config = stand.write(&format!("{name}.conf"), template, &[("name", name), ("listen", listen)])?;
    stand.serve(name, Command::new("nginx").arg("-c").arg(config), place)
}

/// Starts nghttpd with the same bodies, and with what further arguments say.
pub fn http2_origin(stand: &Stand, name: &str, place: &Place, listen: &str, arguments: &[&str]) -> Result<Process> {
    let (ip, port) = listen.rsplit_once(':').unwrap_or((listen, "80"));
    let mut command = Command::new("nghttpd");
    command.args(arguments).args(["--no-tls", "--workers", "1", "--address", ip, "--htdocs"]);
    command.arg(stand.file("www")).arg(port);
    stand.serve(name, &mut command, place)
}

/// Whether this proxy can be started here; Sockway and `direct` always can, or it is an error that they cannot.
pub fn is_installed(bench: &Bench, way: &str, traffic: Traffic) -> bool {
    match (way, traffic) {
        (NGINX, Traffic::Tcp) => workspace::find_program(way).is_some() && Path::new(STREAM_MODULE).exists(),
        (NGINX | HAPROXY, _) => workspace::find_program(way).is_some(),
        (ENVOY, _) => bench.envoy.exists(),
        _ => true,
    }
}

/// Its configuration for one kind of traffic.
fn template(way: &str, traffic: Traffic) -> Result<(&'static str, &'static str)> {
    Ok(match (way, traffic) {
        (NGINX, Traffic::Http { .. }) => ("nginx.conf", include_str!("../../bench/proxy.nginx.conf")),
        (NGINX, Traffic::Http2 { .. } | Traffic::Grpc { .. }) => {
            ("nginx.conf", include_str!("../../bench/h2.nginx.conf"))
        }
        (HAPROXY, Traffic::Http2 { .. } | Traffic::Grpc { .. }) => {
            ("haproxy.cfg", include_str!("../../bench/h2.haproxy.cfg"))
        }
        (ENVOY, Traffic::Http2 { .. } | Traffic::Grpc { .. }) => {
            ("envoy.yaml", include_str!("../../bench/h2.envoy.yaml"))
        }
        (NGINX, Traffic::Tcp) => ("nginx.conf", include_str!("../../bench/stream.nginx.conf")),
        (HAPROXY, Traffic::Http { .. }) => ("haproxy.cfg", include_str!("../../bench/proxy.haproxy.cfg")),
        (HAPROXY, Traffic::Tcp) => ("haproxy.cfg", include_str!("../../bench/stream.haproxy.cfg")),
        (ENVOY, Traffic::Http { .. }) => ("envoy.yaml", include_str!("../../bench/proxy.envoy.yaml")),
        (ENVOY, Traffic::Tcp) => ("envoy.yaml", include_str!("../../bench/stream.envoy.yaml")),
        _ => bail!("{way} is no proxy that is started here"),
    })
}

/// Starts one of the other proxies in front of `origin`; gives its process and the address it listens on.
pub fn proxy(bench: &Bench, stand: &Stand, traffic: Traffic, way: &str, origin: &str) -> Result<(Process, String)> {
    let (file, template) = template(way, traffic)?;
    let port = match way {
        NGINX => 8001,
        HAPROXY => 8002,
        _ => 8003,
    };
    let ip = stand.landscape().node_ip();
    let listen = format!("{ip}:{port}");
    let (origin_ip, origin_port) = origin.rsplit_once(':').unwrap_or((origin, "80"));
    let values = [
        ("name", way),
        ("listen", &listen),
        ("listen_ip", ip),
        ("listen_port", &port.to_string()),
        ("origin", origin),
        ("origin_ip", origin_ip),
        ("origin_port", origin_port),
        ("stream_module", STREAM_MODULE),
    ];
    let config = stand.write(file, template, &values)?;
    let mut command = match way {
        ENVOY => Command::new(&bench.envoy),
        _ => Command::new(way),
    };
    match way {
        NGINX => command.arg("-c"),
        HAPROXY => command.args(["-db", "-f"]),
        _ => command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]),
    };
    Ok((stand.serve(way, command.arg(config), &stand.proxy())?, listen))
}
