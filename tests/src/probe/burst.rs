//! Connects that write and close at once: `burst COUNT TEXT ADDRESS…` dials the addresses in turn, writes `TEXT#SERIAL@ADDRESS\n`
//! to each and closes without a look back. Prints how many connects failed.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
};

use crate::Outcome;

/// Runs a burst.
pub fn run(arguments: &[String]) -> Outcome {
    let [count, text, addresses @ ..] = arguments else { return Err("burst COUNT TEXT ADDRESS…".into()) };
    let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    let mut failed = 0;
    for serial in 0..count.parse::<usize>()? {
        let address = addresses[serial % addresses.len()];
        match once(address, &format!("{text}#{serial}@{address}\n")) {
            Ok(()) => {}
            Err(error) => {
                failed += 1;
                eprintln!("connect {serial} to {address}: {error}");
            }
        }
    }
    println!("{failed}");
    Ok(())
}

fn once(address: SocketAddr, text: &str) -> std::io::Result<()> {
    TcpStream::connect(address)?.write_all(text.as_bytes())
}
