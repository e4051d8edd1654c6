//! `/run/sockway/<instance>.json`: says where the agent of an instance answers, and by its lock that it lives.
//!
//! The lock goes with the process however it ends, so that a file without a lock is a dead agent's, and pids that come round deceive nobody.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where run-time files are.
pub const DIRECTORY: &str = "/run/sockway";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The agent's process.
    pub pid: u32,
    /// Where its admin endpoint answers.
    pub admin: SocketAddr,
    /// Its Unix socket; earlier agents had none.
    #[serde(default)]
    pub socket: PathBuf,
}

/// Why there is no run-time file.
#[derive(Debug, thiserror::Error)]
pub enum RunfileError {
    /// Another agent of this instance lives.
    #[error("{}: another agent of this instance is running{}; stop it, or give this one another instance", path.display(), pid_text(*pid))]
    Taken {
        /// The file.
        path: PathBuf,
        /// Its process, if the file says so already.
        pid: Option<u32>,
    },
    /// The file cannot be made or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A run-time file that is ours. Dropping it removes it.
#[derive(Debug)]
pub struct Runfile {
    path: PathBuf,
    file: File,
}

impl Runfile {
    /// Takes the instance's file, replacing a dead agent's.
    ///
    /// # Errors
    ///
    /// When another agent has it, or the file cannot be made.
    pub fn take(directory: &Path, instance: &str) -> Result<Self, RunfileError> {
        let path = path(directory, instance);
        let failed = |source| RunfileError::Io { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
            match file.try_lock() {
                // The agent before us may have removed the file between our opening and our locking it: then this lock guards nothing.
                Ok(()) if is_at(&file, &path) => return Ok(Self { path, file }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = read(&path).map(|running| running.pid);
                    return Err(RunfileError::Taken { path, pid });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }

    /// Says where the agent answers.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&mut self, running: &Running) -> Result<(), RunfileError> {
        let text = serde_json::to_string(running).unwrap_or_default() + "\n";
        self.file
            .set_len(0)
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .map_err(|source| RunfileError::Io { path: self.path.clone(), source })
    }
}

impl Drop for Runfile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The agent of this instance, if one lives.
pub fn find(directory: &Path, instance: &str) -> Option<Running> {
    let path = path(directory, instance);
    match File::open(&path).ok()?.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read(&path),
        _ => None,
    }
}

/// Removes the file and the socket of an agent that did not live to do it.
pub fn remove_dead(directory: &Path, instance: &str) {
    let socket = socket(directory, instance);
    if path(directory, instance).exists() || socket.exists() {
        // Taken and dropped: a living agent's is not to be had.
        if let Ok(_taken) = Runfile::take(directory, instance) {
            let _ = fs::remove_file(&socket);
        }
    }
}

/// Where the admin endpoint's Unix socket is, unless the configuration says otherwise.
pub fn socket(directory: &Path, instance: &str) -> PathBuf {
    directory.join(format!("{instance}.sock"))
}

fn path(directory: &Path, instance: &str) -> PathBuf {
    directory.join(format!("{instance}.json"))
}

fn read(path: &Path) -> Option<Running> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running { pid: 7, admin: SocketAddr::from(([127, 0, 0, 1], 9901)), socket: "/a.sock".into() }
    }

    #[test]
    fn a_running_agent_is_found_and_keeps_others_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut runfile = Runfile::take(directory.path(), "a").expect("free");
        runfile.write(&running()).expect("writable");
        assert_eq!(find(directory.path(), "a"), Some(running()));
        let error = Runfile::take(directory.path(), "a").expect_err("taken");
        assert!(matches!(error, RunfileError::Taken { pid: Some(7), .. }), "{error}");
        Runfile::take(directory.path(), "b").expect("another instance is free");
    }

    #[test]
    fn the_file_goes_with_the_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        Runfile::take(directory.path(), "a").expect("free").write(&running()).expect("writable");
        assert!(!directory.path().join("a.json").exists());
        assert_eq!(find(directory.path(), "a"), None);
    }

    #[test]
    fn a_dead_agents_file_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("a.json"), "{\"pid\":1,\"admin\":\"127.0.0.1:1\"} and what was longer")
            .expect("writable");
        assert_eq!(find(directory.path(), "a"), None);
        let mut runfile = Runfile::take(directory.path(), "a").expect("nobody holds it");
        runfile.write(&running()).expect("writable");
        assert_eq!(find(directory.path(), "a"), Some(running()));
    }

    #[test]
    fn a_dead_agents_file_is_removed_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("a.json"), "{}").expect("writable");
        ["a.sock", "b.sock", "c.sock"]
            .iter()
            .for_each(|name| fs::write(directory.path().join(name), "").expect("writable"));
        let _living = Runfile::take(directory.path(), "b").expect("free");
        for instance in ["a", "b", "c"] {
            remove_dead(directory.path(), instance);
        }
        let left = ["a", "b", "c"].map(|instance| path(directory.path(), instance).exists());
        assert_eq!(left, [false, true, false]);
        let left = ["a", "b", "c"].map(|instance| socket(directory.path(), instance).exists());
        assert_eq!(left, [false, true, false]);
    }
}
