//! The kernel half's per-CPU counters: one for each way a hook can end. The discriminant is the index in the array.

/// An enum of counters, each with its metric's name, labels and help: its discriminant is its index where counts are kept.
///
/// The two halves count by the same rule and keep their counts in different places: a per-CPU array here, a worker's slab there.
#[macro_export]
macro_rules! counters {
    (
        $(#[$about:meta])+ $counter:ident:
        $($(#[doc = $doc:literal])+ $variant:ident = $name:literal [$($label:literal = $value:literal),*],)+
    ) => {
        $(#[$about])+
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter { $($(#[doc = $doc])+ $variant,)+ }

        impl $counter {
            /// All of them, in the order of their indexes.
            pub const ALL: &'static [$counter] = &[$($counter::$variant,)+];

            /// Name of the metric, without the prefix that all of them have.
            pub const fn name(self) -> &'static str {
                match self { $($counter::$variant => $name,)+ }
            }

            /// Labels of the metric.
            pub const fn labels(self) -> &'static [(&'static str, &'static str)] {
                match self { $($counter::$variant => &[$(($label, $value)),*],)+ }
            }

            /// What it counts, in a sentence.
            pub const fn help(self) -> &'static str {
                match self { $($counter::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

/// Every counter, in the order of their indexes.
pub const ALL: &[Counter] = Counter::ALL;
/// How many counters there are.
pub const COUNT: usize = ALL.len();

counters! {
    /// One way a hook can end. The prefix of the metrics is `sockway_kernel_`.
    Counter:
    /// connect() of an address that is no service: untouched.
    ConnectNotService = "connects_total" ["verdict" = "not_service"],
    /// connect() by the agent itself: untouched.
    ConnectOwn = "connects_total" ["verdict" = "own"],
    /// connect() left out by a capture rule (cgroup, network namespace or user): untouched.
    ConnectExcluded = "connects_total" ["verdict" = "excluded"],
    /// connect() balanced in the kernel, straight to an endpoint.
    ConnectBalanced = "connects_total" ["verdict" = "balanced"],
    /// connect() handed to the agent.
    ConnectAgent = "connects_total" ["verdict" = "agent"],
    /// connect() of an agent service balanced in the kernel because the namespace has no listener of the agent.
    ConnectNoListener = "connects_total" ["verdict" = "fail_open_no_listener"],
    /// connect() of an agent service balanced in the kernel because the socket on the agent's port is not the agent's, or is gone.
    ConnectNotTagged = "connects_total" ["verdict" = "fail_open_not_tagged"],
    /// connect() of an agent service balanced in the kernel because the agent's heartbeat is old.
    ConnectHung = "connects_total" ["verdict" = "fail_open_hung"],
    /// connect() of an agent service balanced in the kernel because there is no room to tell the agent what was dialled.
    ConnectNoRoom = "connects_total" ["verdict" = "fail_open_no_room"],
    /// connect() of an agent service balanced in the kernel because the socket is bound to a network device, which the agent is not behind.
    ConnectBoundDevice = "connects_total" ["verdict" = "fail_open_bound_device"],
    /// connect() to a service's address by the kernel itself (NFS, SMB, MPTCP's path manager): untouched.
    ConnectKernel = "connects_total" ["verdict" = "kernel"],
    /// connect() of a service that has no endpoint at all: untouched.
    ConnectNoEndpoint = "connects_total" ["verdict" = "no_endpoint"],
    /// connect() untouched because the socket's state could not be stored (out of memory).
    ConnectNoStorage = "connects_total" ["verdict" = "no_storage"],
    /// Datagrams to an address that is no service: untouched.
    SendNotService = "sends_total" ["verdict" = "not_service"],
    /// Datagrams of the agent itself: untouched.
    SendOwn = "sends_total" ["verdict" = "own"],
    /// Datagrams left out by a capture rule (cgroup, network namespace or user): untouched.
    SendExcluded = "sends_total" ["verdict" = "excluded"],
    /// Datagrams of the kernel itself to a service's address: untouched.
    SendKernel = "sends_total" ["verdict" = "kernel"],
    /// Datagrams that began a conversation: an endpoint was chosen.
    SendBalanced = "sends_total" ["verdict" = "balanced"],
    /// Datagrams to the endpoint of a conversation under way.
    SendKept = "sends_total" ["verdict" = "kept"],
    /// Datagrams of a conversation whose endpoint may not be used any more: another was chosen.
    SendMoved = "sends_total" ["verdict" = "moved"],
    /// Datagrams with an address on a socket that is connected to the same service: to the endpoint it is connected to.
    SendConnected = "sends_total" ["verdict" = "connected"],
    /// Datagrams to a service that has no endpoint at all: untouched.
    SendNoEndpoint = "sends_total" ["verdict" = "no_endpoint"],
    /// Datagrams untouched because the socket's conversations could not be stored (out of memory).
    SendNoStorage = "sends_total" ["verdict" = "no_storage"],
    /// Conversations forgotten because their socket had more than eight at once: late replies show the endpoint's own address.
    ConversationEvicted = "conversations_evicted_total" [],
    /// Connected UDP sockets that found no room in their table: they are not told when their endpoint is gone.
    ConnectedFull = "connected_full_total" [],
    /// Datagrams received that seem to come from the address that was asked.
    ReplyReversed = "replies_total" ["result" = "reversed"],
    /// Datagrams received from others: untouched.
    ReplyStranger = "replies_total" ["result" = "stranger"],
    /// Sockets sent to the agent that keep the address which they would have had.
    SourceBound = "sources_total" ["result" = "bound"],
    /// Sockets sent to the agent with a loopback address, because the one they would have had is gone.
    SourceRefused = "sources_total" ["result" = "refused"],
    /// connect() over a limit of its service: refused, ECONNREFUSED.
    ConnectRefused = "connects_total" ["verdict" = "over_limit_refused"],
    /// connect() over a limit of its service: forbidden, EPERM.
    ConnectForbidden = "connects_total" ["verdict" = "over_limit_forbidden"],
    /// connect() over a limit of its service: untouched.
    ConnectOver = "connects_total" ["verdict" = "over_limit_passed"],
    /// Connects over the limit of the service's connections at once.
    OverServiceConnections = "over_limit_total" ["limit" = "connections"],
    /// Connects over the limit of the service's connections per second.
    OverServiceRate = "over_limit_total" ["limit" = "connections_per_second"],
    /// Connects over the limit of one source's connections at once.
    OverSourceConnections = "over_limit_total" ["limit" = "per_source_connections"],
    /// Connects over the limit of one source's connections per second.
    OverSourceRate = "over_limit_total" ["limit" = "per_source_connections_per_second"],
    /// Connects that a limit could not count because its table was full: they passed.
    LimitTableFull = "limits_uncounted_total" [],
    /// Endpoints ejected in the kernel after handshakes that failed in a row.
    Ejected = "ejections_total" [],
    /// getpeername() answered with the address that was dialled.
    PeerName = "peer_names_total" [],
    /// Original destinations published for the agent.
    OriginalPublished = "originals_total" ["result" = "published"],
    /// Original destinations that found no room in the table.
    OriginalFull = "originals_total" ["result" = "full"],
    /// Original destinations that the accepting socket found no memory for.
    OriginalLost = "originals_total" ["result" = "no_memory"],
    /// Introductions of the dialling end published for the accepting end.
    IntroductionPublished = "introductions_total" ["result" = "published"],
    /// Introductions taken by the accepting end: its program hears the real client, or what was dialled.
    IntroductionTaken = "introductions_total" ["result" = "taken"],
    /// accept() and getpeername() answered with the address of the client for whom the agent dialled.
    SourceName = "source_names_total" [],
    /// SO_ORIGINAL_DST answered with the address that the client dialled.
    OriginalAnswered = "original_dst_answers_total" [],
    /// Lookups for a listener on a port that no inbound rule names: untouched.
    InboundOther = "inbound_lookups_total" ["verdict" = "other_port"],
    /// Lookups for a connection from the address that it goes to, the agent's own among them: to the program directly.
    InboundSelf = "inbound_lookups_total" ["verdict" = "self"],
    /// Lookups for a connection from an address of the node itself, as health probes come: to the program directly.
    InboundNode = "inbound_lookups_total" ["verdict" = "node"],
    /// Lookups for a connection from a source that the rule passes: to the program directly.
    InboundPassed = "inbound_lookups_total" ["verdict" = "passed"],
    /// Lookups for a connection from a source that the rule denies: refused.
    InboundDenied = "inbound_lookups_total" ["verdict" = "denied"],
    /// Lookups that gave a listener of the agent.
    InboundSteered = "inbound_lookups_total" ["verdict" = "agent"],
    /// Lookups that went to the program directly because the agent has no listener there, or is gone.
    InboundNoListener = "inbound_lookups_total" ["verdict" = "fail_open_no_listener"],
    /// Lookups that went to the program directly because the agent's heartbeat is old.
    InboundHung = "inbound_lookups_total" ["verdict" = "fail_open_hung"],
    /// Handshakes with an endpoint that failed.
    HandshakeFailed = "handshakes_failed_total" [],
    /// Events that found no room in the ring buffer.
    EventLost = "events_lost_total" [],
    /// Handshakes not measured because there was no room for another endpoint in the table of latencies.
    LatencyFull = "latencies_lost_total" [],
    /// Connects not counted for their endpoint because there was no room for another in the table of endpoints' counts: they passed.
    EndpointStatsFull = "endpoint_connects_lost_total" [],
    /// Flows reported to a watcher.
    FlowReported = "flows_total" ["result" = "reported"],
    /// Flows not reported because the watcher had set a rate, and there were more.
    FlowOverRate = "flows_total" ["result" = "over_rate"],
    /// Flows not reported because the watcher was slow to read: no room in the ring buffer.
    FlowLost = "flows_total" ["result" = "lost"],
    /// Sockets enrolled for the shortcut at the dialling end.
    ShortcutClient = "shortcut_sockets_total" ["result" = "client"],
    /// Sockets enrolled for the shortcut at the accepting end: pairs joined.
    ShortcutServer = "shortcut_sockets_total" ["result" = "server"],
    /// Sockets not enrolled because their peer is not on this host or its rule says no.
    ShortcutPeerRemote = "shortcut_sockets_total" ["result" = "peer_not_allowed"],
    /// Sockets not enrolled because they speak MPTCP.
    ShortcutMptcp = "shortcut_sockets_total" ["result" = "mptcp"],
    /// Sockets not enrolled because the kernel refused (another owner, kTLS, out of memory).
    ShortcutRefused = "shortcut_sockets_total" ["result" = "refused"],
    /// Messages that went from socket to socket.
    ShortcutMessages = "shortcut_messages_total" [],
    /// Bytes that went from socket to socket.
    ShortcutBytes = "shortcut_bytes_total" [],
    /// Directions that fell back to TCP because the first bytes were sent before the peer was enrolled.
    FallbackEarly = "shortcut_fallbacks_total" ["reason" = "early"],
    /// Directions that fell back to TCP because the peer's receive queue was at its bound.
    FallbackFull = "shortcut_fallbacks_total" ["reason" = "full"],
    /// Directions that fell back to TCP because the peer is gone.
    FallbackGone = "shortcut_fallbacks_total" ["reason" = "gone"],
    /// Directions that fell back to TCP because the shortcut was switched off.
    FallbackOff = "shortcut_fallbacks_total" ["reason" = "off"],
    /// Directions that began to go past the agent, from one program's socket to the other's.
    JoinBegan = "joined_directions_total" ["result" = "began"],
    /// Directions that went past the agent once more, after they had fallen back.
    JoinCameBack = "joined_directions_total" ["result" = "came_back"],
    /// Directions that go to the agent by the shortcut, since the other program cannot be joined.
    JoinRefused = "joined_directions_total" ["result" = "refused"],
    /// Messages that went past the agent; they are among the shortcut's.
    JoinMessages = "joined_messages_total" [],
    /// Bytes that went past the agent; they are among the shortcut's.
    JoinBytes = "joined_bytes_total" [],
    /// Joined directions that fell back to TCP and the agent because the receive queue was at its bound.
    JoinFull = "joined_fallbacks_total" ["reason" = "full"],
    /// Joined directions that fell back because the receiver is gone.
    JoinGone = "joined_fallbacks_total" ["reason" = "gone"],
    /// Joined directions that fell back because the shortcut was switched off.
    JoinOff = "joined_fallbacks_total" ["reason" = "off"],
    /// Joined directions that fell back because another thread was still sending through TCP.
    JoinInterleaved = "joined_fallbacks_total" ["reason" = "interleaved"],
    /// Joined directions that fell back because the agent had given the pair up.
    JoinEnded = "joined_fallbacks_total" ["reason" = "ended"],
    /// connect() to a service whose breaker is open: refused, ECONNREFUSED.
    ConnectOpen = "connects_total" ["verdict" = "breaker_open"],
}
