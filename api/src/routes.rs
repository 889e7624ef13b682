//! Subnets beyond hosts: what is offered, withdrawn and used.
//!
//! The list shows every offer and what is done with it here; a change is answered by what was
//! changed. Fields of answers to changes are in alphabetical order.

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
    pub member: String,
    /// Whether packets for it go there from here.
    pub used: bool,
    /// Why, or why not.
    pub note: String,
    /// Whether it is used if no better offer of the same subnet is there.
    #[serde(default)]
    pub may_be_used: bool,
}

/// What `p2pvm route offer` and `route withdraw` ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteSubnet {
    /// The subnet, such as 192.168.7.0/24.
    pub subnet: String,
}

/// What `p2pvm route accept` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AcceptRoutes {
    /// Whether subnets of others are to be used here.
    pub on: bool,
    /// The one subnet that it concerns; none for all.
    #[serde(default)]
    pub subnet: Option<String>,
}

/// What `p2pvm route offer` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteOffered {
    /// Whether others use it, and why not if they do not; none until that is known.
    #[serde(default)]
    pub note: Option<String>,
    /// The subnet, as it is offered.
    pub offered: String,
}

/// What `p2pvm route withdraw` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteWithdrawn {
    /// The subnet that is not offered any more.
    pub withdrawn: String,
}

/// What `p2pvm route accept` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoutesAccepted {
    /// What was asked for: whether subnets of others are to be used here.
    pub accept: bool,
    /// Offers of others that are used here now.
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
