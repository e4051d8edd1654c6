//! `sockway explain`: which way a request would take by its routes ([`request`]), or which way a connection would take now, and why: what
//! the hooks would find, and what they would make of it. Of a connection it reads the running kernel's tables, so that it tells the truth of
//! the kernel, also while no agent lives.

mod request;
mod verdict;

use std::{fmt::Write as _, io, net::SocketAddr};

use clap::ValueEnum;
use serde_json::{Value, json};
use sockway_common::{
    flow::{TCP, UDP},
    service::service_flags,
};

use self::verdict::{Verdict, Way};
use super::{Failure, NO_PERMISSION, OS_ERROR, UNAVAILABLE, USAGE, Which, brief, say, table};
use crate::kernel::{self, Caller, Found, Pinned, Situation, Taken, cgroup};

/// What would be dialled, and by whom.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["request", "connect"]))]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// A request, as 'GET http://SERVICE/PATH' with a service's name or address: which of its routes it would take; otherwise a connection
    #[arg(value_name = "REQUEST")]
    request: Option<String>,
    /// A field of the request, as 'NAME: VALUE'; may be said again. Host stands for the name in the request
    #[arg(long = "header", value_name = "FIELD", requires = "request")]
    headers: Vec<String>,
    /// The address that a program would dial
    #[arg(long, value_name = "IP:PORT")]
    connect: Option<SocketAddr>,
    /// By which protocol
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// Who would dial, or asks: a process by its number, or anybody in a network namespace by its name (`ip netns`; `host`) or path; this shell
    /// unless said
    #[arg(long, value_name = "PID|NAMESPACE")]
    from: Option<String>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

/// Says what would become of a connection.
///
/// # Errors
///
/// When nothing is attached, this user may not look, or there is no such process or namespace.
pub fn run(args: &Args) -> Result<u8, Failure> {
    let connect = match (&args.request, args.connect) {
        (Some(request), _) => return request::run(args, request),
        (None, connect) => {
            connect.ok_or_else(|| Failure::new(USAGE, "sockway: write a request or --connect IP:PORT"))?
        }
    };
    let (instance, capture) = super::seen(&args.which)?;
    let pinned = Pinned::find(&capture, &instance)?;
    let mount = capture.cgroup_mount.or_else(cgroup::mount).unwrap_or_default();
    let caller = caller(args.from.as_deref(), &mount)?;
    let protocol = match args.protocol {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    };
    let situation = kernel::look(&pinned, &caller, connect, protocol)?;
    let answer = Answer { args, connect, caller: &caller, situation: &situation };
    if args.json {
        say(format_args!("{:#}\n", answer.to_json()));
    } else {
        say(answer.to_text());
    }
    Ok(0)
}

fn caller(from: Option<&str>, mount: &std::path::Path) -> Result<Caller, Failure> {
    let own = std::process::id().to_string();
    let from = from.unwrap_or(&own);
    let is_pid = from.bytes().all(|byte| byte.is_ascii_digit());
    let found = match from.parse() {
        Ok(pid) if is_pid => Caller::process(pid, mount),
        _ => Caller::namespace(from),
    };
    found.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if is_pid => Failure::new(UNAVAILABLE, format!("sockway: there is no process {from}")),
        io::ErrorKind::NotFound => Failure::new(
            UNAVAILABLE,
            format!(
                "sockway: there is no network namespace {from}; name one of `ip netns`, `host`, or the path of its file"
            ),
        ),
        io::ErrorKind::PermissionDenied => {
            Failure::new(NO_PERMISSION, format!("sockway: looking at {from}: {error}; run as root"))
        }
        _ => Failure::new(OS_ERROR, format!("sockway: looking at {from}: {error}")),
    })
}

struct Answer<'a> {
    args: &'a Args,
    connect: SocketAddr,
    caller: &'a Caller,
    situation: &'a Situation,
}

impl Answer<'_> {
    fn protocol(&self) -> &'static str {
        match self.args.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }

    fn namespace(&self) -> String {
        let names = kernel::named_cookies();
        names.get(&self.caller.netns).cloned().unwrap_or_else(|| format!("cookie {}", self.caller.netns))
    }

    fn to_json(&self) -> Value {
        let Situation { service, hooks, .. } = self.situation;
        let (now, without) = (verdict::now(self.situation), verdict::without_agent(self.situation));
        let (shortcut, shortcut_why) = verdict::shortcut(self.situation);
        let tell =
            |verdict: &Verdict| json!({ "path": verdict.way.word(), "verdict": verdict.counted, "why": verdict.why });
        let process = self.caller.process.as_ref().map(|process| {
            json!({
                "pid": process.pid,
                "command": process.command,
                "uid": process.uid,
                "cgroup": process.cgroups.first().map(|(path, _)| path),
            })
        });
        let hooks = hooks
            .iter()
            .flatten()
            .map(|covered| json!({ "cgroup": covered.cgroup, "connect": covered.dial, "sockops": covered.sockets }));
        json!({
            "connect": self.connect,
            "protocol": self.protocol(),
            "from": { "process": process, "netns": self.namespace(), "netns_cookie": self.caller.netns },
            "hooks": hooks.collect::<Vec<Value>>(),
            "captured_by": verdict::capturing(self.situation),
            "service": service.as_ref().map(service_json),
            "heartbeat_age_ms": self.situation.heartbeat_age.map(|age| age.as_millis() as u64),
            "now": tell(&now),
            "without_agent": tell(&without),
            "shortcut": { "allowed": shortcut, "why": shortcut_why },
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n\n", self.heading());
        let now = verdict::now(self.situation);
        let counted = now.counted.map(|label| format!(" (counted as {label})")).unwrap_or_default();
        let mut line = |name: &str, what: &str| {
            let _ = writeln!(text, "{name:<13}{what}");
        };
        line("path", &format!("{}: {}{counted}", now.way.word(), now.why));
        line("captured", &self.captured());
        if let Some(found) = &self.situation.service {
            line("service", &service_text(found));
            line("agent", &self.agent(found));
            line("limits", &limits_text(found));
            if let Some((endpoint, left)) = found.affinity {
                line("stays with", &format!("{endpoint}, for {} yet if it does not dial meanwhile", brief(left)));
            }
            let (allowed, why) = verdict::shortcut(self.situation);
            line("shortcut", &format!("{}: {why}", if allowed { "yes" } else { "no" }));
            let without = verdict::without_agent(self.situation);
            let change = if without.way == now.way { "the same" } else { without.way.word() };
            line("if it dies", &format!("{change}: {}", without.why));
            text.push('\n');
            text += &endpoints_text(found, now.way);
        }
        text
    }

    fn heading(&self) -> String {
        let who = self.caller.process.as_ref().map_or("anybody".to_owned(), |process| {
            let cgroup = process.cgroups.first().map_or("?".into(), |(path, _)| path.display().to_string());
            format!("process {} ({}, user {}) in cgroup {cgroup}", process.pid, process.command, process.uid)
        });
        format!("{} {} from {who}, network namespace {}", self.protocol(), self.connect, self.namespace())
    }

    fn captured(&self) -> String {
        match (verdict::capturing(self.situation), &self.situation.hooks) {
            (Some(cgroup), _) => format!("by the rule of cgroup {cgroup}"),
            (None, Some(_)) => "no".to_owned(),
            (None, None) => "taken for granted: no process was named".to_owned(),
        }
    }

    fn agent(&self, found: &Found) -> String {
        let heartbeat = match self.situation.heartbeat_age {
            Some(age) => format!("last heartbeat {} ago", brief(age)),
            None => "no heartbeat ever".to_owned(),
        };
        let listener = match found.listener {
            Some(listener) if listener.is_tagged => format!("; listens at {} there", listener.address),
            Some(listener) => format!("; nothing of it listens at {} there", listener.address),
            None => String::new(),
        };
        heartbeat + &listener
    }
}

fn service_text(found: &Found) -> String {
    let name = found.name.as_deref().unwrap_or("without a name");
    let mode = if found.service.flags & service_flags::AGENT != 0 { "agent" } else { "kernel" };
    let chosen = kernel::algorithm_word(&found.service);
    format!("{name} (id {}), mode {mode}, endpoints chosen {chosen}", found.service.id)
}

fn service_json(found: &Found) -> Value {
    let endpoints = found.endpoints.iter().map(|choice| {
        json!({
            "address": choice.address,
            "share": choice.share,
            "state": choice.state,
            "ejected_for_ms": choice.ejected_for.map(|left| left.as_millis() as u64),
            "open": choice.open,
        })
    });
    let limits = found.limits.taken.iter().map(|taken| {
        json!({
            "of": taken.scope,
            "open": taken.open,
            "open_max": (taken.open_max != 0).then_some(taken.open_max),
            "per_second": per_second(taken),
            "is_over": taken.is_over,
        })
    });
    json!({
        "name": found.name,
        "id": found.service.id,
        "mode": if found.service.flags & service_flags::AGENT != 0 { "agent" } else { "kernel" },
        "listener": found.listener.map(|listener| json!({ "address": listener.address, "tagged": listener.is_tagged })),
        "chosen": kernel::algorithm_word(&found.service),
        "stays_with": found.affinity.map(|(endpoint, _)| endpoint),
        "limits": limits.collect::<Vec<Value>>(),
        "endpoints": endpoints.collect::<Vec<Value>>(),
    })
}

/// The sustained rate of a limit, if it has one.
fn per_second(taken: &Taken) -> Option<f64> {
    (!taken.interval.is_zero()).then(|| 1.0 / taken.interval.as_secs_f64())
}

fn limits_text(found: &Found) -> String {
    let one = |taken: &Taken| {
        let most = if taken.open_max == 0 { "any number".to_owned() } else { taken.open_max.to_string() };
        let rate = per_second(taken).map(|rate| format!(", {rate:.1} a second")).unwrap_or_default();
        let over = if taken.is_over { ": OVER" } else { "" };
        format!("{}: {} of {most} open{rate}{over}", taken.scope, taken.open)
    };
    let limits: Vec<String> = found.limits.taken.iter().map(one).collect();
    if limits.is_empty() { "none".to_owned() } else { limits.join("; ") }
}

fn endpoints_text(found: &Found, way: Way) -> String {
    let heading = if way == Way::Agent { "ENDPOINT (without the agent)" } else { "ENDPOINT" };
    let mut rows = vec![[heading, "STATE", "SHARE", "OPEN"].map(str::to_owned).to_vec()];
    let row = |choice: &kernel::Choice| {
        let ejected = choice.ejected_for.map(|left| format!(", ejected for {} yet", brief(left))).unwrap_or_default();
        vec![
            choice.address.to_string(),
            format!("{}{ejected}", choice.state),
            format!("{:.1} %", choice.share * 100.0),
            choice.open.map_or("-".to_owned(), |open| open.to_string()),
        ]
    };
    rows.extend(found.endpoints.iter().map(row));
    table(&rows)
}
