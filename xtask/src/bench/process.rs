//! The processes of a run: started in a cgroup, a network namespace and on a CPU, ended when dropped, and asked what they cost.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{cgroup::Cgroup, interrupt, namespace::Namespace};

/// How long a process that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);

/// Where a process stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its network namespace.
    pub namespace: &'a Namespace,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
    /// The only CPU it may run on; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
}

impl Place<'_> {
    /// Makes the process enter its place between fork and exec; all that it starts stays there.
    fn enter(&self, command: &mut Command) -> Result<()> {
        let mut door = self.cgroup.door()?;
        let namespace = self.namespace.file()?;
        let cpu = self.cpu;
        let enter = move || {
            // `0` is the process that writes.
            door.write_all(b"0")?;
            // SAFETY: plain system calls on a descriptor that the closure owns and on constants.
            check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
            if let Some(cpu) = cpu {
                pin(cpu)?;
            }
            // Also when the benchmark is killed without a chance to clean up, its processes do not outlive it.
            // SAFETY: takes integers only.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
        };
        // SAFETY: between fork and exec the closure makes only system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        // Out of the terminal's foreground group: Ctrl-C reaches the benchmark alone, which then ends its processes in order.
        command.process_group(0);
        Ok(())
    }
}

/// Lets the calling thread, and all it starts, run on this CPU only.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `CPU_SET` ignores a CPU beyond the set; the set outlives the call.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is initialised and its size is given.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A process, ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts a server; what it says goes to `log`.
    pub fn serve(command: &mut Command, place: &Place, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("{}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut process = Self::start(command, place)?;
        process.log = Some(log.into());
        Ok(process)
    }

    /// Starts a process that is talked to over its standard input and output.
    pub fn converse(command: &mut Command, place: &Place) -> Result<(Self, ChildStdin, ChildStdout)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::start(command, place)?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (stdin, stdout) = pipes.context("a child without pipes")?;
        Ok((process, stdin, stdout))
    }

    /// Runs a program to its end and gives what it printed; one that fails is an error with what it complained about.
    pub fn output(command: &mut Command, place: &Place, limit: Duration) -> Result<String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Self::start(command, place)?;
        let pipes = process.child.stdout.take().zip(process.child.stderr.take());
        let (stdout, stderr) = pipes.context("a child without pipes")?;
        let (said, complained) = (collect(stdout), collect(stderr));
        let Some(status) = process.wait(limit)? else {
            bail!("{} did not end within {limit:?}", process.name);
        };
        let end = |reader: JoinHandle<io::Result<String>>| reader.join().expect("reading does not panic");
        let (said, complained) = (end(said)?, end(complained)?);
        if !status.success() {
            bail!("{} ended with {}: {}{}", process.name, say(status), said.trim(), complained.trim());
        }
        Ok(said)
    }

    fn start(command: &mut Command, place: &Place) -> Result<Self> {
        place.enter(command)?;
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        match command.spawn() {
            Ok(child) => Ok(Self { child, name, log: None }),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("{name} is not installed"),
            Err(error) => Err(error).with_context(|| format!("starting {name}")),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error, with the end of its log, once it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = self.log.as_ref().and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(8).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{} ended with {}: {}", self.name, say(status), last.join("\n"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        let pid = libc::pid_t::try_from(self.pid())?;
        // SAFETY: takes integers only; a child that is not reaped has its id to itself.
        Ok(check(unsafe { libc::kill(pid, signal) })?)
    }

    /// Asks it to end, and after a while no longer asks.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(libc::SIGTERM)?;
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// CPU time of this process and of those it started, since they began; threads that ended included.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in family(self.pid())? {
            sum += cpu_of(pid).with_context(|| format!("CPU time of {}", self.name))?;
        }
        Ok(sum)
    }

    /// Resident memory of this process and of those it started, in kB.
    pub fn rss_kb(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in family(self.pid())? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            sum += vm_rss(&status).with_context(|| format!("RSS of {}", self.name))?;
        }
        Ok(sum)
    }

    /// Kernel memory of the maps that it holds, in kB: what `fdinfo` tells of each, once for each map.
    pub fn maps_kb(&self) -> Result<f64> {
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))? {
            // A descriptor that was closed meanwhile is no map that is held.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            maps.extend(map_memory(&text));
        }
        ensure!(!maps.is_empty(), "{} holds no map", self.name);
        Ok(maps.values().sum::<u64>() as f64 / 1024.0)
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        interrupt::wait_for(limit, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("bench: ending {}: {error:#}", self.name);
        }
    }
}

/// Reads while the process is waited for: what it says may be more than a pipe holds.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<io::Result<String>> {
    thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// CPU time of the whole machine since it started, less idle time, time waiting for a disk and time the hypervisor took.
pub fn machine_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    // SAFETY: takes a constant.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let busy = busy_ticks(&stat).context("/proc/stat has no line of the whole machine")?;
    ensure!(ticks > 0, "the length of a clock tick is not known");
    Ok(Duration::from_secs_f64(busy as f64 / ticks as f64))
}

/// user, nice, system, (idle, iowait,) irq, softirq; steal is nobody's work, and guest time is in user already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    (ticks.len() >= 7).then(|| ticks[..3].iter().sum::<u64>() + ticks[5] + ticks[6])
}

/// The process's CPU clock: nanoseconds, where `/proc/PID/stat` has the same sum (utime + stime) in ticks of 10 ms.
fn cpu_of(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: writes the clock's id into `clock`.
    let result = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &mut clock) };
    ensure!(result == 0, "{}", io::Error::from_raw_os_error(result));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes into `time`.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// A process and all its descendants.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ended meanwhile has nothing more to say.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        parents.extend(parent(&stat).map(|parent| (pid, parent)));
    }
    Ok(descendants(pid, &parents))
}

fn descendants(pid: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, its_parent)| *its_parent == parent).map(|(pid, _)| pid));
        next += 1;
    }
    found
}

/// The second field after the command, which stands in parentheses and may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn vm_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Id and bytes of a map, from the `fdinfo` of a descriptor of it.
fn map_memory(fdinfo: &str) -> Option<(u32, u64)> {
    let field = |name| fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
    fdinfo.contains("map_type:").then(|| Some((field("map_id")? as u32, field("memlock")?)))?
}

fn say(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_the_machine_leaves_out_idle_iowait_steal_and_guests() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 1 1\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("intr 1 2 3\n"), None);
    }

    #[test]
    fn a_command_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent("42 (a) R (b) S 7 42 42 0"), Some(7));
        assert_eq!(parent("42"), None);
    }

    #[test]
    fn children_of_children_belong_to_the_family() {
        let parents = [(2, 1), (3, 2), (4, 3), (5, 1), (9, 8)];
        assert_eq!(descendants(2, &parents), [2, 3, 4]);
    }

    #[test]
    fn resident_memory_is_read_from_the_status_of_a_process() {
        assert_eq!(vm_rss("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t    1234 kB\n"), Some(1234));
        assert_eq!(vm_rss("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn the_memory_of_a_map_is_told_by_its_descriptor_and_that_of_a_program_is_none() {
        let map = "pos:\t0\nmap_type:\t1\nmax_entries:\t131072\nmemlock:\t10487808\nmap_id:\t12\nfrozen:\t0\n";
        assert_eq!(map_memory(map), Some((12, 10_487_808)));
        assert_eq!(map_memory("pos:\t0\nprog_type:\t18\nmemlock:\t4096\nprog_id:\t3\n"), None);
    }

    #[test]
    fn the_cpu_clock_of_a_process_only_goes_forward() {
        let pid = std::process::id();
        let before = cpu_of(pid).unwrap();
        let mut sum = 0u64;
        for i in 0..2_000_000u64 {
            sum = sum.wrapping_add(std::hint::black_box(i));
        }
        assert!(cpu_of(pid).unwrap() > before, "{sum}");
    }
}
