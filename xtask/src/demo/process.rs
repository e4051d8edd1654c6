//! The processes of the demo: ended when dropped, and also when the demo itself is killed.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// A process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// Starts it outside the terminal's foreground group, so that Ctrl-C reaches the demo alone, which then ends its processes in order.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM.
    pub fn ask_to_end(&self) -> Result<()> {
        // Not reaped yet, so that the id is still its own.
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("asking {} to end", self.name))
    }

    /// How it ended, once it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error once it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status})", self.name),
        }
    }

    fn talk(&mut self) -> Result<(ChildStdin, BufReader<ChildStdout>)> {
        let stdin = self.child.stdin.take().context("its standard input is a pipe")?;
        let stdout = self.child.stdout.take().context("its standard output is a pipe")?;
        Ok((stdin, BufReader::new(stdout)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the kernel end the program when the demo is gone, however that came about.
pub fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A process that answers line by line.
#[derive(Debug)]
pub struct Dialogue {
    process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Dialogue {
    /// Starts it.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let mut process =
            Process::start(name, command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()))?;
        let (stdin, stdout) = process.talk()?;
        Ok(Self { process, stdin, stdout })
    }

    /// Its next line.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            self.process.check_alive()?;
            bail!("{} says nothing more", self.process.name);
        }
        Ok(line.trim().to_owned())
    }

    /// Says a line to it and waits for its answer.
    pub fn ask(&mut self) -> Result<String> {
        self.stdin
            .write_all(b"\n")
            .and_then(|()| self.stdin.flush())
            .with_context(|| format!("talking to {}", self.process.name))?;
        self.hear()
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
