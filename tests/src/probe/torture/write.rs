//! Putting a direction's bytes into a socket, in every way.

use std::{
    fs::File,
    io::{self, IoSlice, Seek, SeekFrom, Write},
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::Ordering,
};

use nix::{
    fcntl::{SpliceFFlags, splice},
    sys::{
        memfd::{MFdFlags, memfd_create},
        sendfile::sendfile64,
        socket::{MsgFlags, send},
        uio::writev,
    },
    unistd::pipe,
};

use super::{
    plan::{Dice, Manner, Writer},
    stream::{Stream, mix},
    wait::{Ready, Waiting},
    watch::Life,
};

/// Pieces above this do not fit into a pipe of the default size.
const PIPE_BYTES: usize = 64 * 1024;

/// Writes the first `length` bytes of a stream; an error is the socket's.
pub fn all(socket: &TcpStream, bytes: Stream, length: u64, manner: &Manner, life: &Life) -> io::Result<()> {
    let waiting = Waiting::new(socket, manner.waiter, Ready::Write)?;
    let mut way = Way::open(manner.writer)?;
    let mut dice = Dice::of(mix(length ^ manner.write_max as u64));
    let mut sent = 0;
    while sent < length {
        let piece = (1 + dice.below(way.piece_max(manner.write_max) as u64)).min(length - sent);
        let mut buffer = vec![0; piece as usize];
        bytes.fill(sent, &mut buffer);
        way.put(socket, &buffer, &waiting, life)?;
        sent += piece;
    }
    Ok(())
}

/// A way to write, with what it needs.
enum Way {
    Plain,
    Vectored,
    Sendfile(File),
    Splice(OwnedFd, File),
}

impl Way {
    fn open(writer: Writer) -> io::Result<Self> {
        Ok(match writer {
            Writer::Plain => Self::Plain,
            Writer::Vectored => Self::Vectored,
            Writer::Sendfile => Self::Sendfile(File::from(memfd_create(c"torture", MFdFlags::MFD_CLOEXEC)?)),
            Writer::Splice => {
                let (out, into) = pipe()?;
                Self::Splice(out, File::from(into))
            }
        })
    }

    fn piece_max(&self, write_max: usize) -> usize {
        if matches!(self, Self::Splice(..)) { write_max.min(PIPE_BYTES) } else { write_max }
    }

    fn put(&mut self, socket: &TcpStream, piece: &[u8], waiting: &Waiting<'_>, life: &Life) -> io::Result<()> {
        self.fill(piece)?;
        let mut done = 0;
        while done < piece.len() {
            match self.once(socket, &piece[done..], done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    done += count;
                    life.sent.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(nix::Error::EAGAIN) => waiting.wait()?,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Puts a piece where the kernel will take it from.
    fn fill(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain | Self::Vectored => Ok(()),
            // A new file for each piece: pages of the last one may still be on their way.
            Self::Sendfile(file) => {
                *file = File::from(memfd_create(c"torture", MFdFlags::MFD_CLOEXEC)?);
                file.write_all(piece)?;
                file.seek(SeekFrom::Start(0)).map(drop)
            }
            Self::Splice(_, into) => into.write_all(piece),
        }
    }

    fn once(&mut self, socket: &TcpStream, rest: &[u8], done: usize) -> nix::Result<usize> {
        match self {
            Self::Plain => send(socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL),
            Self::Vectored => {
                let (first, rest) = rest.split_at(rest.len() / 3);
                let (second, third) = rest.split_at(rest.len() / 2);
                writev(socket, &[IoSlice::new(first), IoSlice::new(second), IoSlice::new(third)])
            }
            Self::Sendfile(file) => {
                let mut offset = done as i64;
                sendfile64(socket, &*file, Some(&mut offset), rest.len())
            }
            Self::Splice(out, _) => splice(&*out, None, socket, None, rest.len(), SpliceFFlags::SPLICE_F_MOVE),
        }
    }
}
