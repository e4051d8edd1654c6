//! What the guest is given: the agent, the tests, the programs they call with every library, and the kernel's modules for networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{archive::Archive, build::Built, guest, kernel::Kernel};
use crate::{
    progress::say,
    setup::{Group, programs_of, python},
    workspace::{self, cargo_target, find_program},
};

/// Programs beside those of the tests: what a shell line in a test may call, and what loads modules when the kernel asks for one.
const PROGRAMS: &[&str] = &[
    "sh", "sleep", "cat", "true", "false", "kill", "env", "install", "mount", "umount", "kmod", "modprobe", "prlimit",
];

/// Where the tests' files are looked up by name: users for nginx, protocols for ip; and where a test puts its own.
const FILES: &[&str] = &[
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
];

/// What tests read of the workspace, at the place where it was built.
const WORKSPACE: &[&str] = &["agent/src", "agent/deploy", "common/src", "ebpf/src", "tests", "target/ebpf"];

/// Mount points, and what programs expect to be there.
const DIRECTORIES: &[&str] =
    &["/proc", "/sys", "/tmp", "/run", "/root", "/var/log", "/var/tmp", "/var/lib", guest::BUILD_DEPS];

/// Folders that are links since Debian 12; the kernel calls `/sbin/modprobe` by that name.
const LINKS: &[&str] = &["/bin", "/sbin", "/lib", "/lib64"];

/// Folders of a kernel's modules that a test of a network proxy may come to need; whatever these depend on comes along.
const MODULES: &[&str] =
    &["kernel/net/", "kernel/crypto/", "kernel/lib/", "kernel/drivers/net/veth", "kernel/drivers/net/dummy"];

/// Parts of Python's library that no test imports, and that are large.
const PYTHON_SKIPPED: &[&str] =
    &["test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "distutils", "__pycache__"];

/// Where Debian keeps libraries for Python, and those of them that the tests' programs import, with what these import.
const PYTHON_PACKAGES: &str = "/usr/lib/python3/dist-packages";
const PYTHON_LIBRARIES: &[&str] = &[
    "google",
    "grpc",
    "h11",
    "h2",
    "hpack",
    "hypercorn",
    "hyperframe",
    "priority",
    "six.py",
    "toml",
    "typing_extensions.py",
    "urllib3",
    "websockets",
    "wsproto",
];

/// Makes the archive and writes it; gives its path.
pub fn write(kernel: &Kernel, built: &Built, plan: &guest::Plan) -> Result<PathBuf> {
    let home = cargo_target().join("test-kernel");
    fs::create_dir_all(&home)?;
    let mut archive = Archive::new(DIRECTORIES);
    archive.text(Path::new(guest::PLAN), plan.write());
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    let mut ours = vec![
        (PathBuf::from(guest::INIT), me),
        (PathBuf::from(guest::AGENT), built.agent.clone()),
        (PathBuf::from(guest::PROBE), built.probe.clone()),
        (PathBuf::from(guest::WAYS), built.ways.clone()),
    ];
    ours.extend(built.next.iter().map(|path| (PathBuf::from(guest::NEXT), path.clone())));
    ours.extend(built.tests.iter().map(|(name, path)| (Path::new(guest::BUILD_DEPS).join(name), path.clone())));
    for (at, path) in &ours {
        archive.file(at, &stripped(path, &home)?)?;
    }
    for path in LINKS.iter().chain(FILES).map(Path::new).filter(|path| path.exists()) {
        archive.as_here(path)?;
    }
    for program in programs_of(Group::Test).chain(PROGRAMS.iter().copied()) {
        add_program(&mut archive, program)?;
    }
    add_python(&mut archive)?;
    for folder in WORKSPACE {
        archive.tree_as_here(&workspace::root().join(folder), &|_| false)?;
    }
    add_libraries(&mut archive)?;
    add_modules(&mut archive, kernel)?;
    let path = home.join(format!("{}.cpio", kernel.package.release));
    let bytes = archive.write(&path)?;
    say(format!("the guest's file system is {} ({} MiB)", path.display(), bytes >> 20));
    Ok(path)
}

/// A copy without debug information: ten times smaller, and the guest keeps all of it in memory. Names of functions stay, for panics.
fn stripped(path: &Path, home: &Path) -> Result<PathBuf> {
    // Two programs may have one name.
    let copy = home.join("stripped").join(path.strip_prefix("/").unwrap_or(path));
    fs::create_dir_all(copy.parent().context("a program is a file")?)?;
    let age = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if age(&copy) > age(path) {
        return Ok(copy);
    }
    // Renamed into place: another machine may be packed at the same time.
    let fresh = copy.with_extension(format!("{}.tmp", std::process::id()));
    let output = Command::new("strip").arg("--strip-debug").arg("-o").arg(&fresh).arg(path).output();
    let output = output.context("cannot start strip")?;
    if !output.status.success() {
        bail!("strip {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::rename(&fresh, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

fn add_program(archive: &mut Archive, name: &str) -> Result<()> {
    let path = match name {
        // Another one on the PATH may need a whole tree of its own.
        "python3" => python(),
        _ => find_program(name).with_context(|| format!("there is no `{name}` here, and the tests call it"))?,
    };
    let place = archive.as_here(&path)?;
    // The guest looks in the usual folders only.
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    if !usual.iter().any(|folder| path.parent() == Some(Path::new(folder))) {
        archive.link(&Path::new("/usr/bin").join(name), &place);
    }
    Ok(())
}

fn add_python(archive: &mut Archive) -> Result<()> {
    let output = Command::new(python())
        .args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"])
        .output()
        .context("cannot start python3")?;
    let library = String::from_utf8(output.stdout)?;
    let is_skipped = |name: &str| PYTHON_SKIPPED.contains(&name) || name.starts_with("config-");
    archive.tree_as_here(Path::new(library.trim()), &is_skipped)?;
    let libraries = PYTHON_LIBRARIES.iter().map(|name| Path::new(PYTHON_PACKAGES).join(name));
    for library in libraries.filter(|library| library.exists()) {
        if library.is_dir() {
            archive.tree_as_here(&library, &is_skipped)?;
        } else {
            archive.as_here(&library)?;
        }
    }
    Ok(())
}

/// The shared libraries of everything that is in so far, by what the dynamic linker says.
fn add_libraries(archive: &mut Archive) -> Result<()> {
    let sources: Vec<PathBuf> = archive.files().map(|(_, source)| source.to_owned()).collect();
    let mut libraries = BTreeSet::new();
    for source in sources.iter().filter(|source| is_elf(source)) {
        let output = Command::new("ldd").arg(source).output().context("cannot start ldd")?;
        // A program without libraries is an error to ldd, and none to us.
        libraries
            .extend(needed(&String::from_utf8_lossy(&output.stdout)).with_context(|| source.display().to_string())?);
    }
    libraries.iter().try_for_each(|library| archive.as_here(library).map(drop))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic)).is_ok()
        && magic == *b"\x7fELF"
}

/// Reads ldd: `name => path (address)`, and the linker itself as `path (address)`.
fn needed(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix("=> not found") {
            bail!("its library {} is not here", name.trim());
        }
        let place = line.split_once("=> ").map_or(line, |(_, place)| place);
        if let Some((path, _)) = place.split_once(" (").filter(|(path, _)| path.starts_with('/')) {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

fn add_modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let dependencies = fs::read_to_string(kernel.modules.join("modules.dep")).context("no modules.dep")?;
    let lib = archive.as_here(Path::new("/lib"))?;
    let home = lib.join("modules").join(&kernel.package.release);
    for module in closure(&dependencies, MODULES) {
        archive.file(&home.join(&module), &kernel.modules.join(&module))?;
    }
    for entry in fs::read_dir(&kernel.modules)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            archive.file(&home.join(entry.file_name()), &entry.path())?;
        }
    }
    Ok(())
}

/// The modules whose path begins with one of these, and all that they depend on. Each line of `modules.dep` names all dependencies.
fn closure(dependencies: &str, beginnings: &[&str]) -> BTreeSet<String> {
    let lines: BTreeMap<&str, &str> = dependencies.lines().filter_map(|line| line.split_once(':')).collect();
    let wanted = lines.iter().filter(|(module, _)| beginnings.iter().any(|beginning| module.starts_with(beginning)));
    wanted.flat_map(|(module, needed)| needed.split_ascii_whitespace().chain([*module])).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_and_the_linker_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<PathBuf> =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from).into();
        assert_eq!(needed(text).unwrap(), paths);
        assert!(needed("\tstatically linked\n").unwrap().is_empty());
        assert!(needed("\tlibx.so => not found\n").unwrap_err().to_string().contains("libx.so"));
    }

    #[test]
    fn a_module_brings_what_it_depends_on() {
        let text = "kernel/net/a.ko: kernel/drivers/b.ko kernel/lib/c.ko\nkernel/drivers/b.ko:\nkernel/lib/c.ko:\nkernel/fs/d.ko:\n";
        let found: Vec<String> = closure(text, &["kernel/net/"]).into_iter().collect();
        assert_eq!(found, ["kernel/drivers/b.ko", "kernel/lib/c.ko", "kernel/net/a.ko"]);
    }
}
