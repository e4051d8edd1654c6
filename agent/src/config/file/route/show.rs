//! Routes as the file would say them.

use serde_json::{Map, Value, json};

use super::{FALLBACKS, SWITCHES, canary, deadline, guard, matching, mirror, retry};
use crate::config::file::request_limit;
use crate::config::route::{Action, Fallback, HeaderChanges, PathChange, Redirect, Rewrite, Route, Target, Template};

/// As it would be written.
pub fn show(route: &Route) -> Value {
    let mut shown = Map::new();
    shown.insert("name".into(), json!(route.name));
    shown.insert("match".into(), matching::show(&route.matches));
    match &route.action {
        Action::Forward(forward) => {
            match (forward.targets.as_slice(), &forward.canary) {
                ([only], _) => shown.append(&mut target(only)),
                ([stable, tried], Some(rules)) => {
                    shown.append(&mut target(stable));
                    shown.insert("canary".into(), canary::show(tried, rules));
                }
                (targets, _) => {
                    let weighted = |one: &Target| {
                        let mut shown = target(one);
                        shown.insert("weight".into(), json!(one.weight));
                        Value::Object(shown)
                    };
                    shown.insert("split".into(), targets.iter().map(weighted).collect());
                }
            }
            if forward.rewrite != Rewrite::default() {
                let mut rewrite = path(forward.rewrite.path.as_ref());
                rewrite.extend(text("host", forward.rewrite.host.as_ref()));
                shown.insert("rewrite".into(), rewrite.into());
            }
            shown.extend(forward.mirror.as_ref().map(|copies| ("mirror".to_owned(), mirror::show(copies))));
        }
        Action::Redirect(to) => {
            shown.insert("redirect".into(), redirect(to).into());
        }
        Action::Respond(respond) => {
            shown.insert("respond".into(), json!({ "status": respond.status, "body": body(&respond.body) }));
        }
    }
    shown.append(&mut deadline::show(route.timing.as_ref()));
    let again = route.strategy.as_deref().and_then(retry::show);
    shown.extend(again.map(|retry| ("retry".to_owned(), retry)));
    if route.one_way {
        shown.insert("one_way".into(), json!("on"));
    }
    if !route.request_limits.is_empty() {
        shown.insert("request_limits".into(), route.request_limits.iter().map(request_limit::show).collect());
    }
    shown.extend(route.breaker.as_ref().map(|rules| ("breaker".to_owned(), guard::show_breaker(rules))));
    for (key, changes) in [("request_headers", &route.request_headers), ("response_headers", &route.response_headers)] {
        if !changes.is_empty() {
            shown.insert(key.into(), show_changes(changes));
        }
    }
    shown.into()
}

/// What is said of whom a route tries out, beside whom, and how.
pub fn show_tried(route: &Route) -> Value {
    let Action::Forward(forward) = &route.action else { return Value::Null };
    let shown = forward.canary.as_ref().zip(forward.targets.get(1)).map(|(rules, tried)| canary::show(tried, rules));
    let stable = forward.targets.first().map(|stable| Value::Object(target(stable)));
    json!({ "canary": shown, "beside": stable })
}

fn body(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn target(target: &Target) -> Map<String, Value> {
    let mut shown = Map::new();
    if let Some(to) = &target.to {
        shown.insert("to".into(), json!(to));
    }
    if target.subset.is_empty() {
        return shown;
    }
    shown.insert("subset".into(), json!(target.subset));
    let word = match &target.fallback {
        Fallback::NoFallback => FALLBACKS[0].0,
        Fallback::AnyEndpoint => FALLBACKS[1].0,
        Fallback::DefaultSubset(labels) => {
            shown.insert("default_subset".into(), json!(labels));
            FALLBACKS[2].0
        }
    };
    shown.insert("subset_fallback".into(), json!(word));
    shown
}

fn text(key: &str, template: Option<&Template>) -> Option<(String, Value)> {
    template.map(|template| (key.to_owned(), json!(template.to_string())))
}

fn path(change: Option<&PathChange>) -> Map<String, Value> {
    let shown = match change {
        None => return Map::new(),
        Some(PathChange::Prefix(template)) => ("prefix", json!(template.to_string())),
        Some(PathChange::Whole(template)) => ("path", json!(template.to_string())),
        Some(PathChange::Regex(expression, with)) => {
            ("regex", json!({ "pattern": expression.as_str(), "substitution": with }))
        }
    };
    [(shown.0.to_owned(), shown.1)].into_iter().collect()
}

fn redirect(redirect: &Redirect) -> Map<String, Value> {
    let mut shown = path(redirect.path.as_ref());
    shown.insert("status".into(), json!(redirect.status));
    shown.extend(redirect.scheme.as_ref().map(|scheme| ("scheme".to_owned(), json!(scheme))));
    shown.extend(text("host", redirect.host.as_ref()));
    shown.extend(redirect.port.map(|port| ("port".to_owned(), json!(port))));
    let switch = SWITCHES.iter().find(|(_, on)| *on == redirect.strip_query).map(|(word, _)| *word);
    shown.insert("strip_query".into(), json!(switch));
    shown
}

pub(in super::super) fn show_changes(changes: &HeaderChanges) -> Value {
    let fields = |fields: &[(String, Template)]| -> Map<String, Value> {
        fields.iter().filter_map(|(name, template)| text(name, Some(template))).collect()
    };
    json!({ "set": fields(&changes.set), "add": fields(&changes.add), "remove": changes.remove })
}
