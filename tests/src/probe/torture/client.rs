//! The dialling side: `torture-client SEED FIRST COUNT SECONDS THREADS END LEADER@ADDRESS …` goes through the transfers of the numbers
//! from FIRST on, and begins none after SECONDS unless that is 0, nor after SIGTERM; then it tells the server, whose own address `END` is, that all is done.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigHandler, Signal, signal};

use super::{
    END,
    dial::dial,
    plan::{self, Dice, Plan, Side},
    stream::mix,
    talk,
    watch::{Fault, Life, Watch},
};
use crate::Outcome;

static ENOUGH: AtomicBool = AtomicBool::new(false);

extern "C" fn enough(_: libc::c_int) {
    ENOUGH.store(true, Ordering::Relaxed);
}

/// Goes through all transfers; fails if any of them did.
pub fn run(arguments: &[String]) -> Outcome {
    let [seed, first, count, seconds, threads, end, targets @ ..] = arguments else {
        return Err("torture-client SEED FIRST COUNT SECONDS THREADS END LEADER@ADDRESS…".into());
    };
    // SAFETY: the handler stores a flag, which is all that a handler may do.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(enough)) }?;
    let (first, count, seconds): (u64, u64, u64) = (first.parse()?, count.parse()?, seconds.parse()?);
    let client = Client {
        seed: seed.parse()?,
        numbers: first..first + count,
        next: AtomicU64::new(first),
        until: (seconds > 0).then(|| Instant::now() + Duration::from_secs(seconds)),
        targets: targets.iter().map(|target| Side::and_address(target)).collect::<Result<_, _>>()?,
        watch: Watch::start(Side::Client),
    };
    let threads: usize = threads.parse()?;
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| client.keep_dialling()))));
    talk::lead(&TcpStream::connect(end.parse::<SocketAddr>()?)?, END)?;
    print!("{}", client.watch.report());
    if client.watch.has_faults() { Err("some transfers failed".into()) } else { Ok(()) }
}

struct Client {
    seed: u64,
    numbers: Range<u64>,
    next: AtomicU64,
    until: Option<Instant>,
    targets: Vec<(Side, SocketAddr)>,
    watch: Arc<Watch>,
}

impl Client {
    fn keep_dialling(&self) {
        while self.until.is_none_or(|until| Instant::now() < until) && !ENOUGH.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if !self.numbers.contains(&number) {
                return;
            }
            let leader = plan::leader(self.seed, number);
            let mut dice = Dice::of(mix(self.seed ^ number));
            let targets = self.targets.iter().filter(|(its_leader, _)| *its_leader == leader);
            let targets: Vec<SocketAddr> = targets.map(|(_, address)| *address).collect();
            let address = targets[dice.below(targets.len() as u64) as usize];
            let life = self.watch.begin(Side::Client, address.to_string());
            match self.once(number, leader, address, dice.below(2) == 0, &life) {
                Ok(()) => self.watch.end(&life),
                Err(fault) => self.watch.fail(&life, &fault),
            }
        }
    }

    /// Where the server leads, it says which number this is: it leads as many as are dialled, and in its own order.
    fn once(
        &self,
        number: u64,
        leader: Side,
        address: SocketAddr,
        nonblocking: bool,
        life: &Life,
    ) -> Result<(), Fault> {
        life.phase("connect");
        self.watch.count(if nonblocking { "connect non-blocking" } else { "connect blocking" });
        let begun = begin(number, leader, address, nonblocking, life);
        let (socket, number) = begun.map_err(|error| {
            Fault::end(format_args!("connecting or exchanging the number ({number}) failed: {error}"))
        })?;
        let plan = Plan::of(self.seed, number);
        if plan.leader != leader {
            return Err(Fault::Bytes(format!("the number {number} came, which the server does not lead")));
        }
        life.plan(plan);
        self.watch.count(format_args!("{leader:?} leads"));
        talk::converse(socket, &plan, Side::Client, life, &self.watch)
    }
}

/// Connects and exchanges the number.
fn begin(
    number: u64,
    leader: Side,
    address: SocketAddr,
    nonblocking: bool,
    life: &Life,
) -> io::Result<(TcpStream, u64)> {
    let socket = dial(address, nonblocking)?;
    life.phase("number");
    let number = match leader {
        Side::Client => talk::lead(&socket, number).map(|()| number),
        Side::Server => talk::follow(&socket).map(|number| number.unwrap_or(END)),
    };
    Ok((socket, number?))
}
