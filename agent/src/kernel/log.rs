//! What the kernel half logs, rarely: forwarded to the agent's log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// The kernel half's log, not yet on a runtime.
pub struct KernelLog(EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// `None` when the object logs nothing.
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init(ebpf).map(Self).inspect_err(|error| tracing::debug!(%error, "the kernel half has no log")).ok()
    }

    /// Forwards records for as long as the runtime lives. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the descriptor.
    pub async fn forward(self) -> std::io::Result<()> {
        // SAFETY: the logger owns its descriptor and gives the same one for as long as it lives.
        let mut watched = unsafe { AsyncFd::register(self.0) }?;
        loop {
            let mut guard = watched.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}
