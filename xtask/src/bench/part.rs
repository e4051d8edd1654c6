//! The benchmark's own clients and servers: children started from its own binary, so that they stand in a cgroup, in a namespace and on a
//! CPU of their own. They are ordinary programs: blocking sockets, a thread a connection, nothing that knows of Sockway.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{ChildStdin, ChildStdout, Command},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    dial, hold, night,
    process::{Place, Process},
    tcp, watch,
};
use crate::root;

const BACKLOG: i32 = 4096;

/// Plays the part that `bench --part` names, until its input ends or for ever.
pub fn play(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["dial"] => dial::dial(),
        ["hold"] => hold::hold(),
        ["stream"] => tcp::drive(),
        ["watch"] => watch::watch(),
        ["crowd"] => night::crowd::drive(),
        ["endpoint", address, places, takes_ms] => night::endpoint::serve(address, places, takes_ms),
        ["accept", address] => dial::accept(&listen(address)?),
        ["say", address, word] => watch::say(&listen(address)?, word),
        ["serve", address] => tcp::serve(&listen(address)?),
        _ => bail!("there is no such part: {}", words.join(" ")),
    }
}

/// Listens at an address that may just have been left.
pub fn listen(address: &str) -> Result<TcpListener> {
    let address: SocketAddr = address.parse()?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts a part that nobody talks to: a server.
pub fn serve(words: &[&str], place: &Place, log: &Path) -> Result<Process> {
    Process::serve(&mut itself(words)?, place, log)
}

/// A part that is given orders, a line each, and answers each with a line.
#[derive(Debug)]
pub struct Worker {
    // Its end of the pipes goes first: the child ends when its input does.
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Process,
}

impl Worker {
    /// Starts it in its place.
    pub fn start(name: &str, place: &Place) -> Result<Self> {
        Self::start_with(&[name], place)
    }

    /// The same with words of its own.
    pub fn start_with(words: &[&str], place: &Place) -> Result<Self> {
        let (process, orders, answers) = Process::converse(&mut itself(words)?, place)?;
        Ok(Self { orders, answers: BufReader::new(answers), process })
    }

    /// Has an order carried out and gives the answer.
    pub fn ask(&mut self, order: &str) -> Result<String> {
        self.order(order)?;
        self.answer().with_context(|| format!("asked for {order}"))
    }

    /// Gives an order, and does not wait.
    pub fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}")?;
        Ok(self.orders.flush()?)
    }

    /// Waits for the answer to an order.
    pub fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            self.process.check_alive()?;
            bail!("the child has closed its output");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// This program's `bench`, which is not to set anything up again.
fn itself(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("cannot find this program's own file")?);
    command.args(["bench", "--part"]).args(words).env(root::PREPARED, "1");
    Ok(command)
}
