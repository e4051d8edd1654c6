//! `sockway doctor`: what this host has and lacks, each missing thing with its remedy.

use std::{fs, path::Path};

use rustix::process::{Resource, getrlimit};

use super::{Failure, UNAVAILABLE, Which, say, table};
use crate::{
    kernel::doctor::{self, Finding, Verdict},
    node::runfile,
};

/// Descriptors that an agent with a thousand connections in flight needs, twice over.
const DESCRIPTORS_MIN: u64 = 4096;

/// Prints what was found.
///
/// # Errors
///
/// When something is missing without which the agent cannot do its work.
pub fn run(which: &Which) -> Result<u8, Failure> {
    let (instance, capture) = which.find()?;
    let mut findings = doctor::examine(&capture, &instance);
    findings.extend([descriptors(), run_directory(Path::new(runfile::DIRECTORY)), agent(&instance)]);
    say(tell(&findings));
    match findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count() {
        0 => Ok(0),
        missing => Err(Failure::new(UNAVAILABLE, format!("sockway: {missing} of these the agent cannot do without"))),
    }
}

fn tell(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Missing => "MISSING",
        };
        let remedy = finding.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        vec![verdict.to_owned(), finding.name.to_owned(), format!("{}{remedy}", finding.detail)]
    };
    table(&findings.iter().map(row).collect::<Vec<Vec<String>>>())
}

fn descriptors() -> Finding {
    let limit = getrlimit(Resource::Nofile).maximum;
    let low = limit.is_some_and(|limit| limit < DESCRIPTORS_MIN);
    Finding {
        name: "open files",
        verdict: if low { Verdict::Warn } else { Verdict::Ok },
        detail: limit.map_or("no limit".to_owned(), |limit| {
            format!("at most {limit}, two for each connection through the agent")
        }),
        remedy: low.then(|| format!("raise the hard limit (ulimit -Hn, LimitNOFILE=) to {DESCRIPTORS_MIN} at least")),
    }
}

fn run_directory(directory: &Path) -> Finding {
    let made = fs::create_dir_all(directory)
        .and_then(|()| fs::metadata(directory))
        .map(|metadata| metadata.permissions().readonly());
    let (verdict, detail) = match made {
        Ok(false) => (Verdict::Ok, directory.display().to_string()),
        Ok(true) => (Verdict::Missing, format!("{} cannot be written", directory.display())),
        Err(error) => (Verdict::Missing, format!("{}: {error}", directory.display())),
    };
    let remedy = (verdict != Verdict::Ok).then(|| "make it, and let the agent write there".to_owned());
    Finding { name: "run-time files", verdict, detail, remedy }
}

fn agent(instance: &str) -> Finding {
    let running = runfile::find(Path::new(runfile::DIRECTORY), instance);
    let detail = running.map_or(format!("no agent of instance {instance} is running"), |running| {
        format!("instance {instance} runs as process {}, answers at http://{}", running.pid, running.admin)
    });
    Finding { name: "agent", verdict: Verdict::Ok, detail, remedy: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_with_its_remedy() {
        let finding = |name, verdict, remedy: Option<&str>| Finding {
            name,
            verdict,
            detail: "seen".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [finding("BTF", Verdict::Ok, None), finding("cgroup v2", Verdict::Missing, Some("mount it"))];
        assert_eq!(tell(&findings), "ok       BTF        seen\nMISSING  cgroup v2  seen; mount it\n");
    }
}
