//! One side's part in one connection, from the seed to the end.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use socket2::SockRef;

use super::{
    END,
    plan::{End, Plan, Side, Waiter},
    read,
    watch::{Fault, Life, Watch},
    write,
};

/// Sends the number as the side that leads.
pub fn lead(mut socket: &TcpStream, number: u64) -> io::Result<()> {
    socket.write_all(&number.to_le_bytes())
}

/// Reads the number as the side that follows; `None` is the client's word that all is done.
pub fn follow(mut socket: &TcpStream) -> io::Result<Option<u64>> {
    let mut number = [0; 8];
    let mut done = 0;
    while done < number.len() {
        match socket.read(&mut number[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            // A blocking read of an enrolled socket may say EAGAIN (trap T3).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    let number = u64::from_le_bytes(number);
    Ok((number != END).then_some(number))
}

/// Does a side's part. The number has been exchanged.
pub fn converse(socket: TcpStream, plan: &Plan, side: Side, life: &Life, watch: &Watch) -> Result<(), Fault> {
    let manner = plan.manner(side);
    let kinds = (manner.writer, manner.reader, manner.waiter);
    watch.count(format_args!("{:?}", plan.end));
    watch.count(format_args!("writer {:?}", kinds.0));
    watch.count(format_args!("reader {:?}", kinds.1));
    watch.count(format_args!("waiter {:?}", kinds.2));
    socket.set_nonblocking(manner.waiter != Waiter::Blocking).map_err(Fault::end)?;
    let part = Part { socket: &socket, plan, side, life, watch };
    match plan.end {
        End::Both => part.both()?,
        End::First(first) if first == side => {
            part.write()?;
            part.read()?;
        }
        End::First(_) => {
            part.read()?;
            part.write()?;
        }
        End::WriteAndClose if plan.leader == side => part.write_bytes(plan.sends(side))?,
        End::WriteAndClose => part.read()?,
        End::Reset(by) if by == side => part.reset()?,
        End::Reset(_) => part.be_reset()?,
    }
    Ok(())
}

struct Part<'a> {
    socket: &'a TcpStream,
    plan: &'a Plan,
    side: Side,
    life: &'a Life,
    watch: &'a Watch,
}

impl Part<'_> {
    fn both(&self) -> Result<(), Fault> {
        self.life.phase("both");
        thread::scope(|scope| {
            let writing = scope.spawn(|| self.write());
            let read = self.read();
            writing.join().map_err(|_| Fault::end("the writing thread panicked"))??;
            read
        })
    }

    fn write(&self) -> Result<(), Fault> {
        self.write_bytes(self.plan.sends(self.side))?;
        self.socket.shutdown(Shutdown::Write).map_err(|error| Fault::end(format_args!("half-closing failed: {error}")))
    }

    fn write_bytes(&self, length: u64) -> Result<(), Fault> {
        self.life.phase("write");
        let bytes = self.plan.stream(self.side);
        write::all(self.socket, bytes, length, self.plan.manner(self.side), self.life)
            .map_err(|error| Fault::end(format_args!("writing failed: {error}")))
    }

    fn read(&self) -> Result<(), Fault> {
        self.life.phase("read");
        let other = self.side.other();
        let (bytes, length) = (self.plan.stream(other), self.plan.sends(other));
        read::all(self.socket, bytes, length, self.plan.manner(self.side), self.life, self.watch).map_err(Fault::from)
    }

    fn reset(&self) -> Result<(), Fault> {
        self.write_bytes(self.plan.sends(self.side) / 2)?;
        SockRef::from(self.socket)
            .set_linger(Some(Duration::ZERO))
            .map_err(|error| Fault::end(format_args!("SO_LINGER: {error}")))
    }

    /// Writes until it fails and reads until it breaks off: how many bytes get through before a reset is nobody's promise.
    fn be_reset(&self) -> Result<(), Fault> {
        self.life.phase("be reset");
        let other = self.side.other();
        let (bytes, length, manner) = (self.plan.stream(other), self.plan.sends(other), self.plan.manner(self.side));
        thread::scope(|scope| {
            scope.spawn(|| drop(self.write_bytes(self.plan.sends(self.side))));
            let read = read::until_broken(self.socket, bytes, length, manner, self.life, self.watch);
            // A writer that waits for room would wait for ever if the reset was seen as the end only.
            let _ = self.socket.shutdown(Shutdown::Both);
            read.map_err(Fault::from)
        })
    }
}
