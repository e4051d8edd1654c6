//! Programs started in a cgroup and a network namespace. They end with the test, also when it panics.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal,
    },
    unistd::{Pid, Uid, setuid},
};
use tempfile::NamedTempFile;

use crate::{cgroup::Cgroup, netns::Netns, wait};

/// Deadline of a program that is expected to end by itself.
const RUN_TIME_MAX: Duration = Duration::from_secs(60);

/// Where a program runs. By default, beside the test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room<'a> {
    cgroup: Option<&'a Cgroup>,
    netns: Option<&'a Netns>,
    user: Option<u32>,
}

impl<'a> Room<'a> {
    /// In a cgroup, in the network namespace of the test.
    pub fn of(cgroup: &'a Cgroup) -> Self {
        Self { cgroup: Some(cgroup), ..Self::default() }
    }

    /// The same room in another network namespace. Only the network is another: `ip netns exec` would hide bpffs and cgroups.
    pub fn inside(self, netns: &'a Netns) -> Self {
        Self { netns: Some(netns), ..self }
    }

    /// The same room, and the program runs as another user.
    pub fn as_user(self, user: u32) -> Self {
        Self { user: Some(user), ..self }
    }

    /// The file of its network namespace, if it has one of its own.
    pub fn netns(&self) -> Option<File> {
        self.netns.map(Netns::open)
    }

    fn prepare(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        let mut procs = self.cgroup.map(|cgroup| {
            File::options()
                .write(true)
                .open(cgroup.directory().join("cgroup.procs"))
                .expect("the cgroup's list of processes")
        });
        let netns = self.netns();
        let user = self.user.map(Uid::from_raw);
        let enter = move || {
            if let Some(procs) = &mut procs {
                procs.write_all(b"0")?;
            }
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(user) = user {
                setuid(user)?;
            }
            // After the user, with whom it would be forgotten.
            prctl::set_pdeathsig(signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes a few system calls on files opened before, and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

impl Process {
    /// Starts a program. What it prints is kept in files: it can neither block on a pipe nor be lost.
    pub fn spawn(room: Room<'_>, mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let stdout = NamedTempFile::new().expect("a temporary file");
        let stderr = NamedTempFile::new().expect("a temporary file");
        command.stdout(Stdio::from(stdout.reopen().expect("reopened")));
        command.stderr(Stdio::from(stderr.reopen().expect("reopened")));
        room.prepare(&mut command);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name, child, stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed to standard output.
    pub fn stdout(&self) -> String {
        text_of(self.stdout.path())
    }

    /// Everything it has printed to standard error.
    pub fn stderr(&self) -> String {
        text_of(self.stderr.path())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: signal::Signal) {
        signal::kill(Pid::from_raw(self.pid() as i32), signal).expect("a process that has not been waited for");
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of this process")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait::until_some(&what, deadline, || self.ended())
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Allows this process, and what it starts from now on, as many descriptors as it may have; how many that is. Shells and systemd begin with
/// 1024 (getrlimit(2)), and a connection of a test has both its ends here.
pub fn allow_descriptors() -> u64 {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many as are allowed");
    most
}

/// Runs a program to its end and gives what it printed.
#[track_caller]
pub fn run(room: Room<'_>, command: Command) -> Output {
    run_for(room, command, RUN_TIME_MAX)
}

/// The same with a deadline of the caller's choice.
#[track_caller]
pub fn run_for(room: Room<'_>, command: Command, deadline: Duration) -> Output {
    let shown = format!("{command:?}");
    let mut process = Process::spawn(room, command);
    let status = wait::until_some(&format!("{shown} to end"), deadline, || process.ended());
    let bytes = |file: &NamedTempFile| fs::read(file.path()).expect("what it printed");
    Output { status, stdout: bytes(&process.stdout), stderr: bytes(&process.stderr) }
}

fn text_of(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("what it printed")).into_owned()
}
