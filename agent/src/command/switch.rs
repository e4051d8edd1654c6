//! `sockway switch`: tells the switches that services and routes are degraded by, or turns one.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Failure, USAGE,
    agent::{Reach, segment},
    say, table,
};

/// Which switch, and which way.
#[derive(Clone, Debug, clap::Args)]
pub struct Switch {
    /// The switch; without it, all are told
    #[arg(value_name = "NAME", requires = "state")]
    name: Option<String>,
    /// on or off
    #[arg(value_name = "STATE", value_parser = ["on", "off"])]
    state: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Deserialize)]
struct Switches {
    switches: BTreeMap<String, Value>,
}

/// Tells the switches, or turns one: a new generation.
///
/// # Errors
///
/// When there is no such switch, or the agent cannot be asked.
pub fn run(switch: &Switch) -> Result<u8, Failure> {
    match (&switch.name, &switch.state) {
        (Some(name), Some(state)) => {
            let body = json!({ "state": state });
            switch.reach.change("PUT", &format!("/v1/switches/{}", segment(name)), Some(&body))
        }
        (None, _) => {
            let said: Switches = switch.reach.ask("GET", "/v1/switches", None)?.read()?;
            say(tell(&said));
            Ok(0)
        }
        (Some(_), None) => Err(Failure::new(USAGE, "sockway: write on or off")),
    }
}

fn tell(said: &Switches) -> String {
    if said.switches.is_empty() {
        return "the configuration has no switches\n".to_owned();
    }
    let row = |(name, state): (&String, &Value)| vec![name.clone(), state.as_str().unwrap_or_default().to_owned()];
    let heading = ["SWITCH", "STATE"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(said.switches.iter().map(row)).collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_is_told_with_its_state() {
        let told = |text: &str| tell(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(told(r#"{"switches": {"peak": "on", "b": "off"}}"#), "SWITCH  STATE\nb       off\npeak    on\n");
        assert_eq!(told(r#"{"switches": {}}"#), "the configuration has no switches\n");
    }
}
