//! A message of a socket whose peer is the agent: straight to the other program, if the agent has said where that is and this is a quiet
//! point; and once more through TCP and the agent when it cannot go on so.
//!
//! The quiet point is proven, not guessed (traps T5 and T6). The hook runs under the sender's lock and looks at every place where bytes
//! could be: none is in the sender or in the agent's socket (`write_seq` here is `copied_seq` there), none in the agent (it has
//! counted as many as were sent), and all of them have gone into the receiver's queue by redirect, behind which the next message is put.
//!
//! Nothing may ever have come to the receiver by TCP: a `recv()` that waits for more of that (`MSG_WAITALL`) would not see what comes by
//! redirect, and take what comes by TCP next before it. So the agent's own sockets have a wider bound than a joined direction: what a
//! reader was too slow for goes through the agent into the same queue, when the reader has taken most of what it has, and the direction
//! comes back. Only a reader for which the agent does not wait so long gets bytes by TCP, and from then on is relayed to.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::socket_filter,
    programs::{SkBuffContext, SkMsgContext},
};
use sockway_common::{
    capture::Settings,
    counter::Counter,
    join::{Half, Join, WAYS, first_place, half_flags, half_state, join_state},
};

use crate::{
    count,
    maps::{JOINS, SETTINGS},
    repeat::{Turns, repeat},
    sk_msg, socket,
};

/// How long a sender may be kept in its hook for room in the receiver's queue: a reader that is awake takes 64 KiB in 10 to 30 µs, and the
/// way through TCP and the agent costs both more than this.
const ROOM_WAIT_NS: u64 = 50_000;
/// Most looks in that wait, which the verifier wants to be bounded; each takes 25 ns or more.
const ROOM_LOOKS_MAX: u64 = 2_000;
/// How long a sender may be kept in its hook while the agent passes on nothing of what it sent before: as long as it passes on more, a
/// program that sends without a pause would otherwise never come to a quiet point. 128 KiB take it 60 µs.
const QUIET_WAIT_NS: u64 = 100_000;
/// Most looks in that wait: some 400 µs.
const QUIET_LOOKS_MAX: u64 = 16_000;
/// Where the agent gets no processor, or waits for the reader, keeping the sender is in vain: in the long run it loses one part in so many
/// of its time to that,
const VAIN_SHARE: u64 = 16;
/// and this much at once.
const VAIN_NS: u64 = 25_000_000;

/// The agent runs this by itself (`BPF_PROG_TEST_RUN`, on no packet of the network): how many bytes wait for the receiver of the direction
/// that the made-up packet names behind its link header, by place and cookie. None if it cannot go straight any more.
#[socket_filter]
pub fn look_at_queue(ctx: SkBuffContext) -> i64 {
    if !socket::can_peek() {
        return 0;
    }
    let (Ok(place), Ok(cookie)) = (ctx.load::<u64>(0), ctx.load::<u64>(size_of::<u64>())) else { return 0 };
    let (Some(settings), Some(join)) = (SETTINGS.get(0), at(place as u32, cookie)) else { return 0 };
    let told = Told::read(join);
    if told.state != join_state::ARMED || at(place as u32, cookie).is_none() || !is_untouched(settings, &told) {
        return 0;
    }
    i64::from(word(told.to_sock, settings.offsets.rmem_alloc))
}

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
    if queued > bytes_max(settings) && (is_off || !gets_room(half, settings)) {
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
    let told = Told::read(join);
    if at(place, half.cookie).is_none() {
        return false;
    }
    if told.state != join_state::ARMED {
        refuse(half, settings);
        return false;
    }
    // A direction that came back at the bound would fall back with its next message.
    if word(told.to_sock, settings.offsets.rmem_alloc) > bytes_max(settings) / 4 * 3 {
        return false;
    }
    let sent = sent(half, settings);
    if !(is_settled(half, settings, sent, told.forwarded) || gets_settled(half, settings, sent, join))
        || !is_untouched(settings, &told)
    {
        return false;
    }
    half.wait_at_ns = 0;
    count::one(if half.joined_bytes == 0 { Counter::JoinBegan } else { Counter::JoinCameBack });
    count::of_service(half.service, |stats| stats.joins += 1);
    half.to_cookie = told.to_cookie;
    half.to_sock = told.to_sock;
    half.place = place;
    half.switched_at = sent;
    half.state = half_state::DIRECT;
    true
}

/// What the agent has told of a direction.
struct Told {
    state: u32,
    to_cookie: u64,
    to_sock: u64,
    via_cookie: u64,
    via_sock: u64,
    via_first: u32,
    forwarded: u64,
}

impl Told {
    /// Whether it still is of the same socket is asked behind this.
    #[inline(always)]
    fn read(join: *const Join) -> Self {
        // SAFETY: an element of an array, of which words are read.
        unsafe {
            Self {
                state: core::ptr::read_volatile(&raw const (*join).state),
                to_cookie: core::ptr::read_volatile(&raw const (*join).to_cookie),
                to_sock: core::ptr::read_volatile(&raw const (*join).to_sock),
                via_cookie: core::ptr::read_volatile(&raw const (*join).via_cookie),
                via_sock: core::ptr::read_volatile(&raw const (*join).via_sock),
                via_first: core::ptr::read_volatile(&raw const (*join).via_first),
                forwarded: core::ptr::read_volatile(&raw const (*join).forwarded),
            }
        }
    }
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
    let began = now();
    if began < half.wait_at_ns {
        return false;
    }
    let mut quiet = Quiet { join, all: all_bytes(half, sent), forwarded: 0, moved: began, is_there: false };
    repeat::<_, QUIET_LOOKS_MAX>(QUIET_LOOKS_MAX, &mut quiet);
    if !quiet.is_there {
        // The rate of a token bucket, told by the time at which it would be full (GCRA, ITU-T I.371).
        let full = began.saturating_sub(VAIN_SHARE * VAIN_NS);
        half.wait_at_ns = half.wait_at_ns.max(full) + VAIN_SHARE * now().wrapping_sub(began);
    }
    quiet.is_there && peer_has_read(half, settings, sent) && at_again(join, half.cookie)
}

/// The wait for the agent.
struct Quiet {
    join: *mut Join,
    /// Bytes that it is to have passed on.
    all: u32,
    /// Bytes that it had passed on when it was looked at last.
    forwarded: u32,
    /// When that changed last.
    moved: u64,
    is_there: bool,
}

impl Turns for Quiet {
    #[inline(always)]
    fn turn(&mut self, _: u64) -> bool {
        // SAFETY: a word of an element of an array.
        let forwarded = unsafe { core::ptr::read_volatile(&raw const (*self.join).forwarded) } as u32;
        self.is_there = forwarded == self.all;
        let now = now();
        if forwarded != self.forwarded {
            self.forwarded = forwarded;
            self.moved = now;
        }
        self.is_there || now.wrapping_sub(self.moved) > QUIET_WAIT_NS
    }
}

/// Keeps the sender for a moment, since a reader that is nearly as fast would otherwise lose it to TCP at every stumble. Whether there is
/// room now.
#[inline(always)]
fn gets_room(half: &Half, settings: &Settings) -> bool {
    let mut room = Room {
        to_sock: half.to_sock,
        rmem_alloc: settings.offsets.rmem_alloc,
        bytes_max: bytes_max(settings),
        began: now(),
        is_there: false,
    };
    repeat::<_, ROOM_LOOKS_MAX>(ROOM_LOOKS_MAX, &mut room);
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

/// Bytes that may wait for a program that is joined: more than elsewhere, since what finds no room takes the long way.
#[inline(always)]
fn bytes_max(settings: &Settings) -> u32 {
    2 * settings.shortcut_bytes_max
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
fn is_untouched(settings: &Settings, told: &Told) -> bool {
    let offsets = &settings.offsets;
    socket::read::<u64>(told.via_sock, offsets.cookie) == Some(told.via_cookie)
        && socket::read::<u64>(told.to_sock, offsets.cookie) == Some(told.to_cookie)
        && are_ends(word(told.via_sock, offsets.ports), word(told.to_sock, offsets.ports))
        && word(told.via_sock, offsets.write_seq) == told.via_first
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
