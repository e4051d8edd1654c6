//! The harness: everything that a test of the whole agent stands on.
//!
//! A test sets a [`stage::Stage`] (cgroups, addresses and sockets of its own), starts an [`agent::Agent`] on it and looks at what
//! unmodified programs see. In the order in which a test meets them:
//!
//! - [`stage`]: what one test owns; skips loudly where root tests are switched off;
//! - [`config`]: what the agent is told, as YAML;
//! - [`agent`]: the binary under test, from start to the last trace it leaves; [`refused`]: one that the kernel takes in parts only;
//! - [`origin`], [`web`], [`datagram`]: endpoints that say their name, in threads of the test;
//! - [`peers`]: real programs: curl, python3, wrk, nginx, nghttpd, redis; [`databases`]: those that keep data;
//! - [`frames`]: one side of an HTTP/2 connection, frame by frame; [`tls`]: certificates, and either side of a TLS connection;
//! - [`twice`], [`filtered`]: a service for clients of HTTP/1 and of HTTP/2, asked by curl; [`translation`]: a hop between the two;
//! - [`slow`]: an endpoint that takes its time;
//! - [`pod`]: a program in a namespace of its own, and a client outside;
//! - [`pair`]: two sockets joined by the shortcut;
//! - [`torture`]: connections used in every way, on every path;
//! - [`door`]: sockets made and connected inside a cgroup and a namespace, handed to the test;
//! - [`counts`]: what a limited service has given out;
//! - [`cgroup`], [`netns`], [`process`]: what the kernel separates programs by; all gone when dropped;
//! - [`address`], [`answer`], [`metrics`], [`patience`], [`pins`], [`socket`], [`wait`]: the small things.
//!
//! Capture goes by the cgroup of a socket, so a test never dials from its own process: it asks a [`door::Door`] inside the captured
//! cgroup, or starts a real program there. Nothing sleeps: every condition is waited for, with a deadline.

pub mod address;
pub mod agent;
pub mod answer;
pub mod cgroup;
pub mod config;
pub mod counts;
pub mod databases;
pub mod datagram;
pub mod door;
pub mod filtered;
pub mod frames;
pub mod metrics;
pub mod netns;
pub mod origin;
pub mod pair;
pub mod patience;
pub mod peers;
pub mod pins;
pub mod pod;
pub mod process;
pub mod refused;
pub mod slow;
pub mod socket;
pub mod stage;
pub mod tls;
pub mod torture;
pub mod translation;
pub mod twice;
pub mod wait;
pub mod web;
