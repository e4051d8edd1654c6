//! The accepting side: `torture-server SEED FIRST LEADER@ADDRESS …` listens on all addresses; `client` or `server` leads there.
//! Where it leads it gives the numbers, from FIRST on those that are its own, in the order in which connections come.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    LIFE_MAX,
    plan::{self, Dice, Plan, Side},
    stream::mix,
    talk,
    watch::Watch,
};
use crate::Outcome;

/// Runs until the client says that all is done, then prints what was counted; fails if anything did.
pub fn run(arguments: &[String]) -> Outcome {
    let [seed, first, addresses @ ..] = arguments else {
        return Err("torture-server SEED FIRST LEADER@ADDRESS…".into());
    };
    let watch = Watch::start(Side::Server);
    let server = Arc::new(Server { seed: seed.parse()?, next: Mutex::new(first.parse()?), watch });
    let (done, wait_done) = mpsc::channel();
    for address in addresses {
        let (leader, address) = Side::and_address(address)?;
        let listener = TcpListener::bind(address)?;
        let (server, done) = (Arc::clone(&server), done.clone());
        thread::spawn(move || server.accept(&listener, leader, &done));
    }
    println!("ready");
    wait_done.recv()?;
    server.settle();
    print!("{}", server.watch.report());
    if server.watch.has_faults() { Err("some transfers failed".into()) } else { Ok(()) }
}

struct Server {
    seed: u64,
    /// Where to look for the next number.
    next: Mutex<u64>,
    watch: Arc<Watch>,
}

impl Server {
    fn accept(self: Arc<Self>, listener: &TcpListener, leader: Side, done: &Sender<()>) {
        let mut dice = Dice::of(mix(self.seed));
        while let Ok((socket, peer)) = listener.accept() {
            if dice.below(20) == 0 {
                // Being late to accept is what is tested: what the clients write meanwhile waits for us.
                thread::sleep(Duration::from_millis(dice.below(15)));
            }
            let (server, done) = (Arc::clone(&self), done.clone());
            thread::spawn(move || server.serve(socket, peer, leader, &done));
        }
    }

    fn serve(&self, socket: TcpStream, peer: SocketAddr, leader: Side, done: &Sender<()>) {
        let life = self.watch.begin(Side::Server, peer.to_string());
        life.phase("number");
        let number = match leader {
            Side::Client => talk::follow(&socket),
            Side::Server => {
                let number = self.take_number();
                talk::lead(&socket, number).map(|()| Some(number))
            }
        };
        match number {
            Ok(Some(number)) => {
                let plan = Plan::of(self.seed, number);
                life.plan(plan);
                match talk::converse(socket, &plan, Side::Server, &life, &self.watch) {
                    Ok(()) => self.watch.end(&life),
                    Err(what) => self.watch.fail(&life, &what),
                }
            }
            Ok(None) => {
                self.watch.forget(&life);
                let _ = done.send(());
            }
            Err(error) => {
                // A probe that only looks whether we live; of a transfer the client has more to say.
                self.watch.count(format_args!("no number: {error}"));
                self.watch.forget(&life);
            }
        }
    }

    /// The next number that this side leads.
    fn take_number(&self) -> u64 {
        let mut next = self.next.lock().expect("no thread panics with it");
        while plan::leader(self.seed, *next) != Side::Server {
            *next += 1;
        }
        *next += 1;
        *next - 1
    }

    /// The client is done with its connections; what is left on this side takes moments.
    fn settle(&self) {
        let start = Instant::now();
        while self.watch.count_living() > 0 && start.elapsed() < LIFE_MAX {
            thread::sleep(Duration::from_millis(10));
        }
        self.watch.give_up();
    }
}
