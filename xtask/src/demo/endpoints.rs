//! The demo's two endpoints, written in Python: on the host, and twins of them at the same addresses inside the namespace.

use std::{net::TcpListener, process::Command};

use anyhow::{Result, ensure};

use crate::{
    demo::{
        process::{Dialogue, tied},
        stage::{Place, Stage},
    },
    setup::python,
};

const SCRIPT: &str = include_str!("endpoint.py");

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that stays.
    One,
    /// The one that is killed.
    Two,
}

/// What an endpoint answers with: its name, and where it is.
pub fn answer(which: Which, place: Place) -> &'static str {
    match (which, place) {
        (Which::One, Place::Host) => "endpoint one",
        (Which::Two, Place::Host) => "endpoint two",
        (Which::One, Place::Namespace) => "endpoint one (namespace)",
        (Which::Two, Place::Namespace) => "endpoint two (namespace)",
    }
}

/// Both endpoints, each with its twin.
#[derive(Debug)]
pub struct Endpoints {
    ports: [u16; 2],
    running: Vec<(Which, Dialogue)>,
}

impl Endpoints {
    /// Starts all four at ports that are free on the host.
    pub fn start(stage: &Stage) -> Result<Self> {
        let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let ports = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
        drop(listeners);
        let mut endpoints = Self { ports, running: Vec::new() };
        endpoints.revive(stage, Which::One)?;
        endpoints.revive(stage, Which::Two)?;
        Ok(endpoints)
    }

    /// Their ports on 127.0.0.1.
    pub fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// The address of one.
    pub fn address(&self, which: Which) -> String {
        format!("127.0.0.1:{}", self.ports[which as usize])
    }

    /// Starts one and its twin, and waits until they listen.
    pub fn revive(&mut self, stage: &Stage, which: Which) -> Result<()> {
        for place in [Place::Host, Place::Namespace] {
            let mut command = command(stage, place);
            command.args(["-c", SCRIPT, &self.ports[which as usize].to_string(), answer(which, place)]);
            let mut endpoint = Dialogue::start("an endpoint", &mut command)?;
            let ready = endpoint.hear()?;
            ensure!(ready == "ready", "an endpoint said {ready:?}");
            self.running.push((which, endpoint));
        }
        Ok(())
    }

    /// SIGKILL for one and its twin.
    pub fn kill(&mut self, which: Which) -> Result<()> {
        let mut dying = self.running.iter_mut().filter(|(its, _)| *its == which);
        dying.try_for_each(|(_, endpoint)| endpoint.process().kill())?;
        self.running.retain(|(its, _)| *its != which);
        Ok(())
    }

    /// Process ids of one and its twin.
    pub fn pids(&mut self, which: Which) -> Vec<u32> {
        self.running.iter_mut().filter(|(its, _)| *its == which).map(|(_, endpoint)| endpoint.process().pid()).collect()
    }
}

/// Not captured: an endpoint dials nobody.
fn command(stage: &Stage, place: Place) -> Command {
    let python = python();
    match place {
        Place::Host => tied(&python.to_string_lossy()),
        Place::Namespace => {
            let mut command = tied("ip");
            command.args(["netns", "exec", &stage.namespace()]).arg(python);
            command
        }
    }
}
