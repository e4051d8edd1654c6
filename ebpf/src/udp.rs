//! A program sends a datagram without having connected its socket, or receives one.
//!
//! The verdict on a datagram is the endpoint that it goes to: that of its conversation (this socket, this address) while the endpoint
//! may be used and the conversation is not over, otherwise a new one. A reply of an endpoint seems to come from the address that was
//! asked, also when another endpoint has been chosen since (trap T27); what others send is untouched. Sending and receiving are always
//! allowed. A connected socket's datagrams never come here, unless they name an address.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_current_cgroup_id, bpf_get_socket_cookie},
    },
    macros::cgroup_sock_addr,
    programs::{SockAddrContext, SockContext},
};
use sockway_common::{
    counter::Counter,
    flow::{Address, Conn, UDP, conn_flags},
    service::Service,
    udp::{CONVERSATIONS_MAX, Connected, Conversation, Conversations, conversation_state},
    watch::cause,
};

use crate::{
    caller,
    choose::{self, service_at},
    count, exclude,
    maps::{CONNECTED, CONNS, CONVERSATIONS, FORMER, SETTINGS},
    release,
    repeat::{Turns, repeat},
    socket, watch,
};

/// The hook lets the call go on.
const ALLOW: i32 = 1;
/// Nanoseconds in a millisecond.
const MILLISECOND_NS: u64 = 1_000_000;

/// `sendto()`, `sendmsg()` or `sendmmsg()` to an IPv4 address; of an IPv6 socket too, to an IPv4-mapped address.
#[cgroup_sock_addr(sendmsg4)]
pub fn send_v4(ctx: SockAddrContext) -> i32 {
    match try_send(&ctx, &socket::dialled_v4(ctx.sock_addr)) {
        Ok((to, counter)) => {
            socket::redirect_v4(ctx.sock_addr, &to);
            count::one(counter);
        }
        Err(counter) => count::one(counter),
    }
    ALLOW
}

/// The same to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn send_v6(ctx: SockAddrContext) -> i32 {
    match try_send(&ctx, &socket::dialled_v6(ctx.sock_addr)) {
        Ok((to, counter)) => {
            socket::redirect_v6(ctx.sock_addr, &to);
            count::one(counter);
        }
        Err(counter) => count::one(counter),
    }
    ALLOW
}

/// `recvfrom()`, `recvmsg()` or `recvmmsg()` by which an IPv4 socket asks whom a datagram is from.
#[cgroup_sock_addr(recvmsg4)]
pub fn receive_v4(ctx: SockAddrContext) -> i32 {
    match original(&ctx, &socket::dialled_v4(ctx.sock_addr)) {
        Some(original) => {
            socket::redirect_v4(ctx.sock_addr, &original);
            count::one(Counter::ReplyReversed);
        }
        None => count::one(Counter::ReplyStranger),
    }
    ALLOW
}

/// The same of an IPv6 socket, from an IPv4-mapped address too.
#[cgroup_sock_addr(recvmsg6)]
pub fn receive_v6(ctx: SockAddrContext) -> i32 {
    match original(&ctx, &socket::dialled_v6(ctx.sock_addr)) {
        Some(original) => {
            socket::redirect_v6(ctx.sock_addr, &original);
            count::one(Counter::ReplyReversed);
        }
        None => count::one(Counter::ReplyStranger),
    }
    ALLOW
}

/// Where a datagram to `asked` goes.
#[inline(always)]
fn try_send(ctx: &SockAddrContext, asked: &Address) -> Result<(Address, Counter), Counter> {
    let settings = SETTINGS.get(0).ok_or(Counter::SendNotService)?;
    // SAFETY: plain helper without arguments.
    if unsafe { bpf_get_current_cgroup_id() } == settings.agent_cgroup {
        return Err(Counter::SendOwn);
    }
    let Some(service) = &service_at(asked) else {
        pass_by(ctx, asked);
        return Err(Counter::SendNotService);
    };
    if caller::is_kernel() {
        return Err(Counter::SendKernel);
    }
    exclude::check(ctx, settings, Counter::SendExcluded)?;
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(peer) = connected_peer(ctx, asked, service, now) {
        return Ok((peer, Counter::SendConnected));
    }
    let conversations = socket::stored_or_zeroed(&CONVERSATIONS, socket::of_addr(ctx.sock_addr));
    let conversations = conversations.ok_or(Counter::SendNoStorage)?;

    let mut counter = Counter::SendBalanced;
    if let Some(current) = current(conversations, asked) {
        let idle = now.saturating_sub(current.used_ns) > u64::from(service.udp_idle_ms) * MILLISECOND_NS;
        let usable = current.service == service.id && choose::may_use(service, current.endpoint, now);
        if usable && !idle {
            current.used_ns = now;
            current.sent = current.sent.wrapping_add(1);
            current.state = conversation_state::CURRENT;
            return Ok((current.actual, Counter::SendKept));
        }
        if !usable && !idle {
            counter = Counter::SendMoved;
        }
    }
    let source = choose::source(service, socket::netns(ctx));
    let chosen = choose::endpoint(service, source, now).ok_or(Counter::SendNoEndpoint)?;
    begin(
        conversations,
        &Conversation {
            original: *asked,
            actual: chosen.address,
            service: service.id,
            endpoint: chosen.endpoint,
            sent: 1,
            state: conversation_state::CURRENT,
            used_ns: now,
        },
    );
    release::count_conversation(service.id, chosen.endpoint);
    Ok((chosen.address, counter))
}

/// The endpoint to which `connect()` has turned this socket, if that was for the same address: only from there the kernel takes replies.
/// Of IPv6 also when the socket was let go since (`AF_UNSPEC`): `__udp_disconnect` leaves the peer's address in it, and who listens to
/// datagrams for it goes by that.
#[inline(always)]
fn connected_peer(ctx: &SockAddrContext, asked: &Address, service: &Service, now: u64) -> Option<Address> {
    let conn = socket::stored(&CONNS, socket::of_addr(ctx.sock_addr))?;
    let is_its = conn.original == *asked
        && (socket::is_connected(ctx.sock_addr) || !asked.is_v4() && choose::may_use(service, conn.endpoint, now));
    is_its.then_some(conn.actual)
}

/// The program sends to an address that is no service. If an endpoint is there with which this socket has a conversation, what comes from
/// it next answers this.
#[inline(always)]
fn pass_by(ctx: &SockAddrContext, asked: &Address) {
    let Some(conversations) = socket::stored(&CONVERSATIONS, socket::of_addr(ctx.sock_addr)) else { return };
    for entry in &mut conversations.table {
        if entry.actual == *asked {
            entry.state |= conversation_state::PASSED_BY;
        }
    }
}

/// The conversation with `asked` that goes on, if there is one.
#[inline(always)]
fn current<'a>(conversations: &'a mut Conversations, asked: &Address) -> Option<&'a mut Conversation> {
    conversations
        .table
        .iter_mut()
        .find(|entry| entry.state & conversation_state::CURRENT != 0 && entry.original == *asked)
}

/// Writes a new conversation where the same one stood before, or nothing, or else the one that has been quiet for longest. What went on
/// with the same address until now is kept for its late replies.
#[inline(always)]
fn begin(conversations: &mut Conversations, new: &Conversation) {
    let mut place = Place { conversations, new, index: 0, oldest: u64::MAX };
    repeat::<_, { CONVERSATIONS_MAX as u64 }>(CONVERSATIONS_MAX as u64, &mut place);
    if place.oldest > 1 {
        count::one(Counter::ConversationEvicted);
    }
    place.conversations.table[place.index & (CONVERSATIONS_MAX - 1)] = *new;
}

/// Where a new conversation is written.
struct Place<'a> {
    conversations: &'a mut Conversations,
    new: &'a Conversation,
    index: usize,
    /// Of the entry there: 0 is the same conversation, 1 was never used, and later ones are that much later.
    oldest: u64,
}

impl Turns for Place<'_> {
    #[inline(always)]
    fn turn(&mut self, step: u64) -> bool {
        let index = step as usize & (CONVERSATIONS_MAX - 1);
        let entry = &mut self.conversations.table[index];
        let same = entry.original == self.new.original;
        if same {
            entry.state = conversation_state::FORMER;
        }
        // Nothing is as old as an entry that was never used, but for the entry that is the same.
        let age = if same && entry.actual == self.new.actual { 0 } else { entry.used_ns.saturating_add(1) };
        if age < self.oldest {
            (self.index, self.oldest) = (index, age);
        }
        false
    }
}

/// What the program asked when it is `from` that answers; `None` for a stranger.
#[inline(always)]
fn original(ctx: &SockAddrContext, from: &Address) -> Option<Address> {
    let socket = socket::of_addr(ctx.sock_addr);
    if let Some(conn) = socket::stored(&CONNS, socket)
        && conn.flags & conn_flags::AGENT == 0
        && conn.actual == *from
    {
        return Some(conn.original);
    }
    // Who is connected hears nobody but his peer.
    if socket::is_connected(ctx.sock_addr)
        && let Some(original) = former(socket, from)
    {
        return Some(original);
    }
    let conversations = socket::stored(&CONVERSATIONS, socket)?;
    let mut found: Option<&mut Conversation> = None;
    for entry in &mut conversations.table {
        let later = found.as_ref().is_none_or(|found| found.used_ns < entry.used_ns);
        let answers = entry.state != 0 && entry.state & conversation_state::PASSED_BY == 0;
        if answers && entry.actual == *from && later {
            found = Some(entry);
        }
    }
    let found = found?;
    // SAFETY: plain helper without arguments.
    found.used_ns = unsafe { bpf_ktime_get_ns() };
    Some(found.original)
}

/// A UDP socket has been turned to an endpoint by `connect()`.
#[inline(always)]
pub fn note_connected(ctx: &SockAddrContext) {
    let Some(conn) = socket::stored(&CONNS, socket::of_addr(ctx.sock_addr)) else { return };
    if conn.original.protocol != UDP {
        return;
    }
    if socket::is_connected_to(ctx.sock_addr, &conn.actual) {
        conn.flags |= conn_flags::STAYED;
    }
    let connected = Connected { original: conn.original, actual: conn.actual };
    // SAFETY: the helper takes the hook's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if CONNECTED.insert(&cookie, &connected, 0).is_err() {
        count::one(Counter::ConnectedFull);
    }
}

/// A UDP socket is released: its conversations are over.
#[inline(always)]
pub fn tell_conversations(ctx: &SockContext) {
    // SAFETY: one field of the hook's context.
    let protocol = unsafe { ptr::read_volatile(&raw const (*ctx.sock).protocol) };
    if protocol != u32::from(UDP) || !watch::is_on() {
        return;
    }
    let Some(conversations) = socket::stored(&CONVERSATIONS, ctx.sock.cast()) else { return };
    let netns = socket::netns(ctx);
    for conversation in &mut conversations.table {
        if conversation.state != 0 {
            conversation.state &= !conversation_state::PASSED_BY;
            watch::conversed(conversation, netns);
            // Where capture rules nest, the hook of the outer cgroup comes next.
            conversation.state = 0;
        }
    }
}

/// A UDP socket that was connected to an endpoint is so no more: who watches is told, once.
#[inline(always)]
pub fn tell_ended(conn: &mut Conn, cause: u32) {
    if conn.original.protocol == UDP && conn.flags & conn_flags::ENDED == 0 {
        conn.flags |= conn_flags::ENDED;
        watch::disconnected(conn, cause);
    }
}

/// The same of one that dials anew, and what it was connected to is kept: `connect()` may yet fail, and then it still is. One that dialled in
/// vain before is connected to what is kept already. But an endpoint that is dialled by its own address is called by that.
#[inline(always)]
pub fn replaced(ctx: &SockAddrContext, conn: &mut Conn, dialled: &Address) {
    if conn.original.protocol != UDP {
        return;
    }
    tell_ended(conn, cause::REPLACED);
    if !socket::is_connected_to(ctx.sock_addr, &conn.actual) {
        return forget_former(ctx, dialled);
    }
    let socket = socket::of_addr(ctx.sock_addr);
    if conn.actual == *dialled {
        return socket::forget(&FORMER, socket);
    }
    if let Some(former) = socket::stored_or_zeroed(&FORMER, socket) {
        (former.original, former.actual) = (conn.original, conn.actual);
    }
}

/// A UDP socket dials anew: what is kept of the time before is forgotten, unless the socket still is connected to it.
#[inline(always)]
pub fn forget_former(ctx: &SockAddrContext, dialled: &Address) {
    let socket = socket::of_addr(ctx.sock_addr);
    let Some(former) = socket::stored(&FORMER, socket) else { return };
    if former.actual == *dialled || !socket::is_connected_to(ctx.sock_addr, &former.actual) {
        socket::forget(&FORMER, socket);
    }
}

/// What a socket that is connected to `peer` has dialled, if it dialled in vain since.
#[inline(always)]
pub fn former(socket: *mut c_void, peer: &Address) -> Option<Address> {
    if peer.protocol != UDP {
        return None;
    }
    let former = socket::stored(&FORMER, socket)?;
    (former.actual == *peer).then_some(former.original)
}

/// A UDP socket that was connected to an endpoint is closed, or dials anew: `ctx` is the hook's context.
#[inline(always)]
pub fn forget_connected(ctx: &impl EbpfContext, conn: &Conn) {
    if conn.original.protocol == UDP {
        // SAFETY: the helper takes the hook's context.
        let _ = CONNECTED.remove(&unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    }
}
