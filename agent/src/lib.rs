//! Sockway's agent: the user half of a transparent proxy for Linux hosts. The kernel half is the crate `ebpf`; what the two agree on is
//! `common`.
//!
//! # The path
//!
//! ```text
//!  program                                                                          endpoint
//!     │ connect(10.96.0.10:80)                                                          ▲
//!     ▼                                                                                 │
//!  connect hook ── no service ──────────────────────────────────────────────────────────┤ untouched
//!  (kernel half)── kernel service, or no agent that lives ── one of its endpoints ──────┤ no cost per packet
//!     │                                                                                 │
//!     │ agent service: 127.0.0.1:PORT in the program's own network namespace            │
//!     ▼                                                                                 │
//!   accept → (kernel: what was dialled?) → route → decode → balance → connect → forward ┘
//!                                                                         │
//!                                                                       record
//! ```
//!
//! A connection that comes in to a declared port takes the same way from the other side:
//!
//! ```text
//!  client ── SYN ──▶ sk_lookup hook ── other port, the node, a program of the namespace itself, no agent that lives ──▶ program
//!                      │
//!                      │ the agent's listener in the namespace; local and remote address stay what they are
//!                      ▼
//!                    accept → route → limit → decode → connect (a socket of the namespace, from the address it goes to) ──▶ program
//!                                                        │
//!                                                        └ introduces the client: the program's accept() tells its address
//! ```
//!
//! A connection walks through rooms, and each room is a file (or a folder behind a front-door file) named after what happens there:
//!
//! | room | takes | gives | when it says no |
//! |---|---|---|---|
//! | [`kernel`] | an accepted connection | what its client dialled | unknown: close |
//! | [`accept`] | a permit, then a listener | a connection | accepts no more until a permit comes back |
//! | [`route`] | the original destination, the snapshot | a service | its service was removed meanwhile: close |
//! | [`filter`] | a request's head, time and chance | what is changed of it and of its response | an answer of its own |
//! | [`limit`] | limits, counts, the time | leave to pass, for what comes in | a reason: reset, and counted |
//! | [`breaker`] | what became of a service's requests, the time | leave to use it | refused, or a fallback |
//! | [`decode`] | bytes | heads, bodies, ends | malformed: a local reply that says why |
//! | [`balance`] | weights and usable endpoints, a counter or chance | an endpoint | none is usable: all are |
//! | [`connect`] | an endpoint | a connection, pooled or new; of HTTP/2 a place on one | it does not accept: the next endpoint |
//! | [`forward`] | two connections | an outcome; opaque ones are joined past the agent where both programs are in the shortcut | an error that knows its side |
//! | [`record`] | an outcome | counters | never |
//!
//! [`proxy`] is the corridor that calls them in order. The frames of HTTP/2 are read and written by the `h2` library, whose bytes
//! [`ring::Io`] moves: a request is a task there, and what all of them have to say leaves once per turn of their connection. [`ring`] is how all of them move bytes, on tokio-uring; under TLS
//! its streams give and take what is said within, and nobody above needs to know. [`health`] judges
//! the endpoints beside the path. [`node`] starts, reloads and ends it all on the main thread, and [`command`] is what a person at a
//! terminal asks. [`config`] and [`cluster`] are the words that everybody uses.
//!
//! # Who may import whom
//!
//! `command` → `node` → `proxy` → hands and judges → `cluster`, `config` → `common`. Hands touch the world and judge nothing: `kernel`
//! (the only door to eBPF), `ring`, `accept`, `connect`, `forward`, `record`. Judges get bytes, time and chance as arguments and give
//! values back: `decode`, `route`, `limit`, `breaker`, `balance`, `health`, `retry`, `deadline`, `filter`. A judge imports no hand and no other judge, but that `filter` sees heads through `route`. `cargo xtask check` reads the `use`
//! lines.
//!
//! # Threads
//!
//! The main thread runs a single-threaded tokio: signals, configuration, the kernel half's events, network namespaces, probes, the admin
//! endpoint. `worker-0…N` each run one io_uring with their own listeners (`SO_REUSEPORT`), buffers, upstream pools and counters. Work
//! never moves between workers; the main thread is never on the path. `pulse` renews the heartbeat while the workers turn and have descriptors. What is
//! node-wide (an endpoint's health, its requests in flight) is shared atomics in [`cluster`]; the configuration in effect is one immutable
//! [`cluster::Snapshot`], swapped whole.
//!
//! # Invariants
//!
//! 1. Judges never read clock, network or chance.
//! 2. Between accept and record no lock is taken and nothing blocks; but for TLS handshakes, where rustls keeps what lets one be resumed, and for
//!    requests that find no room and wait for it ([`cluster::PendingState`]): their line is one for all workers, behind a lock that nobody else takes;
//!    and for a `cache`, whose shards are locked for a look-up and the move of a pointer, never across an await.
//! 3. No read, write or accept in flight on the ring is dropped: a deadline shuts the socket, and the operation ends by itself.
//! 4. In doubt the kernel half passes. A dead or hung agent never stops a program's new connections: the hook looks for a listener with
//!    our tag and for a fresh heartbeat at each connect, and balances by itself otherwise.
//! 5. Every queue, table, buffer and retry has a bound, in the configuration or as a constant with a reason.
//! 6. Nothing a peer sends can panic us.
//! 7. What is taken is given back by dropping it: permits, gauges, connections.
//! 8. A configuration takes effect whole or not at all, and a refused one says why with file, line and key.
#![deny(unsafe_code)]

// Words.
pub mod chance;
pub mod cluster;
pub mod config;

// The node, and what a person asks of it.
pub mod command;
pub mod node;

// The corridor.
pub mod proxy;

// The rooms, in path order.
pub mod kernel;
#[allow(unsafe_code)] // operations on descriptors and addresses that the kernel fills in
pub mod ring;

pub mod accept;
pub mod decode;
pub mod route;

pub mod filter;

pub mod limit;

pub mod breaker;

pub mod balance;
pub mod deadline;
pub mod health;
pub mod retry;

pub mod connect;
pub mod forward;
pub mod record;
