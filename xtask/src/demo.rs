//! `cargo xtask demo`: real programs through Sockway on this machine, step by step; a step that does not hold ends it with an error.
//!
//! Everything happens in a cgroup and an instance of the demo's own; on the host nothing is dialled outside 127.0.0.0/8. However the demo
//! ends, it takes down what it set up.

mod agent;
mod call;
mod endpoints;
mod interrupt;
mod process;
mod stage;

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use self::{
    agent::{Agent, last_words},
    call::{Caller, HTTP, L4, PORT, Service, call, url},
    endpoints::{Endpoints, Which, answer},
    interrupt::wait_for,
    process::Dialogue,
    stage::{Place, Stage},
};
use crate::{
    build,
    progress::seconds,
    root,
    setup::{Group, python, ready},
};

/// How long the agent may take to notice that an endpoint or a namespace came or went.
const NOTICE: Duration = Duration::from_secs(15);
/// How long a stopping agent may take.
const STOP: Duration = Duration::from_secs(15);
/// What a shell says of a command that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Sets up, builds, becomes root, plays.
pub fn run(stay: bool) -> Result<ExitCode> {
    if !root::is_prepared() {
        ready(&[Group::Demo])?;
        build::release()?;
    }
    root::elevate("the demo loads programs into the kernel and makes a network namespace")?;
    interrupt::catch()?;
    let started = Instant::now();
    let stage = Stage::set_up()?;
    let mut play = Play::open(&stage)?;
    let acted = play.act(stay);
    let steps = play.steps;
    if interrupt::check().is_err() {
        drop(play);
        stage.strike()?;
        tell(format!("\nInterrupted in step {steps}: everything is taken down again."));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    acted.inspect_err(|error| {
        tell(format!("\n{}\nThe demo failed in step {steps}: {error:#}", last_words(&stage)));
    })?;
    drop(play);
    stage.strike()?;
    let left = stage.leftovers();
    ensure!(left.is_empty(), "left behind: {left:?}");
    tell(format!("\nAll {steps} steps held, in {}; nothing is left behind.", seconds(started.elapsed())));
    Ok(ExitCode::SUCCESS)
}

/// A line for the person who watches; one who went away does not end the demo half-way.
fn tell(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", line.as_ref());
}

/// The demo under way.
struct Play<'a> {
    stage: &'a Stage,
    endpoints: Endpoints,
    agent: Option<Agent>,
    steps: u32,
}

impl<'a> Play<'a> {
    fn open(stage: &'a Stage) -> Result<Self> {
        tell(format!(
            "\nSockway demo: programs in the cgroup {} dial {} ({}, balanced in the kernel) and {} ({}, through the agent).\n\
             Nobody listens at these addresses; every program here is as the distribution ships it.",
            stage.cgroup().display(),
            format_args!("{}:{PORT}", L4.ip),
            L4.name,
            format_args!("{}:{PORT}", HTTP.ip),
            HTTP.name,
        ));
        Ok(Self { endpoints: Endpoints::start(stage)?, stage, agent: None, steps: 0 })
    }

    fn act(&mut self, stay: bool) -> Result<()> {
        self.step(
            "The agent starts with the embedded default configuration and two services of two endpoints",
            Self::start_agent,
        )?;
        self.step(
            "curl and python3 call both services, from the host and from a namespace without a way out",
            Self::call_both,
        )?;
        self.step("Endpoint two is killed (SIGKILL)", Self::lose_endpoint)?;
        self.step("Endpoint two comes back", Self::regain_endpoint)?;
        self.step("The agent is killed (SIGKILL): programs go on, straight to the endpoints", Self::lose_agent)?;
        self.step("The agent starts again and takes over what the kernel kept", Self::regain_agent)?;
        if stay {
            // Whoever tries things may have ended any part of it: taking it down asserts nothing more.
            self.stay();
            return Ok(());
        }
        self.step("The agent is stopped (SIGTERM), then `sockway detach` takes everything away", Self::end)
    }

    fn step(&mut self, title: &str, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        interrupt::check()?;
        self.steps += 1;
        let started = Instant::now();
        tell(format!("\n{}. {title}", self.steps));
        step(self)?;
        tell(format!("   held ({})", seconds(started.elapsed())));
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        for which in [Which::One, Which::Two] {
            let address = self.endpoints.address(which);
            let twins = [answer(which, Place::Host), answer(which, Place::Namespace)];
            tell(format!("   {address} answers \"{}\" on the host, \"{}\" in the namespace", twins[0], twins[1]));
        }
        self.raise_agent()
    }

    fn raise_agent(&mut self) -> Result<()> {
        let started = Instant::now();
        let agent = Agent::start(self.stage, self.endpoints.ports())?;
        let pid = agent.pid();
        tell(format!("   ready after {}: process {pid}, http://{}/metrics", seconds(started.elapsed()), agent.admin()));
        wait_for("the agent's listeners inside the namespace", NOTICE, || {
            Ok((agent.metrics()?.sum("sockway_namespaces", &[]) >= 2.0).then_some(()))
        })?;
        tell(format!("   it listens inside the namespace too ({})", seconds(started.elapsed())));
        self.agent = Some(agent);
        Ok(())
    }

    fn call_both(&mut self) -> Result<()> {
        let before = self.verdicts()?;
        for (place, caller) in EVERYWHERE {
            // The kernel half dials where the program is: in the namespace, the namespace's own endpoints.
            self.calls(place, caller, L4, 4)?.came_from(&both(place))?;
            // The agent dials from where it is itself.
            self.calls(place, caller, HTTP, 4)?.came_from(&both(Place::Host))?;
        }
        tell("   python3's sockets name the address that they dialled as their peer");
        let after = self.verdicts()?;
        let (balanced, handed) = (after.0 - before.0, after.1 - before.1);
        tell(format!("   the kernel half counts {balanced} connections balanced, {handed} handed to the agent"));
        ensure!(balanced >= 16.0 && handed >= 16.0, "expected 16 of each");
        self.print_counters()
    }

    fn lose_endpoint(&mut self) -> Result<()> {
        self.endpoints.kill(Which::Two)?;
        let one = |place| [answer(Which::One, place)];
        self.calls(Place::Host, Caller::Curl, HTTP, 10)?.came_from(&one(Place::Host))?;
        tell("   HTTP: not one call failed, the agent tried the other endpoint");
        let killed = Instant::now();
        let mut failed = 0;
        wait_for("the kernel half to leave the endpoint out", NOTICE, || {
            failed += call(self.stage, Place::Host, Caller::Curl, L4, 1)?.failures.len();
            Ok((!self.is_up(L4, Which::Two)?).then_some(()))
        })?;
        tell(format!(
            "   L4: noticed after {}; connections that failed until then: {failed}",
            seconds(killed.elapsed())
        ));
        for (place, caller) in EVERYWHERE {
            self.calls(place, caller, L4, 5)?.came_from(&one(place))?;
            self.calls(place, caller, HTTP, 5)?.came_from(&one(Place::Host))?;
        }
        Ok(())
    }

    fn regain_endpoint(&mut self) -> Result<()> {
        let started = Instant::now();
        self.endpoints.revive(self.stage, Which::Two)?;
        wait_for("both services to use endpoint two again", NOTICE, || {
            Ok((self.is_up(L4, Which::Two)? && self.is_up(HTTP, Which::Two)?).then_some(()))
        })?;
        tell(format!("   a probe found it after {}", seconds(started.elapsed())));
        self.calls(Place::Host, Caller::Curl, L4, 4)?.came_from(&both(Place::Host))?;
        self.calls(Place::Host, Caller::Curl, HTTP, 4)?.came_from(&both(Place::Host)).map(drop)
    }

    fn lose_agent(&mut self) -> Result<()> {
        self.print_counters()?;
        let mut patient = self.patient_client()?;
        let before = patient.ask()?;
        self.agent.take().context("the agent runs")?.kill()?;
        let killed = Instant::now();
        for (place, caller) in EVERYWHERE {
            self.calls(place, caller, L4, 4)?.came_from(&both(place))?;
            // Nobody is there to dial from elsewhere: in the namespace, the namespace's own endpoints answer.
            self.calls(place, caller, HTTP, 4)?.came_from(&both(place))?;
        }
        tell(format!(
            "   the first of these calls was made at once, the last {} after the agent's end",
            seconds(killed.elapsed())
        ));
        let after = patient.ask().context("the connection that was open before the agent's end")?;
        ensure!(before == after, "a connection changed its endpoint: {before}, then {after}");
        tell(format!("   host       python3  {}    a connection from before goes on: {after}", L4.name));
        Ok(())
    }

    fn regain_agent(&mut self) -> Result<()> {
        self.raise_agent()?;
        let (_, handed) = self.verdicts()?;
        for (place, caller) in EVERYWHERE {
            self.calls(place, caller, L4, 4)?.came_from(&both(place))?;
            self.calls(place, caller, HTTP, 4)?.came_from(&both(Place::Host))?;
        }
        ensure!(self.verdicts()?.1 >= handed + 16.0, "HTTP does not go through the agent again");
        self.print_counters()
    }

    fn stay(&mut self) {
        let Some(agent) = &self.agent else { return };
        let admin = agent.admin();
        let pid = agent.pid();
        let two: Vec<String> = self.endpoints.pids(Which::Two).iter().map(u32::to_string).collect();
        tell("\nIt goes on until Ctrl-C. To try in another terminal:");
        for (place, service) in
            [(Place::Host, L4), (Place::Host, HTTP), (Place::Namespace, L4), (Place::Namespace, HTTP)]
        {
            tell(format!("  {}", self.stage.captured_by_hand(place, &format!("curl -s {}", url(service)))));
        }
        tell(format!("  curl -s http://{admin}/metrics | grep ^sockway"));
        tell(format!("  sudo target/release/sockway status --instance {}", self.stage.instance()));
        tell(format!("  sudo kill -9 {}      # endpoint two and its twin", two.join(" ")));
        tell(format!("  sudo kill -9 {pid}      # the agent"));
        while !interrupt::take() {
            std::thread::sleep(Duration::from_millis(100));
        }
        tell("");
    }

    fn end(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            let status = agent.stop(STOP)?;
            tell(format!("   the agent ended: {status}"));
            self.calls(Place::Host, Caller::Curl, L4, 4)?.none_failed()?;
        }
        self.stage.detach()?;
        let batch = call(self.stage, Place::Host, Caller::Curl, L4, 2)?;
        // Whoever else listens at port 80 of every address may answer now.
        ensure!(
            !batch.answers.keys().any(|answer| answer.starts_with("endpoint")),
            "still captured after detach: {batch}"
        );
        tell(format!("   host       curl     {:<11} as without Sockway: {batch}", L4.name));
        Ok(())
    }

    /// Calls, and a line that says what came of it.
    fn calls(&self, place: Place, caller: Caller, service: Service, times: u32) -> Result<call::Batch> {
        let batch = call(self.stage, place, caller, service, times)?;
        tell(format!("   {:<10} {:<8} {:<11} {batch}", place.name(), caller.name(), service.name));
        Ok(batch)
    }

    /// A client that keeps one connection through the kernel half.
    fn patient_client(&self) -> Result<Dialogue> {
        const SCRIPT: &str = include_str!("demo/patient.py");
        let mut command = self.stage.captured(Place::Host, "setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(python()).args(["-c", SCRIPT, L4.ip, &PORT.to_string()]);
        Dialogue::start("a patient client", &mut command)
    }

    fn metrics(&self) -> Result<agent::Metrics> {
        self.agent.as_ref().context("the agent runs")?.metrics()
    }

    /// Connections balanced in the kernel, and handed to the agent.
    fn verdicts(&self) -> Result<(f64, f64)> {
        let metrics = self.metrics()?;
        let verdict = |verdict| metrics.sum("sockway_kernel_connects_total", &[("verdict", verdict)]);
        Ok((verdict("balanced"), verdict("agent")))
    }

    fn is_up(&self, service: Service, which: Which) -> Result<bool> {
        let address = self.endpoints.address(which);
        let labels = [("service", service.name), ("endpoint", &*address)];
        Ok(self.metrics()?.sum("sockway_endpoint_up", &labels) == 1.0)
    }

    fn print_counters(&self) -> Result<()> {
        tell("   counters that moved:");
        let names =
            ["sockway_kernel_connects_total", "sockway_requests_total", "sockway_endpoint_", "sockway_probes_total"];
        self.metrics()?.nonzero(&names).iter().for_each(|line| tell(format!("     {line}")));
        Ok(())
    }
}

const EVERYWHERE: [(Place, Caller); 4] = [
    (Place::Host, Caller::Curl),
    (Place::Host, Caller::Python),
    (Place::Namespace, Caller::Curl),
    (Place::Namespace, Caller::Python),
];

/// What both endpoints of a place answer.
fn both(place: Place) -> [&'static str; 2] {
    [answer(Which::One, place), answer(Which::Two, place)]
}
