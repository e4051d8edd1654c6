//! The accepting side: `torture-server SEED LEADER@ADDRESS …` listens on all addresses; `client` or `server` leads there.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    LIFE_MAX,
    plan::{Dice, Plan, Side},
    stream::mix,
    talk,
    watch::Watch,
};
use crate::Outcome;

/// Runs until the client says that all is done, then prints what was counted; fails if anything did.
pub fn run(arguments: &[String]) -> Outcome {
    let [seed, addresses @ ..] = arguments else { return Err("torture-server SEED LEADER@ADDRESS…".into()) };
    let server = Arc::new(Server { seed: seed.parse()?, serial: AtomicU64::new(0), watch: Watch::start(Side::Server) });
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
    if server.watch.counted("failed") > 0 { Err("some connections failed".into()) } else { Ok(()) }
}

struct Server {
    seed: u64,
    serial: AtomicU64,
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
        life.phase("seed");
        let seed = match leader {
            Side::Client => talk::follow(&socket),
            Side::Server => {
                let seed = mix(self.seed ^ mix(self.serial.fetch_add(1, Ordering::Relaxed)));
                talk::lead(&socket, seed).map(|()| Some(seed))
            }
        };
        match seed {
            Ok(Some(seed)) => {
                let plan = Plan::of(seed, leader);
                life.plan(plan);
                match talk::converse(socket, &plan, Side::Server, &life, &self.watch) {
                    Ok(()) => self.watch.end(&life),
                    Err(what) => self.watch.fail(&life, &what),
                }
            }
            Ok(None) => {
                self.watch.end(&life);
                let _ = done.send(());
            }
            Err(error) => {
                // An end before the seed is the client's last word where the server leads, or a probe that only looks whether we live.
                self.watch.count(format_args!("no seed: {error}"));
                self.watch.end(&life);
            }
        }
    }

    /// The client is done with its connections; what is left on this side takes moments.
    fn settle(&self) {
        let start = Instant::now();
        while self.watch.living() > 0 && start.elapsed() < LIFE_MAX {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
