//! Bytes to events: one file or folder per protocol, a limit on every length. Nothing here touches a socket; nothing a peer sends panics.

pub mod chunked;
pub mod edit;
pub mod grpc;
#[cfg(any(test, fuzzing))]
pub mod hold;
pub mod http1;
pub mod http2;
pub mod sniff;
#[cfg(test)]
mod tests;
pub mod translate;
pub mod websocket;
