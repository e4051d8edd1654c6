//! An enrolled socket sends: straight into its peer's receive queue, or past the agent into the other program's ([`crate::join`]), or
//! through TCP.
//!
//! Always returns "pass": with a redirect set the bytes go to the peer, without one they go through TCP. The helper's own verdict
//! is not returned, because on a miss it would fail the program's write (trap T15).

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action::SK_PASS},
    macros::sk_msg,
    programs::SkMsgContext,
};
use sockway_common::{
    capture::{Settings, settings_flags},
    counter::Counter,
    join::{Half, half_flags, half_state},
};

use crate::{
    count, join,
    maps::{HALVES, MEETINGS, SETTINGS, SHORTCUT},
    socket,
};

/// How many times the bound of a shortcut the agent's own sockets may queue for a joined program: with what TCP holds on the way, a reader that never
/// reads has less than 5 MiB.
const ROOMY_FACTOR: u32 = 3;

/// A message of an enrolled socket.
#[sk_msg]
pub fn send_direct(ctx: SkMsgContext) -> u32 {
    // SAFETY: the hook's context; the union holds the socket pointer.
    let socket = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if !socket.is_null()
        && let Some(half) = socket::stored(&HALVES, socket.cast())
        && let Some(settings) = SETTINGS.get(0)
    {
        choose_way(&ctx, half, settings);
    }
    SK_PASS
}

#[inline(always)]
fn choose_way(ctx: &SkMsgContext, half: &mut Half, settings: &Settings) {
    let is_off = settings.flags & settings_flags::SHORTCUT == 0;
    if half.state == half_state::WAITING
        && let Err(why) = meet(half, settings, is_off)
    {
        half.flags &= !half_flags::MAY_JOIN;
        return fall_back(half, why);
    }
    if half.flags & half_flags::MAY_JOIN != 0 && join::goes_straight(ctx, half, settings, is_off) {
        return;
    }
    if half.state == half_state::JOINED
        && let Err(why) = try_peer(ctx, half, settings, is_off)
    {
        fall_back(half, why);
    }
}

/// Bytes that pass through TCP must not be overtaken by later ones (trap T6): this direction does not come back, unless it is joined with
/// another program's.
#[inline(always)]
fn fall_back(half: &mut Half, why: Counter) {
    half.state = half_state::FALLBACK;
    count::one(why);
    count::of_service(half.service, |stats| stats.fallbacks += 1);
}

#[inline(always)]
fn try_peer(ctx: &SkMsgContext, half: &mut Half, settings: &Settings, is_off: bool) -> Result<(), Counter> {
    check_room(half, settings, is_off)?;
    if !redirect(ctx, half.peer_cookie) {
        return Err(Counter::FallbackGone);
    }
    let bytes = u64::from(ctx.size());
    half.redirected_bytes += bytes;
    count::redirected(half.service, bytes, false);
    Ok(())
}

/// Sends the message into the receive queue of the socket with this cookie; false when there is none.
#[inline(always)]
pub fn redirect(ctx: &SkMsgContext, mut cookie: u64) -> bool {
    SHORTCUT.redirect_msg(ctx, &mut cookie, u64::from(BPF_F_INGRESS)) == i64::from(SK_PASS)
}

/// The client's first message: has the server been enrolled? If not, these bytes go through TCP, and so must all that follow.
#[inline(always)]
fn meet(half: &mut Half, settings: &Settings, is_off: bool) -> Result<(), Counter> {
    if is_off {
        return Err(Counter::FallbackOff);
    }
    let key = half.key;
    let Some(meeting) = MEETINGS.get_ptr(&key) else { return Err(Counter::FallbackEarly) };
    // SAFETY: copied once; the memory may be another's by now, which is why the socket itself is asked below.
    let meeting = unsafe { core::ptr::read_volatile(meeting) };
    let _ = MEETINGS.remove(&key);
    if meeting.server_cookie == 0 {
        return Err(Counter::FallbackEarly);
    }
    if !socket::is_peer(
        meeting.server_sock,
        meeting.server_cookie,
        &key.client,
        &key.server,
        key.client_sequence,
        settings,
    ) {
        return Err(Counter::FallbackGone);
    }
    half.peer_cookie = meeting.server_cookie;
    half.peer_sock = meeting.server_sock;
    half.limit_bytes = socket::receive_limit(half.peer_sock, settings);
    // A connection that will be joined waits for that: what it sends to the agent first must be passed on before it can be.
    half.state = if half.flags & half_flags::HOLD != 0 { half_state::HELD } else { half_state::JOINED };
    Ok(())
}

/// There must be room in the peer's receive queue: an ingress redirect knows no bound of its own (trap T13). A peer that is gone may
/// answer anything here, since its memory may be another's by now; whether it is gone the lookup by its cookie tells (trap T17).
///
/// A shortcut that was switched off ends when the queue is empty: a reader woken once, for bytes of both ways, would stop after the first.
#[inline(always)]
fn check_room(half: &Half, settings: &Settings, is_off: bool) -> Result<(), Counter> {
    let queued: i32 = socket::read(half.peer_sock, settings.offsets.rmem_alloc).ok_or(Counter::FallbackGone)?;
    // What a joined program sent through the agent must still find room behind what it sent straight, or the two stay apart for good.
    let is_roomy = half.flags & half_flags::ROOMY != 0;
    let limit = if is_roomy { ROOMY_FACTOR * settings.shortcut_bytes_max } else { half.limit_bytes };
    if is_off && queued == 0 {
        Err(Counter::FallbackOff)
    } else if queued as u32 > limit {
        Err(Counter::FallbackFull)
    } else {
        Ok(())
    }
}
