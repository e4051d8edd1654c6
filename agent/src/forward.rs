//! Downstream and upstream to outcome: bodies are copied from a reader to a writer, with bounded memory.
//!
//! While a piece is being sent the next is being received, so that at most two buffers are in use for each direction. What was
//! submitted last may still be in flight when a copy returns: the writer has it.

mod narrow;

use std::{
    cell::Cell,
    future::{pending, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::Poll,
};

pub use self::narrow::Narrow;
use crate::{
    decode::chunked::{BadChunk, Decoder, Style, reframe},
    kernel::Way,
    ring::{Buf, Buffers, HUGE, LARGE, Reader, SMALL, Socket, Stream, Writer},
};

/// Why a copy ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The side that sends failed.
    #[error("receiving: {0}")]
    Receiving(io::Error),
    /// It ended too early.
    #[error("ended too early")]
    Ended,
    /// It sent a malformed body.
    #[error(transparent)]
    Malformed(#[from] BadChunk),
    /// The side that receives failed.
    #[error("sending: {0}")]
    Sending(io::Error),
}

impl Broken {
    /// Whether nobody is to blame but the kernel, which had no memory.
    pub fn is_for_memory(&self) -> bool {
        matches!(self, Self::Receiving(error) | Self::Sending(error) if error.kind() == io::ErrorKind::OutOfMemory)
    }
}

/// Counts what was copied.
pub type Count = Cell<usize>;

/// Who is told of bytes, and says whether there may be more.
pub type Told<'t> = &'t dyn Fn(&[u8]) -> bool;

/// A one-way copy.
pub struct Copy<'s> {
    /// Where the bytes come from.
    pub from: &'s mut Reader,
    /// Where they go.
    pub to: &'s mut Writer,
    /// Where buffers come from.
    pub buffers: &'s Rc<Buffers>,
    /// Bytes copied so far.
    pub count: &'s Count,
    /// Told of all that is received, as it came.
    pub tap: Option<Told<'s>>,
    /// What it goes over, if that is slow on purpose.
    pub narrow: Option<&'s Narrow>,
}

impl Copy<'_> {
    /// Copies `left` more bytes. Returns the buffer that has what came behind them, if anything did.
    pub async fn length(&mut self, mut left: u64) -> Result<Option<Buf>, Broken> {
        while left > 0 {
            let mut buf = self.receive().await?;
            if buf.is_empty() {
                return Err(Broken::Ended);
            }
            let here = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= here as u64;
            let rest = self.split(&mut buf, here);
            let range = buf.range();
            self.submit(buf, range.start..range.start + here).await?;
            if rest.is_some() {
                return Ok(rest);
            }
        }
        Ok(None)
    }

    /// Copies a chunked body to its end. Returns the buffer that has what came behind it, if anything did.
    pub async fn chunked(&mut self, decoder: &mut Decoder, style: Style) -> Result<Option<Buf>, Broken> {
        while !decoder.is_done() {
            let mut buf = self.receive().await?;
            if buf.is_empty() {
                return Err(Broken::Ended);
            }
            let piece = buf.range();
            let reframed = reframe(decoder, buf.memory(), 0, piece.clone(), style)?;
            let rest = self.split(&mut buf, reframed.rest - piece.start);
            if reframed.send.is_empty() {
                self.buffers.give(buf);
            } else {
                self.submit(buf, reframed.send).await?;
            }
            if !reframed.tail.is_empty() {
                let tail = Buf::of(&reframed.tail);
                let range = tail.range();
                self.submit(tail, range).await?;
            }
            if rest.is_some() {
                return Ok(rest);
            }
        }
        Ok(None)
    }

    /// Copies until the sender ends the connection.
    pub async fn until_close(&mut self) -> Result<(), Broken> {
        loop {
            let buf = self.receive().await?;
            if buf.is_empty() {
                self.buffers.give(buf);
                return Ok(());
            }
            let range = buf.range();
            self.submit(buf, range).await?;
        }
    }

    /// Sends what stands at `range`, once what was submitted before is sent; over a narrow line, piece by piece.
    pub async fn submit(&mut self, buf: Buf, range: std::ops::Range<usize>) -> Result<(), Broken> {
        match self.narrow {
            None => self.submit_at_once(buf, range).await,
            // Boxed: hardly any line is.
            Some(narrow) => Box::pin(self.trickle(buf, range, narrow)).await,
        }
    }

    async fn trickle(&mut self, mut buf: Buf, range: std::ops::Range<usize>, narrow: &Narrow) -> Result<(), Broken> {
        let all = buf.memory()[range].to_vec();
        self.buffers.give(buf);
        for piece in all.chunks(narrow.piece_bytes_max()) {
            narrow.turn().await;
            let buf = Buf::of(piece);
            let range = buf.range();
            self.submit_at_once(buf, range).await?;
            narrow.leaves(piece.len());
        }
        Ok(())
    }

    /// The same, however narrow the line is.
    pub async fn submit_at_once(&mut self, buf: Buf, range: std::ops::Range<usize>) -> Result<(), Broken> {
        self.flush().await?;
        self.count.set(self.count.get() + range.len());
        self.to.submit(buf, range);
        Ok(())
    }

    /// Waits until everything submitted is sent.
    pub async fn flush(&mut self) -> Result<(), Broken> {
        if self.to.is_sending() {
            let (result, buf) = self.to.sent().await;
            self.buffers.give(buf);
            result.map_err(Broken::Sending)?;
        }
        Ok(())
    }

    /// Waits for bytes; none: the sender has ended.
    pub async fn receive(&mut self) -> Result<Buf, Broken> {
        self.from.arm_on_demand(self.buffers, LARGE);
        let received = self.from.received().await;
        let buf = self.unwrap(received)?;
        if self.tap.is_some_and(|tap| !tap(buf.bytes())) {
            // Whoever polls this knows, and ends it.
            self.buffers.give(buf);
            pending::<()>().await;
            return Err(Broken::Ended);
        }
        Ok(buf)
    }

    /// Waits for bytes, and meanwhile for what was submitted to be with the kernel: then everything taken so far is settled.
    async fn receive_while_sending(&mut self, settled: &impl Fn(u64)) -> Result<Buf, Broken> {
        let received = poll_fn(|context| {
            if self.to.is_sending()
                && let Poll::Ready((result, buf)) = self.to.poll_sent(context)
            {
                self.buffers.give(buf);
                if let Err(error) = result {
                    return Poll::Ready(Err(Broken::Sending(error)));
                }
                settled(self.from.taken());
            }
            self.from.poll_received(context).map(Ok)
        });
        let received = received.await?;
        self.unwrap(received)
    }

    fn unwrap(&self, (result, buf): (io::Result<usize>, Buf)) -> Result<Buf, Broken> {
        match result {
            Ok(_) => Ok(buf),
            Err(error) => {
                self.buffers.give(buf);
                Err(Broken::Receiving(error))
            }
        }
    }

    /// Puts what stands behind the first `bytes` into a buffer of its own: it is another message's.
    fn split(&self, buf: &mut Buf, bytes: usize) -> Option<Buf> {
        let rest = &buf.bytes()[bytes..];
        (!rest.is_empty()).then(|| self.buffers.holding(rest))
    }
}

/// The sockets of the two connections that a relay is between.
pub type Ends<'s> = (&'s Socket, &'s Socket);

/// Who looks after a relay.
pub trait Overseer {
    /// Told how many bytes were taken from one side since its connection was made, whenever all that became of them is with the kernel.
    fn settled(&self, way: Way, bytes: u64, ends: Ends<'_>);

    /// Asked before so many bytes are passed on, if they are many: ends when the reader at the end of this way is to have more.
    fn await_reader(&self, way: Way, bytes: usize) -> impl Future<Output = ()>;
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// Both sides ended cleanly.
    Done,
    /// The first broke off, and so was the second.
    FirstBroke,
    /// The second broke off, and so was the first.
    SecondBroke,
    /// The kernel had no memory to go on with one of them, and so both were broken off.
    NoMemory,
}

/// Copies both ways until both sides have ended. An end is passed on as an end, in its direction only; a reset as a reset, and so is
/// our own death: until both sides have ended, closing the sockets resets them. `counts` are the bytes from the first to the
/// second, and back.
pub async fn relay(
    first: &mut Stream,
    second: &mut Stream,
    buffers: &Rc<Buffers>,
    counts: (&Count, &Count),
    overseer: &impl Overseer,
) -> Relayed {
    first.socket.reset_on_close(true);
    second.socket.reset_on_close(true);
    let relayed = {
        let there =
            Copy { from: &mut first.reader, to: &mut second.writer, buffers, count: counts.0, tap: None, narrow: None };
        let back =
            Copy { from: &mut second.reader, to: &mut first.writer, buffers, count: counts.1, tap: None, narrow: None };
        let ends = (&first.socket, &second.socket);
        let mut there = pin!(one_way(there, Way::There, ends, overseer));
        let mut back = pin!(one_way(back, Way::Back, ends, overseer));
        let (mut there_done, mut back_done) = (false, false);
        poll_fn(|context| {
            if !there_done && let Poll::Ready(result) = there.as_mut().poll(context) {
                match result {
                    Ok(()) => there_done = true,
                    Err(broken) if broken.is_for_memory() => return Poll::Ready(Relayed::NoMemory),
                    Err(Broken::Sending(_)) => return Poll::Ready(Relayed::SecondBroke),
                    Err(_) => return Poll::Ready(Relayed::FirstBroke),
                }
            }
            if !back_done && let Poll::Ready(result) = back.as_mut().poll(context) {
                match result {
                    Ok(()) => back_done = true,
                    Err(broken) if broken.is_for_memory() => return Poll::Ready(Relayed::NoMemory),
                    Err(Broken::Sending(_)) => return Poll::Ready(Relayed::FirstBroke),
                    Err(_) => return Poll::Ready(Relayed::SecondBroke),
                }
            }
            if there_done && back_done { Poll::Ready(Relayed::Done) } else { Poll::Pending }
        })
        .await
    };
    if relayed == Relayed::Done {
        first.socket.reset_on_close(false);
        second.socket.reset_on_close(false);
    } else {
        first.socket.reset();
        second.socket.reset();
    }
    relayed
}

async fn one_way(mut copy: Copy<'_>, way: Way, ends: Ends<'_>, overseer: &impl Overseer) -> Result<(), Broken> {
    let settled = |bytes| overseer.settled(way, bytes, ends);
    let mut capacity = SMALL;
    loop {
        if !copy.to.is_sending() {
            settled(copy.from.taken());
        }
        copy.from.arm_on_demand(copy.buffers, capacity);
        let buf = copy.receive_while_sending(&settled).await?;
        if buf.is_empty() {
            copy.buffers.give(buf);
            break;
        }
        capacity = fitting(&buf);
        if capacity != SMALL {
            overseer.await_reader(way, buf.len()).await;
        }
        let range = buf.range();
        copy.submit(buf, range).await?;
        if capacity == SMALL {
            // Quiet connections, of which there may be many, hold no buffer.
            copy.flush().await?;
        }
    }
    copy.flush().await?;
    copy.to.end().await.map_err(Broken::Sending)
}

/// The size of the next buffer, judged by how this one was filled: to the brim, a size more; by no more than the size below has room for,
/// a size less.
fn fitting(buf: &Buf) -> usize {
    match buf.capacity() {
        HUGE if buf.len() > LARGE => HUGE,
        LARGE if buf.room() == 0 => HUGE,
        LARGE | HUGE if buf.len() > SMALL => LARGE,
        ..LARGE if buf.room() == 0 => LARGE,
        _ => SMALL,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ring::{self, Watch};

    /// Nobody who looks after it.
    struct Nobody;

    impl Overseer for Nobody {
        fn settled(&self, _: Way, _: u64, _: Ends<'_>) {}
        async fn await_reader(&self, _: Way, _: usize) {}
    }

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::accepted(Socket::accepted(client.into(), &Rc::<Watch>::default())), listener.accept().unwrap().0)
    }

    #[test]
    fn nobody_has_broken_off_what_the_kernel_has_no_memory_for() {
        for is_first in [true, false] {
            let relayed = ring::run(async move {
                let ((mut first, _client), (mut second, _server)) = (pair(), pair());
                let _held = if is_first { &first } else { &second }.reader.without_memory();
                let counts = (&Cell::new(0), &Cell::new(0));
                relay(&mut first, &mut second, &Rc::default(), counts, &Nobody).await
            });
            assert_eq!(relayed.unwrap(), Relayed::NoMemory);
        }
    }
}
