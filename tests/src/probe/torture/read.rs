//! Taking a direction's bytes out of a socket, in every way, and checking each.

use std::{
    fmt,
    io::{self, Read},
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    sys::socket::{MsgFlags, recv},
    unistd::pipe,
};

use super::{
    plan::{Dice, Manner, Reader, Waiter},
    stream::{Stream, mix},
    wait::{Ready, Waiting},
    watch::{Fault, Life, Watch},
};

/// What may be wrong with what was read.
#[derive(Debug)]
pub enum Wrong {
    /// Another byte than was sent, at this offset; the bytes found there belong at the second one, if anywhere.
    Byte(u64, Option<u64>),
    /// `MSG_PEEK` showed other bytes than the read that followed, at this offset.
    Peek(u64),
    /// The end came after this many bytes.
    Early(u64),
    /// More bytes than were sent.
    Late,
    /// The socket's error, after this many bytes.
    Socket(u64, io::Error),
}

/// Reads to the end and checks that it comes after exactly `length` bytes.
pub fn all(
    socket: &TcpStream,
    bytes: Stream,
    length: u64,
    manner: &Manner,
    life: &Life,
    watch: &Watch,
) -> Result<(), Wrong> {
    let mut reading = Reading::new(socket, bytes, length, manner, life, watch)?;
    reading.sleep();
    loop {
        match reading.step() {
            Ok(0) if reading.received == length => return Ok(()),
            Ok(0) => return Err(Wrong::Early(reading.received)),
            Ok(_) => {}
            Err(wrong) => return Err(wrong),
        }
    }
}

/// Reads until the connection breaks off, which it must, and checks what comes before.
pub fn until_broken(
    socket: &TcpStream,
    bytes: Stream,
    length: u64,
    manner: &Manner,
    life: &Life,
    watch: &Watch,
) -> Result<(), Wrong> {
    let mut reading = Reading::new(socket, bytes, length, manner, life, watch)?;
    reading.breaks = true;
    loop {
        match reading.step() {
            Ok(0) => {
                watch.count("reset seen as the end");
                return Ok(());
            }
            Ok(_) => {}
            Err(Wrong::Socket(_, error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(wrong) => return Err(wrong),
        }
    }
}

struct Reading<'a> {
    socket: &'a TcpStream,
    bytes: Stream,
    length: u64,
    manner: &'a Manner,
    life: &'a Life,
    watch: &'a Watch,
    waiting: Waiting<'a>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    buffer: Vec<u8>,
    received: u64,
    dice: Dice,
    /// Whether the end will be a reset: then short reads mean nothing.
    breaks: bool,
}

impl<'a> Reading<'a> {
    fn new(
        socket: &'a TcpStream,
        bytes: Stream,
        length: u64,
        manner: &'a Manner,
        life: &'a Life,
        watch: &'a Watch,
    ) -> Result<Self, Wrong> {
        let waiting = Waiting::new(socket, manner.waiter, Ready::Read).map_err(|error| Wrong::Socket(0, error))?;
        let pipe =
            (manner.reader == Reader::Splice).then(pipe).transpose().map_err(|error| Wrong::Socket(0, error.into()))?;
        let dice = Dice::of(mix(length ^ manner.read_max as u64));
        Ok(Self {
            socket,
            bytes,
            length,
            manner,
            life,
            watch,
            waiting,
            pipe,
            buffer: vec![0; manner.read_max],
            received: 0,
            dice,
            breaks: false,
        })
    }

    fn sleep(&self) {
        if self.manner.late_ms > 0 {
            self.watch.count("slow readers");
            // No condition to wait for: being slow is what is tested.
            thread::sleep(Duration::from_millis(self.manner.late_ms));
        }
    }

    /// One read that brings something; 0 at the end.
    fn step(&mut self) -> Result<usize, Wrong> {
        if self.manner.lazy && self.dice.below(64) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let count = self.some()?;
        let found = &self.buffer[..count];
        if let Some(offset) = self.bytes.first_wrong(self.received, found) {
            let belongs = self.bytes.find(&found[(offset - self.received) as usize..], self.length);
            return Err(Wrong::Byte(offset, belongs));
        }
        self.received += count as u64;
        self.life.received.store(self.received, Ordering::Relaxed);
        if self.received > self.length { Err(Wrong::Late) } else { Ok(count) }
    }

    fn some(&mut self) -> Result<usize, Wrong> {
        let size = 1 + self.dice.below(self.manner.read_max as u64) as usize;
        loop {
            match self.once(size)? {
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN) => {
                    if self.manner.waiter == Waiter::Blocking {
                        // kernel.md 4.1, trap T3: a blocking read of an enrolled socket may say so.
                        self.watch.count("EAGAIN of a blocking read");
                    }
                    self.waiting.wait().map_err(|error| Wrong::Socket(self.received, error))?;
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(Wrong::Socket(self.received, error.into())),
            }
        }
    }

    fn once(&mut self, size: usize) -> Result<nix::Result<usize>, Wrong> {
        Ok(match self.manner.reader {
            Reader::Plain => self.receive(size, MsgFlags::empty()),
            Reader::Peek => return self.peek(size),
            Reader::WaitAll => self.receive_whole(size),
            Reader::Splice => self.splice(size),
        })
    }

    fn receive(&mut self, size: usize, flags: MsgFlags) -> nix::Result<usize> {
        recv(self.socket.as_raw_fd(), &mut self.buffer[..size], flags)
    }

    fn receive_whole(&mut self, size: usize) -> nix::Result<usize> {
        let count = self.receive(size, MsgFlags::MSG_WAITALL)?;
        let short =
            self.manner.waiter == Waiter::Blocking && count < size && self.received + (count as u64) < self.length;
        if short {
            self.watch.count("short read in spite of MSG_WAITALL");
        }
        Ok(count)
    }

    fn peek(&mut self, size: usize) -> Result<nix::Result<usize>, Wrong> {
        let peeked = match self.receive(size, MsgFlags::MSG_PEEK) {
            Ok(count) => count,
            Err(error) => return Ok(Err(error)),
        };
        let shown = self.buffer[..peeked].to_vec();
        let read = self.receive(peeked.max(1), MsgFlags::empty());
        match read {
            Ok(count) if self.buffer[..count] != shown[..count] => Err(Wrong::Peek(self.received)),
            read => Ok(read),
        }
    }

    /// Splice sees only what came by TCP (trap T2): where redirected bytes wait, it says EAGAIN or even that this is the end. So neither
    /// is believed until `recv` has said it, too.
    fn splice(&mut self, size: usize) -> nix::Result<usize> {
        let Some((out, into)) = &self.pipe else { return Err(Errno::EBADF) };
        let said = match splice(self.socket, None, into, None, size.min(64 * 1024), SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => "splice said the end",
            Ok(count) => {
                let mut out = std::fs::File::from(out.try_clone().map_err(|_| Errno::EMFILE)?);
                out.read_exact(&mut self.buffer[..count]).map_err(|_| Errno::EIO)?;
                return Ok(count);
            }
            Err(Errno::EAGAIN) => "splice said EAGAIN",
            Err(error) => return Err(error),
        };
        let count = self.receive(size, MsgFlags::MSG_DONTWAIT);
        if count.is_ok_and(|count| count > 0) {
            self.watch.count(format_args!("{said} and recv then read"));
        }
        count
    }
}

impl From<Wrong> for Fault {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Socket(..) => Self::end(wrong),
            _ => Self::Bytes(wrong.to_string()),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(offset, Some(belongs)) => write!(text, "at offset {offset} stand the bytes of offset {belongs}"),
            Self::Byte(offset, None) => write!(text, "bytes at offset {offset} that were never sent"),
            Self::Peek(offset) => write!(text, "MSG_PEEK at offset {offset} showed other bytes than the read"),
            Self::Early(offset) => write!(text, "the end came after {offset} bytes"),
            Self::Late => write!(text, "more bytes came than were sent"),
            Self::Socket(offset, error) => write!(text, "reading failed after {offset} bytes: {error}"),
        }
    }
}
