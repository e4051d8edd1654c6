//! Notices that what stands in some files may have changed: written, renamed over, or reached through a symbolic link that was swapped, as
//! Kubernetes does with `..data` of a ConfigMap.
//!
//! Watches directories, not the files: an editor's new file is another inode. What is watched is found anew after every change.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::{
    net::unix::pipe,
    time::{self, Instant},
};

/// Links followed, as many as Linux itself follows.
const LINKS_MAX: usize = 40;
/// A change comes as several events: they are one change if they are no further apart.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Watches some files.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    inotify: pipe::Receiver,
    /// When what has come in is to be looked at: kept here, so that a future dropped while it waits does not begin to wait anew.
    look: Option<Instant>,
    /// By watch descriptor, the names in that directory that matter.
    names: HashMap<i32, HashSet<OsString>>,
}

impl Watch {
    /// Begins to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the system has no inotify instance left.
    pub fn new(paths: &[PathBuf]) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // Like a pipe it is read, without blocking, when it is ready: that is all that is asked of it.
        let inotify = pipe::Receiver::from_owned_fd_unchecked(inotify)?;
        let mut watch = Self { paths: Vec::new(), inotify, look: None, names: HashMap::new() };
        watch.follow(paths)?;
        Ok(watch)
    }

    /// Watches these files from now on, and no others. Whether any of them is new: it may have changed before.
    ///
    /// # Errors
    ///
    /// When the system refuses to watch.
    pub fn follow(&mut self, paths: &[PathBuf]) -> io::Result<bool> {
        let paths = paths.iter().map(std::path::absolute).collect::<io::Result<Vec<PathBuf>>>()?;
        let has_new = paths.iter().any(|path| !self.paths.contains(path));
        if paths != self.paths {
            self.paths = paths;
            self.aim()?;
        }
        Ok(has_new)
    }

    /// Waits until the text may have changed. Dropping the future loses no change.
    ///
    /// # Errors
    ///
    /// When the system refuses to watch on.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let look = match self.look {
                Some(look) => look,
                None => {
                    self.inotify.readable().await?;
                    *self.look.insert(Instant::now() + DEBOUNCE)
                }
            };
            time::sleep_until(look).await;
            self.look = None;
            if self.take_events()? {
                self.aim()?;
                return Ok(());
            }
        }
    }

    /// Takes what has happened; whether any of it matters.
    fn take_events(&mut self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut matters = false;
        // Tells the runtime that all is read. What it does read came just now, and may matter.
        let drained = |matters: bool| matters | self.inotify.try_read(&mut [0; 4096]).is_ok();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    // Without a name it is about the directory itself, or events were lost.
                    matters |= match (self.names.get(&event.wd()), name) {
                        (Some(names), Some(name)) => names.contains(name),
                        _ => true,
                    };
                }
                Err(Errno::WOULDBLOCK) => return Ok(drained(matters)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Watches every directory whose entries decide which files the paths lead to.
    fn aim(&mut self) -> io::Result<()> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut names: HashMap<i32, HashSet<OsString>> = HashMap::new();
        for (directory, name) in self.paths.iter().flat_map(|path| deciding(path)) {
            match inotify::add_watch(&self.inotify, &directory, flags) {
                Ok(watch) => {
                    names.entry(watch).or_default().insert(name);
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {} // gone since: the watch above it tells
                Err(error) => return Err(error.into()),
            }
        }
        for stale in self.names.keys().filter(|watch| !names.contains_key(watch)) {
            let _ = inotify::remove_watch(&self.inotify, *stale);
        }
        self.names = names;
        Ok(())
    }
}

/// The directory entries that decide where an absolute path leads: every link on the way, and the last or first missing entry.
fn deciding(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    let mut links = 0;
    let mut at = PathBuf::from("/");
    let mut rest: Vec<OsString> = parts(path);
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        if let Ok(target) = fs::read_link(&next) {
            found.push((at.clone(), name));
            links += 1;
            if links > LINKS_MAX {
                break;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(parts(&target));
        } else if rest.is_empty() || !next.exists() {
            found.push((at, name));
            break;
        } else {
            at = next;
        }
    }
    found
}

/// The names of a path, last first.
fn parts(path: &Path) -> Vec<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn notices(watch: &mut Watch, what: &str) {
        time::timeout(PATIENCE, watch.changed()).await.expect(what).expect(what);
    }

    #[tokio::test]
    async fn a_file_written_renamed_over_removed_or_made_again_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, new) = (directory.path().join("f.yaml"), directory.path().join("f.new"));
        fs::write(&file, "1").expect("writable");
        let mut watch = Watch::new(std::slice::from_ref(&file)).expect("inotify");
        fs::write(&file, "2").expect("writable");
        notices(&mut watch, "written").await;
        fs::write(&new, "3").expect("writable");
        fs::rename(&new, &file).expect("renamable");
        notices(&mut watch, "renamed over").await;
        fs::write(&file, "4").expect("writable");
        notices(&mut watch, "the new file written").await;
        fs::remove_file(&file).expect("removable");
        notices(&mut watch, "removed").await;
        fs::write(&file, "5").expect("writable");
        notices(&mut watch, "made again").await;
    }

    #[tokio::test]
    async fn a_swapped_link_of_a_config_map_is_noticed_every_time() {
        let volume = tempfile::tempdir().expect("a directory");
        let at = |name: &str| volume.path().join(name);
        let version = |name: &str| {
            fs::create_dir(at(name)).and_then(|()| fs::write(at(name).join("f.yaml"), name)).expect("writable");
        };
        version("..1");
        symlink("..1", at("..data")).expect("linkable");
        symlink("..data/f.yaml", at("f.yaml")).expect("linkable");
        let mut watch = Watch::new(&[at("f.yaml")]).expect("inotify");
        for (old, new) in [("..1", "..2"), ("..2", "..3")] {
            version(new);
            symlink(new, at("..tmp")).and_then(|()| fs::rename(at("..tmp"), at("..data"))).expect("swappable");
            notices(&mut watch, new).await;
            assert_eq!(fs::read_to_string(at("f.yaml")).expect("readable"), new);
            fs::remove_dir_all(at(old)).expect("removable");
        }
    }

    #[tokio::test]
    async fn a_change_is_noticed_however_often_the_future_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("f.yaml");
        let mut watch = Watch::new(std::slice::from_ref(&file)).expect("inotify");
        fs::write(&file, "1").expect("writable");
        let deadline = Instant::now() + PATIENCE;
        while time::timeout(DEBOUNCE / 10, watch.changed()).await.is_err() {
            assert!(Instant::now() < deadline);
        }
    }

    #[tokio::test]
    async fn other_files_beside_it_are_not_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("f.yaml"), "1").expect("writable");
        let mut watch = Watch::new(&[directory.path().join("f.yaml")]).expect("inotify");
        fs::write(directory.path().join("other"), "1").expect("writable");
        assert!(time::timeout(4 * DEBOUNCE, watch.changed()).await.is_err());
    }

    #[tokio::test]
    async fn a_file_whose_directory_comes_later_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a/b/f.yaml");
        let mut watch = Watch::new(std::slice::from_ref(&file)).expect("inotify");
        fs::create_dir_all(file.parent().expect("a parent")).expect("makable");
        notices(&mut watch, "the directory").await;
        fs::write(&file, "1").expect("writable");
        notices(&mut watch, "the file").await;
    }

    #[test]
    fn links_in_a_circle_end() {
        let directory = tempfile::tempdir().expect("a directory");
        symlink("b", directory.path().join("a"))
            .and_then(|()| symlink("a", directory.path().join("b")))
            .expect("linkable");
        assert_eq!(deciding(&directory.path().join("a")).len(), LINKS_MAX + 1);
    }
}
