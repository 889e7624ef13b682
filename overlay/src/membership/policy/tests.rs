//! Reading a policy and deciding by it.

use super::*;
use proptest::prelude::*;

const TEXT: &str = r#"
default = "deny"

[[rule]]
action = "deny"
from = "guests"
to = "*"
ports = "tcp/25"

[[rule]]
action = "allow"
from = ["admins", "vm:backup"]
to = ["servers", "192.168.7.0/24"]
ports = ["tcp/22", "udp/5000-6000", "icmp"]

[[rule]]
action = "allow"
from = "*"
to = "member:alpha"

[[route]]
subnet = "192.168.0.0/16"
by = "servers"
"#;

fn member(name: &str, groups: &[&str]) -> Party {
    let groups = Groups::new(groups.iter().copied()).unwrap();
    Party {
        addr: "10.9.0.1".parse().unwrap(),
        owner: AddressOwner::Member {
            id: MemberId([1; 32]),
            name: name.into(),
            groups,
        },
    }
}

fn vm(name: Option<&str>) -> Party {
    Party {
        addr: "10.9.0.2".parse().unwrap(),
        owner: AddressOwner::Vm {
            id: VmId([2; 32]),
            name: name.map(Into::into),
        },
    }
}

fn at(addr: &str) -> Party {
    Party {
        addr: addr.parse().unwrap(),
        owner: AddressOwner::Unknown,
    }
}

#[test]
fn the_first_rule_that_fits_decides_and_else_the_default() {
    let policy = NetworkPolicy::parse(TEXT).unwrap();
    let decide = |from: &Party, to: &Party, traffic| {
        let verdict = policy.decide(from, to, traffic);
        (verdict.action, verdict.reason)
    };
    let (admin, server) = (member("x", &["admins"]), member("y", &["servers"]));
    assert_eq!(
        decide(&admin, &server, Traffic::Tcp(22)),
        (Action::Allow, Reason::Rule(1))
    );
    assert_eq!(
        decide(&admin, &server, Traffic::Tcp(23)),
        (Action::Deny, Reason::Default)
    );
    assert_eq!(
        decide(&admin, &server, Traffic::Udp(6000)),
        (Action::Allow, Reason::Rule(1))
    );
    assert_eq!(
        decide(&admin, &server, Traffic::Udp(6001)),
        (Action::Deny, Reason::Default)
    );
    assert_eq!(
        decide(&admin, &server, Traffic::Icmp),
        (Action::Allow, Reason::Rule(1))
    );
    assert_eq!(
        decide(&admin, &server, Traffic::Other),
        (Action::Deny, Reason::Default)
    );
    assert_eq!(
        decide(&server, &admin, Traffic::Tcp(22)),
        (Action::Deny, Reason::Default)
    );
    assert_eq!(
        decide(&vm(Some("backup")), &at("192.168.7.9"), Traffic::Tcp(22)),
        (Action::Allow, Reason::Rule(1))
    );
    assert_eq!(
        decide(
            &member("z", &["guests"]),
            &member("alpha", &[]),
            Traffic::Tcp(25)
        ),
        (Action::Deny, Reason::Rule(0))
    );
    assert_eq!(
        decide(
            &member("z", &["guests"]),
            &member("alpha", &[]),
            Traffic::Tcp(26)
        ),
        (Action::Allow, Reason::Rule(2))
    );
}

#[test]
fn a_rule_is_put_into_words_for_one_kind_of_traffic() {
    let policy = NetworkPolicy::parse(TEXT).unwrap();
    assert_eq!(
        policy.rules[1].to_string(),
        "allow admins, vm:backup to servers, 192.168.7.0/24 on tcp/22, udp/5000-6000, icmp"
    );
    assert_eq!("tcp/22".parse(), Ok(Traffic::Tcp(22)));
    assert_eq!("icmp".parse(), Ok(Traffic::Icmp));
    for bad in ["*", "tcp", "tcp/1-2", "22", "sctp/1", ""] {
        assert!(bad.parse::<Traffic>().is_err(), "{bad}");
    }
}

#[test]
fn a_vm_named_as_a_group_gains_nothing() {
    let policy = NetworkPolicy::parse(
        "default = 'deny'\nrule = [{ action = 'allow', from = 'admins', to = '*' }]",
    )
    .unwrap();
    let allowed = |from: &Party| {
        policy.decide(from, &member("s", &[]), Traffic::Icmp).action == Action::Allow
    };
    assert!(allowed(&member("x", &["admins"])));
    assert!(!allowed(&member("admins", &[])));
    assert!(!allowed(&vm(Some("admins"))));
    let policy = NetworkPolicy::parse(
        "default = 'deny'\nrule = [{ action = 'allow', from = 'vm:web', to = '*' }]",
    )
    .unwrap();
    assert_eq!(
        policy
            .decide(&vm(None), &member("s", &[]), Traffic::Icmp)
            .action,
        Action::Deny,
        "a name that was not found to be its own"
    );
    assert_eq!(policy.vm_names().collect::<Vec<_>>(), ["web"]);
}

#[test]
fn the_named_members_may_offer_a_subnet_and_its_parts() {
    let policy = NetworkPolicy::parse(TEXT).unwrap();
    let (server, other) = (member("y", &["servers"]), member("z", &[]));
    let block = |text: &str| text.parse::<Cidr>().unwrap();
    assert_eq!(
        policy
            .allows_route(&block("192.168.7.0/24"), &server)
            .map(|r| r.line),
        Some(21)
    );
    assert_eq!(policy.allows_route(&block("192.168.7.0/24"), &other), None);
    assert_eq!(policy.allows_route(&block("192.0.0.0/8"), &server), None);
    assert_eq!(policy.allows_route(&block("10.0.0.0/24"), &server), None);
}

#[test]
fn a_bad_document_is_refused_with_its_line_and_a_correction() {
    let refused = |text: &str| {
        let error = NetworkPolicy::parse(text).unwrap_err();
        (error.line, error.reason)
    };
    let rule = |body: &str| format!("default = \"deny\"\n\n[[rule]]\n{body}\n");
    for (text, line, says) in [
        ("".to_owned(), 1, "default"),
        ("default = \"maybe\"".to_owned(), 1, "\"allow\" or \"deny\""),
        ("\n\ndefault = 5".to_owned(), 3, "string"),
        ("default = \"deny\"\nrules = []".to_owned(), 2, "rules"),
        (
            rule("action = \"permit\"\nfrom = \"*\"\nto = \"*\""),
            4,
            "permit",
        ),
        (rule("action = \"allow\"\nfrom = \"*\""), 3, "to"),
        (
            rule("action = \"allow\"\nfrom = \"*\"\nto = [\"a\", \"B!\"]"),
            6,
            "B!",
        ),
        (
            rule("action = \"allow\"\nfrom = []\nto = \"*\""),
            5,
            "empty",
        ),
        (
            rule("action = \"allow\"\nfrom = \"10.0.0.1/8\"\nto = \"*\""),
            5,
            "host bits",
        ),
        (
            rule("action = \"allow\"\nfrom = \"*\"\nto = \"*\"\nports = \"tcp/70000\""),
            7,
            "tcp/70000",
        ),
        (
            rule("action = \"allow\"\nfrom = \"*\"\nto = \"*\"\nports = \"udp/9-8\""),
            7,
            "ends before",
        ),
        (
            rule("action = \"allow\"\nfrom = \"*\"\nto = \"*\"\nport = \"tcp/1\""),
            7,
            "port",
        ),
        (
            rule("action = \"allow\"\nfrom = \"*\"\nto = \"*\"\nports = 22"),
            7,
            "list of texts",
        ),
        (
            "default = \"allow\"\n[[route]]\nsubnet = \"10.0.0.0/8\"\nby = \"vm:web\"".to_owned(),
            4,
            "only members",
        ),
        (
            "default = \"allow\"\n[[route]]\nsubnet = \"10.0.0.0/99\"\nby = \"*\"".to_owned(),
            3,
            "10.0.0.0/99",
        ),
        ("default = \"allow".to_owned(), 1, ""),
        (
            format!("default = \"allow\" #{}", "x".repeat(40_000)),
            1,
            "bytes",
        ),
    ] {
        let (at, reason) = refused(&text);
        assert!(
            reason.contains(says) && at == line,
            "{text:.120}\n-> line {at}: {reason}"
        );
    }
}

fn selector() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        "[a-c]",
        "member:[a-c]",
        "vm:[a-c]",
        Just("10.9.0.0/31".to_owned())
    ]
}

fn ports() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        Just("icmp".to_owned()),
        (0u16..5, 0u16..5).prop_map(|(a, b)| format!("tcp/{a}-{}", a.max(b)))
    ]
}

fn party() -> impl Strategy<Value = Party> {
    let owner = prop_oneof![
        ("[a-c]", proptest::collection::vec("[a-c]", 0..3)).prop_map(|(name, groups)| {
            AddressOwner::Member {
                id: MemberId([1; 32]),
                name,
                groups: Groups::new(groups).unwrap(),
            }
        }),
        proptest::option::of("[a-c]").prop_map(|name| AddressOwner::Vm {
            id: VmId([1; 32]),
            name
        }),
        Just(AddressOwner::Unknown),
    ];
    (0u8..4, owner).prop_map(|(last, owner)| Party {
        addr: [10, 9, 0, last].into(),
        owner,
    })
}

proptest! {
    #[test]
    fn what_is_decided_is_what_the_first_fitting_rule_says(
        rules in proptest::collection::vec((any::<bool>(), selector(), selector(), ports()), 0..6),
        default: bool, from in party(), to in party(), traffic in prop_oneof![
            Just(Traffic::Icmp), (0u16..6).prop_map(Traffic::Tcp)
        ],
    ) {
        let word = |allow: bool| if allow { "allow" } else { "deny" };
        let mut text = format!("default = \"{}\"\n", word(default));
        for (allow, from, to, ports) in &rules {
            text += &format!("[[rule]]\naction = \"{}\"\nfrom = \"{from}\"\nto = \"{to}\"\nports \
                = \"{ports}\"\n", word(*allow));
        }
        let policy = NetworkPolicy::parse(&text).unwrap();
        // Said once more, in the plainest way.
        let names = |written: &str, party: &Party| match (written.split_once(':'), &party.owner) {
            (None, _) if written == "*" => true,
            (None, _) if written.contains('/') => {
                [[10, 9, 0, 0], [10, 9, 0, 1]].map(IpAddr::from).contains(&party.addr)
            }
            (None, AddressOwner::Member { groups, .. }) => groups.iter().any(|g| g == written),
            (Some(("member", wanted)), AddressOwner::Member { name, .. }) => wanted == name,
            (Some(("vm", wanted)), AddressOwner::Vm { name: Some(name), .. }) => wanted == name,
            _ => false,
        };
        let number = |text: &str| text.parse::<u16>().unwrap();
        let opens = |written: &str| match (written, traffic) {
            ("*", _) | ("icmp", Traffic::Icmp) => true,
            (range, Traffic::Tcp(port)) => range
                .strip_prefix("tcp/")
                .and_then(|r| r.split_once('-'))
                .is_some_and(|(a, b)| number(a) <= port && port <= number(b)),
            _ => false,
        };
        let expected = rules.iter().find(
            |(_, f, t, p)| names(f, &from) && names(t, &to) && opens(p)
        ).map_or(default, |rule| rule.0);
        prop_assert_eq!(
            policy.decide(&from, &to, traffic).action == Action::Allow, expected, "{}", text
        );
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", head in "(default \
        = \"deny\"\n)?\\[\\[(rule|route)\\]\\]\n[a-z]{2,6} = [\"\\[a-z0-9:/*\\]]{0,20}\n") {
        let _ = NetworkPolicy::parse(&text);
        let _ = NetworkPolicy::parse(&head);
    }
}
