//! Sockway's agent.
#![deny(unsafe_code)]

// words
pub mod cluster;
pub mod config;
// what a person asks, and the node
pub mod command;
pub mod node;
// the corridor
pub mod proxy;
// the rooms, in path order
pub mod accept;
pub mod balance;
pub mod connect;
pub mod decode;
pub mod forward;
pub mod health;
pub mod kernel;
pub mod record;
#[allow(unsafe_code)] // operations on descriptors and addresses that the kernel fills in
pub mod ring;
pub mod route;
