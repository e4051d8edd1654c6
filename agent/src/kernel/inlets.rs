//! Finds the network namespaces that rules for connections that come in name, opens the agent's listeners there, and has them steered to.
//!
//! A namespace is found by its name, or because it is served for what it dials. What the agent holds there, listeners and connections,
//! it lets go when the namespace is otherwise gone (trap T26).

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::Ebpf;

use super::{
    KernelError, Place,
    inbound::Steering,
    namespace::{self, Opened, inode},
    pins::Pins,
    ruled,
};
use crate::config::{NamespaceRules, inbound::Inbound};

/// The namespace of this process.
const OWN: &str = "/proc/self/ns/net";
/// That of the host.
const HOST: &str = "/proc/1/ns/net";

/// The namespaces in which connections that come in are the agent's.
pub struct Inlets {
    steering: Steering,
    /// Whether this kernel has the hook at all.
    can_steer: bool,
    /// The names that the rules use.
    names: NamespaceRules,
    home: u64,
    home_file: Arc<File>,
    host: u64,
    /// By inode.
    open: HashMap<u64, Inlet>,
    /// Let go while connections may be left in them: cookie by inode.
    leaving: HashMap<u64, u64>,
    /// Those that could not be opened, so that the log says so once.
    refused: Vec<u64>,
}

struct Inlet {
    cookie: u64,
    paths: Vec<String>,
}

/// What a look changed.
#[derive(Debug, Default)]
pub struct Look {
    /// Cookies of namespaces whose connections that come in are the agent's no longer: the workers close the listeners for those.
    pub let_go: Vec<u64>,
    /// Cookies of namespaces that live by the agent's connections alone: the workers end them.
    pub gone: Vec<u64>,
    /// Namespaces whose connections are the agent's from now on. Of one that is let go as well, these are the new listeners.
    pub opened: Vec<Opened>,
}

impl Inlets {
    pub(super) fn new(ebpf: &mut Ebpf, pins: &Pins, can_steer: bool) -> Result<Self, KernelError> {
        let home_file =
            File::open(OWN).map_err(|source| KernelError::Listen { namespace: "the agent's own".into(), source })?;
        let home = inode(Path::new(OWN)).unwrap_or(0);
        Ok(Self {
            steering: Steering::new(ebpf, pins.maps(), pins.links())?,
            can_steer,
            names: NamespaceRules::default(),
            home,
            home_file: Arc::new(home_file),
            host: inode(Path::new(HOST)).unwrap_or(home),
            open: HashMap::new(),
            leaving: HashMap::new(),
            refused: Vec::new(),
        })
    }

    /// Takes these rules; they take effect with the next look.
    ///
    /// # Errors
    ///
    /// When the kernel half has no room for their sources: the rules before stay.
    pub fn follow(&mut self, rules: &[Inbound]) -> Result<(), KernelError> {
        let rules = if self.can_steer { rules } else { &[] };
        self.steering.follow(rules)?;
        let all =
            |of: fn(&NamespaceRules) -> &Vec<_>| rules.iter().flat_map(|rule| of(&rule.namespaces)).cloned().collect();
        self.names = NamespaceRules { only: all(|names| &names.only), except: all(|names| &names.except) };
        Ok(())
    }

    /// Whether there is nothing to steer and nothing to let go of: then a look is in vain.
    pub fn is_idle(&self) -> bool {
        self.steering.is_idle() && self.open.is_empty() && self.leaving.is_empty()
    }

    /// Looks at every name, at the namespaces that are `served`, by inode and path, and at the node's own addresses.
    pub fn look(&mut self, served: &[(u64, PathBuf)], workers: usize) -> Look {
        let mut look = Look::default();
        let found = self.find(served);
        let wanted = |inode: &u64, paths: &[String]| self.steering.wants(paths, *inode == self.host);
        let stale = |inode: &u64, inlet: &Inlet| {
            found.get(inode).is_none_or(|(_, paths)| *paths != inlet.paths || !wanted(inode, paths))
        };
        let closing: Vec<u64> =
            self.open.iter().filter(|(inode, inlet)| stale(inode, inlet)).map(|(inode, _)| *inode).collect();
        let opening: Vec<u64> = found
            .iter()
            .filter(|(inode, (_, paths))| {
                wanted(inode, paths) && (!self.open.contains_key(inode) || closing.contains(inode))
            })
            .map(|(inode, _)| *inode)
            .collect();
        for inode in closing {
            if let Some(inlet) = self.open.remove(&inode) {
                self.steering.close(inlet.cookie);
                self.leaving.insert(inode, inlet.cookie);
                look.let_go.push(inlet.cookie);
            }
        }
        for inode in opening {
            let (path, paths) = &found[&inode];
            match self.open(inode, path, paths, workers) {
                Ok(opened) => look.opened.push(opened),
                Err(error) => self.say_not_steered(inode, path, &error),
            }
        }
        self.steering.settle();
        self.refused.retain(|inode| found.contains_key(inode));
        look.gone = self.leave(&found);
        look
    }

    /// Takes the agent's listeners away: from now on programs serve by themselves, while the rules about sources hold.
    pub fn pause(&mut self) {
        self.steering.pause();
    }

    /// Every namespace in question by its inode: a path to open it by, and the paths that rules may name it by.
    fn find(&self, served: &[(u64, PathBuf)]) -> HashMap<u64, (PathBuf, Vec<String>)> {
        let mut named = ruled::paths(&self.names);
        let mut found = HashMap::new();
        for (inode, path) in [(self.home, PathBuf::from(OWN))].iter().chain(served) {
            let mut paths = named.remove(inode).unwrap_or_default();
            paths.sort_unstable();
            found.entry(*inode).or_insert((path.clone(), paths));
        }
        for (inode, mut paths) in named {
            paths.sort_unstable();
            found.insert(inode, (PathBuf::from(&paths[0]), paths));
        }
        found
    }

    fn open(&mut self, inode: u64, path: &Path, paths: &[String], workers: usize) -> Result<Opened, KernelError> {
        let name = path.display().to_string();
        let failed = |source| KernelError::Listen { namespace: name.clone(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.ino() != inode {
            return Err(failed(io::Error::other("another namespace is there by now")));
        }
        let inside = file.try_clone().and_then(|file| namespace::inside(file, move || namespace::open_inside(workers)));
        let inside = inside.map_err(failed)?;
        let is_host = inode == self.host;
        self.steering.open(inside.cookie, (paths.to_vec(), is_host), &file, [&inside.v4, &inside.v6])?;
        let (cookie, paths) = (inside.cookie, paths.to_vec());
        self.open.insert(inode, Inlet { cookie, paths: paths.clone() });
        self.leaving.remove(&inode);
        self.refused.retain(|refused| *refused != inode);
        let place = if inode == self.home {
            Place::own(cookie, paths, is_host)
        } else {
            Place::elsewhere(cookie, paths, is_host, file, Arc::clone(&self.home_file))
        };
        Ok(Opened { netns: cookie, found: name, workers: inside.shared_out(workers, Some(&Arc::new(place))) })
    }

    /// Namespaces that were let go, stand nowhere any more and have no process.
    fn leave(&mut self, found: &HashMap<u64, (PathBuf, Vec<String>)>) -> Vec<u64> {
        let mut doubtful = self.leaving.clone();
        doubtful.retain(|inode, _| !found.contains_key(inode));
        if doubtful.is_empty() {
            return Vec::new();
        }
        namespace::for_each_process(|process| {
            if let Some(inode) = inode(&process.join("ns/net")) {
                doubtful.remove(&inode);
            }
        });
        self.leaving.retain(|inode, _| !doubtful.contains_key(inode));
        doubtful.into_values().collect()
    }

    fn say_not_steered(&mut self, inode: u64, path: &Path, error: &KernelError) {
        if !self.refused.contains(&inode) {
            self.refused.push(inode);
            tracing::warn!(%error, namespace = %path.display(), "connections that come in are not the agent's: the programs serve by themselves");
        }
    }
}
