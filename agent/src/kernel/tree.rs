//! The tree of cgroups under the capture rules: which cgroups get hooks of their own, and news of cgroups and named network namespaces
//! that come and go.
//!
//! Only directories below which a rule may still match are looked at, and watched: a cgroup that appears in one of them is told of at
//! once. A directory is watched before it is listed, so that nothing falls between.

use std::{
    collections::HashSet,
    fs, io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::{net::unix::pipe, time};

use super::{cgroup, hooks::Policy};
use crate::config::{capture::NAMED, pattern::Pattern, pattern::Standing};

/// One rule, with what the self-test made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which cgroups.
    pub path: Pattern,
    /// What they get.
    pub policy: Policy,
}

/// A cgroup that gets hooks of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its directory.
    pub path: PathBuf,
    /// Its id, which is never given again.
    pub id: u64,
    /// What its programs get.
    pub policy: Policy,
}

/// Looks at the tree, and watches what it has looked at.
#[derive(Debug)]
pub struct Tree {
    mount: PathBuf,
    inotify: OwnedFd,
    watched: HashSet<i32>,
    /// The watch of the names of network namespaces.
    names: Option<i32>,
    /// The log says once that directories are left unwatched.
    blind: bool,
}

/// Which rules may match below a directory: for each where its pattern stands.
type Standings = Vec<Standing>;

/// One look at the tree.
struct Look<'t> {
    tree: &'t Tree,
    rules: &'t [Rule],
    watched: HashSet<i32>,
    unwatched: usize,
    found: Vec<Found>,
    failed: Option<(PathBuf, io::Error)>,
}

impl Tree {
    /// Of the cgroups below this mount.
    ///
    /// # Errors
    ///
    /// When the system has no inotify instance left.
    pub fn new(mount: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { mount: mount.into(), inotify, watched: HashSet::new(), names: None, blind: false })
    }

    /// The source of news about what has been looked at. Must be listened to by one.
    ///
    /// # Errors
    ///
    /// When descriptors have run out.
    pub fn news(&self) -> io::Result<TreeNews> {
        Ok(TreeNews { inotify: self.inotify.try_clone()? })
    }

    /// Every cgroup that gets other hooks than what is around it. The nearest rule holds for a cgroup; of several for the same cgroup,
    /// one without a hole goes before patterns, and the earlier before the later.
    ///
    /// # Errors
    ///
    /// When a directory that is there could not be read, and which: what was not seen may be there, too.
    pub fn look(&mut self, rules: &[Rule]) -> Result<Vec<Found>, (PathBuf, io::Error)> {
        let mut look =
            Look { tree: self, rules, watched: HashSet::new(), unwatched: 0, found: Vec::new(), failed: None };
        let names = look.watch(Path::new(NAMED));
        let start: Standings = rules.iter().map(|rule| rule.path.start()).collect();
        look.visit(&self.mount, &start, Policy::LeftOut);
        let (found, watched, unwatched, failed) = (look.found, look.watched, look.unwatched, look.failed);
        if let Some(failed) = failed {
            self.watched.extend(watched);
            return Err(failed);
        }
        for stale in self.watched.difference(&watched) {
            let _ = inotify::remove_watch(&self.inotify, *stale);
        }
        self.watched = watched;
        self.names = names;
        self.tell(unwatched);
        Ok(found)
    }

    /// Whether news may be about names of network namespaces: also what nobody watches any more, and what was lost, may be.
    pub fn is_of_names(&self, news: &[i32]) -> bool {
        news.iter().any(|watch| self.names == Some(*watch) || !self.watched.contains(watch))
    }

    fn tell(&mut self, unwatched: usize) {
        let blind = unwatched > 0;
        if blind && !self.blind {
            tracing::warn!(
                unwatched,
                "directories of cgroups are not watched: what appears there is captured by the next scan, within 2 s; \
                 raise fs.inotify.max_user_watches"
            );
        }
        self.blind = blind;
    }
}

impl Look<'_> {
    fn visit(&mut self, directory: &Path, standings: &[Standing], around: Policy) {
        let policy = self.policy(standings).unwrap_or(around);
        if policy != around
            && let Ok(id) = cgroup::id(directory)
        {
            self.found.push(Found { path: directory.into(), id, policy });
        }
        if !self.may_match_below(standings) {
            return;
        }
        self.watch(directory);
        let entries = match fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                self.failed.get_or_insert_with(|| (directory.into(), error));
                return;
            }
        };
        for entry in entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = entry.file_name();
            // The kernel lets a cgroup have any name; one that is no text is meant by no rule.
            let Some(name) = name.to_str() else { continue };
            let next: Standings =
                standings.iter().zip(self.rules).map(|(at, rule)| rule.path.step(*at, name)).collect();
            if self.policy(&next).is_some() || self.may_match_below(&next) {
                self.visit(&entry.path(), &next, policy);
            }
        }
    }

    fn may_match_below(&self, standings: &[Standing]) -> bool {
        standings.iter().zip(self.rules).any(|(standing, rule)| rule.path.may_go_on(*standing))
    }

    fn policy(&self, standings: &[Standing]) -> Option<Policy> {
        let mut here =
            standings.iter().zip(self.rules).filter(|(at, rule)| rule.path.is_match(**at)).map(|(_, rule)| rule);
        let first = here.next()?;
        let plain = if first.path.is_plain() { None } else { here.find(|rule| rule.path.is_plain()) };
        Some(plain.unwrap_or(first).policy)
    }

    fn watch(&mut self, directory: &Path) -> Option<i32> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.tree.inotify, directory, flags) {
            Ok(watch) => {
                self.watched.insert(watch);
                return Some(watch);
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {} // gone since: the watch above it tells
            Err(_) => self.unwatched += 1,
        }
        None
    }
}

/// Whether a directory is not there: it went since its name was read, or while it was listed (then kernfs says ENODEV).
fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOENT | Errno::NOTDIR | Errno::NODEV))
}

/// News of the tree, not yet awaited.
#[derive(Debug)]
pub struct TreeNews {
    inotify: OwnedFd,
}

/// News of the tree on a tokio runtime.
#[derive(Debug)]
pub struct TreeStream {
    inotify: pipe::Receiver,
    /// Something has come in that is told when the pause is over: kept here, so that a dropped future loses nothing.
    due: Option<time::Instant>,
}

/// A container's cgroups come several at a time, and each look costs a walk: this far apart they are one news.
const PAUSE: Duration = Duration::from_millis(5);

impl TreeNews {
    /// Makes the news awaitable. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the descriptor.
    pub fn listen(self) -> io::Result<TreeStream> {
        // Like a pipe it is read, without blocking, when it is ready: that is all that is asked of it.
        Ok(TreeStream { inotify: pipe::Receiver::from_owned_fd_unchecked(self.inotify)?, due: None })
    }
}

impl TreeStream {
    /// Waits until directories that were looked at have changed: which. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// When the system refuses to watch on.
    pub async fn changed(&mut self) -> io::Result<Vec<i32>> {
        loop {
            let due = match self.due {
                Some(due) => due,
                None => {
                    self.inotify.readable().await?;
                    *self.due.insert(time::Instant::now() + PAUSE)
                }
            };
            time::sleep_until(due).await;
            self.due = None;
            let watches = self.take()?;
            if !watches.is_empty() {
                return Ok(watches);
            }
        }
    }

    /// Takes what has come in. A watch that the kernel took away with its directory counts: the directory was one of those that matter.
    fn take(&self) -> io::Result<Vec<i32>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut watches = Vec::new();
        loop {
            match reader.next() {
                Ok(event) if watches.last() == Some(&event.wd()) => {}
                Ok(event) => watches.push(event.wd()),
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Tells the runtime that all is read. What it does read came just now, and is of a watch that nobody has.
        if self.inotify.try_read(&mut [0; 4096]).is_ok() {
            watches.push(LOST);
        }
        Ok(watches)
    }
}

/// The watch descriptor of lost events (`IN_Q_OVERFLOW`).
const LOST: i32 = -1;

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Policy = Policy::Captured { shortcut: true };
    const PLAIN: Policy = Policy::Captured { shortcut: false };

    fn rule(path: &str, policy: Policy) -> Rule {
        Rule { path: Pattern::new(path).expect("short"), policy }
    }

    fn found(root: &Path, rules: &[Rule]) -> Vec<(String, Policy)> {
        let mut found: Vec<_> = Tree::new(root)
            .expect("inotify")
            .look(rules)
            .expect("readable")
            .into_iter()
            .map(|found| (format!("/{}", found.path.strip_prefix(root).expect("below").display()), found.policy))
            .collect();
        found.sort_by(|left, right| left.0.cmp(&right.0));
        found
    }

    #[test]
    fn the_nearest_rule_holds_and_only_changes_get_hooks() {
        let root = tempfile::tempdir().expect("a directory");
        for path in ["a/b/c", "a/x", "d/b"] {
            fs::create_dir_all(root.path().join(path)).expect("writable");
        }
        let look = |rules: &[Rule]| found(root.path(), rules);
        let of = |paths: &[(&str, Policy)]| {
            paths.iter().map(|(path, policy)| ((*path).to_owned(), *policy)).collect::<Vec<_>>()
        };
        assert_eq!(look(&[rule("/", ON)]), of(&[("/", ON)]));
        assert_eq!(
            look(&[rule("/a", ON), rule("/a/b", Policy::LeftOut)]),
            of(&[("/a", ON), ("/a/b", Policy::LeftOut)])
        );
        assert_eq!(
            look(&[rule("/a", ON), rule("/a/b", Policy::LeftOut), rule("/a/b/c", PLAIN)]),
            of(&[("/a", ON), ("/a/b", Policy::LeftOut), ("/a/b/c", PLAIN)])
        );
        assert_eq!(
            look(&[rule("/a", Policy::LeftOut), rule("/d", ON)]),
            of(&[("/d", ON)]),
            "nothing around it is captured"
        );
        assert_eq!(look(&[rule("/**", ON)]), of(&[("/", ON)]), "what is around it captures already");
        assert_eq!(look(&[rule("/**/b", ON)]), of(&[("/a/b", ON), ("/d/b", ON)]));
        assert_eq!(
            look(&[rule("/a/*", ON), rule("/a/x", PLAIN)]),
            of(&[("/a/b", ON), ("/a/x", PLAIN)]),
            "a path before a pattern"
        );
        assert_eq!(look(&[rule("/*", ON), rule("/a*", PLAIN)]), of(&[("/a", ON), ("/d", ON)]), "the earlier of two");
        assert_eq!(look(&[rule("/nowhere", ON)]), of(&[]));
    }

    #[tokio::test]
    async fn what_appears_or_goes_where_a_rule_may_match_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let mut tree = Tree::new(root.path()).expect("inotify");
        let mut news = tree.news().and_then(TreeNews::listen).expect("a runtime");
        let rules = [rule("/a/**/z", ON)];
        assert_eq!(tree.look(&rules).expect("readable"), []);
        let mut after = async |make: bool, path: &str| {
            let path = root.path().join(path);
            if make { fs::create_dir(path) } else { fs::remove_dir(path) }.expect("writable");
            time::timeout(Duration::from_secs(5), news.changed()).await.expect("news").expect("inotify");
            tree.look(&rules).expect("readable").len()
        };
        // Another test may make a namespace meanwhile, which is news, too: it changes nothing of what is found.
        assert_eq!(after(true, "a").await, 0);
        assert_eq!(after(true, "a/b").await, 0);
        assert_eq!(after(true, "a/b/z").await, 1);
        assert_eq!(after(false, "a/b/z").await, 0);
    }
}
