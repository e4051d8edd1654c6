//! The audit log on the disk: one line of JSON for each change, appended and never rewritten, and beside it what the last configurations
//! said. A log that has grown too long is set aside, once, and begun anew.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::Entry;

/// Configurations that are kept, to go back to.
pub const KEPT: u64 = 16;
/// Entries that are remembered, to be shown.
const ENTRIES_MAX: usize = 256;
/// Lines that wait for a disk that takes them again, of some hundred bytes each.
const UNWRITTEN_MAX: usize = 1_000;
/// Bytes of a line that is read again.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What was changed, when and by whom.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    bytes_max: u64,
    entries: VecDeque<Entry>,
    last: u64,
    /// Lines that the disk has not taken yet, oldest first.
    unwritten: VecDeque<Vec<u8>>,
    /// What generations say that the disk has not taken yet, as many as are kept.
    unkept: BTreeMap<u64, String>,
    /// What is in the way of writing.
    trouble: Option<String>,
}

impl Ledger {
    /// Reads what was written before.
    pub fn open(path: PathBuf, bytes_max: u64) -> Self {
        let (entries, unwritten, unkept) = Default::default();
        let mut ledger = Self { path, bytes_max, entries, last: 0, unwritten, unkept, trouble: None };
        for path in [ledger.aside(), ledger.path.clone()] {
            ledger.read(&path);
        }
        ledger.last = ledger.kept().into_iter().chain([ledger.last]).max().unwrap_or(0);
        ledger
    }

    fn read(&mut self, path: &Path) {
        // A device or a pipe in its place may never end.
        let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
        let Some(file) = is_file.then(|| File::open(path).ok()).flatten() else { return };
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            // A line that was cut off by a crash, or is not ours, tells nothing.
            let entry = (line.len() <= LINE_BYTES_MAX).then(|| serde_json::from_slice::<Entry>(&line).ok()).flatten();
            if let Some(entry) = entry {
                self.last = self.last.max(entry.generation);
                self.remember(entry);
            }
        }
    }

    fn remember(&mut self, entry: Entry) {
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// The last generation that was ever in effect; 0: none is known.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why nothing is written, if nothing is.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The last changes, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Changes of which the disk has not taken the line yet, or what was in effect by them.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len().max(self.unkept.len())
    }

    /// Writes a change down, with those that could not be written before, and what it put in effect.
    pub fn add(&mut self, entry: Entry, text: Option<&str>) {
        if let Some(text) = text {
            self.unkept.insert(entry.generation, text.to_owned());
            if self.unkept.len() > KEPT as usize {
                self.unkept.pop_first();
            }
        }
        let kept = self.keep();
        let written = self.line(&entry).and_then(|()| self.write()).and(kept);
        self.came_of(written);
        self.last = self.last.max(entry.generation);
        self.remember(entry);
    }

    /// Writes what could not be written before, if anything could not.
    pub fn try_again(&mut self) {
        if self.unwritten() > 0 {
            let kept = self.keep();
            let written = self.write().and(kept);
            self.came_of(written);
        }
    }

    /// Tells when writing begins to fail, and when it no longer does.
    fn came_of(&mut self, written: io::Result<()>) {
        let path = if self.unwritten.is_empty() && !self.unkept.is_empty() { self.texts() } else { self.path.clone() };
        let file = path.display();
        match (&written, self.trouble.is_some()) {
            (Err(error), false) if !self.unwritten.is_empty() => {
                tracing::warn!(%file, %error, "changes are not written down; make room, or set audit.path to where they can be");
            }
            (Err(error), false) => {
                tracing::warn!(%file, %error, "a configuration is not kept, to go back to; it is tried again until there is room");
            }
            (Ok(()), true) => tracing::info!(%file, "changes are written down again, and what they say is kept"),
            _ => {}
        }
        self.trouble = written.err().map(|error| format!("{file}: {error}"));
    }

    /// Puts a change among those that are to be written.
    fn line(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.unwritten.len() == UNWRITTEN_MAX {
            self.unwritten.pop_front();
            tracing::error!(file = %self.path.display(), "the oldest change that is not written down never will be");
        }
        self.unwritten.push_back(line);
        Ok(())
    }

    /// Writes what was not written yet, as far as the disk takes it.
    fn write(&mut self) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let mut file = self.log()?;
        while let Some(line) = self.unwritten.front() {
            let mut bytes = file.metadata()?.len();
            if bytes > 0 && bytes + line.len() as u64 > self.bytes_max {
                file.sync_data()?;
                fs::rename(&self.path, self.aside())?;
                (file, bytes) = (self.log()?, 0);
            }
            if let Err(error) = file.write_all(line) {
                // What a full disk took of a line is no line.
                let _ = file.set_len(bytes);
                return Err(error);
            }
            self.unwritten.pop_front();
        }
        file.sync_data()
    }

    /// The log, which ends with a whole line, whatever a crash has left.
    fn log(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&self.path)?;
        let mut last = [b'\n'];
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }

    fn aside(&self) -> PathBuf {
        beside(&self.path, ".1")
    }

    fn texts(&self) -> PathBuf {
        beside(&self.path, ".generations")
    }

    fn text_of(&self, generation: u64) -> PathBuf {
        self.texts().join(format!("{generation}.yaml"))
    }

    /// Keeps what was not kept yet, as far as the disk takes it.
    fn keep(&mut self) -> io::Result<()> {
        while let Some((generation, text)) = self.unkept.first_key_value() {
            self.keep_one(*generation, text)?;
            self.unkept.pop_first();
        }
        Ok(())
    }

    fn keep_one(&self, generation: u64, text: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.texts())?;
        let (new, path) = (self.texts().join("new"), self.text_of(generation));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        if let Err(error) = file.write_all(text.as_bytes()) {
            // What a full disk took of it is in others' way.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        fs::rename(&new, path)?;
        for old in self.kept().into_iter().filter(|kept| kept + KEPT <= generation) {
            fs::remove_file(self.text_of(old))?;
        }
        Ok(())
    }

    /// The generations that can be gone back to, in no order.
    pub fn kept(&self) -> Vec<u64> {
        let files = fs::read_dir(self.texts()).into_iter().flatten().flatten();
        files.filter_map(|file| file.file_name().to_str()?.strip_suffix(".yaml")?.parse().ok()).collect()
    }

    /// What the configuration of a generation said, if that is kept.
    pub fn text(&self, generation: u64) -> Option<String> {
        fs::read_to_string(self.text_of(generation)).ok()
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::node::history::Outcome;

    fn entry(generation: u64) -> Entry {
        Entry { generation, change: "reload".to_owned(), by: "file F".to_owned(), ..Entry::default() }
    }

    #[test]
    fn what_was_written_is_found_again_and_the_last_texts_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/audit.jsonl");
        let mut ledger = Ledger::open(path.clone(), 1 << 20);
        assert_eq!(ledger.last(), 0);
        for generation in 1..=20 {
            ledger.add(entry(generation), Some(&format!("workers: {generation}")));
        }
        ledger.add(Entry { outcome: Outcome::Refused, error: Some("F:1:1: no".to_owned()), ..entry(20) }, None);
        assert_eq!(ledger.trouble(), None);
        fs::write(directory.path().join("deep/other.yaml"), "").expect("writable");
        let mut log = OpenOptions::new().append(true).open(&path).expect("the log");
        log.write_all(b"{\"generation\": 99, cut o").expect("writable");
        let mut again = Ledger::open(path.clone(), 1 << 20);
        assert_eq!((again.last(), again.entries().count()), (20, 21));
        again.add(entry(20), None);
        again = Ledger::open(path.clone(), 1 << 20);
        assert_eq!(again.entries().count(), 22, "what follows a line that was cut off is a line of its own");
        let broken = fs::read_to_string(&path).expect("readable");
        assert_eq!(broken.lines().filter(|line| !line.ends_with('}')).count(), 1, "{broken}");
        again = Ledger::open(path.clone(), 1 << 20);
        assert_eq!(again.entries().nth(20).and_then(|entry| entry.error.clone()), Some("F:1:1: no".to_owned()));
        let mut kept = again.kept();
        kept.sort_unstable();
        assert_eq!(kept, (5..=20).collect::<Vec<u64>>());
        assert_eq!((again.text(4), again.text(5).as_deref()), (None, Some("workers: 5")));
        for private in [again.texts(), again.text_of(5), path] {
            let mode = fs::metadata(private).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{mode:o}");
        }
    }

    #[test]
    fn a_log_that_is_full_is_set_aside_and_still_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let mut ledger = Ledger::open(path.clone(), 1_000);
        (1..=30).for_each(|generation| ledger.add(entry(generation), None));
        let sizes = [path.clone(), ledger.aside()].map(|path| fs::metadata(path).expect("it is there").len());
        assert!(sizes.iter().all(|size| (1..=1_000).contains(size)), "{sizes:?}");
        let again = Ledger::open(path, 1_000);
        assert_eq!(again.last(), 30);
        let read: Vec<u64> = again.entries().map(|entry| entry.generation).collect();
        assert!(read.len() > 5 && read.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{read:?}");
    }

    #[test]
    fn where_nothing_can_be_written_the_changes_are_remembered_all_the_same() {
        let mut ledger = Ledger::open("/proc/no/audit.jsonl".into(), 1_000);
        ledger.add(entry(1), Some("text"));
        assert!(ledger.trouble().is_some_and(|trouble| trouble.starts_with("/proc/no/audit.jsonl: ")));
        assert_eq!((ledger.last(), ledger.entries().count(), ledger.text(1)), (1, 1, None));
    }

    #[test]
    fn what_could_not_be_written_is_when_it_can_be_each_line_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let mut ledger = Ledger::open(path.clone(), 1 << 20);
        // Written to as a disk that has no room.
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        (1..=5).for_each(|generation| ledger.add(entry(generation), None));
        assert!(ledger.trouble().is_some());
        assert_eq!(ledger.unwritten(), 5);
        fs::remove_file(&path).expect("removable");
        ledger.add(entry(6), None);
        assert_eq!((ledger.trouble(), ledger.unwritten()), (None, 0));
        let again = Ledger::open(path, 1 << 20);
        assert_eq!(again.entries().map(|entry| entry.generation).collect::<Vec<u64>>(), [1, 2, 3, 4, 5, 6]);
        let mut full = Ledger::open("/proc/no/audit.jsonl".into(), 1_000);
        (0..2 * UNWRITTEN_MAX as u64).for_each(|generation| full.add(entry(generation), None));
        assert_eq!(full.unwritten(), UNWRITTEN_MAX);
    }

    #[test]
    fn a_configuration_that_could_not_be_kept_is_when_it_can_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let mut ledger = Ledger::open(path.clone(), 1 << 20);
        // Written to as a disk that has room for a line yet, and for no more.
        fs::create_dir_all(ledger.texts()).expect("writable");
        std::os::unix::fs::symlink("/dev/full", ledger.texts().join("new")).expect("a link");
        ledger.add(entry(1), Some("workers: 1"));
        assert!(ledger.trouble().is_some_and(|trouble| trouble.contains("audit.jsonl.generations: ")));
        assert_eq!((ledger.unwritten(), ledger.text(1)), (1, None));
        assert_eq!(Ledger::open(path.clone(), 1 << 20).entries().count(), 1, "the line is written all the same");
        ledger.try_again();
        assert_eq!((ledger.trouble(), ledger.unwritten()), (None, 0));
        assert_eq!(ledger.text(1).as_deref(), Some("workers: 1"));
        let mut never = Ledger::open("/proc/no/audit.jsonl".into(), 1_000);
        (0..2 * KEPT).for_each(|generation| never.add(entry(generation), Some("text")));
        assert_eq!(never.unkept.len() as u64, KEPT);
    }
}
