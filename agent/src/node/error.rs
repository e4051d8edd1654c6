//! What can go wrong with an agent as a whole.

use std::{io, net::SocketAddr, path::PathBuf};

use super::runfile::RunfileError;
use crate::kernel::KernelError;

/// Why an agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kernel half could not be loaded or attached.
    #[error("kernel half: {0}")]
    Kernel(#[from] KernelError),
    /// The run-time file is another agent's, or cannot be made.
    #[error("run-time file {0}")]
    Runfile(#[from] RunfileError),
    /// The admin address cannot be bound.
    #[error("admin address {address}: {source}; choose another admin.address")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The admin endpoint's Unix socket cannot be made.
    #[error("admin socket {}: {source}; choose another admin.socket", path.display())]
    AdminSocket {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call of the start failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A worker ended by itself: a bug.
    #[error("worker {0} died; this is a bug")]
    WorkerDied(usize),
}

impl NodeError {
    /// By `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Kernel(error) => error.exit_code(),
            Self::Runfile(RunfileError::Taken { .. }) => 69,
            Self::Runfile(RunfileError::Io { source, .. })
            | Self::Admin { source, .. }
            | Self::AdminSocket { source, .. }
            | Self::System { source, .. } => {
                if source.kind() == io::ErrorKind::PermissionDenied {
                    77
                } else {
                    71
                }
            }
            Self::WorkerDied(_) => 70,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => error.remedy(),
            _ => None,
        }
    }
}
