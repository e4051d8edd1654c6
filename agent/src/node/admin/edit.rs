//! Changes of a configuration's document, as the file would say it: one service, one of its endpoints, one of its request limits.

use serde_json::{Value, json};

/// What one change of the document is.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Of which service.
    pub service: String,
    /// What of it; `None`: the service itself.
    pub item: Option<Item>,
    /// What becomes of it.
    pub how: How,
}

/// One item of a list of a service.
#[derive(Clone, Debug)]
pub enum Item {
    /// The endpoint at this address.
    Endpoint(String),
    /// The request limit of this name.
    Limit(String),
}

/// What becomes of an item.
#[derive(Clone, Debug)]
pub enum How {
    /// Keys are replaced, and removed by null (RFC 7396).
    Merge(Value),
    /// It says this and nothing else; it is added if it is not there.
    Replace(Value),
    /// It is there no more.
    Remove,
}

/// Turns a switch on or off, or says that there is none.
pub fn switch(document: &mut Value, name: &str, state: Value) -> Result<(), String> {
    let found = document["switches"].get_mut(name).ok_or_else(|| format!("there is no switch {name}"))?;
    *found = state;
    Ok(())
}

/// There is nothing to change: what is missing.
pub fn edit(document: &mut Value, edit: Edit) -> Result<(), String> {
    let services = document["services"].as_array_mut().ok_or("there are no services")?;
    let service = services
        .iter_mut()
        .find(|service| service["name"] == edit.service.as_str())
        .ok_or_else(|| super::no_service(&edit.service))?;
    let Some(item) = edit.item else {
        if let How::Merge(patch) = edit.how {
            merge(service, patch);
        }
        return Ok(());
    };
    let (list, key, name) = match &item {
        Item::Endpoint(address) => ("endpoints", "address", address),
        Item::Limit(name) => ("request_limits", "name", name),
    };
    if service[list].is_null() {
        service[list] = json!([]);
    }
    let items = service[list].as_array_mut().ok_or("there is no such list")?;
    let place = items.iter().position(|found| found[key] == name.as_str());
    let missing = || match &item {
        Item::Endpoint(address) => super::no_endpoint(&edit.service, address),
        Item::Limit(name) => format!("service {} has no request limit {name}", edit.service),
    };
    match edit.how {
        How::Merge(patch) => {
            let found = &mut items[place.ok_or_else(missing)?];
            if matches!(item, Item::Limit(_)) {
                forget_what_follows(found);
            }
            merge(found, patch);
        }
        How::Replace(mut said) => {
            if said.is_object() {
                said[key] = json!(name);
            }
            match place {
                Some(place) => items[place] = said,
                None => items.push(said),
            }
        }
        How::Remove => {
            items.remove(place.ok_or_else(missing)?);
        }
    }
    Ok(())
}

/// What a limit says only because another of its keys says it follows that one.
fn forget_what_follows(limit: &mut Value) {
    let number = |limit: &Value, key: &str| limit[key].as_u64();
    if number(limit, "burst") == number(limit, "limit") {
        limit["burst"] = Value::Null;
    }
    let queued = || Some(number(limit, "window_ms")? * number(limit, "queue")? / number(limit, "limit")?);
    if queued().is_some_and(|queued| limit["on_limit"]["wait"]["max_ms"].as_u64() == Some(queued)) {
        limit["on_limit"] = Value::Null;
    }
}

/// RFC 7396 section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(&key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, file, request_limit::Kind};

    const TEXT: &str = "services:
  - name: a
    address: 10.0.0.1:80
    protocol: http
    request_limits: [{kind: token_bucket, limit: 100}, {name: q, kind: leaky_bucket, limit: 10, queue: 5}]
    endpoints: ['10.1.0.1:80', '[fd00::1]:80']
  - {name: b, address: '10.0.0.2:80', protocol: http, endpoints: ['10.1.0.1:80']}
";

    fn edited(service: &str, item: Option<Item>, how: How) -> Result<Config, String> {
        let mut document = file::show(&file::parse(TEXT, "F").expect("a good file"));
        edit(&mut document, Edit { service: service.to_owned(), item, how })?;
        file::parse(&document.to_string(), "F").map_err(|error| error.to_string())
    }

    #[test]
    fn one_thing_changes_and_all_else_stays() {
        let before = file::parse(TEXT, "F").expect("a good file");
        let endpoint = |address: &str| Some(Item::Endpoint(address.to_owned()));
        let config = edited("a", endpoint("[fd00::1]:80"), How::Merge(json!({"weight": 7}))).expect("good");
        assert_eq!(config.services[0].endpoints[1].weight, 7);
        let mut back = (*config.services[0]).clone();
        back.endpoints[1].weight = 1;
        assert_eq!((&back, &config.services[1]), (&*before.services[0], &before.services[1]));
        let config = edited("b", endpoint("10.1.0.9:80"), How::Replace(json!({"weight": 2}))).expect("good");
        let weights = |config: &Config| -> Vec<u32> {
            config.services[1].endpoints.iter().map(|endpoint| endpoint.weight).collect()
        };
        assert_eq!(weights(&config), [1, 2]);
        let config =
            edited("a", None, How::Merge(json!({"connect_timeout_ms": 7, "request_limits": null}))).expect("good");
        assert_eq!((config.services[0].connect_timeout.as_millis(), config.services[0].request_limits.len()), (7, 0));
        assert_eq!(edited("a", endpoint("10.1.0.1:80"), How::Remove).expect("good").services[0].endpoints.len(), 1);
    }

    #[test]
    fn a_switch_that_is_there_is_turned() {
        let mut document = json!({"switches": {"peak": "off"}, "services": []});
        assert_eq!(switch(&mut document, "peak", json!("on")), Ok(()));
        assert_eq!(document["switches"], json!({"peak": "on"}));
        assert_eq!(switch(&mut document, "pek", json!("on")), Err("there is no switch pek".to_owned()));
        assert_eq!(switch(&mut json!({}), "peak", json!("on")), Err("there is no switch peak".to_owned()));
    }

    #[test]
    fn what_follows_from_a_limit_follows_its_change() {
        let limit = |name: &str| Some(Item::Limit(name.to_owned()));
        let config = edited("a", limit("token_bucket"), How::Merge(json!({"limit": 7}))).expect("good");
        let kind = config.services[0].request_limits[0].kind;
        assert!(matches!(kind, Kind::TokenBucket { limit: 7, burst: 7, .. }), "{kind:?}");
        let config = edited("a", limit("token_bucket"), How::Merge(json!({"limit": 7, "burst": 9}))).expect("good");
        assert!(matches!(config.services[0].request_limits[0].kind, Kind::TokenBucket { limit: 7, burst: 9, .. }));
        let config = edited("a", limit("q"), How::Merge(json!({"queue": 20}))).expect("good");
        assert_eq!(config.services[0].request_limits[1].wait_max.map(|wait| wait.as_millis()), Some(2_000));
        let config = edited("b", limit("new"), How::Replace(json!({"kind": "concurrency", "limit": 3}))).expect("good");
        assert_eq!(config.services[1].request_limits[0].name, "new");
    }

    #[test]
    fn what_is_not_there_or_cannot_be_is_said() {
        let weight = || How::Merge(json!({"weight": 0}));
        let endpoint = |address: &str| Some(Item::Endpoint(address.to_owned()));
        let limit = Some(Item::Limit("z".to_owned()));
        for (service, item, how, expected) in [
            ("c", None, weight(), "there is no service c"),
            ("a", endpoint("10.9.9.9:1"), weight(), "service a has no endpoint 10.9.9.9:1"),
            ("a", endpoint("10.9.9.9:1"), How::Remove, "service a has no endpoint 10.9.9.9:1"),
            ("a", limit, weight(), "service a has no request limit z"),
            ("a", endpoint("10.1.0.1:80"), weight(), "services[0].endpoints[0].weight: 0 is out of range"),
            ("a", endpoint("10.1.0.1:80"), How::Replace(json!([])), "services[0].endpoints[0]: expected"),
            ("b", endpoint("10.1.0.1:80"), How::Remove, "services[1].endpoints"),
        ] {
            let said = edited(service, item, how).expect_err(expected);
            assert!(said.contains(expected), "{said}");
        }
    }
}
