//! Many threads that connect at once: `crowd THREADS ATTEMPTS ADDRESS`. Each thread attempts so often, and holds what it got for a moment.
//! Then all of them hold what they get, until nobody gets more. Prints `attempts=… got=… most=… full=…`: how many connections were open at
//! once at most, counted so that the count is never more than there were, and how many could be held at the end.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

use crate::Outcome;

/// Runs a crowd.
pub fn run(arguments: &[String]) -> Outcome {
    let [threads, attempts, address] = arguments else { return Err("crowd THREADS ATTEMPTS ADDRESS".into()) };
    let (threads, attempts): (usize, usize) = (threads.parse()?, attempts.parse()?);
    let address: SocketAddr = address.parse()?;
    let (open, most, got) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let held: Vec<TcpStream> = thread::scope(|scope| {
        let one = || {
            for _ in 0..attempts {
                let Ok(stream) = TcpStream::connect(address) else { continue };
                got.fetch_add(1, SeqCst);
                // Counted after it is open and taken off before it closes: never more than there are.
                most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                thread::yield_now();
                open.fetch_sub(1, SeqCst);
                drop(stream);
            }
        };
        (0..threads).map(|_| scope.spawn(one)).collect::<Vec<_>>().into_iter().for_each(|thread| {
            let _ = thread.join();
        });
        let hold = || -> Vec<TcpStream> {
            // What was closed last is given back a moment later.
            (0..2000).filter_map(|_| TcpStream::connect(address).ok()).collect()
        };
        let held: Vec<_> = (0..threads).map(|_| scope.spawn(hold)).collect();
        held.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    println!(
        "attempts={} got={} most={} full={}",
        threads * attempts,
        got.load(SeqCst),
        most.load(SeqCst).max(held.len()),
        held.len()
    );
    Ok(())
}
