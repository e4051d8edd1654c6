//! Commands that probe an endpoint, or are told of it: never by a shell, few at a time, each with its time, and ended with all they started.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{sync::Semaphore, task, time};

/// Commands that run at a time, on a host that has other work. What is due beyond it waits its turn.
const AT_A_TIME_MAX: usize = 16;

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(AT_A_TIME_MAX));

/// A process and whatever it has started; dropping it ends them all.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // Not reaped yet: the number is still its own, and its group's.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        if !matches!(child.try_wait(), Ok(Some(_))) {
            task::spawn_blocking(move || child.wait());
        }
    }
}

/// Runs a command with these variables, each behind `SOCKWAY_`; whether it ended well, and within `patience`.
pub async fn run(command: &[String], variables: &[(&str, &str)], patience: Duration) -> bool {
    let Ok(_turn) = TURNS.acquire().await else { return false };
    let Some((program, arguments)) = command.split_first() else { return false };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.envs(variables.iter().map(|(name, value)| (format!("SOCKWAY_{name}"), value)));
    let mut running = match command.spawn() {
        Ok(child) => Running(Some(child)),
        Err(error) => {
            tracing::warn!(program, %error, "a command cannot be run");
            return false;
        }
    };
    matches!(time::timeout(patience, ended(&mut running)).await, Ok(Some(true)))
}

/// Waits until the process has ended; whether it ended well.
async fn ended(running: &mut Running) -> Option<bool> {
    let pid = Pid::from_child(running.0.as_ref()?);
    // Not reaped there: whoever gives up waiting still knows whose the number is.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    task::spawn_blocking(move || waitid(WaitId::Pid(pid), options)).await.ok()?.ok()?;
    // Whatever it has left behind goes with it.
    let mut child = running.0.take()?;
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait().ok().map(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn how_a_command_ends_says_how_the_endpoint_does() {
        let ran = async |script: &str| run(&shell(script), &[("STATE", "down")], PATIENCE).await;
        assert!(ran("exit 0").await && !ran("exit 3").await && !ran("kill -9 $$").await);
        assert!(ran("test $SOCKWAY_STATE = down").await);
        assert!(!run(&["/no/such/program".to_owned()], &[], PATIENCE).await);
        let plain = ["/bin/echo", "$(touch /no)", ";", "exit 1"].map(str::to_owned);
        assert!(run(&plain, &[], PATIENCE).await, "no shell is asked");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_with_all_it_has_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let begun = Instant::now();
        assert!(!run(&shell(&script), &[], Duration::from_secs(2)).await);
        assert!(begun.elapsed() < PATIENCE);
        let pid = fs::read_to_string(&file).expect("it was begun").trim().to_owned();
        let is_gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !is_gone() {
            assert!(begun.elapsed() < 2 * PATIENCE, "{pid} lives on");
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}
