//! Which network namespaces are captured: the rules of the configuration, by the paths that a namespace stands at, as a table of cookies
//! that the hooks look into.
//!
//! A namespace without a name is what the rules say of all others, from its first connect. One that a rule names is what the rule says
//! once the agent has seen the name: at the next look, four times a second.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData},
};

use super::{
    KernelError,
    namespace::{self, inode},
    services,
};
use crate::config::{
    NamespaceRules,
    capture::{NAMED, NamespaceName},
    pattern::{self, Pattern},
};

/// The namespaces that the rules speak of.
#[derive(Debug)]
pub struct Ruled {
    table: BpfHashMap<MapData, u64, u32>,
    rules: NamespaceRules,
    /// Every path at which a namespace was seen at the last look, by its inode.
    paths: HashMap<u64, Vec<String>>,
    host: u64,
    /// By inode. An inode's number is given again when a namespace is gone: forgotten whenever a name comes or goes.
    cookies: HashMap<u64, u64>,
    /// What stands in the table, by cookie.
    written: HashMap<u64, u32>,
    /// Namespaces whose cookie could not be read, so that the log says so once.
    refused: HashSet<u64>,
}

impl Ruled {
    /// Takes the table of a loaded object, and makes it say what the rules do.
    pub fn new(ebpf: &mut Ebpf, rules: NamespaceRules) -> Result<Self, KernelError> {
        let table: BpfHashMap<MapData, u64, u32> = services::table(ebpf, "RULED_NAMESPACES")?;
        let host = inode(Path::new("/proc/1/ns/net")).or_else(|| inode(Path::new("/proc/self/ns/net")));
        let written = table.iter().flatten().collect();
        let mut ruled = Self {
            table,
            rules,
            paths: HashMap::new(),
            host: host.unwrap_or(0),
            cookies: HashMap::new(),
            written,
            refused: HashSet::new(),
        };
        ruled.look();
        Ok(ruled)
    }

    /// Puts other rules in force: each namespace that has a name is told of anew.
    pub fn set(&mut self, rules: NamespaceRules) {
        self.rules = rules;
        self.look();
    }

    /// Whether programs in the namespace of this inode are captured.
    pub fn captures(&self, inode: u64) -> bool {
        let paths = self.paths.get(&inode).map_or(&[][..], Vec::as_slice);
        self.rules.captures(paths, inode == self.host)
    }

    /// A name has come or gone, and an inode's number may have been given again.
    pub fn forget(&mut self) {
        self.cookies.clear();
    }

    /// Looks at every name, and writes what is new. Cheap, for often, and nothing at all where no rule speaks of namespaces.
    pub fn look(&mut self) {
        self.paths = if self.rules.is_empty() { HashMap::new() } else { paths(&self.rules) };
        if !self.rules.is_empty() {
            self.paths.entry(self.host).or_default();
        }
        let known: Vec<u64> = self.paths.keys().copied().collect();
        let mut wanted = HashMap::new();
        for inode in &known {
            if let Some(cookie) = self.cookie(*inode) {
                wanted.insert(cookie, u32::from(self.captures(*inode)));
            }
        }
        self.cookies.retain(|inode, _| self.paths.contains_key(inode));
        self.refused.retain(|inode| self.paths.contains_key(inode));
        self.write(wanted);
    }

    fn write(&mut self, wanted: HashMap<u64, u32>) {
        let mut result = Ok(());
        for (cookie, captured) in &wanted {
            if self.written.get(cookie) != Some(captured) {
                result = result.and(self.table.insert(cookie, captured, 0));
            }
        }
        for stale in self.written.keys().filter(|cookie| !wanted.contains_key(cookie)) {
            // Its namespace may be gone, or no rule be left that speaks of it.
            let _ = self.table.remove(stale);
        }
        match result {
            Ok(()) => self.written = wanted,
            Err(error) => {
                tracing::error!(%error, "the kernel half does not know which network namespaces are captured");
                // Written again as a whole at the next look.
                self.written.retain(|cookie, captured| wanted.get(cookie) == Some(captured));
            }
        }
    }

    fn cookie(&mut self, inode: u64) -> Option<u64> {
        if let Some(cookie) = self.cookies.get(&inode) {
            return Some(*cookie);
        }
        let host = || [Path::new("/proc/1/ns/net"), Path::new("/proc/self/ns/net")].map(PathBuf::from);
        let paths = self.paths.get(&inode)?.iter().map(PathBuf::from);
        let found = paths.chain(host()).find_map(|path| read_cookie(&path, inode).transpose());
        match found {
            Some(Ok(cookie)) => {
                self.cookies.insert(inode, cookie);
                Some(cookie)
            }
            Some(Err(error)) => {
                if self.refused.insert(inode) {
                    tracing::warn!(%error, inode, "a network namespace cannot be entered: a rule that names it has no effect");
                }
                None
            }
            None => None,
        }
    }
}

/// The cookie of the namespace at `path`, if it is the one of this inode.
fn read_cookie(path: &Path, inode: u64) -> io::Result<Option<u64>> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    if file.metadata()?.ino() != inode {
        return Ok(None);
    }
    let read = || namespace::cookie(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
    namespace::inside(file, read).map(Some)
}

/// Every path that the rules may mean, by the inode of the namespace that stands there.
pub(super) fn paths(rules: &NamespaceRules) -> HashMap<u64, Vec<String>> {
    let device = fs::metadata("/proc/self/ns/net").map(|meta| meta.dev()).ok();
    let mut paths: HashMap<u64, Vec<String>> = HashMap::new();
    let named = Path::new(NAMED);
    let elsewhere = rules.only.iter().chain(&rules.except).filter_map(|name| match name {
        NamespaceName::At(pattern) if !Path::new(pattern.as_str()).starts_with(named) => Some(expand(pattern)),
        _ => None,
    });
    for path in namespace::named().into_iter().chain(elsewhere.flatten()) {
        if let (Ok(meta), Some(path)) = (fs::metadata(&path), path.to_str())
            && Some(meta.dev()) == device
        {
            paths.entry(meta.ino()).or_default().push(path.to_owned());
        }
    }
    paths
}

/// The paths that are there of those that a pattern means.
fn expand(pattern: &Pattern) -> Vec<PathBuf> {
    pattern.parts().fold(vec![PathBuf::from("/")], |paths, part| {
        if pattern::is_plain(part) {
            return paths.into_iter().map(|path| path.join(part)).collect();
        }
        let entries = paths.iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        let fitting = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| pattern::fits(part, name)));
        fitting.map(|entry| entry.path()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_expanded_to_the_paths_that_are_there() {
        let root = tempfile::tempdir().expect("a directory");
        for path in ["a1/x", "a2/x", "b/x"] {
            fs::create_dir_all(root.path().join(path)).expect("writable");
        }
        let pattern = |tail: &str| Pattern::new(&format!("{}/{tail}", root.path().display())).expect("short");
        let mut found = expand(&pattern("a?/*"));
        found.sort();
        assert_eq!(found, [root.path().join("a1/x"), root.path().join("a2/x")]);
        assert_eq!(expand(&pattern("c*/x")), Vec::<PathBuf>::new());
    }
}
