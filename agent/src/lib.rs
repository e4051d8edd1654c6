//! Sockway's agent.
#![deny(unsafe_code)]

// words
pub mod cluster;
pub mod config;
// the rooms, in path order
pub mod kernel;
