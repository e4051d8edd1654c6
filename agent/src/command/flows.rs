//! `sockway flows`: a live tail of the connections of services, each told when it ends. Reads what the hooks tell, so that it works
//! while no agent lives.

mod seen;
mod who;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use sockway_common::{
    flow::{TCP, UDP},
    service::Service,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{self, Instant, MissedTickBehavior},
};

use self::{
    seen::{Seen, heading},
    who::Who,
};
use super::{Failure, OS_ERROR, UNAVAILABLE, USAGE, Which};
use crate::kernel::{KernelError, Pinned, Untold, Wanted, Watcher};

/// Between two looks into the ring buffer, which wakes nobody: what comes in at the highest rate in this time has room in it.
const LOOK: Duration = Duration::from_millis(50);
/// Between two renewals of the watch.
const RENEW: Duration = Duration::from_millis(500);
/// Flows a second and CPU: at 50 000 connections a second the rest is counted, and the watch costs less than half a percent of a CPU.
const RATE: u32 = 500;

/// What to watch, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Only connections to this service
    #[arg(long, value_name = "NAME|IP:PORT")]
    service: Option<String>,
    /// Only connections of this process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Only connections that were sent to this endpoint
    #[arg(long, value_name = "IP:PORT")]
    endpoint: Option<SocketAddr>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    span: Option<Duration>,
    /// End after so many connections
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Show at most so many connections a second on each CPU; the others are counted
    #[arg(long, value_name = "N", default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Print each connection as a line of JSON
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let bad = |_| "write a number of seconds, 0.5 for example".to_owned();
    Duration::try_from_secs_f64(text.parse().map_err(|_| bad(()))?).map_err(|_| bad(()))
}

/// Watches until it is told to end, or has seen enough.
///
/// # Errors
///
/// When nothing is attached, this user may not look, or somebody else watches.
pub fn run(args: &Args) -> Result<u8, Failure> {
    let (instance, capture) = args.which.find()?;
    let pinned = Pinned::find(&capture, &instance)?;
    let wanted = Wanted {
        service: args.service.as_deref().map(|service| service_id(&pinned, service)).transpose()?,
        pid: args.pid,
        endpoint: args.endpoint,
        rate: args.rate,
    };
    let watcher = Watcher::begin(&pinned, &wanted)?;
    let who = Who::new(pinned, &capture);
    eprintln!("sockway: watching instance {instance}; ^C ends it");
    let failed = |error| Failure::new(OS_ERROR, format!("sockway: watching: {error}"));
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?
        .block_on(Tail { args, watcher, who, told: 0, untold: Untold::default() }.follow())
}

/// The id of a service by its name, or by what programs dial.
fn service_id(pinned: &Pinned, text: &str) -> Result<u32, Failure> {
    if let Ok(address) = text.parse() {
        let found = [TCP, UDP].into_iter().map(|protocol| pinned.service_at(address, protocol));
        let found = found.collect::<Result<Vec<Option<Service>>, KernelError>>()?;
        return found
            .into_iter()
            .flatten()
            .map(|service| service.id)
            .next()
            .ok_or_else(|| Failure::new(UNAVAILABLE, format!("sockway: no service stands at {address}")));
    }
    let names = pinned.names()?;
    if let Some((id, _)) = names.iter().find(|(_, name)| *name == text) {
        return Ok(*id);
    }
    let mut known: Vec<&str> = names.values().map(String::as_str).collect();
    known.sort_unstable();
    known.truncate(20);
    Err(Failure::new(USAGE, format!("sockway: no service is called {text}; there are: {}", known.join(", "))))
}

struct Tail<'a> {
    args: &'a Args,
    watcher: Watcher,
    who: Who,
    told: u64,
    untold: Untold,
}

impl Tail<'_> {
    async fn follow(mut self) -> Result<u8, Failure> {
        let failed = |error| Failure::new(OS_ERROR, format!("sockway: listening to signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let deadline = self.args.span.map(|span| Instant::now() + span);
        let (mut look, mut renew) = (time::interval(LOOK), time::interval(RENEW));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !self.args.json && writeln!(io::stdout(), "{}", heading()).is_err() {
            return Ok(0);
        }
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = until(deadline) => break,
                _ = renew.tick() => self.renew()?,
                _ = look.tick() => if !self.tell() { return Ok(0) },
            }
            if self.is_enough() {
                break;
            }
        }
        self.tell();
        self.tell_untold();
        let Untold { over_rate, lost } = self.untold;
        eprintln!("sockway: {} connections shown, {over_rate} over the rate, {lost} lost", self.told);
        Ok(0)
    }

    fn is_enough(&self) -> bool {
        self.args.count.is_some_and(|count| self.told >= count)
    }

    fn renew(&mut self) -> Result<(), KernelError> {
        self.tell_untold();
        self.watcher.renew()
    }

    /// Prints what has come in. False: whoever read it has seen enough.
    fn tell(&mut self) -> bool {
        let mut text = String::new();
        while !self.is_enough()
            && let Some(flow) = self.watcher.take()
        {
            let seen = Seen::of(&flow, &mut self.who);
            text += &if self.args.json { seen.to_json().to_string() } else { seen.to_line() };
            text.push('\n');
            self.told += 1;
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    }

    /// Says on standard error what is not shown, when there is more of it.
    fn tell_untold(&mut self) {
        let now = self.watcher.untold();
        let (over, lost) = (now.over_rate - self.untold.over_rate, now.lost - self.untold.lost);
        if over > 0 {
            eprintln!("sockway: {over} connections are not shown, over the rate (--rate)");
        }
        if lost > 0 {
            eprintln!("sockway: {lost} connections are lost: what is printed is not read fast enough");
        }
        self.untold = now;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
