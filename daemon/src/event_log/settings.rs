//! `[events]`: how much of the log of events is kept, and which events are posted to a URL.

use super::{file::Bounds, webhook::Endpoint};
use p2pvm_api::EventKind;
use serde::{Deserialize, Serialize};

/// `[events]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// How much of the disk the log takes at most, MiB.
    pub max_mib: u32,
    /// How many days an event is kept at most.
    pub max_days: u32,
    /// Where events are posted as JSON, such as "https://alerts.example/hook"; empty for nowhere.
    pub webhook: String,
    /// The kinds of events that are posted there, such as ["guest-crashed", "rpo-exceeded"].
    pub webhook_kinds: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_mib: 16,
            max_days: 90,
            webhook: String::new(),
            webhook_kinds: Vec::new(),
        }
    }
}

impl Settings {
    /// Says which value cannot be used, and which can.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1024).contains(&self.max_mib) {
            let (given, most) = (self.max_mib, 1024);
            return Err(format!("[events] max_mib must be 1 to {most}, not {given}"));
        }
        if !(1..=3650).contains(&self.max_days) {
            let (given, most) = (self.max_days, 3650);
            return Err(format!(
                "[events] max_days must be 1 to {most}, not {given}"
            ));
        }
        let is_known = |kind: &&String| !EventKind::KNOWN.iter().any(|(_, word)| word == kind);
        if let Some(unknown) = self.webhook_kinds.iter().find(is_known) {
            return Err(format!(
                "[events] webhook_kinds has '{unknown}', which is no kind of event: docs/events.md \
                    lists them"
            ));
        }
        if self.webhook.is_empty() {
            return Ok(());
        }
        if self.webhook_kinds.is_empty() {
            return Err(
                "[events] webhook is set and webhook_kinds is empty, so that nothing would \
                be posted: name the kinds of events"
                    .to_owned(),
            );
        }
        self.webhook.parse::<Endpoint>().map(drop)
    }

    /// The bounds of the log.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            bytes: u64::from(self.max_mib) << 20,
            age_ms: u64::from(self.max_days) * 86_400_000,
        }
    }

    /// Where events are posted, if anywhere.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.webhook.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_say_which_can() {
        let default = Settings::default;
        assert_eq!(default().check(), Ok(()));
        let hook = |webhook: &str, kinds: &[&str]| Settings {
            webhook: webhook.into(),
            webhook_kinds: kinds.iter().map(ToString::to_string).collect(),
            ..default()
        };
        assert_eq!(
            hook("https://a.example/x", &["guest-crashed"]).check(),
            Ok(())
        );
        for (settings, why) in [
            (hook("https://a.example/x", &[]), "name the kinds"),
            (hook("https://a.example/x", &["dancing"]), "docs/events.md"),
            (hook("ftp://a.example/x", &["guest-crashed"]), "https://"),
            (
                Settings {
                    max_mib: 0,
                    ..default()
                },
                "1 to 1024",
            ),
            (
                Settings {
                    max_days: 0,
                    ..default()
                },
                "1 to 3650",
            ),
        ] {
            let said = settings.check().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
