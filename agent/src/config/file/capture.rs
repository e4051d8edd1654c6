//! Whose connections are captured.

use std::path::PathBuf;

use super::{
    SHORTCUTS,
    section::{Field, Path, Problems, Section},
};
use crate::config::{Capture, CaptureRule, Shortcut};

pub(super) fn default_capture() -> Capture {
    Capture { cgroup_mount: None, bpffs: default_bpffs(), rules: whole_host() }
}

fn default_bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
}

fn whole_host() -> Vec<CaptureRule> {
    vec![CaptureRule { path: PathBuf::from("/"), shortcut: Shortcut::Auto }]
}

pub(super) fn capture(field: &Field<'_>, problems: &mut Problems) -> Option<Capture> {
    let section = Section::open(field.node, &field.path, &["cgroup_mount", "bpffs", "cgroups"], problems)?;
    let cgroup_mount = section.or("cgroup_mount", || None, |field, p| field.path(p).map(Some), problems);
    let bpffs = section.or("bpffs", default_bpffs, Field::path, problems);
    let rules = section.or("cgroups", whole_host, capture_rules, problems);
    Some(Capture { cgroup_mount: cgroup_mount?, bpffs: bpffs?, rules: rules? })
}

fn capture_rules(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<CaptureRule>> {
    let items = field.list(problems)?;
    if items.is_empty() {
        field.refuse("captures nothing; name a cgroup, or leave the key out to capture the whole host", problems);
    }
    let mut rules: Vec<CaptureRule> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let item_path = Path::Item(&field.path, index);
        let Some(section) = Section::open(item, &item_path, &["path", "shortcut"], problems) else { continue };
        let path_field =
            section.require("path", "write the cgroup\'s path below the cgroup v2 mount, as /kubepods", problems);
        let shortcut = section.or("shortcut", Shortcut::default, |field, p| field.choice(&SHORTCUTS, p), problems);
        let path = path_field.and_then(|field| field.path(problems));
        if let (Some(field), Some(path)) = (path_field, &path)
            && rules.iter().any(|rule| rule.path == *path)
        {
            field.refuse(format!("{} is listed twice; keep one", path.display()), problems);
        }
        rules.extend(path.zip(shortcut).map(|(path, shortcut)| CaptureRule { path, shortcut }));
    }
    Some(rules)
}
