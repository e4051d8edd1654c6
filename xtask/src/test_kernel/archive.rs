//! The guest's first file system, as the kernel unpacks it at boot: an archive in the "newc" format of cpio
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of Linux), not compressed, because an emulated processor would have to
//! undo it. Taken from this host: a path keeps its place and its links.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Links that a path may go through: what the kernel allows (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;

/// File types and rights as in `st_mode`.
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;
const CONSOLE: u32 = 0o020_600;

/// What stands at a path of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    Link(PathBuf),
    /// A file of this host, with its rights.
    File(PathBuf, u32),
    Text(String),
    /// `/dev/console`, which the kernel opens for process 1.
    Console,
}

/// Everything that the guest will find, by path.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Archive {
    /// An archive with a console and the directories that mounts need.
    pub fn new(directories: &[&str]) -> Self {
        let mut archive = Self::default();
        directories.iter().for_each(|path| archive.directory(Path::new(path)));
        archive.directory(Path::new("/dev"));
        archive.entries.insert("/dev/console".into(), Entry::Console);
        archive
    }

    /// A directory, and those above it.
    pub fn directory(&mut self, path: &Path) {
        for above in path.ancestors().filter(|above| above.parent().is_some()) {
            self.entries.entry(above.to_owned()).or_insert(Entry::Directory);
        }
    }

    /// A file of this host at another place.
    pub fn file(&mut self, at: &Path, source: &Path) -> Result<()> {
        let metadata = fs::metadata(source).with_context(|| format!("no file {}", source.display()))?;
        self.put(at, Entry::File(source.to_owned(), metadata.permissions().mode() & 0o7777));
        Ok(())
    }

    /// A file with this text.
    pub fn text(&mut self, at: &Path, text: impl Into<String>) {
        self.put(at, Entry::Text(text.into()));
    }

    /// A symbolic link.
    pub fn link(&mut self, at: &Path, target: &Path) {
        self.put(at, Entry::Link(target.to_owned()));
    }

    /// A file or directory of this host at its own place, with the links on the way there; a directory without what is in it. Gives its
    /// place behind the links.
    pub fn as_here(&mut self, path: &Path) -> Result<PathBuf> {
        self.follow(path, LINKS_MAX)
    }

    /// A directory of this host with everything below it, except the names that `skip` refuses.
    pub fn tree_as_here(&mut self, path: &Path, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        let place = self.as_here(path)?;
        for entry in fs::read_dir(&place).with_context(|| format!("cannot read {}", place.display()))? {
            let entry = entry?;
            if skip(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.tree_as_here(&entry.path(), skip)?;
            } else {
                self.as_here(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The files of this host in it, as (place in the guest, source).
    pub fn files(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.entries.iter().filter_map(|(at, entry)| match entry {
            Entry::File(source, _) => Some((at.as_path(), source.as_path())),
            _ => None,
        })
    }

    /// Writes it, and gives its length in bytes.
    pub fn write(&self, to: &Path) -> Result<u64> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = BufWriter::new(file);
        for (serial, (path, entry)) in (1..).zip(&self.entries) {
            append(&mut out, serial, path, entry).with_context(|| format!("packing {}", path.display()))?;
        }
        record(&mut out, &Header { name: "TRAILER!!!", ..Header::default() }, &mut io::empty())?;
        out.flush()?;
        Ok(fs::metadata(to)?.len())
    }

    fn put(&mut self, at: &Path, entry: Entry) {
        if let Some(parent) = at.parent() {
            self.directory(parent);
        }
        self.entries.insert(at.to_owned(), entry);
    }

    fn follow(&mut self, path: &Path, links_left: u32) -> Result<PathBuf> {
        if links_left == 0 {
            bail!("too many links at {}", path.display());
        }
        let mut at = PathBuf::from("/");
        let mut rest = path.components();
        while let Some(component) = rest.next() {
            match component {
                Component::Normal(name) => at.push(name),
                // What stands in `at` is behind all links: its parent is the real one.
                Component::ParentDir => drop(at.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            }
            let metadata = fs::symlink_metadata(&at).with_context(|| format!("no {} here", at.display()))?;
            if metadata.is_symlink() {
                let target = fs::read_link(&at)?;
                self.link(&at, &target);
                let further = at.parent().unwrap_or(Path::new("/")).join(target).join(rest.as_path());
                return self.follow(&further, links_left - 1);
            }
            if metadata.is_dir() {
                self.directory(&at);
            } else {
                self.file(&at.clone(), &at)?;
            }
        }
        Ok(at)
    }
}

/// What varies in a header; the rest is zero, or one.
#[derive(Default)]
struct Header<'a> {
    serial: u32,
    mode: u32,
    length: u32,
    device: (u32, u32),
    name: &'a str,
}

fn append(out: &mut impl Write, serial: u32, path: &Path, entry: &Entry) -> Result<()> {
    let name = path.strip_prefix("/")?.to_str().context("a path that is not UTF-8")?;
    let header = |mode, length| Header { serial, mode, length, name, device: (0, 0) };
    match entry {
        Entry::Directory => record(out, &header(DIRECTORY, 0), &mut io::empty())?,
        Entry::Console => record(out, &Header { device: (5, 1), ..header(CONSOLE, 0) }, &mut io::empty())?,
        Entry::Link(target) => {
            let target = target.to_str().context("a link that is not UTF-8")?;
            record(out, &header(LINK, u32::try_from(target.len())?), &mut target.as_bytes())?;
        }
        Entry::Text(text) => record(out, &header(REGULAR | 0o644, u32::try_from(text.len())?), &mut text.as_bytes())?,
        Entry::File(source, rights) => {
            let mut file = File::open(source)?;
            let length = u32::try_from(file.metadata()?.len()).context("a file of more than 4 GiB")?;
            record(out, &header(REGULAR | rights, length), &mut file)?;
        }
    }
    Ok(())
}

/// Header, name and content, each filled up to four bytes.
fn record(out: &mut impl Write, header: &Header<'_>, content: &mut impl io::Read) -> io::Result<()> {
    let name_length = header.name.len() as u32 + 1;
    let (major, minor) = header.device;
    let numbers = [header.serial, header.mode, 0, 0, 1, 0, header.length, 0, 0, major, minor, name_length, 0];
    out.write_all(b"070701")?;
    numbers.iter().try_for_each(|number| write!(out, "{number:08x}"))?;
    out.write_all(header.name.as_bytes())?;
    // Six bytes of magic and thirteen numbers of eight stand before the name.
    fill(out, 110 + u64::from(name_length), 1)?;
    let copied = io::copy(content, out)?;
    if copied != u64::from(header.length) {
        return Err(io::Error::other(format!("{copied} bytes of {}", header.length)));
    }
    fill(out, copied, 0)
}

/// Zeroes: `least` of them, and as many as `length` lacks to a multiple of four.
fn fill(out: &mut impl Write, length: u64, least: usize) -> io::Result<()> {
    let lacking = ((4 - length % 4) % 4) as usize;
    out.write_all(&[0; 4][..lacking + least])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("sockway-archive-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::canonicalize(directory).unwrap()
    }

    #[test]
    fn a_record_is_filled_up_to_four_bytes_everywhere() {
        let mut bytes = Vec::new();
        let header = Header { serial: 1, mode: REGULAR | 0o644, length: 5, name: "ab", device: (0, 0) };
        record(&mut bytes, &header, &mut &b"12345"[..]).unwrap();
        assert!(bytes.starts_with(b"07070100000001000081a4"));
        assert_eq!(&bytes[110..116], b"ab\0\0\0\0".get(..6).unwrap());
        assert_eq!(&bytes[bytes.len() - 8..], b"12345\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_file_that_grew_while_it_was_packed_is_an_error() {
        let header = Header { length: 2, name: "a", ..Header::default() };
        assert!(record(&mut Vec::new(), &header, &mut &b"12345"[..]).is_err());
    }

    #[test]
    fn a_path_through_links_brings_the_links_along() {
        let home = scratch("links");
        fs::create_dir_all(home.join("real/deep")).unwrap();
        fs::write(home.join("real/deep/program"), "x").unwrap();
        let _ = std::os::unix::fs::symlink("real/deep", home.join("short"));
        let _ = std::os::unix::fs::symlink("../short/program", home.join("real/name"));
        let mut archive = Archive::default();
        let place = archive.as_here(&home.join("real/name")).unwrap();
        assert_eq!(place, home.join("real/deep/program"));
        assert_eq!(archive.entries[&home.join("short")], Entry::Link("real/deep".into()));
        assert_eq!(archive.entries[&home.join("real/name")], Entry::Link("../short/program".into()));
        assert_eq!(archive.files().count(), 1);
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let home = scratch("loop");
        let _ = std::os::unix::fs::symlink("loop", home.join("loop"));
        assert!(Archive::default().as_here(&home.join("loop")).is_err());
        fs::remove_dir_all(home).unwrap();
    }
}
