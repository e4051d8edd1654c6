//! Torture: two programs use connections in every way a program can, on every path that Sockway has for them, and every byte and every
//! end is checked. Here is what happens around the two, `sockway-probe torture-client` and `torture-server`: the [`field`] they meet
//! on, the agent, and what comes of it, a [`Tally`].
//!
//! A seed gives a plan to each transfer by its number: who leads, how much goes each way, in which pieces, how it is written, read and
//! waited for, who is slow, who pauses, and how it ends. The same seed gives the same plans; in which order sixteen threads come to
//! them is the scheduler's.

pub mod field;
mod tally;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub use field::{FIELDS, Field};
use nix::sys::signal::Signal;
pub use tally::Tally;

use crate::{
    agent::{self, Agent},
    process::{Process, Room},
    stage::Stage,
    wait,
};

/// How many connections are open at once.
const THREADS: usize = 16;
/// How long the server may take to finish after the client: it waits a connection's whole life for what has not ended.
const SERVER_END_MAX: Duration = Duration::from_secs(120);

/// Transfers of a run that something else than their number ends.
pub const ENDLESS: u64 = 1 << 40;

/// What is to be done on a field.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// What every plan is drawn from.
    pub seed: u64,
    /// The number of the first transfer.
    pub first: u64,
    /// How many transfers.
    pub transfers: u64,
    /// No transfer begins later than this after the start.
    pub seconds_max: Option<u64>,
    /// Where the agent is killed: no transfer begins after it was so often.
    pub kills: Option<u64>,
    /// Whether somebody wants the whole thing to end.
    pub interrupted: fn() -> bool,
}

/// Goes through the transfers on one field; `None` where root tests are switched off.
pub fn run(field: &Field, order: &Order) -> Option<Tally> {
    let stage = Stage::set()?;
    let ground = (field.lay)(&stage);
    let mut agent = Agent::start_in(ground.agent(), &ground.config);
    let (seed, first) = (order.seed.to_string(), order.first.to_string());
    let mut server = start(ground.server(&stage), &["torture-server", &seed, &first], &ground.endpoints);
    wait::until("the torturing server to listen", wait::SOON, || {
        server.stdout().contains("ready") || server.ended().is_some()
    });
    let started = Instant::now();
    let endless = field.kills_the_agent && order.kills.is_some();
    let count = if endless { ENDLESS } else { order.transfers };
    let (count, seconds) = (count.to_string(), order.seconds_max.unwrap_or(0).to_string());
    let (threads, end) = (THREADS.to_string(), ground.end.to_string());
    let orders = ["torture-client", &seed, &first, &count, &seconds, &threads, &end];
    let mut client = start(ground.client(&stage), &orders, &ground.services);
    let mut tally = Tally::begin(field.name, order);
    // The programs' own watchdogs end them when a connection hangs.
    while client.ended().is_none() && !(order.interrupted)() {
        if field.kills_the_agent && order.kills.is_none_or(|kills| tally.agent_kills < kills) {
            kill(&mut agent, tally.agent_kills);
            tally.agent_kills += 1;
            if order.kills == Some(tally.agent_kills) && client.ended().is_none() {
                client.signal(Signal::SIGTERM);
            }
        } else {
            thread::sleep(Duration::from_millis(20));
        }
    }
    if field.kills_the_agent {
        agent.sigkill();
        agent.start_again();
    }
    if (order.interrupted)() {
        tally.trouble.push("interrupted".to_owned());
        return Some(tally);
    }
    tally.elapsed = started.elapsed();
    tally.read("client", &mut client, Duration::ZERO);
    // A client that could not say that it is done leaves a server that waits for it.
    tally.read("server", &mut server, if tally.ended_well() { SERVER_END_MAX } else { Duration::ZERO });
    tally.metrics(&agent.metrics());
    Some(tally)
}

/// Kills the agent and starts it again: every other time it is left alone until it is ready; else the next kill finds it at some moment
/// of its start, which takes a few hundred milliseconds, while it takes over what the one before left in the kernel.
fn kill(agent: &mut Agent, kills: u64) {
    agent.sigkill();
    if kills.is_multiple_of(2) {
        agent.start_again();
    } else {
        agent.begin_again();
        // No condition to wait for: any moment will do. Steps of a prime, so that all of the start is met.
        thread::sleep(Duration::from_millis(kills * 37 % 300));
    }
}

fn start(room: Room<'_>, orders: &[&str], addresses: &[String]) -> Process {
    let mut command = Command::new(agent::probe());
    command.args(orders).args(addresses);
    Process::spawn(room, command)
}
