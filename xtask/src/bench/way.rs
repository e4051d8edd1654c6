//! The ways to an origin, and how each of them is started.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Bench, process::Process, stand::Stand};
use crate::workspace;

/// The client dials the origin.
pub const DIRECT: &str = "direct";
/// The same, each of them with a core of its own; only when pinned.
pub const DIRECT_2CORE: &str = "direct-2core";
/// Through Sockway, the shortcut off.
pub const SOCKWAY: &str = "sockway";
/// Through Sockway, the shortcut on.
pub const SOCKWAY_SHORTCUT: &str = "sockway+shortcut";
/// Through nginx.
pub const NGINX: &str = "nginx";
/// Through HAProxy.
pub const HAPROXY: &str = "haproxy";
/// Through Envoy.
pub const ENVOY: &str = "envoy";

/// Every way, in the order of the reports.
pub const ALL: [&str; 7] = [DIRECT, DIRECT_2CORE, SOCKWAY, SOCKWAY_SHORTCUT, NGINX, HAPROXY, ENVOY];

/// The port of the origin, and of the second origin that has a core of its own.
pub const ORIGIN_PORTS: [u16; 2] = [8080, 8081];

/// Starts the origin: nginx with static bodies.
pub fn origin(stand: &Stand, apart: bool) -> Result<Process> {
    let (name, place) = if apart { ("origin-apart", stand.origin_apart()) } else { ("origin", stand.origin()) };
    let listen = format!("{}:{}", stand.landscape().origin_ip(), ORIGIN_PORTS[usize::from(apart)]);
    let template = include_str!("../../bench/origin.nginx.conf");
    let config = stand.write(&format!("{name}.conf"), template, &[("name", name), ("listen", &listen)])?;
    stand.serve(name, Command::new("nginx").arg("-c").arg(config), &place)
}

/// Whether this proxy can be started here; Sockway and `direct` always can, or it is an error that they cannot.
pub fn is_installed(bench: &Bench, way: &str) -> bool {
    match way {
        NGINX | HAPROXY => workspace::find_program(way).is_some(),
        ENVOY => bench.envoy.exists(),
        _ => true,
    }
}

/// Starts one of the other proxies for HTTP/1.1, in front of `origin`; gives its process and the address it listens on.
pub fn http_proxy(bench: &Bench, stand: &Stand, way: &str, origin: &str) -> Result<(Process, String)> {
    let port = match way {
        NGINX => 8001,
        HAPROXY => 8002,
        ENVOY => 8003,
        _ => bail!("{way} is no proxy that is started here"),
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
    ];
    let mut command;
    match way {
        NGINX => {
            let config = stand.write("nginx.conf", include_str!("../../bench/proxy.nginx.conf"), &values)?;
            command = Command::new("nginx");
            command.arg("-c").arg(config);
        }
        HAPROXY => {
            let config = stand.write("haproxy.cfg", include_str!("../../bench/proxy.haproxy.cfg"), &values)?;
            command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(config);
        }
        _ => {
            let config = stand.write("envoy.yaml", include_str!("../../bench/proxy.envoy.yaml"), &values)?;
            command = Command::new(&bench.envoy);
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]);
            command.arg(config);
        }
    }
    Ok((stand.serve(way, &mut command, &stand.proxy())?, listen))
}
