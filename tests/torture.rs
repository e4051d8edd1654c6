//! Torture for a short while on each field: connections used in every way a program can, every byte and every end checked. The long run
//! is `cargo xtask torture`.
//!
//! `SOCKWAY_TORTURE_SECONDS` says how long the first field takes (30), `SOCKWAY_TORTURE_SEED` repeats the plans of an earlier run.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use sockway_tests::{
    address::Block,
    agent,
    process::{Process, Room},
    stage::tell,
    torture::{self, Field, Order, Tally},
    wait,
};

/// How often the agent is killed: twice once it is ready, twice in mid-start.
const KILLS: u64 = 4;

fn seconds() -> u64 {
    env::var("SOCKWAY_TORTURE_SECONDS")
        .map_or(30, |seconds| seconds.parse().expect("SOCKWAY_TORTURE_SECONDS is a number"))
}

fn seed() -> u64 {
    let fresh = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_millis() as u64);
    env::var("SOCKWAY_TORTURE_SEED")
        .map_or_else(|_| fresh(), |seed| seed.parse().expect("SOCKWAY_TORTURE_SEED is a number"))
}

/// Tortures a field for a while, or until its agent was killed so often; `None` where root tests are switched off.
#[track_caller]
fn carry_out(field: &str, seconds_max: Option<u64>, kills: Option<u64>) -> Option<Tally> {
    let field = Field::named(field).expect("a field of this name");
    let (transfers, interrupted) = (torture::ENDLESS, || false);
    let order = Order { seed: seed(), first: 0, transfers, seconds_max, kills, interrupted };
    let tally = torture::run(field, &order)?;
    assert!(tally.is_clean(), "{tally}");
    tell(&tally.to_string());
    Some(tally)
}

/// Tortures a field for a while. Every field sees some hundred transfers at least, or the torture was none.
#[track_caller]
fn torture(field: &str, seconds: u64) -> Option<Tally> {
    let tally = carry_out(field, Some(seconds), None)?;
    assert!(tally.transfers >= 10 * seconds && tally.elapsed >= Duration::from_secs(seconds), "hardly any: {tally}");
    Some(tally)
}

#[test]
fn every_byte_and_every_end_arrives_however_programs_use_the_shortcut() {
    let Some(tally) = torture("shortcut", seconds()) else { return };
    assert!(tally.redirected_bytes as f64 > 2e5 * seconds() as f64 && tally.fallbacks > 0, "{tally}");
}

#[test]
fn every_byte_and_every_end_arrives_over_ipv6() {
    let Some(tally) = torture("ipv6", seconds().div_ceil(6)) else { return };
    assert!(tally.redirected_bytes > 100_000, "{tally}");
}

#[test]
fn every_byte_and_every_end_arrives_between_two_pods() {
    let Some(tally) = torture("pods", seconds().div_ceil(6)) else { return };
    assert!(tally.redirected_bytes > 100_000, "{tally}");
}

#[test]
fn every_byte_and_every_end_arrives_through_the_agent() {
    let Some(tally) = torture("relay", seconds().div_ceil(6)) else { return };
    assert_eq!(tally.redirected_messages, 0, "{tally}");
}

#[test]
fn every_byte_and_every_end_arrives_past_the_agent() {
    for field in ["joined", "joined-v6", "joined-ns"] {
        let Some(tally) = torture(field, seconds().div_ceil(6)) else { return };
        assert!(tally.joined_bytes > 100_000, "{tally}");
    }
}

#[test]
fn connections_balanced_in_the_kernel_lose_nothing_while_the_agent_is_killed_over_and_over() {
    // By kills, not by the clock: the verifier shares the processors with the load, and a start takes as long as it takes.
    let Some(tally) = carry_out("killed", None, Some(KILLS)) else { return };
    assert!(tally.agent_kills == KILLS && tally.transfers >= 50, "hardly any: {tally}");
}

#[test]
fn the_same_torture_without_the_shortcut_shows_what_is_not_its_doing() {
    let Some(tally) = torture("off", seconds().div_ceil(6)) else { return };
    assert_eq!(tally.redirected_messages, 0, "{tally}");
}

/// What a meddler does to the first piece of at least 16 bytes that goes up; whether it lets anything pass after that.
type Meddling = fn(&mut Vec<u8>) -> bool;

/// Passes one way on, all but once as it should.
fn pass(mut from: &TcpStream, mut to: &TcpStream, mut meddling: Option<Meddling>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut piece = buffer[..count].to_vec();
        let goes_on = count < 16 || meddling.take().is_none_or(|meddle| meddle(&mut piece));
        if to.write_all(&piece).is_err() || !goes_on {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// What client and server say of one transfer when somebody between them meddles with it.
fn told_of(meddling: Meddling) -> String {
    let addresses = Block::take();
    let (server, end) = (addresses.next(), addresses.next());
    let between = TcpListener::bind(addresses.next()).expect("a free address");
    let dialled = between.local_addr().expect("its address");
    thread::spawn(move || {
        let (client, _) = between.accept().expect("a client");
        let server = TcpStream::connect(server).expect("the server");
        thread::scope(|scope| {
            scope.spawn(|| pass(&client, &server, Some(meddling)));
            pass(&server, &client, None);
        });
    });
    let start = |words: &[&str], addresses: &[String]| {
        let mut command = Command::new(agent::probe());
        command.args(words).args(addresses);
        Process::spawn(Room::default(), command)
    };
    // Of seed 1, number 4: the client leads, 6327 bytes go up, both sides half-close when they are done.
    let mut serving = start(&["torture-server", "1", "4"], &[format!("client@{server}"), format!("client@{end}")]);
    wait::until("the server to listen", wait::SOON, || serving.stdout().contains("ready"));
    let client = ["torture-client", "1", "4", "1", "0", "1", &end.to_string()].map(str::to_owned);
    let mut client = start(&client.each_ref().map(String::as_str), &[format!("client@{dialled}")]);
    client.wait(wait::SOON);
    assert!(!serving.wait(wait::SOON).success(), "the server found nothing wrong: {}", serving.stdout());
    serving.stdout() + &serving.stderr()
}

#[test]
fn one_bit_that_is_not_what_was_sent_is_found_and_named_by_number() {
    let told = told_of(|piece| {
        piece[9] ^= 1;
        true
    });
    assert!(told.contains("           1  wrong bytes\n") && told.contains("transfer 4, Server"), "{told}");
}

#[test]
fn an_end_that_comes_too_early_is_found_and_named_by_number() {
    let told = told_of(|piece| {
        piece.pop();
        false
    });
    assert!(told.contains("           1  wrong bytes\n") && told.contains("transfer 4, Server"), "{told}");
    assert!(told.contains("the end came after"), "{told}");
}
