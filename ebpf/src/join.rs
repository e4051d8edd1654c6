//! A message of a socket whose peer is the agent: straight to the other program, if the agent has said where that is and this is a quiet
//! point; and once more through TCP and the agent when it cannot go on so.
//!
//! The quiet point is proven, not guessed (traps T5 and T6). The hook runs under the sender's lock and looks at every place where bytes
//! could be: none is in the sender or in the agent's socket (`write_seq` here is `copied_seq` there), none in the agent (it has
//! counted as many as were sent), and all of them have gone into the receiver's queue by redirect, behind which the next message is put.
//!
//! Nothing may ever have come to the receiver by TCP: a `recv()` that waits for more of that (`MSG_WAITALL`) would not see what comes by
//! redirect, and take what comes by TCP next before it. So the agent's own sockets have a wider bound than a joined direction: what a
//! reader was too slow for goes through the agent into the same queue, and the direction comes back. Only a reader that is slower
//! than that gets bytes by TCP, and from then on is relayed to.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SkMsgContext};
use sockway_common::{
    capture::Settings,
    counter::Counter,
    join::{Half, Join, WAYS, first_place, half_flags, half_state, join_state},
};

use crate::{
    count,
    maps::JOINS,
    repeat::{Turns, repeat},
    sk_msg, socket,
};

/// How long a sender may be kept in its hook for room in the receiver's queue: a reader that is awake takes 64 KiB in 10 to 30 µs, and the
/// way through TCP and the agent costs both more than this.
const ROOM_WAIT_NS: u64 = 50_000;
/// How long a sender may be kept in its hook for the agent to pass on what it sent before: half of what 64 KiB take it. A program that
/// sends without a pause would otherwise never come to a quiet point.
const QUIET_WAIT_NS: u64 = 20_000;
/// How often it is kept so until its direction has switched, 5 ms in all: time for the agent to pass on what had piled up. Where it gets no
/// processor meanwhile, keeping the sender is in vain.
const QUIET_WAITS_MAX: u32 = 256;
/// Most looks in one wait, which the verifier wants to be bounded; each takes 25 ns or more.
const LOOKS_MAX: u64 = 2_000;

/// Whether the message went straight to the other program. If not, it goes where the half's state says.
#[inline(always)]
pub fn goes_straight(ctx: &SkMsgContext, half: &mut Half, settings: &Settings, is_off: bool) -> bool {
    if half.state != half_state::DIRECT && (is_off || !begin(half, settings)) {
        return false;
    }
    match try_straight(ctx, half, settings, is_off) {
        Ok(()) => true,
        Err(why) => {
            // It may come back: by the same proof that all has been read which goes through TCP from here on.
            half.state = half_state::HELD;
            count::one(why);
            count::of_service(half.service, |stats| stats.fallbacks += 1);
            false
        }
    }
}

#[inline(always)]
fn try_straight(ctx: &SkMsgContext, half: &mut Half, settings: &Settings, is_off: bool) -> Result<(), Counter> {
    let join = at(half.place, half.cookie).ok_or(Counter::JoinEnded)?;
    // A thread that was still sending its message through TCP when another's switched the direction: what it sends next must not
    // overtake what it sent before.
    if sent(half, settings) != half.switched_at {
        return Err(Counter::JoinInterleaved);
    }
    let queued = word(half.to_sock, settings.offsets.rmem_alloc);
    if is_off && queued == 0 {
        return Err(Counter::JoinOff);
    }
    // The bound is not the receive buffer, which TCP would have let grow to several times as much (trap T13).
    if queued > settings.shortcut_bytes_max && (is_off || !gets_room(half, settings)) {
        return Err(Counter::JoinFull);
    }
    if !sk_msg::redirect(ctx, half.to_cookie) {
        return Err(Counter::JoinGone);
    }
    let bytes = u64::from(ctx.size());
    half.joined_bytes += bytes;
    // SAFETY: an element of an array; this direction's hook is its one writer, under the sender's lock.
    unsafe {
        (*join).direct_bytes += bytes;
        (*join).direct_messages += 1;
    }
    count::one(Counter::JoinMessages);
    count::add(Counter::JoinBytes, bytes);
    count::redirected(half.service, bytes, true);
    Ok(())
}

/// Begins to send straight if the agent has armed this direction and this is a quiet point.
#[inline(always)]
fn begin(half: &mut Half, settings: &Settings) -> bool {
    let Some((place, join)) = find(half.cookie) else { return false };
    // SAFETY: an element of an array, of which words are read; the cookie is compared again behind the last.
    let (state, to_cookie, to_sock, via_cookie, via_sock, via_first, forwarded) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*join).state),
            core::ptr::read_volatile(&raw const (*join).to_cookie),
            core::ptr::read_volatile(&raw const (*join).to_sock),
            core::ptr::read_volatile(&raw const (*join).via_cookie),
            core::ptr::read_volatile(&raw const (*join).via_sock),
            core::ptr::read_volatile(&raw const (*join).via_first),
            core::ptr::read_volatile(&raw const (*join).forwarded),
        )
    };
    if at(place, half.cookie).is_none() {
        return false;
    }
    if state != join_state::ARMED {
        refuse(half, settings);
        return false;
    }
    // Half the bound: a direction that came back at the bound would fall back with its next message.
    if word(to_sock, settings.offsets.rmem_alloc) > settings.shortcut_bytes_max / 2 {
        return false;
    }
    let sent = sent(half, settings);
    if !(is_settled(half, settings, sent, forwarded) || gets_settled(half, settings, sent, join))
        || !is_untouched(settings, (via_sock, via_cookie, via_first), (to_sock, to_cookie))
    {
        return false;
    }
    half.waits = 0;
    count::one(if half.joined_bytes == 0 { Counter::JoinBegan } else { Counter::JoinCameBack });
    count::of_service(half.service, |stats| stats.joins += 1);
    half.to_cookie = to_cookie;
    half.to_sock = to_sock;
    half.place = place;
    half.switched_at = sent;
    half.state = half_state::DIRECT;
    true
}

/// The other program cannot be joined. A direction that was held takes the shortcut to the agent, once the agent has read what came by TCP.
#[inline(always)]
fn refuse(half: &mut Half, settings: &Settings) {
    if half.state == half_state::HELD {
        if !peer_has_read(half, settings, sent(half, settings)) {
            return;
        }
        half.state = half_state::JOINED;
    }
    half.flags &= !half_flags::MAY_JOIN;
    count::one(Counter::JoinRefused);
}

/// Whether the agent has taken all that this socket sent, and passed on what became of it. Sequence numbers wrap, and so does the sum.
#[inline(always)]
fn is_settled(half: &Half, settings: &Settings, sent: u32, forwarded: u64) -> bool {
    all_bytes(half, sent) == forwarded as u32 && peer_has_read(half, settings, sent)
}

/// Bytes that this socket has sent towards the agent since the connection began.
#[inline(always)]
fn all_bytes(half: &Half, sent: u32) -> u32 {
    sent.wrapping_sub(half.first()).wrapping_add(half.redirected_bytes as u32)
}

/// Keeps the sender for a moment, since the agent cannot catch up with one that never pauses. Whether it has now.
#[inline(always)]
fn gets_settled(half: &mut Half, settings: &Settings, sent: u32, join: *mut Join) -> bool {
    if half.waits >= QUIET_WAITS_MAX {
        return false;
    }
    half.waits += 1;
    let mut quiet = Quiet { join, all: all_bytes(half, sent), began: now(), is_there: false };
    repeat::<_, LOOKS_MAX>(LOOKS_MAX, &mut quiet);
    quiet.is_there && peer_has_read(half, settings, sent) && at_again(join, half.cookie)
}

/// The wait for the agent.
struct Quiet {
    join: *mut Join,
    /// Bytes that it is to have passed on.
    all: u32,
    began: u64,
    is_there: bool,
}

impl Turns for Quiet {
    #[inline(always)]
    fn turn(&mut self, _: u64) -> bool {
        // SAFETY: a word of an element of an array.
        self.is_there = unsafe { core::ptr::read_volatile(&raw const (*self.join).forwarded) } as u32 == self.all;
        self.is_there || now().wrapping_sub(self.began) > QUIET_WAIT_NS
    }
}

/// Keeps the sender for a moment, since a reader that is nearly as fast would otherwise lose it to TCP at every stumble. Whether there is
/// room now.
#[inline(always)]
fn gets_room(half: &Half, settings: &Settings) -> bool {
    let mut room = Room {
        to_sock: half.to_sock,
        rmem_alloc: settings.offsets.rmem_alloc,
        bytes_max: settings.shortcut_bytes_max,
        began: now(),
        is_there: false,
    };
    repeat::<_, LOOKS_MAX>(LOOKS_MAX, &mut room);
    room.is_there
}

/// The wait for a reader.
struct Room {
    to_sock: u64,
    rmem_alloc: u32,
    bytes_max: u32,
    began: u64,
    is_there: bool,
}

impl Turns for Room {
    #[inline(always)]
    fn turn(&mut self, _: u64) -> bool {
        self.is_there = word(self.to_sock, self.rmem_alloc) <= self.bytes_max;
        self.is_there || now().wrapping_sub(self.began) > ROOM_WAIT_NS
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: plain helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether an entry that was found is still this socket's.
#[inline(always)]
fn at_again(join: *mut Join, cookie: u64) -> bool {
    // SAFETY: one word of an element of an array.
    unsafe { core::ptr::read_volatile(&raw const (*join).cookie) == cookie }
}

/// Whether the agent's socket holds nothing that came by TCP. Asked besides the agent's own count, which does not know of bytes that
/// came before the connection was established (TCP Fast Open).
#[inline(always)]
fn peer_has_read(half: &Half, settings: &Settings, sent: u32) -> bool {
    let offsets = &settings.offsets;
    socket::read::<u64>(half.peer_sock, offsets.cookie) == Some(half.peer_cookie)
        && word(half.peer_sock, offsets.copied_seq) == sent
}

/// Whether nothing has come to the receiver by TCP, and the agent's socket and it are ends of one connection, as the agent was told by a map
/// whose entries may be overwritten while they are read.
#[inline(always)]
fn is_untouched(settings: &Settings, via: (u64, u64, u32), to: (u64, u64)) -> bool {
    let offsets = &settings.offsets;
    socket::read::<u64>(via.0, offsets.cookie) == Some(via.1)
        && socket::read::<u64>(to.0, offsets.cookie) == Some(to.1)
        && are_ends(word(via.0, offsets.ports), word(to.0, offsets.ports))
        && word(via.0, offsets.write_seq) == via.2
}

/// Whether two sockets have each other's ports: `skc_dport` in network order, then `skc_num` in host order.
#[inline(always)]
fn are_ends(near: u32, far: u32) -> bool {
    (near >> 16) as u16 == u16::from_be(far as u16) && (far >> 16) as u16 == u16::from_be(near as u16)
}

/// A word of a kernel object; 0 when it cannot be read, which equals nothing that it is compared with but by chance, and no cookie.
#[inline(always)]
fn word(object: u64, offset: u32) -> u32 {
    socket::read(object, offset).unwrap_or(0)
}

/// Behind the last byte that this socket has given to TCP: exact, whatever became of single messages, and still while the hook runs.
#[inline(always)]
fn sent(half: &Half, settings: &Settings) -> u32 {
    word(half.sock, settings.offsets.write_seq)
}

/// The entry of a sending socket.
#[inline(always)]
fn find(cookie: u64) -> Option<(u32, *mut Join)> {
    let first = first_place(cookie);
    for way in 0..WAYS {
        if let Some(join) = at(first + way, cookie) {
            return Some((first + way, join));
        }
    }
    None
}

/// The entry at a place, if it is this socket's.
#[inline(always)]
fn at(place: u32, cookie: u64) -> Option<*mut Join> {
    let join = JOINS.get_ptr_mut(place)?;
    at_again(join, cookie).then_some(join)
}
