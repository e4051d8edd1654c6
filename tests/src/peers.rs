//! Real programs, unmodified: curl, python3, wrk, nginx, nghttp2 and redis, as Debian ships them.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    agent,
    door::Door,
    process::{self, Process, Room},
    stage,
    tls::Pair,
    wait,
};

/// `curl` with arguments, silent but for errors and the body, and never longer than [`wait::soon`].
#[track_caller]
pub fn curl(room: Room<'_>, arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", &wait::soon().as_secs().to_string()]);
    command.args(arguments);
    process::run(room, command)
}

/// A python3 program, to which `soon` is the length of [`wait::soon`] in seconds: what it waits for an answer at most.
pub fn python_command(program: &str, arguments: &[&str]) -> Command {
    // Debian's where there is one: it has Debian's libraries, and another one on the `PATH` may be a wrapper that starts slowly.
    let system = Path::new("/usr/bin/python3");
    let mut command = Command::new(if system.is_file() { system } else { Path::new("python3") });
    command.args(["-c", &format!("soon = {}\n{program}", wait::soon().as_secs())]).args(arguments);
    command
}

/// Runs a [`python_command`] and gives what it printed; panics when it fails.
#[track_caller]
pub fn python(room: Room<'_>, program: &str, arguments: &[&str]) -> String {
    let output = process::run(room, python_command(program, arguments));
    assert!(output.status.success(), "python3: {}", String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

/// Where `cargo xtask setup` installs packages of npm; `None` where they are not, after saying so.
pub fn node_packages() -> Option<PathBuf> {
    let path = agent::target().join("tools/npm/node_modules");
    if !path.is_dir() {
        stage::tell(&format!("SKIPPED: there is no {}; `cargo xtask setup` installs it", path.display()));
        return None;
    }
    Some(path)
}

/// A program for node, to which the folder of [`node_packages`] and the seconds of [`wait::soon`] are the first arguments.
pub fn node_command(program: &str, arguments: &[&str]) -> Option<Command> {
    let packages = node_packages()?;
    let mut command = Command::new("node");
    command.args(["-e", program, "--"]).arg(packages).arg(wait::soon().as_secs().to_string()).args(arguments);
    Some(command)
}

/// What a program printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A running `wrk`: one thread, keep-alive connections.
#[derive(Debug)]
pub struct Wrk {
    process: Process,
    span: Duration,
}

/// What `wrk` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests that were answered.
    pub requests: u64,
    /// Connections that could not be made, reads and writes that failed, and timeouts.
    pub socket_errors: u64,
    /// Answers other than 2xx and 3xx.
    pub bad_answers: u64,
}

impl Wrk {
    /// Starts it against `http://address/`.
    pub fn start(room: Room<'_>, address: SocketAddr, connections: u32, span: Duration) -> Self {
        let mut command = Command::new("wrk");
        let timeout = format!("{}s", wait::soon().as_secs());
        command.args(["--threads", "1", "--timeout", &timeout, "--connections", &connections.to_string()]);
        command.args(["--duration", &format!("{}s", span.as_secs()), &format!("http://{address}/")]);
        Self { process: Process::spawn(room, command), span }
    }

    /// Whether it is still under way.
    pub fn running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits for its report.
    #[track_caller]
    pub fn report(mut self) -> Load {
        let status = self.process.wait(self.span + wait::SOON);
        let text = self.process.stdout();
        assert!(status.success(), "wrk: {status}\n{text}{}", self.process.stderr());
        Load::parse(&text).unwrap_or_else(|| panic!("no report of wrk: {text}"))
    }
}

impl Load {
    fn parse(text: &str) -> Option<Self> {
        let line = |start: &str| text.lines().map(str::trim).find_map(|line| line.strip_prefix(start));
        let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
        let socket_errors = line("Socket errors: ").map_or(0, sum_of_numbers);
        let bad_answers = line("Non-2xx or 3xx responses: ").map_or(0, sum_of_numbers);
        Some(Self { requests, socket_errors, bad_answers })
    }
}

/// The sum of `connect 1, read 2, write 3, timeout 4`.
fn sum_of_numbers(text: &str) -> u64 {
    text.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// nginx with one worker that answers every path with its name, and keeps connections for many requests.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    _directory: TempDir,
}

impl Nginx {
    /// Starts it and waits until it listens; `door` looks from inside the same network namespace.
    pub fn start(room: Room<'_>, door: &Door, address: SocketAddr, name: &str) -> Self {
        Self::start_with(room, door, &format!("listen {address} backlog=1024;"), address, name)
    }

    /// The same, that listens and speaks as it is told.
    pub fn start_with(room: Room<'_>, door: &Door, listen: &str, address: SocketAddr, name: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path();
        let file = path.join("nginx.conf");
        fs::write(&file, nginx_config(&path.to_string_lossy(), listen, name)).expect("nginx's configuration");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(path).arg("-c").arg(&file).arg("-e").arg(path.join("error.log"));
        let process = Process::spawn(room, command);
        wait::until("nginx to listen", wait::SOON, || door.dial(address).is_ok());
        Self { process, _directory: directory }
    }

    /// Its master's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its worker with it; killed, it could not.
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        wait::until("nginx to end", wait::SOON, || self.process.ended().is_some());
    }
}

fn nginx_config(directory: &str, listen: &str, name: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid {directory}/nginx.pid; user root;
         events {{ worker_connections 1024; }}
         http {{
           access_log off; keepalive_requests 100000000; client_body_temp_path {directory}/body; client_max_body_size 64m;
           proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
           server {{ {listen} location / {{ default_type text/plain; return 200 \"{name}\\n\"; }} }}
         }}"
    )
}

/// nghttpd, which serves one file of this many bytes at `/bytes`, sends back what it is sent, and writes down every frame.
#[derive(Debug)]
pub struct Nghttpd {
    process: Process,
    _directory: TempDir,
}

impl Nghttpd {
    /// Starts it and waits until it listens.
    pub fn start(room: Room<'_>, door: &Door, address: SocketAddr, bytes: usize, arguments: &[&str]) -> Self {
        let mut command = Command::new("nghttpd");
        command.args(["--no-tls", "--verbose", "--echo-upload"]).args(arguments);
        Self::launch(command, room, door, address, bytes, &[])
    }

    /// The same, that answers whatever it is sent at `/` with a few bytes.
    pub fn start_answering(room: Room<'_>, door: &Door, address: SocketAddr) -> Self {
        let mut command = Command::new("nghttpd");
        command.args(["--no-tls", "--verbose"]);
        Self::launch(command, room, door, address, 0, &[])
    }

    fn launch(
        mut command: Command,
        room: Room<'_>,
        door: &Door,
        address: SocketAddr,
        bytes: usize,
        files: &[&Path],
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        fs::write(directory.path().join("bytes"), "n".repeat(bytes)).expect("a file");
        fs::write(directory.path().join("index.html"), "nghttpd\n").expect("a file");
        command.arg("--htdocs").arg(directory.path());
        command.args(["--address", &address.ip().to_string(), &address.port().to_string()]).args(files);
        let process = Process::spawn(room, command);
        wait::until("nghttpd to listen", wait::SOON, || door.dial(address).is_ok());
        Self { process, _directory: directory }
    }

    /// The same under TLS, with HTTP/2 agreed on in its handshake.
    pub fn start_tls(room: Room<'_>, door: &Door, address: SocketAddr, bytes: usize, pair: &Pair) -> Self {
        let mut command = Command::new("nghttpd");
        command.args(["--verbose", "--echo-upload"]);
        Self::launch(command, room, door, address, bytes, &[&pair.key, &pair.cert])
    }

    /// What it wrote down.
    pub fn log(&self) -> String {
        self.process.stdout()
    }
}

/// `h2load` against an address: requests for a path, on connections with so many streams each. Gives its report.
#[track_caller]
pub fn h2load(room: Room<'_>, requests: u32, connections: u32, streams: u32, url: &str) -> String {
    let mut command = Command::new("h2load");
    command.args(["-n", &requests.to_string(), "-c", &connections.to_string(), "-m", &streams.to_string(), url]);
    let output = process::run(room, command);
    assert!(output.status.success(), "h2load: {}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

/// A redis server that keeps nothing on disk.
#[derive(Debug)]
pub struct Redis {
    _process: Process,
    _directory: TempDir,
}

impl Redis {
    /// Starts it and waits until it answers.
    pub fn start(room: Room<'_>, address: SocketAddr) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
            "--save",
            "",
            "--protected-mode",
            "no",
        ]);
        command.arg("--dir").arg(directory.path());
        let process = Process::spawn(room, command);
        wait::until("redis to listen", wait::SOON, || TcpStream::connect(address).is_ok());
        Self { _process: process, _directory: directory }
    }
}

/// `redis-cli` or `redis-benchmark` against an address.
#[track_caller]
pub fn redis(room: Room<'_>, program: &str, address: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]).args(arguments);
    let output = process::run(room, command);
    assert!(output.status.success(), "{program}: {}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

#[cfg(test)]
mod tests {
    use super::Load;

    #[test]
    fn reports_of_wrk_are_read_with_their_errors() {
        let text = "Running 1s test @ http://127.0.0.1/\n  45678 requests in 1.00s, 10MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 7\n";
        assert_eq!(Load::parse(text), Some(Load { requests: 45_678, socket_errors: 10, bad_answers: 7 }));
        assert_eq!(Load::parse("  9 requests in 1.00s\n").map(|load| load.socket_errors), Some(0));
    }
}
