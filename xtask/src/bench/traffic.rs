//! What flows in a load scenario, and how it is driven and answered: requests by wrk against nginx, streams by h2load against
//! nghttpd, or bytes by our own two programs.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{
    h2load,
    process::Process,
    sample::Figure,
    stand::Stand,
    tcp::{self, Driver},
    way, wrk,
};

/// What flows.
#[derive(Clone, Copy, Debug)]
pub enum Traffic {
    /// Requests of HTTP/1.1.
    Http {
        /// The body that is asked for.
        body: &'static str,
        /// How many connections at a time.
        connections: u32,
        /// Whether each request has a connection of its own.
        anew: bool,
    },
    /// Streams over connections of HTTP/2.
    Http2 {
        /// The body that is asked for.
        body: &'static str,
        /// How many connections.
        connections: u32,
        /// How many streams at a time on each.
        streams: u32,
    },
    /// Unary calls of gRPC, as many and as few at a time.
    Grpc {
        /// How many connections.
        connections: u32,
        /// How many calls at a time on each.
        streams: u32,
    },
    /// Bytes that nobody between the two programs understands.
    Tcp,
}

/// A part of a round that is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All of it.
    Requests,
    /// Messages of 64 bytes, one at a time.
    Messages,
    /// As many bytes as go through.
    Bulk,
}

/// What a phase moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Connections it made.
    pub connections: u32,
    /// Messages that each end sent at least.
    pub messages: u64,
    /// The figures that the load generator took.
    pub figures: BTreeMap<Figure, f64>,
    /// What CPU time is divided by: requests, messages or GB.
    units: f64,
    per_gb: bool,
}

impl Traffic {
    /// What a round consists of.
    pub fn phases(self) -> &'static [Phase] {
        match self {
            Self::Http { .. } | Self::Http2 { .. } | Self::Grpc { .. } => &[Phase::Requests],
            Self::Tcp => &[Phase::Messages, Phase::Bulk],
        }
    }

    /// What the client is given for an address.
    pub fn target(self, address: &str) -> String {
        match self {
            Self::Http { body, .. } | Self::Http2 { body, .. } => format!("http://{address}/{body}"),
            Self::Grpc { .. } => format!("http://{address}/bench.Echo/Say"),
            Self::Tcp => address.to_owned(),
        }
    }

    /// Starts the origin, at `apart` on a core of its own, listening at `address`.
    pub fn origin(self, stand: &Stand, apart: bool, address: &str) -> Result<Process> {
        let (name, place) = if apart { ("origin-apart", stand.origin_apart()) } else { ("origin", stand.origin()) };
        match self {
            Self::Http { .. } => way::http_origin(stand, name, &place, address),
            Self::Http2 { .. } => way::http2_origin(stand, name, &place, address, &[]),
            Self::Grpc { .. } => way::http2_origin(stand, name, &place, address, &GRPC_ORIGIN),
            Self::Tcp => tcp::server(&place, address, &stand.file(&format!("{name}.log"))),
        }
    }

    /// Calls once, as the client does.
    pub fn call(self, stand: &Stand, target: &str) -> Result<()> {
        match self {
            Self::Http { .. } => stand.call(target),
            Self::Http2 { .. } => stand.call_http2(target),
            Self::Grpc { .. } => {
                let file = format!("@{}", grpc_message(stand)?.display());
                let header = GRPC_HEADERS.map(|header| ["--header", header]);
                stand.call_with(
                    &[&["--http2-prior-knowledge", "--data-binary", &file], header.as_flattened()].concat(),
                    target,
                )
            }
            Self::Tcp => Driver::start(&stand.client())?.echo(target, Duration::from_millis(1)).map(drop),
        }
    }

    /// Drives one phase for as long.
    pub fn drive(self, phase: Phase, stand: &Stand, target: &str, length: Duration) -> Result<Moved> {
        let once = |units, messages, per_gb, figures| Moved { connections: 1, messages, figures, units, per_gb };
        match (self, phase) {
            (Self::Http { connections, anew, .. }, _) => {
                let load = wrk::run(&stand.client(), target, connections, anew, length)?;
                let figures = latencies(load.rps, load.p50_us, load.p99_us);
                Ok(Moved { connections, ..once(load.requests as f64, load.requests, false, figures) })
            }
            (Self::Http2 { connections, streams, .. } | Self::Grpc { connections, streams }, _) => {
                let mut arguments = Vec::new();
                if let Self::Grpc { .. } = self {
                    arguments.extend(GRPC_HEADERS.map(|header| format!("--header={header}").into()));
                    arguments.extend(["--data".into(), grpc_message(stand)?.into_os_string()]);
                }
                let load = h2load::run(&stand.client(), target, (connections, streams), &arguments, length)?;
                let figures = BTreeMap::from([(Figure::Rps, load.rps)]);
                // Many streams' frames leave in one message.
                Ok(Moved { connections, ..once(load.requests as f64, 1, false, figures) })
            }
            (Self::Tcp, Phase::Bulk) => {
                let (gb, seconds) = Driver::start(&stand.client())?.bulk(target, length)?;
                Ok(once(gb, 1, true, BTreeMap::from([(Figure::GbPerS, gb / seconds)])))
            }
            (Self::Tcp, _) => {
                let echoed = Driver::start(&stand.client())?.echo(target, length)?;
                let figures = latencies(echoed.messages as f64 / echoed.seconds, echoed.p50_us, echoed.p99_us);
                Ok(once(echoed.messages as f64, echoed.messages, false, figures))
            }
        }
    }
}

impl Moved {
    /// The figures of this phase, with what was spent meanwhile by the proxy, by the whole machine and by the scenario.
    pub fn with_cpu(&self, proxy: Duration, machine: Duration, own: Duration) -> BTreeMap<Figure, f64> {
        let mut figures = self.figures.clone();
        let spent = |cpu: Duration, scale: f64| cpu.as_secs_f64() * scale / self.units;
        if self.per_gb {
            figures.extend([(Figure::CpuPerGb, spent(proxy, 1.0)), (Figure::MachineCpuPerGb, spent(machine, 1.0))]);
        } else {
            figures.extend([
                (Figure::Cpu, spent(proxy, 1e6)),
                (Figure::MachineCpu, spent(machine, 1e6)),
                (Figure::OwnCpu, spent(own, 1e6)),
            ]);
        }
        figures
    }
}

/// What makes a request one of gRPC.
const GRPC_HEADERS: [&str; 2] = ["content-type: application/grpc", "te: trailers"];
/// What makes nghttpd answer as a unary method does: the message it was sent, and the status behind it.
const GRPC_ORIGIN: [&str; 2] = ["--echo-upload", "--trailer=grpc-status: 0"];

/// A file with one message of 64 bytes, in gRPC's framing: not compressed, its length, itself.
fn grpc_message(stand: &Stand) -> Result<PathBuf> {
    let path = stand.file("grpc-message");
    fs::write(&path, [&[0, 0, 0, 0, 64][..], &[b'x'; 64]].concat()).with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

fn latencies(rps: f64, p50_us: f64, p99_us: f64) -> BTreeMap<Figure, f64> {
    BTreeMap::from([(Figure::Rps, rps), (Figure::P50, p50_us), (Figure::P99, p99_us)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_told_per_request_in_microseconds_and_per_gb_in_seconds() {
        let moved = |per_gb| Moved { connections: 1, messages: 1, figures: BTreeMap::new(), units: 4.0, per_gb };
        let cpu = [2, 8, 6].map(Duration::from_secs);
        assert_eq!(moved(false).with_cpu(cpu[0], cpu[1], cpu[2])[&Figure::Cpu], 500_000.0);
        let bulk = moved(true).with_cpu(cpu[0], cpu[1], cpu[2]);
        assert_eq!((bulk[&Figure::CpuPerGb], bulk[&Figure::MachineCpuPerGb]), (0.5, 2.0));
    }
}
