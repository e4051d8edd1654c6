//! Says what is being done and how long it takes, on a terminal and in a log file alike: a step that takes long shows a sign of life at
//! least every [`SIGN_OF_LIFE`].

use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// How often a long step says that it is alive when nobody sees its own progress.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(8);
/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How much of a failed step's log is shown.
const TAIL_BYTES: u64 = 4096;

/// Announces a step.
pub fn say(line: impl AsRef<str>) {
    // A reader that went away (`| head`) must not keep a command from cleaning up: a failed write is no panic.
    let _ = writeln!(std::io::stderr(), "xtask: {}", line.as_ref());
}

/// A duration as people read it.
pub fn seconds(elapsed: Duration) -> String {
    let whole = elapsed.as_secs();
    match whole {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        10..120 => format!("{whole} s"),
        _ => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// Runs a command that shows its own progress. What it prints is passed on, and with no terminal the elapsed time besides.
pub fn streamed(what: &str, command: &mut Command) -> Result<()> {
    let silent = !std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program(command)))?;
    let mut sign = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if silent && sign.elapsed() >= SIGN_OF_LIFE {
            sign = Instant::now();
            say(format!("… {what}, {}", seconds(started.elapsed())));
        }
        thread::sleep(POLL);
    };
    ended(what, status)
}

/// Runs a command whose output is of interest only if it fails: it goes to `target/setup/NAME.log`, and one line shows that it goes on.
pub fn logged(what: &str, name: &str, command: &mut Command) -> Result<()> {
    let path = workspace::kept().join("setup").join(format!("{name}.log"));
    fs::create_dir_all(path.parent().expect("a file is in a folder"))?;
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let started = Instant::now();
    let mut line = LiveLine::new(what, started);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program(command)))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        line.show(&path);
        thread::sleep(POLL);
    };
    line.clear();
    if let Err(error) = ended(what, status) {
        eprintln!("{}", tail(&path, TAIL_BYTES));
        return Err(error.context(format!("the whole log is {}", path.display())));
    }
    say(format!("{what}: done in {}", seconds(started.elapsed())));
    Ok(())
}

/// The end of a log that [`logged`] wrote.
pub fn log_tail(name: &str) -> String {
    tail(&workspace::kept().join("setup").join(format!("{name}.log")), TAIL_BYTES)
}

/// The line of a step under way: rewritten in place on a terminal, repeated now and then elsewhere.
struct LiveLine<'a> {
    what: &'a str,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl<'a> LiveLine<'a> {
    fn new(what: &'a str, started: Instant) -> Self {
        say(format!("{what} …"));
        Self { what, started, shown: started, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, log: &PathBuf) {
        let every = if self.terminal { Duration::from_millis(250) } else { SIGN_OF_LIFE };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let last: String = tail(log, 512).lines().last().unwrap_or_default().trim().chars().take(60).collect();
        let elapsed = seconds(self.started.elapsed());
        if self.terminal {
            eprint!("\r\x1b[Kxtask: … {}, {elapsed}: {last}", self.what);
            let _ = std::io::stderr().flush();
        } else {
            say(format!("… {}, {elapsed}: {last}", self.what));
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn ended(what: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("{what} failed ({status})")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn tail(path: &PathBuf, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut end = Vec::new();
        file.take(bytes).read_to_end(&mut end)?;
        Ok(end)
    };
    // apt rewrites its progress with carriage returns.
    String::from_utf8_lossy(&read().unwrap_or_default()).replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable_at_every_size() {
        assert_eq!(seconds(Duration::from_millis(340)), "0.3 s");
        assert_eq!(seconds(Duration::from_secs(75)), "75 s");
        assert_eq!(seconds(Duration::from_secs(605)), "10 min 05 s");
    }

    #[test]
    fn a_failed_step_names_itself() {
        let error = streamed("nothing at all", &mut Command::new("false")).unwrap_err();
        assert!(error.to_string().contains("nothing at all failed"), "{error}");
    }
}
