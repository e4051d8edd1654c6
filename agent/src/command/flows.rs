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
    task::{self, JoinHandle},
    time::{self, Instant, MissedTickBehavior},
};

use self::{
    seen::{Seen, heading},
    who::Who,
};
use super::{Failure, OS_ERROR, UNAVAILABLE, USAGE, Which};
use crate::kernel::{KernelError, Pinned, Untold, Wanted, Watcher};

/// Between two looks into the ring buffer, which wakes nobody: at the usual rate what 64 CPUs tell in this time has room in it.
const LOOK: Duration = Duration::from_millis(100);
/// The same for who wants to see more than that, and pays for it: 90 000 flows a second have room.
const CLOSE_LOOK: Duration = Duration::from_millis(25);
/// Between two renewals of the watch.
const RENEW: Duration = Duration::from_millis(500);
/// Flows a second and CPU: at 50 000 connections a second the rest is counted, and the watch costs some half a percent of a CPU.
const RATE: u32 = 200;

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
    let (instance, capture) = super::seen(&args.which)?;
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let tail = Tail { args, watcher, who, told: 0, untold: Untold::default(), printing: None };
    let result = runtime.block_on(tail.follow());
    // What nobody reads is not waited for.
    runtime.shutdown_background();
    result
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
    /// What is being printed. Whoever reads it may take his time: meanwhile the lease must be renewed, or nobody would count what is lost.
    printing: Option<JoinHandle<io::Result<()>>>,
}

impl Tail<'_> {
    async fn follow(mut self) -> Result<u8, Failure> {
        let failed = |error| Failure::new(OS_ERROR, format!("sockway: listening to signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let deadline = self.args.span.map(|span| Instant::now() + span);
        let each = if self.args.rate > RATE { CLOSE_LOOK } else { LOOK };
        let (mut look, mut renew) = (time::interval(each), time::interval(RENEW));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !self.args.json {
            self.print(format!("{}\n", heading()));
        }
        let mut is_over = false;
        while !is_over {
            tokio::select! {
                biased;
                _ = interrupt.recv() => is_over = true,
                _ = terminate.recv() => is_over = true,
                () = until(deadline) => is_over = true,
                _ = renew.tick() => self.renew()?,
                is_read = printed(&mut self.printing), if self.printing.is_some() => if !is_read { return Ok(0) },
                _ = look.tick(), if self.printing.is_none() => self.tell(),
            }
            is_over |= self.is_enough();
        }
        // Taken at once: the next watcher may begin now. Whoever has sent a signal once sends it again to have no more printed.
        self.watcher.end();
        let rest = self.gather();
        let is_read = tokio::select! {
            is_read = self.print_last(rest) => is_read,
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
        };
        if is_read {
            self.tell_untold();
            let Untold { over_rate, lost } = self.untold;
            eprintln!("sockway: {} connections shown, {over_rate} over the rate, {lost} lost", self.told);
        }
        Ok(0)
    }

    fn is_enough(&self) -> bool {
        self.args.count.is_some_and(|count| self.told >= count)
    }

    fn renew(&mut self) -> Result<(), KernelError> {
        self.tell_untold();
        self.watcher.renew()
    }

    /// Has printed what has come in.
    fn tell(&mut self) {
        let text = self.gather();
        if !text.is_empty() {
            self.print(text);
        }
    }

    /// What has come in.
    fn gather(&mut self) -> String {
        let mut text = String::new();
        while !self.is_enough()
            && let Some(flow) = self.watcher.take()
        {
            let seen = Seen::of(&flow, &mut self.who);
            text += &if self.args.json { seen.to_json().to_string() } else { seen.to_line() };
            text.push('\n');
            self.told += 1;
        }
        text
    }

    fn print(&mut self, text: String) {
        self.printing = Some(task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }));
    }

    /// Prints this, behind what is being printed. False: whoever read it has seen enough.
    async fn print_last(&mut self, text: String) -> bool {
        if !printed(&mut self.printing).await {
            return false;
        }
        self.print(text);
        printed(&mut self.printing).await
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

/// Waits until what is being printed is. False: whoever read it has seen enough.
async fn printed(printing: &mut Option<JoinHandle<io::Result<()>>>) -> bool {
    let result = match printing {
        Some(task) => task.await,
        None => return true,
    };
    *printing = None;
    matches!(result, Ok(Ok(())))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
