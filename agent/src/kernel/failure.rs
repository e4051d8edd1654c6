//! How the kernel half can fail, told with its phase; and what to do about it.

use std::{io, path::PathBuf};

use super::{
    alone::Alone,
    refused::{self, Refused},
    rights, size,
};

/// Why the kernel half could not be loaded, attached or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the variants are")]
pub enum KernelError {
    #[error("this binary was built without the kernel half")]
    NotBuilt,
    #[error("the two halves do not match: {what}")]
    Abi { what: String },
    #[error("{}: pinned by another version: {what}", path.display())]
    PinnedAbi { path: PathBuf, what: String },
    #[error("{what}")]
    Rights { what: String },
    #[error("cgroup v2 is not mounted")]
    NoCgroup,
    #[error("cgroup {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("mounting bpffs at {}: {source}", path.display())]
    Bpffs { path: PathBuf, source: io::Error },
    #[error("watching the tree of cgroups: {source}")]
    Inotify { source: io::Error },
    #[error("pinning at {}: {source}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("pinning a link at {}: {source}", path.display())]
    PinLink { path: PathBuf, source: Box<aya::pin::PinError> },
    #[error("reading the kernel half: {}", chain(source.as_ref()))]
    Object { source: Box<aya_obj::ParseError> },
    #[error("loading the kernel half: {}", chain(source.as_ref()))]
    Load { source: Box<aya::EbpfError> },
    #[error("loading the program `{hook}`: {}", refused::reason(source))]
    Program { hook: String, source: Box<aya::programs::ProgramError> },
    #[error("this kernel lacks what the kernel half needs: {}", refused::list(refused))]
    Lacks { refused: Vec<Refused> },
    #[error("the kernel half has no program `{name}`")]
    NoProgram { name: String },
    #[error("attaching `{hook}` to {to}: {}", chain(source.as_ref()))]
    Attach { hook: String, to: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("attaching `{hook}` to {to}: {by} lets no other be there")]
    Alone { hook: String, to: String, by: Alone },
    #[error("the kernel half has no map `{name}`")]
    NoMap { name: &'static str },
    #[error("map {name}: {}", chain(source.as_ref()))]
    Map { name: &'static str, source: Box<aya::maps::MapError> },
    #[error("table {table} of the kernel half has no room for {needed} entries; {}", grow(table))]
    NoRoom { table: &'static str, needed: usize },
    #[error("table {table} of the kernel half is full; {}", grow(table))]
    Full { table: &'static str },
    #[error("nothing is attached for instance {instance}: there is no {}", path.display())]
    NotPinned { instance: String, path: PathBuf },
    #[error("nothing is found for instance {instance}: {} is hidden in this mount namespace, as `ip netns exec` hides it", path.display())]
    Hidden { instance: String, path: PathBuf },
    #[error("process {watcher} watches the flows of this instance already, and only one can")]
    Watched { watcher: u32 },
    #[error("{path}: {source}")]
    Cpus { path: &'static str, source: io::Error },
    #[error("listening in network namespace {namespace}: {source}")]
    Listen { namespace: String, source: io::Error },
}

impl KernelError {
    /// What went wrong, and what to do about it.
    pub fn told(&self) -> String {
        let remedy = self.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        format!("{self}{remedy}")
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        // Inotify has a limit of its own.
        if self.is_of(&[libc::EMFILE]) && !matches!(self, Self::Inotify { .. }) {
            return Some("raise its limit of open files: `ulimit -Hn`, or LimitNOFILE of its unit".into());
        }
        // The verifier's no is EACCES, too: then no right is lacking, and the kernel is what to look at.
        let refused_program = matches!(self, Self::Program { .. }) && rights::lacking().is_empty();
        if self.is_permission() && !refused_program {
            let lacking: Vec<&str> = rights::lacking().into_iter().map(|right| right.name).collect();
            return Some(match lacking.as_slice() {
                [] => "the process has every capability: a security module or a container's seccomp profile refuses it"
                    .into(),
                names => format!("run as root, or give {}", names.join(", ")),
            });
        }
        Some(match self {
            Self::NotBuilt => "build with `cargo xtask build`, which embeds it".into(),
            Self::Abi { .. } => "build both halves from one source with `cargo xtask build`".into(),
            Self::PinnedAbi { .. } => {
                "run the version that made them, or a later one; or stop it and take its pins away with `sockway detach`"
                    .into()
            }
            Self::NotPinned { .. } => {
                "start its agent with `sockway run`, or name the right one with --instance".into()
            }
            Self::Hidden { .. } => {
                "run it outside, and ask for a network namespace or a process by --from; or start its agent with `sockway run`"
                    .into()
            }
            Self::Watched { .. } => "wait for its end, or end it".into(),
            Self::NoCgroup => {
                "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified, or set capture.cgroup_mount".into()
            }
            Self::Cgroup { .. } => "make the cgroup, or correct capture.cgroups in the configuration".into(),
            Self::Alone { .. } => "have it attached with BPF_F_ALLOW_MULTI, or leave that cgroup out of capture.cgroups; \
                                   `bpftool cgroup tree` shows both"
                .into(),
            Self::Inotify { .. } => "raise fs.inotify.max_user_instances".into(),
            Self::Bpffs { .. } => "mount it by hand: mount -t bpf bpf /sys/fs/bpf".into(),
            Self::Load { .. } | Self::Program { .. } | Self::Lacks { .. } | Self::Attach { .. } => {
                "`sockway doctor` tells what this kernel lacks; Linux 5.15 or later is needed".into()
            }
            _ => return None,
        })
    }

    /// Exit code by `sysexits.h`: 77 no permission, 69 something this host lacks, 71 a system call that failed.
    pub fn exit_code(&self) -> u8 {
        if self.is_permission() {
            return 77;
        }
        match self {
            Self::Map { .. } | Self::NoRoom { .. } | Self::Full { .. } | Self::Listen { .. } | Self::Cpus { .. } => 71,
            _ => 69,
        }
    }

    fn is_permission(&self) -> bool {
        matches!(self, Self::Rights { .. }) || self.is_of(&[libc::EPERM, libc::EACCES])
    }

    /// Whether the cause is one of these error numbers.
    fn is_of(&self, numbers: &[i32]) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if number.is_some_and(|number| numbers.contains(&number)) {
                return true;
            }
            source = error.source();
        }
        false
    }
}

/// What to do about a table that is too small.
fn grow(table: &str) -> String {
    let key = size::key_of(table);
    let key = key.map_or_else(|| "say less of it".to_owned(), |key| format!("raise maps.{key}, or leave that key out"));
    format!(
        "{key}, and start the agent again: it takes everything over, and nothing is interrupted that the kernel balances"
    )
}

/// An error with its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_for_want_of_descriptors_is_told_so() {
        let full = || io::Error::from_raw_os_error(libc::EMFILE);
        let remedy = |error: KernelError| error.remedy().unwrap();
        let pin = KernelError::Pin { path: "/sys/fs/bpf/x".into(), source: full() };
        assert!(remedy(pin).contains("LimitNOFILE"));
        let program = aya::sys::SyscallError { call: "bpf_prog_load", io_error: full() };
        let program = aya::programs::ProgramError::from(program);
        let program = KernelError::Program { hook: "dial_v4".into(), source: Box::new(program) };
        assert!(remedy(program).contains("LimitNOFILE"));
        assert!(remedy(KernelError::Inotify { source: full() }).contains("max_user_instances"));
    }

    #[test]
    fn what_went_wrong_is_told_with_what_to_do_where_that_is_known() {
        let cgroup = KernelError::Cgroup { path: "/a".into(), source: io::ErrorKind::NotFound.into() };
        let remedy = "make the cgroup, or correct capture.cgroups in the configuration";
        assert_eq!(cgroup.told(), format!("cgroup /a: entity not found; {remedy}"));
        let full = KernelError::Full { table: "SERVICES" };
        assert!(full.to_string().contains("; raise maps.services"), "{full}");
        assert_eq!(full.told(), full.to_string(), "it says so itself");
    }
}
