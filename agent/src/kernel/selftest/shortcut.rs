//! What a program sees of a socket in a sockhash, where it would see something else without.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use sockway_common::counter::Counter;

use super::{Bench, PATIENCE, text};

/// A message goes from socket to socket.
pub fn join(bench: &mut Bench) -> Result<String, String> {
    let before = bench.counter(Counter::ShortcutMessages);
    let (mut client, mut server) = bench.connect()?;
    exchange(&mut client, &mut server, b"there")?;
    exchange(&mut server, &mut client, b"and back")?;
    match bench.counter(Counter::ShortcutMessages) - before {
        2 => Ok("both directions go from socket to socket".into()),
        direct => Err(format!("{direct} of 2 messages went from socket to socket")),
    }
}

/// `ioctl(FIONREAD)` counts what is queued on an enrolled socket (trap T1): what came by the shortcut, which it does not on 6.1, and what
/// came by TCP, which it does not since 6.6.128.
pub fn fionread(bench: &mut Bench) -> Result<String, String> {
    let (mut client, server) = bench.connect()?;
    client.write_all(&[7; 1000]).map_err(text)?;
    counted(&server, "by the shortcut")?;
    let (mut client, mut server) = fallen_back(bench, b"x")?;
    client.write_all(&[7; 1000]).map_err(text)?;
    read_exact(&mut server, 1)?;
    counted(&server, "by TCP")?;
    Ok("FIONREAD counts what is queued".into())
}

/// A thousand bytes are on their way, or there.
fn counted(socket: &TcpStream, way: &str) -> Result<(), String> {
    wait_readable(socket)?;
    let mut queued: libc::c_int = 0;
    // SAFETY: the call fills one integer.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD as _, &raw mut queued) } != 0 {
        return Err(format!("ioctl(FIONREAD): {}", io::Error::last_os_error()));
    }
    if queued == 1000 { Ok(()) } else { Err(format!("FIONREAD says {queued} with 1000 bytes queued that came {way}")) }
}

/// `splice(2)` moves bytes that came by the shortcut (trap T2).
pub fn splice(bench: &mut Bench) -> Result<String, String> {
    let (mut client, server) = bench.connect()?;
    client.write_all(b"spliced").map_err(text)?;
    wait_readable(&server)?;
    // The wait of a blocking socket would end at our time limit only.
    server.set_nonblocking(true).map_err(text)?;
    let (_read_end, write_end) = pipe().map_err(text)?;
    // SAFETY: two descriptors that live through the call, no offsets.
    let moved = unsafe {
        libc::splice(
            server.as_raw_fd(),
            std::ptr::null_mut(),
            write_end.as_raw_fd(),
            std::ptr::null_mut(),
            64,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    match moved {
        7 => Ok("splice() moves bytes of the shortcut".into()),
        -1 => Err(format!(
            "splice() does not see bytes of the shortcut ({}): a program that receives by it loses bytes",
            io::Error::last_os_error()
        )),
        moved => Err(format!("splice() moved {moved} of 7 bytes")),
    }
}

/// A blocking `read()` waits, also while another thread writes the same socket (trap T3). Tried for some milliseconds: passing is no proof.
pub fn blocking_read(bench: &mut Bench) -> Result<String, String> {
    let (client, server) = bench.connect()?;
    client.set_read_timeout(None).map_err(text)?;
    let done = AtomicBool::new(false);
    let spurious = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let read = (&client).read(&mut [0]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        });
        let drain = scope.spawn(|| drain_until(&server, &done));
        let until = Instant::now() + Duration::from_millis(20);
        let block = [0; 64 * 1024];
        while Instant::now() < until && !reader.is_finished() {
            if (&client).write(&block).is_err() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = drain.join();
        let _ = (&server).write(b"!");
        reader.join().unwrap_or(true)
    });
    if spurious { Err("a blocking read() failed with EAGAIN".into()) } else { Ok("a blocking read() blocks".into()) }
}

/// Bytes keep their order over the fallback to TCP (trap T6).
pub fn order(bench: &mut Bench) -> Result<String, String> {
    let (mut client, mut server) = fallen_back(bench, b"first ")?;
    client.write_all(b"second").map_err(text)?;
    let read = read_exact(&mut server, 12)?;
    if read == b"first second" {
        Ok("bytes keep their order over the fallback".into())
    } else {
        Err(format!("read {:?}", String::from_utf8_lossy(&read)))
    }
}

/// What may wait in a receive queue is bounded, and a writer that was stopped is woken (trap T13).
pub fn bound(bench: &mut Bench) -> Result<String, String> {
    let (client, server) = bench.connect()?;
    client.set_nonblocking(true).map_err(text)?;
    let block = [0x5a; 64 * 1024];
    let mut written = 0_usize;
    loop {
        match (&client).write(&block) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(format!("write after {written} bytes: {error}")),
        }
        // Twice what any default of net.ipv4.tcp_wmem and tcp_rmem lets through.
        if written > 64 << 20 {
            return Err(format!("{written} bytes were taken of which none was read"));
        }
    }
    let mut left = written;
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        match (&server).read(&mut buffer) {
            Ok(0) => return Err(format!("end of file with {left} bytes to come")),
            Ok(bytes) => left -= bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(format!("read with {left} bytes to come: {error}")),
        }
    }
    if poll(&client, libc::POLLOUT)? {
        Ok(format!("a writer was stopped at {} KiB and woken", written / 1024))
    } else {
        Err(format!("a writer was stopped at {} KiB and not woken", written / 1024))
    }
}

/// A pair whose queue is over its bound: `first` waits at the server, having come by the shortcut; what follows comes by TCP.
fn fallen_back(bench: &mut Bench, first: &[u8]) -> Result<(TcpStream, TcpStream), String> {
    bench.set(|settings| settings.shortcut_bytes_max = 0)?;
    let pair = bench.connect()?;
    (&pair.0).write_all(first).map_err(text)?;
    Ok(pair)
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) -> Result<(), String> {
    from.write_all(message).map_err(text)?;
    let read = read_exact(to, message.len())?;
    if read == message { Ok(()) } else { Err(format!("sent {message:?}, read {read:?}")) }
}

fn read_exact(socket: &mut TcpStream, length: usize) -> Result<Vec<u8>, String> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    let until = Instant::now() + PATIENCE;
    while filled < length {
        match socket.read(&mut buffer[filled..]) {
            Ok(0) => return Err(format!("end of file after {filled} of {length} bytes")),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(error) => return Err(format!("read after {filled} of {length} bytes: {error}")),
        }
    }
    Ok(buffer)
}

fn drain_until(socket: &TcpStream, done: &AtomicBool) {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match (&mut &*socket).read(&mut buffer) {
            Ok(0) => return,
            Err(_) if done.load(Ordering::Relaxed) => return,
            _ => {}
        }
    }
}

fn wait_readable(socket: &TcpStream) -> Result<(), String> {
    if poll(socket, libc::POLLIN)? { Ok(()) } else { Err("nothing became readable".into()) }
}

fn poll(socket: &TcpStream, events: libc::c_short) -> Result<bool, String> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry that lives through the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, PATIENCE.as_millis() as libc::c_int) };
    if ready < 0 { Err(text(io::Error::last_os_error())) } else { Ok(entry.revents & events != 0) }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the call fills two descriptors, which are ours.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
