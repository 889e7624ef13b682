//! When this machine counts as idle: by its owner's input and programs, its battery, its link.

use p2pvm_host::presence::Signs;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[offer.idle]`: the thresholds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Idle {
    /// How long after the last input at a terminal or the built-in keyboard, seconds.
    pub after_s: u64,
    /// The processor load of all programs but the guests, 0 to 1, above which it is busy.
    pub load: f64,
    /// Whether it may count as idle on its battery.
    pub on_battery: bool,
    /// Whether it may count as idle while its default route is metered.
    pub metered: bool,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            after_s: 600,
            load: 0.3,
            on_battery: false,
            metered: false,
        }
    }
}

impl Idle {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(self.load > 0.0 && self.load <= 1.0) {
            return Err(format!(
                "[offer.idle] load must be above 0 and at most 1, not {}",
                self.load
            ));
        }
        Ok(())
    }

    /// The sign that the machine is busy; `None` if it is idle. `load` is the load of all programs
    /// but the guests, 0 to 1.
    pub(crate) fn busy(&self, signs: &Signs, load: f64) -> Option<String> {
        let after = Duration::from_secs(self.after_s);
        if let Some(ago) = signs.input_ago.filter(|ago| *ago < after) {
            return Some(format!(
                "its keyboard or a terminal was used {} s ago",
                ago.as_secs()
            ));
        }
        if load > self.load {
            return Some(format!(
                "its own programs use {:.0} % of its processors",
                load * 100.0
            ));
        }
        if signs.on_battery && !self.on_battery {
            return Some("it runs on its battery".to_owned());
        }
        match &signs.metered {
            Some(interface) if !self.metered => Some(format!("its link {interface} is metered")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_alone_makes_the_machine_busy_unless_it_is_allowed() {
        let (calm, idle) = (Signs::default(), Idle::default());
        let typed = |seconds| Signs {
            input_ago: Some(Duration::from_secs(seconds)),
            ..Signs::default()
        };
        let battery = Signs {
            on_battery: true,
            ..Signs::default()
        };
        let metered = Signs {
            metered: Some("wwan0".into()),
            ..Signs::default()
        };
        let table = [
            (calm.clone(), 0.0, None),
            (calm.clone(), 0.3, None),
            (calm, 0.31, Some("31 %")),
            (typed(599), 0.0, Some("599 s ago")),
            (typed(600), 0.0, None),
            (battery.clone(), 0.0, Some("battery")),
            (metered.clone(), 0.0, Some("wwan0")),
        ];
        for (signs, load, expected) in table {
            let said = idle.busy(&signs, load);
            match expected {
                None => assert_eq!(said, None, "{signs:?} {load}"),
                Some(part) => assert!(said.unwrap().contains(part), "{signs:?} {load}"),
            }
        }
        let allowed = Idle {
            on_battery: true,
            metered: true,
            ..Idle::default()
        };
        assert_eq!(allowed.busy(&battery, 0.0), None);
        assert_eq!(allowed.busy(&metered, 0.0), None);
        for load in [0.0, 1.1, f64::NAN] {
            let wrong = Idle {
                load,
                ..Idle::default()
            };
            assert!(wrong.check().is_err(), "{load}");
        }
    }
}
