//! Real databases, unmodified: MariaDB and PostgreSQL as Debian ships them. Each has a folder of its own, and neither wants to be root.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    peers,
    process::{self, Process, Room},
    wait,
};

/// `nobody`, as whom they run.
const NOBODY: u32 = 65_534;

/// A folder in the temporary one that `nobody` may write to.
fn folder() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    chown(directory.path(), Some(NOBODY), None).expect("a folder of nobody's");
    directory
}

/// A MariaDB server that knows no users: everybody may do everything.
#[derive(Debug)]
pub struct MariaDb {
    _process: Process,
    _directory: TempDir,
}

impl MariaDb {
    /// Starts it and waits until it listens.
    pub fn start(room: Room<'_>, address: SocketAddr) -> Self {
        let directory = folder();
        let data = directory.path().join("data");
        fs::create_dir(&data).expect("a folder");
        chown(&data, Some(NOBODY), None).expect("a folder of nobody's");
        let mut command = Command::new("/usr/sbin/mariadbd");
        command.arg("--no-defaults").arg(told("datadir", &data));
        command.arg(told("socket", &directory.path().join("socket")));
        command.arg(told("pid-file", &directory.path().join("pid")));
        command.args([format!("--bind-address={}", address.ip()), format!("--port={}", address.port())]);
        command.args(["--skip-grant-tables", "--skip-name-resolve", "--skip-log-bin", "--innodb-use-native-aio=0"]);
        command.args(["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--max-allowed-packet=64M"]);
        let mut process = Process::spawn(room.as_user(NOBODY), command);
        wait::until("mariadbd to listen", wait::SOON, || {
            assert!(process.ended().is_none(), "mariadbd: {}", process.stderr());
            process.stderr().contains("ready for connections")
        });
        Self { _process: process, _directory: directory }
    }

    /// What the `mariadb` client prints for these statements, without the names of columns.
    #[track_caller]
    pub fn query(room: Room<'_>, address: SocketAddr, statements: &str) -> String {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--protocol=tcp", "--skip-column-names", "--batch", "--max-allowed-packet=64M"]);
        command.arg(format!("--host={}", address.ip())).arg(format!("--port={}", address.port()));
        command.arg("--execute").arg(statements);
        printed("mariadb", &process::run(room, command))
    }
}

/// `--key=path`.
fn told(key: &str, path: &Path) -> String {
    format!("--{key}={}", path.display())
}

/// A PostgreSQL server that trusts everybody.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    _directory: TempDir,
}

impl Postgres {
    /// Makes its database, starts it and waits until it listens.
    pub fn start(room: Room<'_>, address: SocketAddr) -> Self {
        let directory = folder();
        let data = directory.path().join("data");
        let room = room.as_user(NOBODY);
        let mut make = Command::new(postgres("initdb"));
        make.arg("--pgdata").arg(&data).args(["--username", "test", "--auth", "trust", "--no-sync"]);
        make.args(["--no-instructions", "--locale", "C", "--encoding", "UTF8"]).current_dir("/");
        printed("initdb", &process::run(room, make));
        let mut command = Command::new(postgres("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).current_dir("/");
        command.args(["-p", &address.port().to_string(), "-c", &format!("listen_addresses={}", address.ip())]);
        command.args(["-c", "fsync=off", "-c", "shared_buffers=8MB"]);
        let mut process = Process::spawn(room, command);
        wait::until("postgres to listen", wait::SOON, || {
            assert!(process.ended().is_none(), "postgres: {}", process.stderr());
            process.stderr().contains("ready to accept connections")
        });
        Self { process, _directory: directory }
    }

    /// What `psql` prints for these statements: values alone, columns with `|` between them.
    #[track_caller]
    pub fn query(room: Room<'_>, address: SocketAddr, statements: &str) -> String {
        let mut command = Self::client("psql", address);
        command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--set", "ON_ERROR_STOP=1"]);
        command.args(["--command", statements]);
        printed("psql", &process::run(room, command))
    }

    /// What `pgbench` reports with these arguments.
    #[track_caller]
    pub fn pgbench(room: Room<'_>, address: SocketAddr, arguments: &[&str]) -> String {
        let mut command = Self::client("pgbench", address);
        command.args(arguments);
        printed("pgbench", &process::run(room, command))
    }

    fn client(program: &str, address: SocketAddr) -> Command {
        let mut command = Command::new(postgres(program));
        command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-U", "test"]);
        command.env("PGDATABASE", "postgres").current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Told to stop it gives back the shared memory that it holds by a key; killed, it could not.
        self.process.signal(Signal::SIGINT);
        wait::until("postgres to end", wait::SOON, || self.process.ended().is_some());
    }
}

/// A program of PostgreSQL's, of the newest version that is here: Debian keeps each version in a folder of its own.
fn postgres(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin").join(program)).filter(|path| path.is_file()).max();
    newest.unwrap_or_else(|| panic!("there is no {program} below /usr/lib/postgresql: `cargo xtask setup` installs it"))
}

#[track_caller]
fn printed(program: &str, output: &Output) -> String {
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    peers::stdout(output)
}
