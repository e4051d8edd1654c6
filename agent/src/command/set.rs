//! `sockway set` and `sockway eject`: change one thing of a service while it runs.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use super::{
    Failure, USAGE,
    agent::{Reach, segment},
};

/// One key, of what and in which agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Set {
    /// A service, or one of its endpoints
    #[arg(value_name = "SERVICE[/IP:PORT]")]
    target: String,
    /// The key, as the configuration has it: `weight` or `state` of an endpoint, any of a service
    #[arg(value_name = "KEY")]
    key: String,
    /// What it says from now on; null takes the key away, and lists and mappings are written as JSON
    #[arg(value_name = "VALUE")]
    value: String,
    /// Change the request limit of this name, and not the service
    #[arg(long, value_name = "NAME")]
    limit: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// Changes one key: a new generation. Prints what that changed.
///
/// # Errors
///
/// When it cannot be, or the agent cannot be asked.
pub fn run(set: &Set) -> Result<u8, Failure> {
    let path = match (endpoint_of(&set.target), &set.limit) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(USAGE, "sockway: a request limit is of a service; leave the endpoint out"));
        }
        (Some((service, address)), None) => endpoint_path(service, address),
        (None, Some(limit)) => {
            format!("/v1/services/{}/request_limits/{}", segment(&set.target), segment(limit))
        }
        (None, None) => format!("/v1/services/{}", segment(&set.target)),
    };
    set.reach.change("PATCH", &path, Some(&json!({ set.key.as_str(): value(&set.value) })))
}

/// The service and the endpoint of `SERVICE/IP:PORT`; a service's name may have a slash itself.
fn endpoint_of(target: &str) -> Option<(&str, SocketAddr)> {
    let (service, address) = target.rsplit_once('/')?;
    Some((service, address.parse().ok()?))
}

fn endpoint_path(service: &str, address: SocketAddr) -> String {
    format!("/v1/services/{}/endpoints/{}", segment(service), segment(&address.to_string()))
}

/// What is no JSON is a text, as in YAML; and so are its other words for true and false.
fn value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Bool(_)) | Err(_) => text.into(),
        Ok(value) => value,
    }
}

/// Which endpoint, for how long, and in which agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Eject {
    /// The endpoint
    #[arg(value_name = "SERVICE/IP:PORT")]
    target: String,
    /// For how long; after that it is used again
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    r#for: f64,
    /// Use it again at once
    #[arg(long, conflicts_with = "for")]
    back: bool,
    #[command(flatten)]
    reach: Reach,
}

fn seconds(text: &str) -> Result<f64, String> {
    let said: Option<f64> = text.parse().ok();
    said.filter(|said| (0.001..=86_400.0).contains(said)).ok_or_else(|| "write seconds, up to 86400".to_owned())
}

/// Leaves an endpoint out for a while, or lets it be used again.
///
/// # Errors
///
/// When there is no such endpoint, or the agent cannot be asked.
pub fn eject(eject: &Eject) -> Result<u8, Failure> {
    let Some((service, address)) = endpoint_of(&eject.target) else {
        let what = format!("sockway: \"{}\" is no endpoint; write SERVICE/IP:PORT", eject.target);
        return Err(Failure::new(USAGE, what));
    };
    let path = format!("{}/eject", endpoint_path(service, address));
    if eject.back {
        return eject.reach.change("DELETE", &path, None);
    }
    let for_ms = Duration::from_secs_f64(eject.r#for).as_millis() as u64;
    eject.reach.change("POST", &path, Some(&json!({ "for_ms": for_ms })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_told_from_a_service_with_a_slash() {
        let address = |text: &str| text.parse().expect("an address");
        assert_eq!(endpoint_of("shop/orders"), None);
        assert_eq!(endpoint_of("shop/orders/10.0.0.1:80"), Some(("shop/orders", address("10.0.0.1:80"))));
        assert_eq!(endpoint_of("orders/[fd00::1]:80"), Some(("orders", address("[fd00::1]:80"))));
        let path = endpoint_path("shop/orders", address("10.0.0.1:80"));
        assert_eq!(path, "/v1/services/shop%2Forders/endpoints/10.0.0.1:80");
    }

    #[test]
    fn values_are_what_yaml_would_make_of_them() {
        for (text, expected) in [
            ("5", json!(5)),
            ("draining", json!("draining")),
            ("true", json!("true")),
            ("null", Value::Null),
            ("[\"10.0.0.1:80\"]", json!(["10.0.0.1:80"])),
            ("{\"failures\": 3}", json!({"failures": 3})),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert!(seconds("0").is_err() && seconds("x").is_err() && seconds("86401").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
    }
}
