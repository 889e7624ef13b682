//! Every screen as text, at the size of a serial console and at a larger one.

use p2pvm_api::{Health, VmStateView};
use p2pvm_console::{
    Action, Activity, DaemonState, Decision, Invitation, Key, Member, Model, Node, Options, Power,
    Screen, Theme, Vm, draw, plain_text,
};
use ratatui::{Terminal, backend::TestBackend, style::Color};

const CONSOLE: Options = Options {
    console: true,
    shell: true,
};

fn node() -> Node {
    Node {
        name: "paris".into(),
        network: "lab".into(),
        address: Some("10.83.4.7".into()),
        address_v6: "fd7c:11aa:52bb:1:2:3:4:5".into(),
        seen_as: Some("203.0.113.7:4002".into()),
        nat: "port-restricted".into(),
        cpu: 0.12,
        resident_bytes: 42 << 20,
        up_seconds: 7500,
        on_ring: true,
        was_on_ring: true,
        joined_another: true,
        version: "0.1.0".into(),
        ..Node::default()
    }
}

fn busy() -> Model {
    let mut model = Model::new(Theme::PLAIN, Options::default());
    model.clock = "18:20:31 UTC".into();
    model.reach = DaemonState::Up(Box::new(node()));
    model.members = (0..12)
        .map(|n| Member {
            name: format!("member{n:02}"),
            address: Some(format!("10.83.9.{n}")),
            connected: n != 3,
            linked: n != 3,
            path: (n != 3).then(|| {
                if n == 1 {
                    "relayed via member00".into()
                } else {
                    format!("direct 198.18.{n}.1:4002")
                }
            }),
            rtt_ms: (n != 3).then_some(12.5 * f64::from(n) + 3.25),
        })
        .collect();
    let vm = |name: &str, doing: Option<Activity>| Vm {
        name: name.into(),
        state: VmStateView::Running,
        host: "paris".into(),
        address: "10.83.200.9".into(),
        cpu: Some(0.5),
        cpus: 1,
        doing,
        note: None,
    };
    model.vms = vec![
        vm(
            "web",
            Some(Activity {
                what: "to member02: memory".into(),
                share: Some(0.45),
            }),
        ),
        vm("db", None),
        Vm {
            cpu: None,
            ..vm("far", None)
        },
    ];
    model.decisions = vec![Decision {
        at: "18:19:58".into(),
        vm: "web".into(),
        text: "moves to member02: 91 % here, 20 % there".into(),
    }];
    model
}

fn alone() -> Model {
    let mut model = busy();
    model.members.clear();
    model.vms.clear();
    model.decisions.clear();
    model.reach = DaemonState::Up(Box::new(Node {
        joined_another: false,
        ..node()
    }));
    let text = "p2pvm1".to_owned() + &"abcdefgh23456".repeat(40);
    model.invitation = Some(Ok(Invitation {
        text,
        terms: "for 5 machines, valid 24h".into(),
    }));
    model
}

/// What ratatui's own terminal shows.
fn shown(model: &Model) -> String {
    let mut terminal = Terminal::new(TestBackend::new(model.size.0, model.size.1)).unwrap();
    terminal
        .draw(|frame| draw(model, frame.buffer_mut()))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let text: String = buffer
        .content()
        .chunks(usize::from(model.size.0))
        .map(|l| l.iter().map(|c| c.symbol()).collect::<String>() + "\n")
        .collect();
    text.lines()
        .map(|l| l.trim_end().to_owned() + "\n")
        .collect()
}

fn has(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "'{part}' is missing:\n{text}");
    }
}

fn press(model: &mut Model, keys: &str) -> Option<Action> {
    keys.chars().fold(None, |_, c| {
        model.press(if c == '\n' { Key::Enter } else { Key::Char(c) })
    })
}

#[test]
fn eighty_by_twenty_four_shows_node_members_vms_migration_and_decision() {
    let text = shown(&busy());
    has(
        &text,
        &[
            "paris in lab",
            "18:20:31 UTC",
            "health   ok: 11 of 12 known members connected",
            "10.83.4.7",
            "port-restricted, seen as 203.0.113.7:4002",
            "cpu 12 %, daemon 42 MiB, up 2h 5m",
            "relayed via member00",
            "3.2 ms",
            "away",
            "... ",
            "VMs: 3 of 3 running",
            "####....  50 %",
            "to member02: memory ####.... 45 %",
            "18:19:58 web: moves to member02: 91 % here, 20 % there",
            "l logs   i invite   j join   ? help   q quit",
        ],
    );
    assert_eq!(
        text,
        plain_text(&busy()),
        "--once prints what the terminal shows"
    );
    assert!(
        text.is_ascii(),
        "a terminal without line characters gets none"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 80) && text.lines().count() == 24);
}

#[test]
fn a_larger_terminal_shows_every_member() {
    let mut model = busy();
    model.size = (120, 40);
    let text = shown(&model);
    has(&text, &["member00", "member11", "direct 198.18.11.1:4002"]);
    assert!(!text.contains("more"), "{text}");
}

#[test]
fn arrows_scroll_the_members_that_do_not_fit() {
    let mut model = busy();
    assert!(!shown(&model).contains("member11"));
    (0..9).for_each(|_| drop(model.press(Key::Down)));
    let text = shown(&model);
    assert!(
        text.contains("member11") && !text.contains("member00 "),
        "{text}"
    );
}

#[test]
fn no_size_breaks_the_drawing() {
    for model in [busy(), alone()] {
        for screen in [
            Screen::Main,
            Screen::Help,
            Screen::Logs { back: 3 },
            Screen::Invite { page: 0 },
            Screen::Invite { page: 1 },
            Screen::Confirm {
                power: Power::Off,
                again: true,
            },
            Screen::Join {
                input: "x".repeat(900),
                answer: Some("no".into()),
                phase: p2pvm_console::JoinPhase::Typing,
            },
        ] {
            for size in [
                (0, 0),
                (1, 1),
                (19, 3),
                (20, 3),
                (21, 4),
                (40, 8),
                (79, 23),
                (300, 90),
            ] {
                let model = Model {
                    screen: screen.clone(),
                    size,
                    theme: Theme {
                        colour: true,
                        unicode: true,
                    },
                    ..model.clone()
                };
                plain_text(&model);
            }
        }
    }
}

/// The health of a busy member after a change.
fn health(change: &dyn Fn(&mut Model)) -> (Health, String) {
    let mut model = busy();
    change(&mut model);
    model.health()
}

/// The health of the same with another node.
fn health_with(node: Node) -> (Health, String) {
    health(&|m| m.reach = DaemonState::Up(Box::new(node.clone())))
}

#[test]
fn health_is_one_word() {
    assert_eq!(health(&|_| {}).0, Health::Ok);
    assert_eq!(
        health(&|m| m.set_reach(DaemonState::Starting)).0,
        Health::Starting
    );
    assert_eq!(
        health(&|m| m.set_reach(DaemonState::NoMembership)).0,
        Health::Outside
    );
    assert_eq!(
        health(&|m| m.set_reach(DaemonState::Away("no daemon".into()))),
        (Health::Down, "no daemon".into())
    );
    assert_eq!(health(&|m| m.online = false).0, Health::Offline);
    assert_eq!(health(&|m| m.members.clear()).0, Health::Joining);
    assert_eq!(
        health(&|m| m.reach = DaemonState::Up(Box::new(Node {
            address: None,
            ..node()
        })))
        .0,
        Health::Joining
    );
    assert_eq!(
        health(&|m| m.members.iter_mut().for_each(|m| m.connected = false)).0,
        Health::Degraded
    );
    let never = |up_seconds| Node {
        on_ring: false,
        was_on_ring: false,
        up_seconds,
        ..node()
    };
    let off_ring =
        |up_seconds| move |m: &mut Model| m.reach = DaemonState::Up(Box::new(never(up_seconds)));
    assert_eq!(
        health(&off_ring(5)).0,
        Health::Joining,
        "it has just started"
    );
    assert_eq!(health(&off_ring(500)).0, Health::Degraded);
    assert_eq!(alone().health().0, Health::Alone);
}

#[test]
fn health_has_its_reason() {
    // Its only neighbour has died, and the connection has not timed out yet: the node is not
    // starting.
    let bereft = Node {
        on_ring: false,
        up_seconds: 12,
        ..node()
    };
    let (word, why) = health_with(bereft);
    assert_eq!(
        (word, why.as_str()),
        (
            Health::Degraded,
            "its neighbours on the ring are gone: looking for others"
        )
    );
    let (word, why) = health(&|m| m.vms[1].note = Some("its voters cannot be reached".into()));
    assert_eq!((word, why.as_str()), (Health::Degraded, "look at VM db"));
    let (word, why) = health(&|m| m.silent = vec!["member07".into()]);
    assert_eq!(
        (word, why.as_str()),
        (Health::Degraded, "no answer from member07")
    );
    let refused = Node {
        address: None,
        wanting: Some("permission denied".into()),
        ..node()
    };
    let (word, why) = health_with(refused);
    assert_eq!(
        (word, why.as_str()),
        (
            Health::Joining,
            "no address is claimed yet: permission denied"
        )
    );
    let unreachable = Node {
        failing: vec!["p2pvm0 is down".into(), "no nft".into()],
        ..node()
    };
    let (word, why) = health_with(unreachable);
    assert_eq!(
        (word, why.as_str()),
        (
            Health::Degraded,
            "p2pvm0 is down (and 1 more): see 'p2pvm doctor'"
        )
    );
    let warned = Node {
        warnings: 2,
        ..node()
    };
    let (word, why) = health_with(warned);
    assert!(
        word == Health::Ok && why.ends_with("see 'p2pvm doctor'"),
        "{why}"
    );
}

#[test]
fn the_answers_of_a_daemon_that_is_gone_are_cleared() {
    let mut model = busy();
    model.set_reach(DaemonState::Away("no p2pvm daemon is running here".into()));
    let text = shown(&model);
    has(
        &text,
        &[
            "health   down: no p2pvm daemon is running here",
            "connects by itself",
        ],
    );
    assert!(
        !text.contains("member00") && !text.contains("web"),
        "{text}"
    );
}

#[test]
fn a_lone_member_shows_its_invite_and_how_to_join_another() {
    let text = shown(&alone());
    has(
        &text,
        &[
            "health   alone",
            "for 5 machines, valid 24h",
            "p2pvm1abcdefgh23456",
            "i: as QR code",
            "j.",
        ],
    );
    let joined: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    has(&joined, &[&"abcdefgh23456".repeat(40)]);
}

#[test]
fn the_invite_is_drawn_as_codes_that_fit_or_as_text() {
    let mut model = alone();
    assert_eq!(
        press(&mut model, "i"),
        Some(Action::Invite),
        "a new one: the previous one may have expired"
    );
    model = alone();
    model.options = CONSOLE;
    model.theme = Theme {
        colour: true,
        unicode: true,
    };
    assert_eq!(
        press(&mut model, "i"),
        None,
        "a console keeps the invite that it shows"
    );
    has(&shown(&model), &["as 3 QR codes"]);
    model.press(Key::Right);
    let text = shown(&model);
    has(&text, &["Part 1 of 3", "█", "▄", "left/right page"]);
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal
        .draw(|frame| draw(&model, frame.buffer_mut()))
        .unwrap();
    let cell = &terminal.backend().buffer()[(0, 0)];
    assert_eq!(
        (cell.fg, cell.bg),
        (Color::White, Color::Black),
        "dark on light whatever the terminal's colours are"
    );
    model.theme = Theme::PLAIN;
    let text = shown(&model);
    has(&text, &["shows no QR codes", "p2pvm1abcdefgh"]);
    model.press(Key::Esc);
    assert_eq!(model.screen, Screen::Main);
}

#[test]
fn a_refused_invite_stays_on_the_screen_with_the_reason() {
    let mut model = alone();
    press(&mut model, "j");
    model.press(Key::Paste("p2pvm1bad\r\n wrapped".into()));
    assert_eq!(
        model.press(Key::Enter),
        Some(Action::Join {
            invite: "p2pvm1badwrapped".into(),
            leave: false
        })
    );
    has(&shown(&model), &["asking the network"]);
    assert_eq!(press(&mut model, "x"), None, "keys wait while it works");
    model.join_ended(Err("the invite has expired: ask for a new one".into()));
    has(
        &shown(&model),
        &[
            "the invite has expired: ask for a new one",
            "p2pvm1badwrapped_",
            "16 characters",
        ],
    );
    model.press(Key::Clear);
    press(&mut model, "p2pvm1good\n");
    model.ask_to_leave("home");
    has(
        &shown(&model),
        &["alone in its own network 'lab'. Leave it and join 'home'?"],
    );
    assert_eq!(
        press(&mut model, "y"),
        Some(Action::Join {
            invite: "p2pvm1good".into(),
            leave: true
        })
    );
    model.join_ended(Ok("joined home".into()));
    assert_eq!(model.screen, Screen::Main);
    has(&shown(&model), &["joined home"]);
}

#[test]
fn a_machine_is_stopped_only_from_its_console_when_confirmed_twice() {
    let mut model = busy();
    for keys in ["ryY", "pyY", "s"] {
        assert_eq!(press(&mut model, keys), None, "{keys}");
    }
    model.options = CONSOLE;
    assert_eq!(
        press(&mut model, "ryy"),
        None,
        "a key that is held down does nothing"
    );
    assert_eq!(press(&mut model, "rYY"), None);
    press(&mut model, "py");
    has(&shown(&model), &["web, db, far", "capital Y"]);
    assert_eq!(press(&mut model, "Y"), Some(Action::Power(Power::Off)));
    assert_eq!(press(&mut model, "ryY"), Some(Action::Power(Power::Reboot)));
    assert_eq!(press(&mut model, "s"), Some(Action::Shell));
    assert_eq!(press(&mut model, "q"), None, "a console does not end");
    assert_eq!(model.press(Key::Interrupt), None);
    let text = shown(&model);
    has(&text, &["s shell", "r reboot", "p power off"]);
    assert!(!text.contains("q quit"), "{text}");
}

#[test]
fn logs_show_their_end_and_scroll_back() {
    let mut model = busy();
    model.logs = (0..100).map(|n| format!("line {n}")).collect();
    assert_eq!(press(&mut model, "l"), Some(Action::Logs));
    has(&shown(&model), &["line 99"]);
    model.press(Key::PageUp);
    let text = shown(&model);
    assert!(
        text.contains("line 89") && !text.contains("line 90"),
        "{text}"
    );
}

#[test]
fn text_of_other_members_cannot_control_the_terminal() {
    let mut model = busy();
    model.members[0].name = "\x1b[2Jevil\x07".into();
    model.decisions[0].text = "\x1b]0;owned\x07".into();
    model.logs = vec!["\x1b[31mred".into()];
    for screen in [Screen::Main, Screen::Logs { back: 0 }] {
        model.screen = screen;
        let text = shown(&model);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
    }
}
