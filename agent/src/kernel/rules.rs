//! The capture rules in force: which cgroups have hooks, followed as cgroups come and go and as the configuration changes.
//!
//! A cgroup's id is never given again, and pins are named after it: a cgroup that is gone and made anew is another, and is attached anew
//! (trap T36). Where a rule is withdrawn from a cgroup that lives, nothing more is captured at once, while what serves open sockets (their
//! peer's name, what they hold) stays until none is left. So it does where the cgroup is removed: sockets outlive it, closed and still
//! waiting for their peer, or handed to a program elsewhere.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use super::{
    KernelError, cgroup, flows,
    hooks::{self, Hooks, Policy},
    tree::{Found, Rule, Tree, TreeNews},
};
use crate::config::CaptureRule;

/// The rules in force.
#[derive(Debug)]
pub struct Rules {
    hooks: Hooks,
    tree: Tree,
    mount: PathBuf,
    links: PathBuf,
    /// The agent's own cgroup, whose sockets are watched and never captured.
    own: (PathBuf, u64),
    rules: Vec<Rule>,
    /// By id.
    attached: HashMap<u64, Found>,
    /// Cgroups no longer captured, by id, with sockets that may have been.
    leaving: HashMap<u64, PathBuf>,
    /// Cgroups that are gone, by id, and left sockets behind.
    outlived: HashSet<u64>,
    /// Cgroups that could not be attached, so that the log says so once.
    refused: HashSet<u64>,
    self_test_passed: bool,
}

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'p> {
    /// The mount of cgroup v2.
    pub mount: &'p Path,
    /// The agent's own cgroup.
    pub own: &'p Path,
    /// Where links are pinned.
    pub links: &'p Path,
}

impl Rules {
    /// Rules that are not yet in force.
    pub fn new(
        hooks: Hooks,
        places: Places<'_>,
        rules: &[CaptureRule],
        self_test_passed: bool,
    ) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Cgroup { path: places.own.into(), source };
        let tree = Tree::new(places.mount).map_err(|source| KernelError::Inotify { source })?;
        let mut new = Self {
            hooks,
            tree,
            mount: places.mount.into(),
            links: places.links.into(),
            own: (places.own.into(), cgroup::id(places.own).map_err(failed)?),
            rules: Vec::new(),
            attached: HashMap::new(),
            leaving: HashMap::new(),
            outlived: HashSet::new(),
            refused: HashSet::new(),
            self_test_passed,
        };
        new.rules = new.judge(rules);
        Ok(new)
    }

    /// Puts the rules in force: attaches what they say, and takes over what an agent before this one left.
    pub fn begin(&mut self) -> Result<(), KernelError> {
        self.hooks.pin_own(&self.own.0, &self.links)?;
        let pinned = hooks::pinned(&self.links)?;
        // A cgroup that is not there was looked for before anything was loaded, or has gone since an agent before this one.
        for rule in self.rules.iter().filter(|rule| rule.path.is_plain() && rule.policy != Policy::LeftOut) {
            let path = cgroup::below(&self.mount, Path::new(rule.path.as_str()));
            if let Err(error) = cgroup::id(&path) {
                tracing::warn!(%error, cgroup = %path.display(), "is captured as soon as it is there");
            }
        }
        self.apply(true)?;
        // The path of what was captured before is known to the kernel alone; where no cgroup has that id any more, the pins go.
        let stale: HashSet<u64> =
            pinned.into_iter().filter(|id| *id != self.own.1 && !self.attached.contains_key(id)).collect();
        let living = cgroup::paths(&self.mount, &stale);
        stale.into_iter().try_for_each(|id| self.withdraw(id, living.get(&id).cloned()))
    }

    /// Whether every cgroup is there that one of these rules captures by its whole path, but for those that a rule in force names: what is
    /// captured may go, and come again.
    pub fn check(&self, rules: &[CaptureRule]) -> Result<(), KernelError> {
        let is_in_force = |rule: &CaptureRule| self.rules.iter().any(|old| old.path == rule.path);
        all_there(&self.mount, rules.iter().filter(|rule| !is_in_force(rule)))
    }

    /// Puts other rules in force: new ones first, then away with what no rule asks for. With an error it is not done: see
    /// [`Rules::restore`].
    pub fn set(&mut self, rules: &[CaptureRule]) -> Result<(), KernelError> {
        self.rules = self.judge(rules);
        self.apply(true).map(|_| ())
    }

    /// Puts rules in force again: a cgroup that they name may be gone since, and what cannot be done now is done at the next look.
    pub fn restore(&mut self, rules: &[CaptureRule]) -> Result<(), KernelError> {
        self.rules = self.judge(rules);
        self.apply(false).map(|_| ())
    }

    fn judge(&self, rules: &[CaptureRule]) -> Vec<Rule> {
        let policy = |rule: &CaptureRule| match rule.capture {
            true => Policy::Captured { shortcut: flows::allows(rule.shortcut, self.self_test_passed) },
            false => Policy::LeftOut,
        };
        rules.iter().map(|rule| Rule { path: rule.path.clone(), policy: policy(rule) }).collect()
    }

    /// Lets captured programs ask what their clients dialled, or no longer.
    pub fn answer_original(&mut self, answers: bool) -> Result<(), KernelError> {
        if !self.hooks.answer_original(answers) {
            return Ok(());
        }
        for found in self.attached.values() {
            // One that has gone meanwhile is found so at the next look.
            let pinned = self.hooks.pin(&found.path, found.policy, &self.links);
            if cgroup::id(&found.path).ok() == Some(found.id) {
                pinned?;
            }
        }
        Ok(())
    }

    /// Attaches cgroups that have come and forgets those that are gone. Whether any has.
    pub fn follow(&mut self) -> Result<bool, KernelError> {
        self.apply(false)
    }

    /// `whole`: a cgroup that cannot be attached is an error, unless it has just gone, or is one of those that a pattern captures: others
    /// of them come and go anyway, and one that somebody else has for himself must not keep the agent from all.
    fn apply(&mut self, whole: bool) -> Result<bool, KernelError> {
        // Who could not see all of it lets go of nothing.
        let mut found = self.tree.look(&self.rules).map_err(|(path, source)| KernelError::Cgroup { path, source })?;
        // What is left out first: not for a moment is it captured with what is around it.
        found.sort_by_key(|found| found.policy != Policy::LeftOut);
        let mut changed = false;
        for found in &found {
            if self.attached.get(&found.id).is_some_and(|attached| attached.policy == found.policy) {
                continue;
            }
            changed |= self.attach(found, whole && self.is_asked_for(found))?;
        }
        let wanted: HashSet<u64> = found.iter().map(|found| found.id).collect();
        let stale: Vec<u64> = self.attached.keys().copied().filter(|id| !wanted.contains(id)).collect();
        for id in stale {
            changed = true;
            if let Some(gone) = self.attached.remove(&id) {
                let lives = cgroup::id(&gone.path).is_ok_and(|now| now == id);
                tracing::info!(cgroup = %gone.path.display(), "{}", if lives { "cgroup is no longer captured" } else { "cgroup is gone" });
                self.withdraw(id, lives.then_some(gone.path))?;
            }
        }
        Ok(changed)
    }

    /// Whether a rule names this cgroup, or it would be captured if it could not be left out.
    fn is_asked_for(&self, found: &Found) -> bool {
        let names = |rule: &Rule| {
            rule.path.is_plain() && cgroup::below(&self.mount, Path::new(rule.path.as_str())) == found.path
        };
        found.policy == Policy::LeftOut || self.rules.iter().any(names)
    }

    fn attach(&mut self, found: &Found, whole: bool) -> Result<bool, KernelError> {
        match self.hooks.pin(&found.path, found.policy, &self.links) {
            Ok(()) => {
                tracing::info!(cgroup = %found.path.display(), policy = ?found.policy, "cgroup is attached");
                self.leaving.remove(&found.id);
                self.refused.remove(&found.id);
                self.attached.insert(found.id, found.clone());
                Ok(true)
            }
            // It went between the look and now: the next look will not find it.
            Err(_) if cgroup::id(&found.path).ok() != Some(found.id) => {
                self.hooks.unpin(found.id, &self.links)?;
                Ok(false)
            }
            Err(error) => {
                self.give_up(found);
                if whole {
                    return Err(error);
                }
                if self.refused.insert(found.id) {
                    tracing::warn!(%error, cgroup = %found.path.display(), "cgroup is not captured");
                }
                Ok(false)
            }
        }
    }

    /// A cgroup could not be attached: what could be of it must not capture some of what its programs dial and not the rest.
    fn give_up(&mut self, found: &Found) {
        if self.attached.contains_key(&found.id) {
            return;
        }
        // What captures goes first; that of the rest something cannot be attached either is no news.
        if let Err(error) = self.hooks.pin(&found.path, Policy::Leaving, &self.links) {
            tracing::debug!(%error, cgroup = %found.path.display(), "hooks that serve open sockets");
        }
        self.leaving.insert(found.id, found.path.clone());
    }

    /// Captures nothing more in a cgroup; `path` where it lives.
    fn withdraw(&mut self, id: u64, path: Option<PathBuf>) -> Result<(), KernelError> {
        self.refused.remove(&id);
        match path {
            Some(path) => {
                self.hooks.pin(&path, Policy::Leaving, &self.links)?;
                self.leaving.insert(id, path);
                Ok(())
            }
            None => {
                if self.hooks.outlive(id, &self.links)? {
                    self.outlived.insert(id);
                }
                Ok(())
            }
        }
    }

    /// Forgets cgroups that are gone and have no socket left. To be called from time to time.
    pub fn bury(&mut self) {
        let gone = |id: &u64| {
            !self.hooks.outlive(*id, &self.links).unwrap_or_else(|error| {
                tracing::warn!(%error, "the pins of a cgroup that is gone stay until the agent starts again");
                false
            })
        };
        self.outlived.retain(|id| !gone(id));
    }

    /// Whether the pins of this agent are gone: somebody has taken them away (`sockway detach`), or unmounted bpffs, and no hook runs.
    pub fn are_lost(&self) -> bool {
        !hooks::is_own_pinned(self.own.1, &self.links)
    }

    /// Whether news of the tree may be about names of network namespaces.
    pub fn is_of_names(&self, news: &[i32]) -> bool {
        self.tree.is_of_names(news)
    }

    /// Whether hooks stand only for sockets that may be open.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// No socket that was captured is left: what stood for them goes.
    pub fn leave(&mut self) -> Result<(), KernelError> {
        for id in std::mem::take(&mut self.leaving).into_keys().filter(|id| *id != self.own.1) {
            self.hooks.unpin(id, &self.links)?;
        }
        Ok(())
    }

    /// The cgroups that are captured, and those left out of them.
    pub fn cgroups(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (left_out, captured): (Vec<&Found>, Vec<&Found>) =
            self.attached.values().partition(|found| found.policy == Policy::LeftOut);
        let paths = |found: Vec<&Found>| found.into_iter().map(|found| found.path.clone()).collect();
        (paths(captured), paths(left_out))
    }

    /// Whether some rule leaves cgroups out, and whether some lets sockets take the shortcut.
    pub fn say(&self) -> (bool, bool) {
        let has = |policy| self.rules.iter().any(|rule| rule.policy == policy);
        (has(Policy::LeftOut), has(Policy::Captured { shortcut: true }))
    }

    /// A number that tells these rules from others.
    pub fn mark(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        for rule in &self.rules {
            (rule.path.as_str(), rule.policy == Policy::LeftOut).hash(&mut hasher);
        }
        hasher.finish() as u32
    }

    /// The source of news of cgroups and named network namespaces.
    pub fn news(&self) -> Result<TreeNews, KernelError> {
        self.tree.news().map_err(|source| KernelError::Inotify { source })
    }
}

/// Whether every cgroup that a rule captures by its whole path is there.
pub fn all_there<'r>(mount: &Path, rules: impl IntoIterator<Item = &'r CaptureRule>) -> Result<(), KernelError> {
    rules.into_iter().filter(|rule| rule.path.is_plain() && rule.capture).try_for_each(|rule| {
        let path = cgroup::below(mount, Path::new(rule.path.as_str()));
        match cgroup::id(&path) {
            Ok(_) => Ok(()),
            Err(source) => Err(KernelError::Cgroup { path, source }),
        }
    })
}
