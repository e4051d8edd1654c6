//! The agent under test: the real binary, from its start to the last trace it leaves.

use std::{
    env,
    fs::{self, File},
    io::{self, BufReader, Read},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::OnceLock,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    answer::{self, Answer},
    config::Config,
    metrics::Metrics,
    netns,
    process::{self, Process, Room},
    stage, wait,
};

/// The agent loads its kernel half and tests the running kernel before it is ready.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A running agent. Dropped, it is killed and everything it pinned is taken away.
#[derive(Debug)]
pub struct Agent {
    instance: String,
    binary: PathBuf,
    directory: TempDir,
    process: Process,
    netns: Option<File>,
    admin: SocketAddr,
}

impl Agent {
    /// Starts an agent beside the test and waits until it is ready.
    #[track_caller]
    pub fn start(config: &Config) -> Self {
        Self::start_in(Room::default(), config)
    }

    /// Starts an agent in a room.
    #[track_caller]
    pub fn start_in(room: Room<'_>, config: &Config) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("sockway.yaml");
        fs::write(&file, config.yaml()).expect("the configuration");
        Self::start_with(room, config.instance(), directory, &file)
    }

    /// Starts another agent than the one under test.
    #[track_caller]
    pub fn start_as(binary: &Path, config: &Config) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("sockway.yaml");
        fs::write(&file, config.yaml()).expect("the configuration");
        let mut command = Command::new(binary);
        command.args(["run", "--config"]).arg(&file);
        Self::launch_by(command, Room::default(), config.instance(), directory)
    }

    /// Starts an agent with a file that is already there; `directory` is removed with the agent.
    #[track_caller]
    pub fn start_with(room: Room<'_>, instance: &str, directory: TempDir, file: &Path) -> Self {
        Self::launch(room, instance, directory, file, &[])
    }

    /// Starts an agent that takes everything it pinned away when it ends (`--detach-on-exit`).
    #[track_caller]
    pub fn start_detaching(config: &Config) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("sockway.yaml");
        fs::write(&file, config.yaml()).expect("the configuration");
        Self::launch(Room::default(), config.instance(), directory, &file, &["--detach-on-exit"])
    }

    /// Starts an agent by way of a program that ends by executing its last arguments, `setpriv` for example.
    #[track_caller]
    pub fn start_through(wrapper: &[&str], config: &Config) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("sockway.yaml");
        fs::write(&file, config.yaml()).expect("the configuration");
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(binary()).args(["run", "--config"]).arg(&file);
        Self::launch_by(command, Room::default(), config.instance(), directory)
    }

    /// Starts an agent that has these capabilities and no others, as `BPF`.
    #[track_caller]
    pub fn start_with_rights(config: &Config, capabilities: &[&str]) -> Self {
        let [inheritable, bounding] = sets(capabilities);
        Self::start_through(&["setpriv", &inheritable, &bounding], config)
    }

    #[track_caller]
    fn launch(room: Room<'_>, instance: &str, directory: TempDir, file: &Path, options: &[&str]) -> Self {
        let file = file.to_string_lossy();
        let command = command_of(&[&["run", "--config", &file], options].concat());
        Self::launch_by(command, room, instance, directory)
    }

    #[track_caller]
    fn launch_by(command: Command, room: Room<'_>, instance: &str, directory: TempDir) -> Self {
        let process = Process::spawn(room, command);
        let (instance, binary, nowhere) = (instance.to_owned(), binary(), SocketAddr::from(([0, 0, 0, 0], 0)));
        // Whole before it is waited for: an agent that never gets ready is taken away like any other.
        let mut agent = Self { instance, binary, directory, process, netns: room.netns(), admin: nowhere };
        agent.admin = wait_ready(&mut agent.process, agent.netns.as_ref(), &agent.instance);
        agent
    }

    /// Starts it once more, beside the test and with the same file, after [`Agent::sigkill`] or [`Agent::sigterm`].
    #[track_caller]
    pub fn start_again(&mut self) {
        self.begin_again();
        self.admin = wait_ready(&mut self.process, None, &self.instance);
    }

    /// The same without waiting until it is ready.
    pub fn begin_again(&mut self) {
        let file = self.config_file();
        self.process = Process::spawn(Room::default(), command_of(&["run", "--config", &file.to_string_lossy()]));
        self.netns = None;
    }

    /// The same with another binary: an upgrade.
    #[track_caller]
    pub fn start_again_as(&mut self, binary: &Path) {
        self.begin_again_as(binary);
        self.admin = wait_ready(&mut self.process, None, &self.instance);
    }

    /// The same without waiting until it is ready.
    pub fn begin_again_as(&mut self, binary: &Path) {
        let file = self.config_file();
        let mut command = Command::new(binary);
        command.args(["run", "--config", &file.to_string_lossy()]);
        self.process = Process::spawn(Room::default(), command);
        self.netns = None;
    }

    /// Its instance name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The file that it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("sockway.yaml")
    }

    /// Its resident memory.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running agent");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        format!("{}{}", self.process.stdout(), self.process.stderr())
    }

    /// `GET path` on its admin address.
    #[track_caller]
    pub fn admin(&self, path: &str) -> Answer {
        try_admin(self.netns.as_ref(), self.admin, path)
            .unwrap_or_else(|error| panic!("admin {path}: {error}\n{}", self.log()))
    }

    /// A request by its Unix socket, with a body of JSON or none.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let socket = run_file(&self.instance).with_extension("sock");
        let ask = || {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(wait::soon()))?;
            answer::write_request(&mut stream, method, path, body.as_bytes())?;
            answer::read_answer(&mut BufReader::new(stream), method)
        };
        ask().unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// Where its admin endpoint listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// A scrape of its metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let answer = self.admin("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(answer.text())
    }

    /// One metric now; see [`Metrics::get`].
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().get(name, labels)
    }

    /// Waits until one metric is this: what is counted behind an answer is counted in a moment.
    #[track_caller]
    pub fn metric_comes_to(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.metric_until(name, labels, &format!("{value}"), |now| now == value);
    }

    /// Waits until one metric is this, or more.
    #[track_caller]
    pub fn metric_reaches(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        self.metric_until(name, labels, &format!("{least} or more"), |now| now >= least);
    }

    #[track_caller]
    fn metric_until(&self, name: &str, labels: &[(&str, &str)], what: &str, is_met: impl Fn(f64) -> bool) {
        let mut now = f64::NAN;
        let is_there = wait::whether(wait::soon(), || {
            now = self.metric(name, labels);
            is_met(now)
        });
        assert!(is_there, "{name} {labels:?} is {now}, not {what}");
    }

    /// Replaces its file in one step, as an editor does.
    pub fn write_config(&self, text: &str) {
        let new = self.directory.path().join("sockway.yaml.new");
        fs::write(&new, text).expect("the new configuration");
        fs::rename(&new, self.config_file()).expect("the new configuration in its place");
    }

    /// Gives it another configuration and waits until it is in effect.
    #[track_caller]
    pub fn reload(&self, config: &Config) {
        let before = self.generation();
        self.write_config(&config.yaml());
        self.wait_generation_after(before);
    }

    /// How many configurations have taken effect.
    #[track_caller]
    pub fn generation(&self) -> f64 {
        self.metric("sockway_config_generation", &[])
    }

    /// Waits for a configuration later than `generation`.
    #[track_caller]
    pub fn wait_generation_after(&self, generation: f64) {
        wait::until("a new configuration to take effect", wait::SOON, || self.generation() > generation);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops it (SIGSTOP) and waits until each of its threads stands still: the signal alone promises no moment.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        wait::until("every thread to stand still", wait::SOON, || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a running agent");
            threads.flatten().all(|thread| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                // The state is the first word behind the name, which ends with the last parenthesis.
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
            })
        });
    }

    /// Kills it as the kernel does when memory is short, and waits until it is gone.
    pub fn sigkill(&mut self) {
        self.process.kill();
    }

    /// Asks it to drain and end; see [`Agent::wait`].
    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait(wait::SOON)
    }

    /// Whether it has not ended.
    pub fn running(&mut self) -> bool {
        self.process.ended().is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        // A failed test shows what the agent had to say.
        if std::thread::panicking() {
            eprintln!("---- log of agent {}\n{}----", self.instance, self.log());
        }
        // Nothing here may panic: the test may be about to, and what is pinned would stay.
        let output = Command::new(&self.binary).args(["detach", "--instance", &self.instance]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("sockway detach --instance {}: {output:?}", self.instance);
        }
        let _ = fs::remove_dir_all(Path::new("/var/lib/sockway").join(&self.instance));
    }
}

/// Runs the binary under test to its end.
#[track_caller]
pub fn sockway(arguments: &[&str]) -> Output {
    process::run(Room::default(), command_of(arguments))
}

/// The binary under test with arguments, to be started.
pub fn command_of(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments);
    command
}

/// The binary under test with arguments, to be started as root with these capabilities and no others.
pub fn restricted(arguments: &[&str], capabilities: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(sets(capabilities)).arg(binary()).args(arguments);
    command
}

/// What setpriv is told.
fn sets(capabilities: &[&str]) -> [String; 2] {
    let set: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    [format!("--inh-caps=-all{set}"), format!("--bounding-set=-all{set}")]
}

/// What a running agent says of itself: `/run/sockway/<instance>.json`.
pub fn run_file(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/sockway/{instance}.json"))
}

/// The binary under test: `SOCKWAY_BIN`, else the release or the debug build, whichever is newer, after saying which.
pub fn binary() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_binary).clone()
}

fn find_binary() -> PathBuf {
    if let Some(named) = env::var_os("SOCKWAY_BIN") {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "SOCKWAY_BIN names {}, which is no file; {HOW_TO_RUN}", path.display());
        return path;
    }
    let found = newest(&["release", "debug"].map(|profile| target().join(profile).join("sockway")));
    let found = found.unwrap_or_else(|| panic!("there is no sockway below {}; {HOW_TO_RUN}", target().display()));
    stage::tell(&format!("SOCKWAY_BIN is not set; the newest build is tested, {}", found.display()));
    found
}

/// The file that was written last.
fn newest(files: &[PathBuf]) -> Option<PathBuf> {
    let written = |path: &PathBuf| Some((fs::metadata(path).ok()?.modified().ok()?, path.clone()));
    files.iter().filter_map(written).max().map(|(_, path)| path)
}

/// Whether it was built with optimisation: one that was not is several times slower.
pub fn is_optimised() -> bool {
    !binary().components().any(|part| part.as_os_str() == "debug")
}

/// The agent of another layout that `cargo xtask test` builds (`SOCKWAY_NEXT_BIN`, or below `target/next`); `None` where there is none, after
/// saying so.
pub fn next_binary() -> Option<PathBuf> {
    let named = env::var_os("SOCKWAY_NEXT_BIN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| target().join("next/debug/sockway"));
    if !path.is_file() {
        stage::tell(&format!("SKIPPED: there is no agent of another layout at {}; {HOW_TO_RUN}", path.display()));
        return None;
    }
    Some(path)
}

/// Envoy, which `cargo xtask setup` installs for the benchmarks (`SOCKWAY_ENVOY`, or below `target/tools`); `None` where there is none, after
/// saying so.
pub fn envoy() -> Option<PathBuf> {
    let named = env::var_os("SOCKWAY_ENVOY").map(PathBuf::from);
    let path = named.unwrap_or_else(|| target().join("tools/envoy/bin/envoy"));
    if !path.is_file() {
        stage::tell(&format!("SKIPPED: there is no Envoy at {}; `cargo xtask setup` installs it", path.display()));
        return None;
    }
    Some(path)
}

/// `httpwg`, which `cargo xtask test` installs (`SOCKWAY_HTTPWG`, or below `target/tools`).
#[track_caller]
pub fn httpwg() -> PathBuf {
    let named = env::var_os("SOCKWAY_HTTPWG").map(PathBuf::from);
    let path = named.unwrap_or_else(|| target().join("tools/httpwg/bin/httpwg"));
    assert!(path.is_file(), "there is no httpwg at {}; `cargo xtask setup` installs it", path.display());
    path
}

/// `sockway-probe`, which cargo builds beside the tests; or this program, when it is that.
pub fn probe() -> PathBuf {
    let test = env::current_exe().expect("this program's own path");
    if test.file_name().is_some_and(|name| name == "sockway-probe") {
        return test;
    }
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    profile.join("sockway-probe")
}

const HOW_TO_RUN: &str = "run these tests with `cargo xtask test`, which builds the agent with its kernel half";

/// The folder of everything that is built and installed.
pub fn target() -> PathBuf {
    let test = env::current_exe().expect("this test's own path");
    test.ancestors().nth(3).expect("target/<profile>/deps/<test>").to_owned()
}

#[track_caller]
fn wait_ready(process: &mut Process, netns: Option<&File>, instance: &str) -> SocketAddr {
    wait::until_some("the agent to be ready", START_TIME_MAX, || {
        if let Some(status) = process.ended() {
            let log = format!("{}{}", process.stdout(), process.stderr());
            panic!("the agent ended with {status} instead of getting ready; {HOW_TO_RUN}\n{log}");
        }
        let admin = read_admin(&run_file(instance), process.pid())?;
        try_admin(netns, admin, "/ready").is_ok_and(|answer| answer.status == 200).then_some(admin)
    })
}

fn try_admin(netns: Option<&File>, admin: SocketAddr, path: &str) -> io::Result<Answer> {
    answer::get(netns::connect(netns, admin)?, path)
}

fn read_admin(file: &Path, pid: u32) -> Option<SocketAddr> {
    let mut text = String::new();
    File::open(file).ok()?.read_to_string(&mut text).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    // The file of an agent that was killed is still there when the next one starts.
    (json["pid"].as_u64()? == u64::from(pid)).then(|| json["admin"].as_str()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_build_that_was_written_last_is_tested() {
        let directory = TempDir::new().unwrap();
        let [old, new, none] = ["old", "new", "none"].map(|name| directory.path().join(name));
        for (path, age) in [(&old, 60), (&new, 0)] {
            let file = File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(newest(&[old.clone(), new.clone(), none.clone()]), Some(new.clone()));
        assert_eq!(newest(&[new.clone(), old]), Some(new));
        assert_eq!(newest(&[none]), None);
    }
}
