//! The dialling side: `torture-client SEED SECONDS THREADS END LEADER@ADDRESS …` dials the addresses until the time is over, then tells
//! the server, whose own address `END` is, that all is done.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    END,
    dial::dial,
    plan::{Dice, Plan, Side},
    stream::mix,
    talk,
    watch::{Life, Watch},
};
use crate::Outcome;

/// Tortures for as long as it is told; fails if any connection did.
pub fn run(arguments: &[String]) -> Outcome {
    let [seed, seconds, threads, end, targets @ ..] = arguments else {
        return Err("torture-client SEED SECONDS THREADS END LEADER@ADDRESS…".into());
    };
    let client = Client {
        seed: seed.parse()?,
        until: Instant::now() + Duration::from_secs(seconds.parse()?),
        targets: targets.iter().map(|target| Side::and_address(target)).collect::<Result<_, _>>()?,
        serial: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        watch: Watch::start(Side::Client),
    };
    let threads: usize = threads.parse()?;
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| client.keep_dialling()))));
    talk::lead(&TcpStream::connect(end.parse::<SocketAddr>()?)?, END)?;
    print!("{}", client.watch.report());
    println!("{:>9}  connections", client.serial.load(Ordering::Relaxed));
    println!("{:>9}  megabytes read and checked", client.bytes.load(Ordering::Relaxed) / 1_000_000);
    if client.watch.counted("failed") > 0 { Err("some connections failed".into()) } else { Ok(()) }
}

struct Client {
    seed: u64,
    until: Instant,
    targets: Vec<(Side, SocketAddr)>,
    serial: AtomicU64,
    bytes: AtomicU64,
    watch: Arc<Watch>,
}

impl Client {
    fn keep_dialling(&self) {
        while Instant::now() < self.until {
            let seed = mix(self.seed.wrapping_add(mix(self.serial.fetch_add(1, Ordering::Relaxed))));
            let mut dice = Dice::of(mix(seed));
            let (leader, address) = self.targets[dice.below(self.targets.len() as u64) as usize];
            let life = self.watch.begin(Side::Client, address.to_string());
            match self.once(seed, leader, address, dice.below(2) == 0, &life) {
                Ok(()) => self.watch.end(&life),
                Err(what) => self.watch.fail(&life, &what),
            }
            self.bytes.fetch_add(life.received.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn once(&self, seed: u64, leader: Side, address: SocketAddr, nonblocking: bool, life: &Life) -> Result<(), String> {
        life.phase("connect");
        self.watch.count(if nonblocking { "connect non-blocking" } else { "connect blocking" });
        let begun = begin(seed, leader, address, nonblocking, life);
        let (socket, seed) = begun.map_err(|error| format!("connecting or reading the seed failed: {error}"))?;
        let plan = Plan::of(seed, leader);
        life.plan(plan);
        self.watch.count(format_args!("{leader:?} leads"));
        talk::converse(socket, &plan, Side::Client, life, &self.watch)
    }
}

/// Connects and exchanges the seed.
fn begin(seed: u64, leader: Side, address: SocketAddr, nonblocking: bool, life: &Life) -> io::Result<(TcpStream, u64)> {
    let socket = dial(address, nonblocking)?;
    life.phase("seed");
    let seed = match leader {
        Side::Client => talk::lead(&socket, seed).map(|()| seed),
        Side::Server => talk::follow(&socket).map(|seed| seed.unwrap_or(END)),
    };
    Ok((socket, seed?))
}
