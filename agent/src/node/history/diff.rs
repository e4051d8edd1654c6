//! What differs between two configurations: keys by their paths, with what was said and what is said.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{
    Config, Service,
    file::{
        self,
        secret::{Place, is_of_request},
    },
};

/// Differences that are told of one change: a file of ten thousand services may differ in all of them.
pub const DIFFERENCES_MAX: usize = 200;
/// Characters of a value that are told.
const VALUE_CHARS_MAX: usize = 400;

/// One key of which something else is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Path of the key, as `services[orders].endpoints[10.0.0.1:80].weight`: items of lists by their name or address.
    pub path: String,
    /// What was said; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// What is said; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// Differences, bounded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Those that are told.
    pub told: Vec<Difference>,
    /// How many more there are.
    pub more: usize,
}

impl Differences {
    fn note(&mut self, (path, place): (&str, Place<'_>), old: Option<&Value>, new: Option<&Value>) {
        if self.told.len() == DIFFERENCES_MAX {
            self.more += 1;
            return;
        }
        let told = |value: &Value| short(hide_at(place, value.clone()));
        self.told.push(Difference { path: path.to_owned(), old: old.map(told), new: new.map(told) });
    }

    fn compare(&mut self, (path, place): (&str, Place<'_>), old: Option<&Value>, new: Option<&Value>) {
        let said = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
        match (said(old), said(new)) {
            (old, new) if old == new => {}
            (Some(Value::Object(old)), Some(Value::Object(new))) => {
                let keys: BTreeMap<&String, ()> = old.keys().chain(new.keys()).map(|key| (key, ())).collect();
                for key in keys.into_keys() {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.compare((&path, place.below(key)), old.get(key), new.get(key));
                }
            }
            (Some(Value::Array(old)), Some(Value::Array(new))) => self.compare_items((path, place), &old, &new),
            (old, new) => self.note((path, place), old.as_ref(), new.as_ref()),
        }
    }

    /// Items are the same one if they have the same name.
    fn compare_items(&mut self, (path, place): (&str, Place<'_>), old: &[Value], new: &[Value]) {
        let (Some((before, old)), Some((after, new))) = (by_name(old), by_name(new)) else {
            return self.note((path, place), Some(&Value::Array(old.to_vec())), Some(&Value::Array(new.to_vec())));
        };
        for name in &before {
            self.compare((&format!("{path}[{name}]"), place), old.get(name).copied(), new.get(name).copied());
        }
        for name in after.iter().filter(|name| !old.contains_key(**name)) {
            self.compare((&format!("{path}[{name}]"), place), None, new.get(name).copied());
        }
        let kept = |names: &[&str], others: &Named<'_>| -> Vec<Value> {
            names.iter().filter(|name| others.contains_key(**name)).map(|name| (*name).into()).collect()
        };
        if kept(&before, &new) != kept(&after, &old) {
            self.note((&format!("{path} (order)"), place), Some(&before.into()), Some(&after.into()));
        }
    }
}

/// Items of a list, by what names each.
type Named<'v> = HashMap<&'v str, &'v Value>;

/// The names of the items in their order, and the items by them; nothing if any has no name, or two the same.
fn by_name(items: &[Value]) -> Option<(Vec<&str>, Named<'_>)> {
    let name = |item: &'_ Value| ["name", "address", "path"].into_iter().find(|key| item[*key].is_string());
    let names: Vec<&str> = items.iter().map(|item| item[name(item)?].as_str()).collect::<Option<_>>()?;
    let named: Named<'_> = names.iter().copied().zip(items).collect();
    (named.len() == names.len()).then_some((names, named))
}

/// The same without what is nobody's to read.
pub fn hide(value: Value) -> Value {
    hide_at(Place::default(), value)
}

fn hide_at(place: Place<'_>, mut value: Value) -> Value {
    if place.is_secret() {
        return hide_all(value);
    }
    match &mut value {
        Value::Object(object) => {
            object.iter_mut().for_each(|(key, value)| *value = hide_at(place.below(key), value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = hide_at(place, item.take())),
        _ => {}
    }
    value
}

/// Nothing of it but its names.
fn hide_all(mut value: Value) -> Value {
    match &mut value {
        Value::Null => {}
        Value::String(text) if is_of_request(text) => {}
        Value::Object(object) => object.values_mut().for_each(|value| *value = hide_all(value.take())),
        _ => value = "(hidden)".into(),
    }
    value
}

fn short(value: Value) -> Value {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        None => value,
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}

fn services(config: &Config) -> HashMap<&str, &Arc<Service>> {
    config.services.iter().map(|service| (service.name.as_str(), service)).collect()
}

/// What `new` says otherwise than `old`. Services that are the very same are not looked into.
pub fn between(old: &Config, new: &Config) -> Differences {
    let mut differences = Differences::default();
    let bare = |config: &Config| file::show(&Config { services: Vec::new(), ..config.clone() });
    differences.compare(("", Place::default()), Some(&bare(old)), Some(&bare(new)));
    let (before, after) = (services(old), services(new));
    for service in &old.services {
        let path = format!("services[{}]", service.name);
        let at = (path.as_str(), Place::default().below("services"));
        match after.get(service.name.as_str()) {
            Some(new) if Arc::ptr_eq(new, service) => {}
            new => {
                let new = new.map(|new| file::show_service(new));
                differences.compare(at, Some(&file::show_service(service)), new.as_ref());
            }
        }
    }
    for service in new.services.iter().filter(|service| !before.contains_key(service.name.as_str())) {
        let at = (&*format!("services[{}]", service.name), Place::default().below("services"));
        differences.note(at, None, Some(&file::show_service(service)));
    }
    differences
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(drain_ms: u32, services: &str) -> Config {
        file::parse(&format!("{{drain_timeout_ms: {drain_ms}, services: [{services}]}}"), "F").expect("a good file")
    }

    fn service(name: &str, last: u8, endpoints: &str) -> String {
        format!("{{name: {name}, address: '10.0.0.{last}:80', protocol: http, endpoints: [{endpoints}]}}")
    }

    #[test]
    fn what_differs_is_told_by_name_with_what_was_and_what_is() {
        let old =
            config(5, &[service("a", 1, "'10.1.0.1:80', '10.1.0.2:80'"), service("b", 2, "'10.1.0.1:80'")].join(","));
        let new =
            [service("c", 3, "'10.1.0.1:80'"), service("a", 1, "'10.1.0.2:80', {address: '10.1.0.1:80', weight: 7}")];
        let found = between(&old, &config(6, &new.join(",")));
        let told: Vec<(&str, Option<Value>, Option<Value>)> =
            found.told.iter().map(|one| (one.path.as_str(), one.old.clone(), one.new.clone())).collect();
        let endpoints = ["10.1.0.1:80", "10.1.0.2:80"];
        assert_eq!(
            told[..3],
            [
                ("drain_timeout_ms", Some(json!(5)), Some(json!(6))),
                ("services[a].endpoints[10.1.0.1:80].weight", Some(json!(1)), Some(json!(7))),
                ("services[a].endpoints (order)", Some(json!(endpoints)), Some(json!([endpoints[1], endpoints[0]]))),
            ]
        );
        let rest: Vec<(&str, bool, bool)> =
            told[3..].iter().map(|(path, old, new)| (*path, old.is_some(), new.is_some())).collect();
        assert_eq!(rest, [("services[b]", true, false), ("services[c]", false, true)]);
        assert_eq!(between(&old, &old.clone()), Differences::default());
    }

    #[test]
    fn however_much_differs_little_is_told_and_secrets_never_are() {
        let many = |port: u16| {
            let all: Vec<String> =
                (1..=250).map(|last| service(&format!("s{last}"), last, &format!("'10.1.0.1:{port}'"))).collect();
            config(5, &all.join(","))
        };
        let found = between(&many(80), &many(81));
        assert_eq!((found.told.len(), found.more), (DIFFERENCES_MAX, 2 * 250 - DIFFERENCES_MAX));
        let digest = "ab".repeat(32);
        let with = |text: &str| file::parse(text, "F").expect("a good file");
        let tokens = with(&format!("admin: {{tokens: [{{name: ops, sha256: {digest}}}]}}"));
        let other = with(&format!("admin: {{tokens: [{{name: ops, sha256: {}}}]}}", digest.replace('a', "c")));
        let filtered = |filters: &str| {
            let service = service("a", 1, "'10.1.0.1:80'").replace('}', &format!(", filters: [{filters}]}}"));
            config(5, &service)
        };
        let one = filtered(&format!("{{kind: api_key, header: x-key, keys: {{ann: 'sha256:{digest}'}}}}"));
        let two = filtered(&format!(
            "{{kind: api_key, header: x-key, keys: {{ann: 'sha256:{}'}}}}",
            digest.replace('a', "c")
        ));
        for (old, new) in
            [(&with(""), &tokens), (&tokens, &other), (&tokens, &with("")), (&filtered(""), &one), (&one, &two)]
        {
            let told = serde_json::to_string(&between(old, new).told).expect("JSON");
            assert!(told.contains("(hidden)") && !told.contains("abab") && !told.contains("cbcb"), "{told}");
        }
    }

    #[test]
    fn secret_is_what_is_sent_and_not_what_is_asked_for() {
        let with = |password: &str| {
            let keys = format!(
                "probe: {{type: http, headers: {{authorization: 'Basic {password}', x-team: red}}}}, \
                 filters: [{{kind: headers, request: {{set: {{cookie: 'sid={password}', x-team: red}}}}}}], \
                 fallback: {{respond: {{status: 503, headers: {{set-cookie: 'a={password}'}}}}}}, \
                 routes: [{{name: r, match: {{path: {{template: '/{{id}}'}}, headers: {{authorization: Basic m, token: t-{password}}}, query: {{key: k-{password}}}}}, \
                 request_headers: {{set: {{x-api-key: {password}, x-session: '{{id}}'}}}}}}]"
            );
            let service = service("a", 1, "'10.1.0.1:80'").replace("endpoints", &format!("{keys}, endpoints"));
            config(5, &service)
        };
        let (hush, sesame) = (with("hush"), with("sesame"));
        let shown = hide(file::show(&hush));
        let service = &shown["services"][0];
        assert_eq!(service["probe"]["headers"], json!({ "authorization": "(hidden)", "x-team": "red" }));
        assert_eq!(service["filters"][0]["request"]["set"], json!({ "cookie": "(hidden)", "x-team": "red" }));
        assert_eq!(service["fallback"]["respond"]["headers"]["set-cookie"], "(hidden)");
        let route = &service["routes"][0];
        assert_eq!(route["match"]["headers"], json!({ "authorization": "Basic m", "token": "t-hush" }));
        assert_eq!(route["match"]["query"], json!({ "key": "k-hush" }));
        assert_eq!(route["request_headers"]["set"], json!({ "x-api-key": "(hidden)", "x-session": "{id}" }));
        assert!(file::parse(&shown.to_string(), "F").is_ok(), "{shown}");
        let told = serde_json::to_string(&between(&hush, &sesame).told)
            .expect("JSON")
            .replace("t-hush", "")
            .replace("k-hush", "");
        assert!(!told.contains("hush") && told.contains("\"t-sesame\"") && told.contains("k-sesame"), "{told}");
        let added = serde_json::to_string(&between(&config(5, ""), &hush).told).expect("JSON");
        assert!(!added.contains("Basic hush"), "{added}");
    }
}
