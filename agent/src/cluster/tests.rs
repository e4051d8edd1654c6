//! What of a snapshot outlives a reload: ids, state, and the very services of which nothing is said anew.

use sockway_common::flow::{TCP, UDP};

use super::*;
use crate::config::file;

fn snapshot(services: &[(&str, u8, &[u8])], previous: &Snapshot) -> Snapshot {
    let line = |(name, address, endpoints): &(&str, u8, &[u8])| {
        let endpoints: Vec<String> = endpoints.iter().map(|last| format!("10.0.1.{last}:80")).collect();
        let endpoints = endpoints.join(", ");
        format!("  - {{name: {name}, address: 10.0.0.{address}:80, protocol: tcp, endpoints: [{endpoints}]}}\n")
    };
    let text: String = services.iter().map(line).collect();
    let config = file::parse(&format!("services:\n{text}"), "F").expect("a good file");
    Snapshot::build(&config, previous)
}

#[test]
fn a_service_is_found_by_address_and_by_id() {
    let snapshot = snapshot(&[("a", 1, &[1]), ("b", 2, &[2])], &Snapshot::default());
    for service in &snapshot.services {
        assert!(Arc::ptr_eq(service, snapshot.by_address(service.config.address, TCP).expect("by address")));
        assert!(Arc::ptr_eq(service, snapshot.by_id(service.id).expect("by id")));
    }
    assert!(snapshot.by_id(99).is_none());
    assert!(snapshot.by_address(snapshot.services[0].config.address, UDP).is_none());
}

#[test]
fn ids_of_an_earlier_agent_are_taken_over_and_given_to_nobody_else() {
    let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let services = [((at("10.0.0.1:80"), TCP), 7), ((at("10.0.0.9:80"), TCP), 11)];
    let endpoints = [(7, 3, at("10.0.1.2:80")), (7, 5, at("10.0.1.9:80")), (12, 0, at("10.0.1.1:80"))];
    let adopting = Snapshot::adopting(Adopted::new(services, endpoints), 0);
    let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[1])], &adopting);
    assert_eq!(first.services.iter().map(|service| service.id).collect::<Vec<u32>>(), [7, 13]);
    assert_eq!(first.services[0].endpoints.iter().map(|found| found.id).collect::<Vec<u32>>(), [6, 3]);
    assert_eq!(first.leaving().map(|leaving| leaving.endpoint.id).collect::<Vec<u32>>(), [5]);
}

#[test]
fn what_is_listed_no_more_leaves_until_it_is_gone_and_its_id_is_not_given_again() {
    let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[7])], &Snapshot::default());
    let second = snapshot(&[("a", 1, &[1, 3])], &first);
    let leaving = |snapshot: &Snapshot| -> Vec<(u32, u32)> {
        snapshot.leaving().map(|leaving| (leaving.service, leaving.endpoint.id)).collect()
    };
    let (a, b) = (first.services[0].id, first.services[1].id);
    assert_eq!(leaving(&second), [(a, 1), (b, 0)]);
    assert_eq!(second.services[0].endpoints[1].id, 2);
    assert_eq!(second.endpoint(a, 1).expect("leaves").1.address, first.services[0].endpoints[1].address);
    let third = snapshot(&[("a", 1, &[1, 2])], &second);
    assert_eq!(third.services[0].endpoints[1].id, 1, "it came back as what it was");
    assert_eq!(leaving(&third), [(a, 2), (b, 0)]);
    third.leaving().for_each(|leaving| leaving.endpoint.state.set_stage(Stage::Gone));
    assert_eq!(leaving(&third.without_gone()), []);
    assert_eq!(
        leaving(&snapshot(&[("a", 1, &[1])], &third)),
        [(a, 1)],
        "of what was changed, who is gone is forgotten"
    );
}

#[test]
fn a_service_of_which_nothing_is_said_anew_is_the_very_same_and_tells_what_changes_of_its_endpoints() {
    let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[7, 8])], &Snapshot::default());
    let second = snapshot(&[("a", 1, &[1]), ("b", 2, &[7])], &first);
    let third = snapshot(&[("a", 1, &[3]), ("b", 2, &[7])], &second);
    let (old, new) = (&second.services[1], &third.services[1]);
    assert!(Arc::ptr_eq(old, new) && !Arc::ptr_eq(&second.services[0], &third.services[0]));
    let departures = |snapshot: &Snapshot| snapshot.departure(old.id).cloned().expect("one leaves");
    assert!(Arc::ptr_eq(&departures(&second), &departures(&third)));
    let so_far = new.changes.so_far();
    assert!(new.endpoints[0].state.set_down(true) && !new.endpoints[0].state.set_down(true));
    departures(&third).endpoints[0].state.set_stage(Stage::Draining);
    assert_eq!(new.changes.so_far(), so_far + 1, "that it leaves, the snapshot says");
    departures(&third).endpoints[0].state.set_stage(Stage::Dead);
    assert_eq!(new.changes.so_far(), so_far + 2, "what leaves is the service's, too");
    assert!(Arc::ptr_eq(&second.index, &third.index), "what is dialled is the same");
    assert_eq!(third.services[0].changes.so_far(), 0);
}

#[test]
fn ids_and_state_outlive_a_reload_and_ids_are_not_given_twice() {
    let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[1])], &Snapshot::default());
    first.services[0].endpoints[1].state.set_down(true);
    let second = snapshot(&[("c", 3, &[1]), ("a", 4, &[3, 2])], &first);
    let (old, new) = (&first.services[0], &second.services[1]);
    assert_eq!((old.id, second.generation), (new.id, first.generation + 1));
    assert_eq!(old.endpoints[1].id, new.endpoints[1].id);
    assert!(!new.endpoints[1].state.usable() && new.endpoints[0].state.usable());
    assert!(!old.endpoints.iter().any(|endpoint| endpoint.id == new.endpoints[0].id));
    assert!(!first.services.iter().any(|service| service.id == second.services[0].id));
    let third = snapshot(&[("b", 2, &[1])], &second);
    assert!(third.services[0].id > second.services[0].id, "b came back as a new service");
}

#[test]
fn another_zone_changes_the_services_that_prefer_it_and_no_others() {
    let service = |name: &str, last: u8, prefer: &str| {
        format!(
            "  - {{name: {name}, address: 10.0.0.{last}:80, protocol: tcp, prefer_zone: {prefer}, endpoints: \
             [{{address: 10.0.1.1:80, zone: east}}, {{address: 10.0.1.2:80, priority: 2}}]}}\n"
        )
    };
    let services = format!("services:\n{}{}", service("prefers", 1, "on"), service("plain", 2, "off"));
    let build = |zone: &str, previous: &Snapshot| {
        let text = format!("zone: {zone}\n{services}");
        Snapshot::build(&file::parse(&text, "F").expect("a good file"), previous)
    };
    let levels = |snapshot: &Snapshot| -> Vec<u32> {
        snapshot.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| endpoint.level).collect()
    };
    let east = build("east", &Snapshot::default());
    assert_eq!(levels(&east), [0, 5, 0, 4]);
    let west = build("west", &east);
    assert_eq!(levels(&west), [1, 5, 0, 4]);
    let same = |index: usize| Arc::ptr_eq(&east.services[index], &west.services[index]);
    assert_eq!([same(0), same(1)], [false, true]);
}
