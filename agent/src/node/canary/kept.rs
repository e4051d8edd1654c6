//! How far canaries have come, kept in a file beside the audit log: what was rolled back stays rolled back when the agent is started again.
//!
//! A canary is known by its service, its route and all that is said of whom it tries and how: said otherwise, it is another one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cluster::{CanaryStage as Stage, CanaryState, Counts, Service, Trouble},
    config::{Route, file},
};

/// Bytes of a file that is read: thousands of canaries.
const BYTES_MAX: u64 = 16 << 20;

/// One canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    service: String,
    route: String,
    /// What is said of it, as the file has it.
    said: Value,
    stage: KeptStage,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptStage {
    /// At this step, from 0.
    Step(usize),
    Promoted,
    RolledBack(KeptTrouble),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptTrouble {
    Errors,
    Latency,
}

/// The file for the canaries of who writes this audit log.
pub fn path(audit: &Path) -> PathBuf {
    let mut name = audit.as_os_str().to_owned();
    name.push(".canaries");
    name.into()
}

/// What is to be kept of a canary; nothing of one that nobody has looked at.
pub fn of(service: &Service, route: &Route, state: &CanaryState) -> Option<Kept> {
    let stage = match state.stage() {
        Stage::Begun => return None,
        Stage::Step { index, .. } => KeptStage::Step(index),
        Stage::Promoted => KeptStage::Promoted,
        Stage::RolledBack(Trouble::Errors) => KeptStage::RolledBack(KeptTrouble::Errors),
        Stage::RolledBack(Trouble::Latency) => KeptStage::RolledBack(KeptTrouble::Latency),
    };
    Some(Kept { service: service.config.name.clone(), route: route.name.clone(), said: file::show_tried(route), stage })
}

/// Writes them all.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, kept: &[Kept]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    fs::rename(&new, path)
}

/// What was written; nothing of a file that is not there, or not ours.
pub fn read(path: &Path) -> Vec<Kept> {
    match fs::metadata(path) {
        // A device or a pipe in its place may never end.
        Ok(file) if file.is_file() && file.len() <= BYTES_MAX => {
            let bytes = fs::read(path).unwrap_or_default();
            serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "canaries begin anew: what was kept of them cannot be read");
                Vec::new()
            })
        }
        _ => Vec::new(),
    }
}

/// Has the canaries of these services be where they were; one that was at a step begins that anew, at this time.
pub fn restore<'s>(services: impl IntoIterator<Item = &'s Service>, kept: &[Kept], now: Duration) {
    if kept.is_empty() {
        return;
    }
    for service in services {
        for (route, state) in service.config.routes.iter().zip(&service.routes) {
            let Some(canary) = &state.canary else { continue };
            let is_it = |kept: &&Kept| kept.service == service.config.name && kept.route == route.name;
            let Some(found) = kept.iter().find(is_it).filter(|kept| kept.said == file::show_tried(route)) else {
                continue;
            };
            let stage = match found.stage {
                KeptStage::Step(index) => Stage::Step { index, since: now, from: Counts::default() },
                KeptStage::Promoted => Stage::Promoted,
                KeptStage::RolledBack(KeptTrouble::Errors) => Stage::RolledBack(Trouble::Errors),
                KeptStage::RolledBack(KeptTrouble::Latency) => Stage::RolledBack(Trouble::Latency),
            };
            canary.set_stage(stage);
            let (service, route, state) = (&service.config.name, &route.name, stage.word());
            tracing::info!(service, route, state, percent = canary.percent(), "canary goes on where it was");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Snapshot;

    fn snapshot(canary: &str) -> Snapshot {
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], \
             routes: [{{name: r, canary: {{subset: {{v: '2'}}, steps: [10, 50, 100], {canary}}}}}]}}]"
        );
        Snapshot::build(&file::parse(&text, "F").unwrap_or_else(|error| panic!("{error}")), &Snapshot::default())
    }

    fn canary(snapshot: &Snapshot) -> &CanaryState {
        snapshot.services[0].routes[0].canary.as_deref().expect("a canary")
    }

    fn kept_of(snapshot: &Snapshot) -> Option<Kept> {
        let service = &snapshot.services[0];
        of(service, &service.config.routes[0], canary(snapshot))
    }

    #[test]
    fn a_canary_goes_on_where_it_was_unless_something_else_is_said_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(&directory.path().join("sub/audit.jsonl"));
        let (now, from) = (Duration::from_secs(9), Counts::default());
        for stage in [
            Stage::Step { index: 1, since: now, from },
            Stage::Promoted,
            Stage::RolledBack(Trouble::Errors),
            Stage::RolledBack(Trouble::Latency),
        ] {
            let before = snapshot("interval_ms: 500");
            canary(&before).set_stage(stage);
            write(&path, &[kept_of(&before).expect("it is kept")]).expect("writable");
            let after = snapshot("interval_ms: 500");
            restore(after.services.iter().map(AsRef::as_ref), &read(&path), now);
            assert_eq!((canary(&after).stage(), canary(&after).percent()), (stage, canary(&before).percent()));
            let other = snapshot("interval_ms: 501");
            restore(other.services.iter().map(AsRef::as_ref), &read(&path), now);
            assert_eq!(canary(&other).stage(), Stage::Begun, "another canary");
        }
        assert_eq!(kept_of(&snapshot("to: a")), None, "nobody has looked at it");
    }

    #[test]
    fn a_file_that_is_not_there_or_not_ours_says_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c");
        assert_eq!(read(&path), []);
        fs::write(&path, "[{").expect("writable");
        assert_eq!(read(&path), []);
        assert_eq!(read(Path::new("/dev/zero")), [], "it has no end");
    }
}
