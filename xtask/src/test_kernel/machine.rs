//! The emulated machine: qemu without any help of the host's processor, two processors (one, when its time is its own), no network, no disk.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    kernel::Kernel,
    report::{Event, Report},
};
use crate::progress::{SIGN_OF_LIFE, say, seconds};

/// The kernel's command line: its log on the first serial port; whatever goes wrong in the kernel ends the machine.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 oops=panic quiet loglevel=5";

/// Longest time that the machine takes to switch itself off.
const OFF_TIME_MAX: Duration = Duration::from_secs(60);

/// What the machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// What boots.
    pub kernel: &'a Kernel,
    /// Its first file system.
    pub initrd: &'a Path,
    /// Where the kernel's log goes.
    pub console: &'a Path,
    /// Where what the guest says goes, besides to standard output.
    pub transcript: &'a Path,
    /// What its kernel is told besides [`COMMAND_LINE`].
    pub words: &'a [String],
    /// Whether its clock counts instructions, and skips what it idles.
    pub own_time: bool,
    /// Its memory, which holds the file system, too.
    pub memory_mib: u32,
    /// When it is taken away.
    pub time_max: Duration,
}

impl Machine<'_> {
    /// Boots it and watches until it has switched itself off.
    pub fn run(&self) -> Result<Report> {
        // What an earlier machine said must not be taken for this one's.
        fs::write(self.console, "").with_context(|| format!("cannot write {}", self.console.display()))?;
        let mut child = Running(self.command().spawn().context("cannot start qemu-system-x86_64")?);
        let output = child.0.stdout.take().context("qemu's output is a pipe")?;
        let mut report = Report::default();
        self.watch(output, &mut report)?;
        if report.is_over() {
            child.wait(OFF_TIME_MAX)?;
        }
        Ok(report)
    }

    fn command(&self) -> Command {
        // It is killed with this program, and gives way to whatever else runs here.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"]);
        command.args(processors(self.own_time)).args(["-cpu", "max", "-m", &self.memory_mib.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        command.args(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initrd);
        let words = [&[COMMAND_LINE.to_owned()], self.words].concat().join(" ");
        command.args(["-append", &words]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Passes on what the guest says until the port is closed, or the time is over.
    fn watch(&self, output: ChildStdout, report: &mut Report) -> Result<()> {
        let begun = Instant::now();
        let (sender, pieces) = mpsc::channel();
        let mut transcript =
            File::create(self.transcript).with_context(|| format!("cannot write {}", self.transcript.display()))?;
        thread::spawn(move || read(output, &sender));
        let mut line = String::new();
        loop {
            match pieces.recv_timeout(SIGN_OF_LIFE) {
                Ok(piece) => {
                    let piece = piece.replace('\r', "");
                    transcript.write_all(piece.as_bytes())?;
                    line.push_str(&piece);
                    while let Some((whole, rest)) = line.split_once('\n') {
                        tell(report.read(whole), whole);
                        line = rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    say(format!("… {}: {} {line}", seconds(begun.elapsed()), report.running()));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if begun.elapsed() > self.time_max {
                let limit = seconds(self.time_max);
                let what = report.running();
                bail!("not done within {limit} (--minutes): {what} was under way, last with: {line}\n{report}");
            }
        }
    }
}

/// Passes pieces on as they come: a line that is not yet complete names the test that hangs.
fn read(mut output: ChildStdout, sender: &mpsc::Sender<String>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut bytes) {
        if sender.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_err() {
            return;
        }
    }
}

/// With a time of its own an instruction takes a nanosecond. It has one processor, since a second one would never be up: it is waited for
/// in time that then stands still.
fn processors(own_time: bool) -> &'static [&'static str] {
    if own_time {
        &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    } else {
        &["-accel", "tcg,thread=multi", "-smp", "2"]
    }
}

fn tell(event: Event, line: &str) {
    match event {
        Event::Begin(name) => say(format!("---- {name}")),
        Event::End(text) | Event::Note(text) => say(text),
        // Whoever read them may have gone: the guest goes on all the same.
        Event::Output => drop(writeln!(std::io::stdout(), "{line}")),
    }
}

/// qemu, gone when dropped.
struct Running(Child);

impl Running {
    fn wait(&mut self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while self.0.try_wait()?.is_none() {
            if begun.elapsed() > limit {
                bail!("the machine has done everything, and does not switch itself off");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::processors;

    #[test]
    fn a_clock_that_counts_instructions_has_one_processor_to_count_for() {
        let has = |own_time, word: &str| processors(own_time).contains(&word);
        assert!(has(true, "1") && has(true, "-icount") && has(true, "tcg,thread=single"));
        assert!(has(false, "2") && !has(false, "-icount"));
    }
}
