//! Debian's kernel packages: which there are, and one of them unpacked below `target/kernels`, never installed.
//!
//! apt does the work, on package lists of its own: those of every suite that Debian has now, from the mirror that this host is configured
//! for. So a Debian 12 gets the kernel of Debian 11 or of unstable, and this host's own lists stay as they are.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    progress::{logged, say},
    root::is_root,
    setup::packages::install_if_missing,
    workspace::{find_program, kept},
};

/// Suites by the names that never change their meaning, from the oldest whose kernel can be of interest. One that a mirror no longer has is
/// passed over.
const SUITES: &[&str] = &["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid"];
const SECURITY_SUITES: &[&str] = &["bullseye-security", "bookworm-security", "trixie-security"];

/// The keys that Debian signs its lists with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What apt says when it reads the lists, in `target/setup`.
const LISTS_LOG: &str = "kernel-lists.log";

/// Where Debian is when this host's own apt knows no mirror of it.
const MIRROR: &str = "http://deb.debian.org/debian/";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security/";

/// A kernel package that can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// `6.1.0-56-amd64`: what `uname -r` will say.
    pub release: String,
    /// The version of the package, `6.1.192-2`.
    pub version: String,
    /// Where it comes from, `bookworm-security/main`.
    pub suite: String,
}

impl Package {
    /// The numbers of its version: what it is chosen by, and ordered by.
    fn numbers(&self) -> Vec<u64> {
        numbers(&self.version)
    }

    /// Every deb it consists of: since 7.2 the modules and the image have packages of their own.
    fn debs(&self) -> [String; 3] {
        ["image", "binary", "modules"].map(|part| format!("linux-{part}-{}", self.release))
    }

    fn home(&self) -> PathBuf {
        kept().join("kernels").join(format!("{}_{}", self.release, self.version))
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} (Debian {}, {})", self.release, self.version, self.suite)
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The highest version of all suites.
    Newest,
    /// The highest version that begins with these numbers, `6.1` or `6.12.107`.
    Version(String),
}

impl Wanted {
    /// Reads `newest`, or a version.
    pub fn read(text: &str) -> Result<Self, String> {
        let version = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+~-".contains(&byte));
        match text {
            "newest" => Ok(Self::Newest),
            _ if version && text.starts_with(|first: char| first.is_ascii_digit()) => {
                Ok(Self::Version(text.to_owned()))
            }
            _ => Err("a version (6.1, 6.12.107) or `newest`".to_owned()),
        }
    }

    fn choose<'a>(&self, packages: &'a [Package]) -> Option<&'a Package> {
        let fits = |package: &&Package| match self {
            Self::Newest => true,
            Self::Version(version) => package.numbers().starts_with(&numbers(version)),
        };
        packages.iter().filter(fits).max_by_key(|package| package.numbers())
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest"),
            Self::Version(version) => f.write_str(version),
        }
    }
}

/// A kernel, unpacked.
#[derive(Debug)]
pub struct Kernel {
    /// The package.
    pub package: Package,
    /// The image that boots.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, with the indexes of depmod.
    pub modules: PathBuf,
}

/// Every kernel that Debian offers this host, the highest version last.
pub fn offered() -> Result<Vec<Package>> {
    let apt = Apt::prepare()?;
    apt.update();
    apt.kernels()
}

/// Finds the kernel, downloads and unpacks it unless that was done before.
pub fn ready(wanted: &Wanted) -> Result<Kernel> {
    let apt = Apt::prepare()?;
    apt.update();
    let packages = apt.kernels()?;
    let Some(package) = wanted.choose(&packages) else {
        bail!("Debian offers no kernel {wanted}; {}", series(&packages));
    };
    say(format!("{package}"));
    let home = package.home();
    if !home.join(COMPLETE).is_file() {
        unpack(&apt, package, &home)?;
    }
    let modules = home.join("lib/modules").join(&package.release);
    let images = [home.join("boot").join(format!("vmlinuz-{}", package.release)), modules.join("vmlinuz")];
    let image = images.into_iter().find(|path| path.is_file());
    let image = image.with_context(|| format!("there is no image in {}: remove it and try again", home.display()))?;
    Ok(Kernel { package: package.clone(), image, modules })
}

/// Tells a folder that was unpacked whole from one that was interrupted.
const COMPLETE: &str = ".complete";

fn unpack(apt: &Apt, package: &Package, home: &Path) -> Result<()> {
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    fs::create_dir_all(home)?;
    let known = apt.known(&package.debs(), &package.version)?;
    let mut download = apt.command("apt-get");
    download.current_dir(home).arg("download");
    download.args(known.iter().map(|deb| format!("{deb}={}", package.version)));
    logged(&format!("downloading {}", known.join(", ")), "kernel-download", &mut download)?;
    for deb in fs::read_dir(home)?.collect::<Result<Vec<_>, _>>()? {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(deb.path()).arg(home);
        logged(&format!("unpacking {}", deb.file_name().to_string_lossy()), "kernel-unpack", &mut extract)?;
        fs::remove_file(deb.path())?;
    }
    // Newer packages say /usr/lib, older ones /lib.
    if !home.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", home.join("lib"))?;
    }
    let depmod = find_program("depmod").context("package kmod is installed, and still there is no `depmod`")?;
    let mut index = Command::new(depmod);
    index.arg("--basedir").arg(home).arg(&package.release);
    logged("indexing its modules", "kernel-depmod", &mut index)?;
    fs::write(home.join(COMPLETE), "")?;
    Ok(())
}

/// apt with lists, cache and configuration of its own below `target/kernels/apt`.
struct Apt {
    home: PathBuf,
}

impl Apt {
    fn prepare() -> Result<Self> {
        if find_program("apt-get").is_none() {
            bail!("there is no apt-get here: Debian's kernels are fetched by it");
        }
        install_if_missing("debian-archive-keyring", Path::new(KEYRING))?;
        let apt = Self { home: kept().join("kernels/apt") };
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.home.join(folder))?;
        }
        // No package is installed as far as this apt knows: it only downloads.
        fs::write(apt.home.join("status"), "")?;
        fs::write(apt.home.join("sources.list"), sources(&index_targets()?))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let options = [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "status"),
            ("Dir::Cache", "cache"),
        ];
        for (option, file) in options {
            command.arg("-o").arg(format!("{option}={}", self.home.join(file).display()));
        }
        for nowhere in ["SourceParts", "Preferences", "PreferencesParts"] {
            command.arg("-o").arg(format!("Dir::Etc::{nowhere}=/dev/null"));
        }
        command.args(["-o", "APT::Architecture=amd64", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3"]);
        // Lists that a desktop's software centre wants: half of the download.
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        if is_root() {
            // apt's own user cannot write where we are.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }

    /// Whatever cannot be read now stays as it was the last time, and a suite that is not there is none: what counts is what there is.
    fn update(&self) {
        say("reading Debian's package lists, of every suite …");
        let log = kept().join("setup").join(LISTS_LOG);
        let kept = fs::create_dir_all(kept().join("setup")).and_then(|()| {
            let output = self.command("apt-get").arg("update").output()?;
            fs::write(&log, [output.stdout, output.stderr].concat())?;
            Ok(output.status)
        });
        match kept {
            Ok(status) if status.success() => {}
            other => say(format!("not every list could be read ({other:?}): {} says which", log.display())),
        }
    }

    /// The kernels in the lists, the highest version last.
    fn kernels(&self) -> Result<Vec<Package>> {
        let names = self.ask(&["pkgnames", "linux-image-"])?;
        let names: Vec<&str> = names.lines().filter(|name| release(name).is_some()).collect();
        if names.is_empty() {
            bail!("there is no kernel in Debian's package lists: target/setup/{LISTS_LOG} says why");
        }
        let mut packages = packages(&self.ask(&[&["madison"], &names[..]].concat())?);
        packages.sort_by_key(Package::numbers);
        Ok(packages)
    }

    /// Which of these there are in this version.
    fn known(&self, names: &[String], version: &str) -> Result<Vec<String>> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let lines = self.ask(&[&["madison"], &names[..]].concat())?;
        let mut found: Vec<String> = lines
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
            .filter(|words| words.get(1) == Some(&version))
            .map(|words| words[0].to_owned())
            .collect();
        found.dedup();
        Ok(found)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command("apt-cache").args(arguments).output().context("cannot start apt-cache")?;
        if !output.status.success() {
            bail!("apt-cache {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// What this host's own apt reads: a mirror and what is on it, a line each.
fn index_targets() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    Ok(String::from_utf8_lossy(&command.output().context("cannot start apt-get")?.stdout).into_owned())
}

fn sources(targets: &str) -> String {
    let mirror = |label: &str, otherwise: &str| {
        let line = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
        line.unwrap_or(otherwise).to_owned()
    };
    let pairs = [(mirror("Debian", MIRROR), SUITES), (mirror("Debian-Security", SECURITY_MIRROR), SECURITY_SUITES)];
    let line = |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    pairs.iter().flat_map(|(mirror, suites)| suites.iter().map(move |suite| line(mirror, suite))).collect()
}

/// The release of a kernel package for every machine; none for its variants, and for those that only depend on another.
fn release(name: &str) -> Option<&str> {
    let release = name.strip_prefix("linux-image-")?;
    let version = release.strip_suffix("-amd64")?;
    let variant = ["-cloud", "-rt"].iter().any(|variant| version.ends_with(variant));
    // `linux-image-6.1-amd64` depends on the latest of 6.1.
    (version.starts_with(|first: char| first.is_ascii_digit()) && !variant && numbers(version).len() > 2)
        .then_some(release)
}

/// Reads `apt-cache madison`: `name | version | mirror suite/component architecture Packages`.
fn packages(madison: &str) -> Vec<Package> {
    let package = |line: &str| {
        let mut words = line.split('|').map(str::trim);
        let (name, version, place) = (words.next()?, words.next()?, words.next()?);
        let suite = place.split(' ').nth(1)?.to_owned();
        Some(Package { release: release(name)?.to_owned(), version: version.to_owned(), suite })
    };
    madison.lines().filter_map(package).collect()
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|byte: char| !byte.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// What there is, for whoever asked for something else.
fn series(packages: &[Package]) -> String {
    let mut series: Vec<String> = packages
        .iter()
        .map(|package| package.numbers().iter().take(2).map(u64::to_string).collect::<Vec<_>>().join("."))
        .collect();
    series.dedup();
    format!("there are {}", series.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
linux-image-6.1.0-55-amd64 | 6.1.190-1 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
linux-image-6.1.0-56-amd64 | 6.1.192-2 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
linux-image-6.12.95+deb12-amd64 | 6.12.95-1~bpo12+1 | http://deb.debian.org/debian bookworm-backports/main amd64 Packages
linux-image-6.12.107+deb13-amd64 | 6.12.107-1 | http://deb.debian.org/debian trixie/main amd64 Packages
linux-image-6.1-amd64 | 6.1.180-1 | http://deb.debian.org/debian-security bullseye-security/main amd64 Packages
";

    fn chosen(wanted: &str) -> Option<String> {
        let mut packages = packages(MADISON);
        packages.sort_by_key(Package::numbers);
        Wanted::read(wanted).unwrap().choose(&packages).map(|package| package.version.clone())
    }

    #[test]
    fn the_highest_version_that_fits_is_taken() {
        assert_eq!(chosen("6.1").as_deref(), Some("6.1.192-2"));
        assert_eq!(chosen("6.1.190").as_deref(), Some("6.1.190-1"));
        assert_eq!(chosen("6.12").as_deref(), Some("6.12.107-1"), "107 is more than 95");
        assert_eq!(chosen("newest").as_deref(), Some("6.12.107-1"));
        assert_eq!(chosen("5.15"), None);
    }

    #[test]
    fn variants_and_packages_without_a_kernel_are_left_out() {
        assert_eq!(release("linux-image-6.1.0-56-amd64"), Some("6.1.0-56-amd64"));
        for other in [
            "linux-image-6.1-amd64",
            "linux-image-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-rt-amd64",
            "linux-image-6.1.0-56-amd64-dbg",
            "linux-image-6.1.0-56-amd64-unsigned",
        ] {
            assert_eq!(release(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused_before_anything_is_done() {
        for bad in ["", "latest", "v6.1", "../6.1", "6.1 "] {
            assert!(Wanted::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_mirror_is_the_one_this_host_is_configured_for() {
        let lists = sources("Other http://other/\nDebian http://mirror.test/debian/\n");
        assert!(lists.contains("] http://mirror.test/debian/ sid main\n"), "{lists}");
        assert!(lists.contains("] http://deb.debian.org/debian-security/ trixie-security main\n"), "{lists}");
    }

    #[test]
    fn a_kernel_that_is_not_offered_is_answered_with_those_that_are() {
        let mut packages = packages(MADISON);
        packages.sort_by_key(Package::numbers);
        assert_eq!(series(&packages), "there are 6.1, 6.12");
    }
}
