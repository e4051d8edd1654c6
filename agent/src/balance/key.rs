//! What of a request is hashed -> the key that it is balanced by, as Envoy's hash policies.

use crate::config::tuning::{HashKey, HashOn};

/// The key; `hash` says what the hash of one of these is, if the request has it. `None` where it has none of them.
pub fn of<'r>(rules: &'r [HashOn], hash: impl Fn(&'r HashKey) -> Option<u64>) -> Option<u64> {
    let mut key: Option<u64> = None;
    for rule in rules {
        let Some(hash) = hash(&rule.key) else { continue };
        // Rotated: the same part twice would otherwise be none.
        key = Some(key.map_or(hash, |key| key.rotate_left(1) ^ hash));
        if rule.terminal {
            break;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tuning::Part;

    fn rule(name: &str, terminal: bool) -> HashOn {
        HashOn { key: HashKey::Part(Part::Header(name.to_owned())), terminal }
    }

    fn key(rules: &[HashOn], found: &[(&str, u64)]) -> Option<u64> {
        of(rules, |part| {
            let HashKey::Part(Part::Header(name)) = part else { return None };
            found.iter().find(|(header, _)| header == name).map(|(_, hash)| *hash)
        })
    }

    #[test]
    fn parts_add_up_in_order_and_a_terminal_one_ends_it() {
        let plain = [rule("a", false), rule("b", false)];
        assert_eq!(key(&plain, &[]), None);
        assert_eq!(key(&plain, &[("a", 5)]), Some(5));
        assert_eq!(key(&plain, &[("b", 5)]), Some(5));
        assert_eq!(key(&plain, &[("a", 5), ("b", 6)]), Some(10 ^ 6));
        let terminal = [rule("a", true), rule("b", false)];
        assert_eq!(key(&terminal, &[("a", 5), ("b", 6)]), Some(5));
        assert_eq!(key(&terminal, &[("b", 6)]), Some(6), "one that is not there ends nothing");
    }
}
