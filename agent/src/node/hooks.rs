//! Programs that are told when endpoints change: few at a time, and never waited for.

use std::{net::SocketAddr, time::Duration};

use tokio::task::JoinSet;

use super::probe::command;

/// Longest time for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Such programs that run or wait: endpoints that come and go faster are not told of.
const HOOKS_MAX: usize = 64;

/// Those that run.
#[derive(Debug, Default)]
pub struct Hooks(JoinSet<()>);

/// What one is told.
#[derive(Clone, Copy, Debug)]
pub struct News<'n> {
    /// The service's name.
    pub service: &'n str,
    /// Which of its endpoints.
    pub endpoint: SocketAddr,
    /// What became of it: `up`, `down`, `ejected` or `back`.
    pub state: &'static str,
    /// Why, if there is a word for it.
    pub reason: Option<&'static str>,
}

impl Hooks {
    /// Runs a program with its arguments; nothing if there is none. Must be called within a tokio runtime.
    pub fn run(&mut self, command: &[String], news: News<'_>) {
        if command.is_empty() {
            return;
        }
        while self.0.try_join_next().is_some() {}
        let News { service, endpoint, state, reason } = news;
        if self.0.len() >= HOOKS_MAX {
            tracing::warn!(service, %endpoint, "its command is not run: too many run already");
            return;
        }
        let (command, service) = (command.to_vec(), service.to_owned());
        self.0.spawn(async move {
            let address = endpoint.to_string();
            let mut variables = vec![("SERVICE", service.as_str()), ("ENDPOINT", &address), ("STATE", state)];
            variables.extend(reason.map(|reason| ("REASON", reason)));
            if !command::run(&command, &variables, PATIENCE).await {
                tracing::warn!(service, %endpoint, state, "the command that is told of changes failed");
            }
        });
    }
}
