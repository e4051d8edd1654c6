//! One flow as it is shown: numbers of the hooks become words.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use sockway_common::{
    counter,
    flow::{ENDPOINT_AGENT, TCP},
    udp::conversation_state,
    watch::{ERROR_UNKNOWN, Flow, cause, flow_flags},
};

use super::who::{self, Who};
use crate::{command::brief, kernel};

/// Columns of a line, but for the last, which is as long as it is.
const WIDTHS: [usize; 11] = [12, 7, 15, 20, 21, 8, 10, 10, 7, 7, 7];

/// Above the lines of text.
pub fn heading() -> String {
    let names = ["TIME (UTC)", "PID", "COMMAND", "SERVICE", "ENDPOINT", "PATH", "SENT", "RECEIVED", "LASTED"];
    let names = [&names[..], &["CONNECT", "RTT"]].concat().into_iter().map(str::to_owned);
    columns(names) + "ENDED [CGROUP in NAMESPACE]"
}

fn columns(cells: impl IntoIterator<Item = String>) -> String {
    cells.into_iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}  ")).collect()
}

/// States of TCP that a socket can be closed from (`include/net/tcp_states.h`).
mod state {
    pub const SYN_SENT: u32 = 2;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const LAST_ACK: u32 = 9;
    pub const CLOSING: u32 = 11;
}

/// One flow, in words.
#[derive(Clone, Debug)]
pub struct Seen {
    ended: SystemTime,
    pid: u32,
    command: Option<String>,
    cgroup: Option<String>,
    netns: Option<String>,
    netns_cookie: u64,
    local: Option<SocketAddr>,
    service: Option<String>,
    dialled: SocketAddr,
    protocol: &'static str,
    endpoint: Option<SocketAddr>,
    path: &'static str,
    verdict: &'static str,
    /// Nobody counts the bytes of datagrams.
    bytes: Option<(u64, u64)>,
    sent_datagrams: Option<u32>,
    shortcut_sent_bytes: u64,
    /// Nobody notes when a conversation of datagrams began.
    lasted: Option<Duration>,
    connect: Option<Duration>,
    rtt: Option<Duration>,
    retransmits: u32,
    how: String,
}

impl Seen {
    /// Puts a flow into words; `who` knows the names.
    pub fn of(flow: &Flow, who: &mut Who) -> Self {
        let conn = &flow.conn;
        let (command, cgroup) = match conn.command[0] {
            0 => who::program(conn.pid),
            _ => (Some(printable(&conn.command)), who.cgroup(conn.cgroup)),
        };
        let micros = |us: u32| (us != 0).then(|| Duration::from_micros(us.into()));
        Self {
            ended: wall_clock(flow.ended_ns),
            pid: conn.pid,
            command,
            cgroup,
            netns: who.namespace(conn.netns),
            netns_cookie: conn.netns,
            local: (flow.local.port != 0).then(|| kernel::socket_addr(&flow.local)),
            service: who.service(conn.service),
            dialled: kernel::socket_addr(&conn.original),
            protocol: if conn.original.protocol == TCP { "tcp" } else { "udp" },
            endpoint: (conn.endpoint != ENDPOINT_AGENT).then(|| kernel::socket_addr(&conn.actual)),
            path: path(flow),
            verdict: verdict(conn.verdict),
            bytes: (conn.original.protocol == TCP).then(|| payload(flow)),
            sent_datagrams: (flow.cause == cause::CONVERSED).then_some(flow.datagrams),
            shortcut_sent_bytes: flow.shortcut_sent_bytes,
            lasted: (flow.cause != cause::CONVERSED)
                .then(|| Duration::from_nanos(flow.ended_ns.saturating_sub(conn.dialled_ns))),
            connect: micros(conn.connect_us),
            rtt: micros(flow.rtt_us),
            retransmits: flow.retransmits,
            how: how(flow),
        }
    }

    /// As a line below [`heading`].
    pub fn to_line(&self) -> String {
        let unknown = || "?".to_owned();
        let brief = |duration: Option<Duration>| duration.map_or("-".to_owned(), brief);
        let endpoint = match (self.path, self.endpoint) {
            (_, Some(endpoint)) => endpoint.to_string(),
            ("passed" | "refused", None) => "-".to_owned(),
            (_, None) => "agent".to_owned(),
        };
        let mut how = self.how.clone();
        if let Some(why) = self.verdict.strip_prefix("fail_open_") {
            how += &format!("; not by the agent: {}", why.replace('_', " "));
        }
        if self.retransmits > 0 {
            how += &format!("; {} retransmits", self.retransmits);
        }
        // What came from socket to socket only its sender has counted.
        let more = if matches!(self.path, "shortcut" | "joined") { "+" } else { "" };
        let sent = match (self.bytes, self.sent_datagrams) {
            (Some((sent, _)), _) => (sent + self.shortcut_sent_bytes).to_string(),
            (None, Some(datagrams)) => format!("{datagrams} dgrams"),
            (None, None) => "-".to_owned(),
        };
        let received = self.bytes.map_or("-".to_owned(), |(_, received)| format!("{received}{more}"));
        let cells = [
            clock(self.ended),
            self.pid.to_string(),
            self.command.clone().unwrap_or_else(unknown),
            self.service.clone().unwrap_or_else(|| self.dialled.to_string()),
            endpoint,
            self.path.to_owned(),
            sent,
            received,
            brief(self.lasted),
            brief(self.connect),
            brief(self.rtt),
        ];
        let cgroup = self.cgroup.clone().unwrap_or_else(unknown);
        let netns = self.netns.clone().unwrap_or_else(|| format!("netns {}", self.netns_cookie));
        format!("{}{how} [{cgroup} in {netns}]", columns(cells))
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        json!({
            "ended_unix_us": micros(self.ended.duration_since(UNIX_EPOCH).unwrap_or_default()),
            "pid": self.pid,
            "command": self.command,
            "cgroup": self.cgroup,
            "netns": self.netns,
            "netns_cookie": self.netns_cookie,
            "local": self.local,
            "service": self.service,
            "dialled": self.dialled,
            "protocol": self.protocol,
            "endpoint": self.endpoint,
            "path": self.path,
            "verdict": self.verdict,
            "sent_bytes": self.bytes.map(|(sent, _)| sent),
            "received_bytes": self.bytes.map(|(_, received)| received),
            "sent_datagrams": self.sent_datagrams,
            "shortcut_sent_bytes": self.shortcut_sent_bytes,
            "lasted_us": self.lasted.map(micros),
            "connect_us": self.connect.map(micros),
            "rtt_us": self.rtt.map(micros),
            "retransmits": self.retransmits,
            "ended": self.how,
        })
    }
}

/// How its bytes went.
fn path(flow: &Flow) -> &'static str {
    if flow.flags & flow_flags::JOINED != 0 {
        "joined"
    } else if flow.flags & flow_flags::SHORTCUT != 0 {
        "shortcut"
    } else if flow.cause == cause::NOT_DIALLED {
        match verdict(flow.conn.verdict) {
            "over_limit_refused" | "over_limit_forbidden" => "refused",
            _ => "passed",
        }
    } else if flow.conn.endpoint == ENDPOINT_AGENT {
        "agent"
    } else {
        "kernel"
    }
}

/// What the connect hook decided: the label of the counter that it counted.
fn verdict(index: u32) -> &'static str {
    let labels = counter::ALL.get(index as usize).map_or(&[][..], |counter| counter.labels());
    labels.first().map_or("unknown", |(_, value)| value)
}

/// How it ended, from the state that TCP was in and the error of its socket.
fn how(flow: &Flow) -> String {
    match flow.cause {
        cause::NOT_DIALLED => return verdict(flow.conn.verdict).replace('_', " "),
        cause::CONVERSED if flow.state == conversation_state::FORMER => return "moved to another endpoint".to_owned(),
        cause::REPLACED => return "dialled anew by the program".to_owned(),
        cause::RELEASED | cause::CONVERSED => return "closed by the program".to_owned(),
        _ => {}
    }
    let text = match (flow.error.cast_signed(), flow.state) {
        (libc::ECONNREFUSED, _) => "refused",
        (libc::ETIMEDOUT, _) => "timed out",
        (libc::EHOSTUNREACH | libc::ENETUNREACH, _) => "unreachable",
        (libc::ECONNRESET | libc::EPIPE, _) => "reset by the peer",
        (libc::ECONNABORTED, _) => "ended from outside",
        (0, state::SYN_SENT) => "given up by the program",
        (_, state::SYN_SENT) => "not established",
        (_, state::FIN_WAIT1 | state::FIN_WAIT2 | state::TIME_WAIT | state::CLOSING) => "closed by the program",
        (_, state::LAST_ACK) => "closed by the peer",
        // From ESTABLISHED or CLOSE_WAIT at once: unread bytes were thrown away, or nobody was to linger.
        _ => "reset by the program",
    };
    text.to_owned()
}

/// Bytes of payload, sent and received. TCP counts a SYN and a FIN as a byte each.
fn payload(flow: &Flow) -> (u64, u64) {
    let syn = u64::from(flow.conn.connect_us != 0);
    let fin_acked = matches!(flow.state, state::FIN_WAIT2 | state::TIME_WAIT | state::CLOSING | state::LAST_ACK)
        && matches!(flow.error, 0 | ERROR_UNKNOWN);
    let fin_received = u64::from(flow.flags & flow_flags::FIN_RECEIVED != 0);
    (flow.sent_bytes.saturating_sub(syn + u64::from(fin_acked)), flow.received_bytes.saturating_sub(fin_received))
}

/// A command may hold anything that its program put there.
fn printable(command: &[u8]) -> String {
    let end = command.iter().position(|byte| *byte == 0).unwrap_or(command.len());
    String::from_utf8_lossy(&command[..end]).replace(|c: char| c.is_control(), "?")
}

/// The time of day of a moment of `CLOCK_MONOTONIC`.
fn wall_clock(monotonic_ns: u64) -> SystemTime {
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    SystemTime::now() - Duration::from_nanos(now_ns.saturating_sub(monotonic_ns))
}

fn clock(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs() % 86_400, since.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use sockway_common::flow::{Address, Conn};

    use super::*;

    const NOWHERE: Address = Address { ip: [0; 4], port: 0, protocol: TCP, zero: 0 };

    fn closed(state: u32, error: i32) -> Flow {
        let conn = Conn { connect_us: 1, ..Conn::EMPTY };
        Flow {
            conn,
            ended_ns: 0,
            received_bytes: 0,
            sent_bytes: 0,
            shortcut_sent_bytes: 0,
            local: NOWHERE,
            cause: cause::CLOSED,
            state,
            error: error.cast_unsigned(),
            rtt_us: 0,
            retransmits: 0,
            flags: 0,
            datagrams: 0,
        }
    }

    #[test]
    fn the_state_and_the_error_tell_how_a_connection_ended() {
        const UNKNOWN: i32 = -1;
        for (state, error, text) in [
            (state::SYN_SENT, libc::ECONNREFUSED, "refused"),
            (state::SYN_SENT, libc::ETIMEDOUT, "timed out"),
            (state::SYN_SENT, libc::EHOSTUNREACH, "unreachable"),
            (state::SYN_SENT, 0, "given up by the program"),
            (state::SYN_SENT, UNKNOWN, "not established"),
            (1, libc::ECONNRESET, "reset by the peer"),
            (8, libc::EPIPE, "reset by the peer"),
            (1, libc::ETIMEDOUT, "timed out"),
            (1, 0, "reset by the program"),
            (8, 0, "reset by the program"),
            (state::FIN_WAIT1, libc::ECONNRESET, "reset by the peer"),
            (state::FIN_WAIT2, 0, "closed by the program"),
            (state::CLOSING, UNKNOWN, "closed by the program"),
            (state::LAST_ACK, 0, "closed by the peer"),
        ] {
            assert_eq!(how(&closed(state, error)), text, "from {state} with {error}");
        }
    }

    #[test]
    fn a_syn_and_a_fin_are_no_payload() {
        for (state, error, flags, sent, received) in [
            (state::FIN_WAIT2, 0, flow_flags::FIN_RECEIVED, 98, 99),
            (state::FIN_WAIT2, 0, 0, 98, 100),
            (state::FIN_WAIT1, libc::ECONNRESET, 0, 99, 100),
            (state::LAST_ACK, 0, flow_flags::FIN_RECEIVED, 98, 99),
        ] {
            let flow = Flow { sent_bytes: 100, received_bytes: 100, flags, ..closed(state, error) };
            assert_eq!(payload(&flow), (sent, received), "from {state}");
        }
        assert_eq!(payload(&closed(1, 0)), (0, 0));
    }

    #[test]
    fn what_a_program_calls_itself_cannot_steer_a_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\0\0"), "a?[2Jb");
    }
}
