//! Reads what the guest says, line by line, and judges it.

use std::fmt;

use super::guest::{MARK, UNAVAILABLE};
use crate::test::Sums;

/// What a line of the guest's own means to whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A program begins.
    Begin(String),
    /// A program has ended, with what and after how many seconds.
    End(String),
    /// Something else that is worth a line.
    Note(String),
    /// Output of a program.
    Output,
}

/// Everything that the guest has said, added up.
#[derive(Debug, Default)]
pub struct Report {
    kernel: String,
    running: Option<String>,
    doctor: Option<String>,
    refusal: Option<String>,
    sums: Sums,
    /// Test programs that ended in another way than by saying what failed.
    broken: Vec<String>,
    programs: u32,
    error: Option<String>,
    over: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every test passed.
    Passed,
    /// Something failed.
    Failed,
    /// The kernel lacks what the agent needs, and the agent says so.
    Unavailable,
}

impl Report {
    /// Takes a line.
    pub fn read(&mut self, line: &str) -> Event {
        let Some(ours) = line.strip_prefix(MARK) else {
            self.sums.read(line);
            return Event::Output;
        };
        let (word, rest) = ours.split_once(' ').unwrap_or((ours, ""));
        match word {
            "kernel" => {
                self.kernel = rest.to_owned();
                Event::Note(format!("Linux {rest} is up"))
            }
            "begin" => {
                self.running = Some(rest.to_owned());
                Event::Begin(rest.to_owned())
            }
            "end" => self.end(rest),
            "over" => {
                self.over = true;
                Event::Note("the guest has done everything".to_owned())
            }
            _ => {
                self.error = Some(rest.to_owned());
                Event::Note(rest.to_owned())
            }
        }
    }

    fn end(&mut self, rest: &str) -> Event {
        self.running = None;
        let mut words = rest.split(' ');
        let (name, code, seconds) =
            (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        match name {
            "doctor" => self.doctor = Some(code.to_owned()),
            "refusal" => self.refusal = Some(code.to_owned()),
            _ => {
                self.programs += 1;
                // 101 is what a test program ends with after it has said which tests failed.
                if code != "0" && code != "101" {
                    self.broken.push(format!("{name} ended with {code}"));
                }
            }
        }
        Event::End(format!("{name} ended with {code} after {seconds} s"))
    }

    /// What is under way.
    pub fn running(&self) -> &str {
        self.running.as_deref().unwrap_or("the kernel")
    }

    /// Whether the guest has done everything.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// How it went.
    pub fn verdict(&self) -> Verdict {
        let unavailable = Some(UNAVAILABLE.to_string());
        let well = self.over && self.error.is_none() && self.sums.failed() == 0 && self.broken.is_empty();
        match &self.doctor {
            Some(code) if code == "0" && well && self.sums.passed() > 0 => Verdict::Passed,
            doctor if *doctor == unavailable && well && self.refusal == unavailable => Verdict::Unavailable,
            _ => Verdict::Failed,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doctor = self.doctor.as_deref().unwrap_or("nothing");
        write!(f, "Linux {}: doctor ended with {doctor}", self.kernel)?;
        if let Some(code) = &self.refusal {
            write!(f, "; the agent cannot work on it and ended with {code}")?;
        }
        match self.programs {
            0 => f.write_str("; no test was run")?,
            _ => write!(f, "; {}", self.sums)?,
        }
        self.broken.iter().try_for_each(|line| write!(f, "\n  broken: {line}"))?;
        self.error.iter().try_for_each(|line| write!(f, "\n  error: {line}"))
    }
}

/// Lines of the kernel's log that tell of trouble: a panic, a fault, a warning with a trace.
pub fn trouble(console: &str) -> Vec<&str> {
    const SIGNS: [&str; 7] =
        ["Kernel panic", "BUG:", "WARNING: ", "Oops", "general protection", "soft lockup", "detected stalls"];
    console.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &[&str]) -> Verdict {
        let mut report = Report::default();
        lines.iter().for_each(|line| drop(report.read(line)));
        report.verdict()
    }

    const RESULT: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn passed_is_only_what_ran_to_the_end_with_no_failure() {
        let (doctor, end, over) = ("@guest end doctor 0 1", "@guest end capture 0 9", "@guest over");
        assert_eq!(judged(&[doctor, RESULT, end, over]), Verdict::Passed);
        assert_eq!(judged(&[doctor, RESULT, end]), Verdict::Failed, "the guest died");
        assert_eq!(judged(&[doctor, over]), Verdict::Failed, "no test was run");
        assert_eq!(judged(&[RESULT, end, over]), Verdict::Failed, "no doctor");
        assert_eq!(judged(&[doctor, RESULT, "@guest end capture timeout 1200", over]), Verdict::Failed);
        assert_eq!(judged(&[doctor, RESULT, "@guest end capture signal-11 2", over]), Verdict::Failed);
        let failed = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(judged(&[doctor, failed, "@guest end capture 101 2", over]), Verdict::Failed);
    }

    #[test]
    fn a_kernel_that_lacks_something_must_be_refused_with_the_right_code() {
        let doctor = "@guest end doctor 69 1";
        assert_eq!(judged(&[doctor, "@guest end refusal 69 1", "@guest over"]), Verdict::Unavailable);
        assert_eq!(judged(&[doctor, "@guest end refusal 70 1", "@guest over"]), Verdict::Failed);
        assert_eq!(judged(&[doctor, "@guest over"]), Verdict::Failed);
    }

    #[test]
    fn a_panic_is_found_in_the_console() {
        let console = "[ 1.0] fine\n[ 2.0] Kernel panic - not syncing: x\n[ 2.1] fine";
        assert_eq!(trouble(console), ["[ 2.0] Kernel panic - not syncing: x"]);
    }
}
