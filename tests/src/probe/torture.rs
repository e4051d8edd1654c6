//! Torture: two programs that use connections in every way a program can, and check every byte and every end.
//!
//! Each transfer has a number. The side that leads it sends the number as the first eight bytes; both sides derive the same [`plan`]
//! from it and the run's seed: how much goes each way ([`stream`] says which bytes), how it is written and read ([`write`], [`read`]),
//! and who ends it how ([`talk`]). What the kernel is known to do differently on enrolled sockets is done around, as a robust program would, and counted
//! ([`watch`]). A connection that does not end in time is a hang: the watchdog tells its state and ends the program.

pub mod client;
pub mod conduct;
mod dial;
mod plan;
mod read;
pub mod server;
mod stream;
mod talk;
mod wait;
mod watch;
mod write;

/// Longest life of one connection: two orders of magnitude above what the slowest plan takes on an idle machine.
const LIFE_MAX: std::time::Duration = std::time::Duration::from_secs(45);

/// Number by which the client tells the server that all is done.
const END: u64 = u64::MAX;
