//! Subnet routes: offers, withdrawals and their use.
//!
//! The list shows every offer and its use here; a change is answered by its result. Fields of
//! answers to changes are in alphabetical order.

use crate::MemberIdText;
use serde::{Deserialize, Serialize};

/// One row of `p2pvm route list`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteView {
    /// The subnet.
    pub subnet: String,
    /// The name of the member that offers it.
    pub by: String,
    /// Its id.
    pub member: MemberIdText,
    /// Whether this host sends packets for it there.
    pub used: bool,
    /// The reason why it is used or not.
    pub note: String,
    /// Whether it would be used without a better offer of the same subnet.
    #[serde(default)]
    pub may_be_used: bool,
}

/// The request of `p2pvm route offer` and `route withdraw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteSubnet {
    /// The subnet, such as 192.168.7.0/24.
    pub subnet: String,
}

/// The request of `p2pvm route accept`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AcceptRoutes {
    /// Whether to use others' subnets here.
    pub on: bool,
    /// The one subnet that this is about; none for all.
    #[serde(default)]
    pub subnet: Option<String>,
}

/// The answer to `p2pvm route offer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteOffered {
    /// Whether others use it, and why not if they do not; none until that is known.
    #[serde(default)]
    pub note: Option<String>,
    /// The subnet, as it is offered.
    pub offered: String,
}

/// The answer to `p2pvm route withdraw`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteWithdrawn {
    /// The subnet that is no longer offered.
    pub withdrawn: String,
}

/// The answer to `p2pvm route accept`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoutesAccepted {
    /// Whether others' subnets are used here, as requested.
    pub accept: bool,
    /// How many offers of others are used here now.
    #[serde(default)]
    pub used: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn answers_to_changes_of_routes_keep_their_text() {
        let offered = RouteOffered {
            note: Some("offered: packets for it come here".into()),
            offered: "192.168.7.0/24".into(),
        };
        assert_text(
            &offered,
            r#"{"note":"offered: packets for it come here","offered":"192.168.7.0/24"}"#,
        );
        assert_text(
            &RouteOffered {
                note: None,
                ..offered
            },
            r#"{"note":null,"offered":"192.168.7.0/24"}"#,
        );
        assert_text(
            &RouteWithdrawn {
                withdrawn: "192.168.7.0/24".into(),
            },
            r#"{"withdrawn":"192.168.7.0/24"}"#,
        );
        assert_text(
            &RoutesAccepted {
                accept: true,
                used: 2,
            },
            r#"{"accept":true,"used":2}"#,
        );
    }

    #[test]
    fn questions_about_routes_keep_their_text() {
        assert_text(
            &RouteSubnet {
                subnet: "192.168.7.0/24".into(),
            },
            r#"{"subnet":"192.168.7.0/24"}"#,
        );
        assert_text(
            &AcceptRoutes {
                on: false,
                subnet: None,
            },
            r#"{"on":false,"subnet":null}"#,
        );
        assert_text(
            &AcceptRoutes {
                on: true,
                subnet: Some("10.1.0.0/16".into()),
            },
            r#"{"on":true,"subnet":"10.1.0.0/16"}"#,
        );
    }

    #[test]
    fn routes_of_another_version_are_understood() {
        let offered: RouteOffered =
            serde_json::from_str(r#"{"offered":"10.1.0.0/16","metric":7}"#).unwrap();
        assert_eq!(
            offered,
            RouteOffered {
                note: None,
                offered: "10.1.0.0/16".into()
            }
        );
        let withdrawn: RouteWithdrawn =
            serde_json::from_str(r#"{"withdrawn":"10.1.0.0/16","later":null}"#).unwrap();
        assert_eq!(withdrawn.withdrawn, "10.1.0.0/16");
        let accepted: RoutesAccepted =
            serde_json::from_str(r#"{"accept":true,"refused":[]}"#).unwrap();
        assert_eq!(
            accepted,
            RoutesAccepted {
                accept: true,
                used: 0
            }
        );
        assert_eq!(
            serde_json::from_str::<AcceptRoutes>(r#"{"on":true}"#).unwrap(),
            AcceptRoutes {
                on: true,
                subnet: None
            }
        );
    }
}
