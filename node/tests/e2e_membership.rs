//! Who may join: every way in which an invite can be wrong is refused with its reason, and a
//! revoked member is out. What a member may then do on the hosts of others.

mod common;

use common::{SETTINGS, image, is_connected, lab, network, public_sites, refused, set_policy};
use p2pvm_api::{
    Failed, InviteAnswer, Joined, Kind, NetworkFounded, RevokeAnswer, TokenRevoked, TokenState,
    TokenView, UserView, VmView,
};
use p2pvm_lab::lab::Lab;
use std::{fs, time::Duration};

/// A second network on the same testbed.
fn other_network(lab: &Lab, host: &str) {
    lab.p2pvm(host, &["init", "--network", "other"]).unwrap();
    lab.start(host).unwrap();
}

#[test]
fn every_invalid_invite_is_refused_with_its_reason() {
    let lab = lab("invites", &public_sites(&["a", "b", "c", "d"], 5.0));
    network(&lab, &["a", "b"]);

    let said = refused(&lab, "c", &["join", "p2pvm1nonsense"], 5);
    assert!(said.contains("no invite"), "{said}");
    let said = refused(
        &lab,
        "c",
        &[
            "join",
            "/no/such/file-of-an-invite",
            "--invite",
            "p2pvm1nonsense",
        ],
        5,
    );
    assert!(said.contains("no invite"), "{said}");

    let good = lab.invite("a", 1).unwrap();
    let mut tampered = good.clone();
    let middle = tampered.len() / 2;
    let other = if tampered.as_bytes()[middle] == b'a' {
        "b"
    } else {
        "a"
    };
    tampered.replace_range(middle..=middle, other);
    let said = refused(&lab, "c", &["join", &tampered], 5);
    assert!(
        said.contains("signature") || said.contains("no invite"),
        "{said}"
    );

    let short = lab.p2pvm("a", &["invite", "--expires", "1s"]).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    let said = refused(&lab, "c", &["join", &short], 5);
    assert!(said.contains("expired"), "{said}");

    lab.join("c", &good).unwrap();
    let said = refused(&lab, "d", &["join", &good], 5);
    assert!(said.contains("used up"), "{said}");

    // The invite is a's, the member knocked at is of another network.
    other_network(&lab, "d");
    let address = lab.status("d").unwrap().listen.remove(0);
    lab.p2pvm("c", &["leave"]).unwrap();
    // It is counted already, but its new name is another member's.
    let said = refused(&lab, "c", &["join", &good, "--name", "a"], 5);
    assert!(said.contains("the name is taken"), "{said}");
    let fresh = lab.invite("a", 1).unwrap();
    let said = refused(&lab, "d", &["join", &fresh], 5);
    assert!(said.contains("already"), "{said}");
    let d = lab.testbed().host("d").unwrap().address;
    let at_d = address.split('/').collect::<Vec<_>>();
    assert!(at_d.len() > 3, "{address}");
    // With a dead or foreign door first, the invite's own addresses still lead in.
    let joined: Joined = lab
        .json(
            "c",
            &["join", &format!("/ip4/{d}/tcp/4001"), "--invite", &fresh],
        )
        .unwrap();
    assert_eq!(joined.status.network, "lab");
    lab.down().unwrap();
}

#[test]
fn a_revoked_member_is_cut_off_on_hearsay_too() {
    let lab = lab("revoke", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    assert!(!lab.ping("b", "c", 2, "100ms").unwrap().rtts_ms.is_empty());
    let said = refused(&lab, "b", &["revoke", "c"], 5);
    assert!(said.contains("may not"), "{said}");
    lab.p2pvm("a", &["revoke", "c"]).unwrap();
    lab.wait(
        "b to cut c off",
        Duration::from_secs(10),
        Duration::from_millis(300),
        || Ok((!is_connected(&lab, "b", "c")?).then_some(())),
    )
    .unwrap();
    let (code, _, _) = lab.try_p2pvm("b", &["ping", "c", "--count", "1"]).unwrap();
    assert_ne!(code, 0);
    // A revoked member does not come back with its old certificate either.
    let (_, _, _) = lab.try_p2pvm("c", &["down"]).unwrap();
    let (_, _, _) = lab.try_p2pvm("c", &["up", "--detach"]).unwrap();
    lab.wait(
        "a to cut c off",
        Duration::from_secs(10),
        Duration::from_millis(300),
        || Ok((!is_connected(&lab, "a", "c")?).then_some(())),
    )
    .unwrap();
    let (code, _, said) = lab.try_p2pvm("c", &["up", "--detach"]).unwrap();
    assert!(code != 0 && said.contains("revoked"), "{code} {said}");
    lab.down().unwrap();
}

#[test]
fn a_delegate_admits_and_an_invite_can_be_cancelled() {
    let lab = lab("delegate", &public_sites(&["a", "b", "c", "d"], 5.0));
    lab.found("a", "lab").unwrap();
    let delegate = lab.p2pvm("a", &["invite", "--delegate"]).unwrap();
    lab.join("b", &delegate).unwrap();
    let by_b: InviteAnswer = lab.json("b", &["invite", "--uses", "2"]).unwrap();
    let text = &by_b.invite;
    lab.join("c", text).unwrap();
    let said = refused(&lab, "b", &["invite", "--delegate"], 5);
    assert!(said.contains("founder"), "{said}");
    let said = refused(&lab, "b", &["revoke", "a"], 5);
    assert!(said.contains("only the founder's word"), "{said}");
    let (code, out, _) = lab.try_p2pvm("b", &["--json", "revoke", "a"]).unwrap();
    let failed: Failed = serde_json::from_str(&out).unwrap();
    assert_eq!((code, failed.error.kind), (5, Kind::Refused), "{out}");
    let unmet = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let revoked: RevokeAnswer = lab.json("b", &["revoke", unmet]).unwrap();
    assert!(revoked.note.unwrap().contains("no effect"));
    lab.p2pvm("b", &["revoke", &by_b.id]).unwrap();
    let said = refused(&lab, "d", &["join", text], 5);
    assert!(said.contains("revoked"), "{said}");
    lab.down().unwrap();
}

#[test]
fn a_command_without_network_or_daemon_says_what_to_do() {
    let lab = lab("clear", &public_sites(&["a"], 1.0));
    assert!(refused(&lab, "a", &["status"], 3).contains("p2pvm init"));
    assert!(refused(&lab, "a", &["up"], 3).contains("p2pvm join"));
    assert!(refused(&lab, "a", &["init", "--network", "Not A Name"], 2).contains("lower-case"));
    assert!(
        refused(
            &lab,
            "a",
            &["init", "--network", "lab", "--subnet", "10.0.0.0/33"],
            2
        )
        .contains("subnet")
    );
    let own = lab.testbed().host("a").unwrap().address;
    assert!(
        refused(
            &lab,
            "a",
            &["init", "--network", "lab", "--subnet", &format!("{own}/24")],
            5
        )
        .contains("overlaps")
    );
    let founded: NetworkFounded = lab.json("a", &["init", "--network", "lab"]).unwrap();
    assert!(refused(&lab, "a", &["init", "--network", "lab"], 5).contains("already"));
    assert!(refused(&lab, "a", &["status"], 1).contains("p2pvm up"));
    lab.start("a").unwrap();
    let status = lab.start("a").unwrap();
    assert_eq!(founded.member, status.member);
    assert_eq!(founded.network_id, status.network_id);
    assert_eq!(founded.subnet, status.subnet);
    assert!(refused(&lab, "a", &["ping", "nobody"], 3).contains("p2pvm peers"));
    assert!(refused(&lab, "a", &["vm", "show", "ghost"], 3).contains("ghost"));
    assert!(
        refused(
            &lab,
            "a",
            &["vm", "create", "x", "--image", "/no/such.qcow2"],
            3
        )
        .contains("no image file")
    );
    lab.down().unwrap();
}

/// The VM "two" is c's. Its owner lets b stop it and delete it; b lets a member only stop it.
fn tokens_open_what_the_owner_gave(lab: &Lab) {
    let create = ["token", "create", "--vm", "two", "--for", "1h"];
    let make = |by: &str, rest: &[&str]| {
        let token = lab.p2pvm(by, &[&create[..], rest].concat()).unwrap();
        token.trim().to_owned()
    };
    let given = make("c", &["--may", "stop", "--to", "b"]);
    let said = refused(lab, "a", &["token", "add", &given], 5);
    assert!(said.contains("was given to b"), "{said}");
    lab.p2pvm("b", &["token", "add", &given]).unwrap();
    lab.p2pvm("b", &["vm", "stop", "two"]).unwrap();
    let said = refused(lab, "b", &["vm", "delete", "two"], 5);
    assert!(said.contains("does not have the right 'delete'"), "{said}");
    // One that b signed itself is worth nothing.
    let own = make("b", &["--may", "delete", "--to", "b"]);
    lab.p2pvm("b", &["token", "add", &own]).unwrap();
    refused(lab, "b", &["vm", "delete", "two"], 5);
    let wider = ["token", "attenuate", &given, "--may", "delete", "--to", "a"];
    let said = refused(lab, "b", &wider, 5);
    assert!(said.contains("cannot be widened"), "{said}");
    // Its owner takes it back before it expires.
    let revoked: TokenRevoked = lab.json("c", &["token", "revoke", &given]).unwrap();
    assert_eq!(revoked.host.as_deref(), Some("c"));
    let said = refused(lab, "b", &["vm", "stop", "two"], 5);
    assert!(said.contains("the token was revoked"), "{said}");
    let listed: Vec<TokenView> = lab.json("c", &["token", "list"]).unwrap();
    let state = |token: &TokenView| (token.given, token.state);
    assert_eq!(state(&listed[0]), (true, TokenState::Revoked));
    let kept: Vec<TokenView> = lab.json("b", &["token", "list"]).unwrap();
    assert_eq!(kept.len(), 2);
    for token in &kept {
        assert_eq!(token.on, "vm two");
        lab.p2pvm("b", &["token", "remove", &token.id]).unwrap();
    }
    let said = refused(lab, "b", &["vm", "stop", "two"], 5);
    assert!(said.contains("lacks the right to stop 'two'"), "{said}");
}

/// A snapshot of `bs`, which is b's, on a: c stores it and opens it for b alone.
fn a_snapshot_opens_for_its_owner(lab: &Lab) {
    let snapshot = ["vm", "snapshot", "bs", "--name", "s"];
    lab.p2pvm("b", &snapshot).unwrap();
    let said = refused(lab, "c", &["vm", "restore", "bs@s"], 5);
    assert!(said.contains("lacks the right to restore it"), "{said}");
    let restore = ["vm", "restore", "bs@s", "--on", "c"];
    lab.p2pvm("b", &restore).unwrap();
}

/// By a token for c's host b makes a VM there, and no second one.
fn a_token_opens_a_part_of_a_host(lab: &Lab) {
    let create = [
        "token", "create", "--host", "--may", "run", "--memory", "64M",
    ];
    let rest = ["--for", "1h", "--to", "b"];
    let given = lab.p2pvm("c", &[&create[..], &rest[..]].concat()).unwrap();
    lab.p2pvm("b", &["token", "add", given.trim()]).unwrap();
    let two: VmView = lab.json("b", &["vm", "show", "two"]).unwrap();
    let make = |name: &str| {
        let words = [
            "vm",
            "create",
            name,
            "--on",
            "c",
            "--image",
            two.image.as_str(),
        ];
        lab.try_p2pvm("b", &[&words[..], &["--memory", "64M"][..]].concat())
            .unwrap()
    };
    let (code, out, said) = make("bs-too");
    assert_eq!(code, 0, "{out} {said}");
    let (code, _, said) = make("bs-third");
    assert!(
        code == 5 && said.contains("allows less memory"),
        "{code} {said}"
    );
    lab.p2pvm("b", &["vm", "delete", "bs-too"]).unwrap();
}

/// A token for a person opens at b while the person's key is there.
fn a_persons_token_opens_with_its_key(lab: &Lab) {
    let anna: UserView = lab.json("b", &["user", "create", "anna"]).unwrap();
    lab.p2pvm("c", &["user", "add", "anna", &anna.key]).unwrap();
    let create = ["token", "create", "--vm", "two", "--may", "stop"];
    let rest = ["--for", "1h", "--to", "user:anna"];
    let given = lab.p2pvm("c", &[&create[..], &rest[..]].concat()).unwrap();
    lab.p2pvm("b", &["user", "add", "anna", &anna.key]).unwrap();
    lab.p2pvm("b", &["token", "add", given.trim()]).unwrap();
    lab.p2pvm("b", &["vm", "stop", "two"]).unwrap();
    fs::remove_file(lab.dir("b").unwrap().join("user.key")).unwrap();
    let said = refused(lab, "b", &["vm", "stop", "two"], 5);
    assert!(said.contains("given to another member"), "{said}");
}

#[test]
fn a_member_manages_anothers_vms_only_in_an_open_network() {
    let lab = lab("rights", &public_sites(&["a", "b", "c"], 10.0));
    let dir = lab.dir("a").unwrap();
    let (key, offered) = (dir.join("root.key"), dir.join("offered"));
    fs::create_dir(&offered).unwrap();
    fs::copy(image(), offered.join("guest.qcow2")).unwrap();
    std::os::unix::fs::symlink(&key, offered.join("link")).unwrap();
    let offer = format!("[offer]\nimages = [\"{}\"]\n", offered.display());
    lab.configure("a", &format!("{SETTINGS}{offer}")).unwrap();
    network(&lab, &["a", "b", "c"]);
    let create = |by: &str, name: &str, on: &str, image: &str| {
        let words = [
            "vm", "create", name, "--on", on, "--image", image, "--memory", "64M",
        ];
        lab.try_p2pvm(by, &words).unwrap()
    };
    let secret = fs::read(&key).unwrap();
    for file in [&key, &dir.join("identity")] {
        let (code, out, said) = create("b", "leak", "a", file.to_str().unwrap());
        assert_eq!(code, 5, "{out} {said}");
        assert!(said.contains("other members may name"), "{said}");
    }
    assert_eq!(fs::read_dir(dir.join("images")).unwrap().count(), 0);
    let (code, out, _) = lab.try_p2pvm("b", &["vm", "show", "leak"]).unwrap();
    assert_eq!(code, 3, "{out}");

    let of_a = offered.join("guest.qcow2");
    let (code, _, said) = create("b", "link", "a", offered.join("link").to_str().unwrap());
    assert!(code == 5 && said.contains("over a link"), "{code} {said}");
    let (code, out, said) = create("b", "bs", "a", of_a.to_str().unwrap());
    assert_eq!(code, 0, "{out} {said}");

    for name in ["one", "two"] {
        let (code, out, said) = create("c", name, "c", image());
        assert_eq!(code, 0, "{out} {said}");
    }
    lab.p2pvm("b", &["vm", "delete", "one"]).unwrap();
    set_policy(&lab, "a", &["a", "b", "c"], "default = \"deny\"");
    let said = refused(&lab, "b", &["vm", "delete", "two"], 5);
    assert!(said.contains("lacks the right to delete 'two'"), "{said}");
    let (code, _, said) = create("b", "more", "c", image());
    assert!(
        code == 5 && said.contains("create VMs on c"),
        "{code} {said}"
    );
    lab.p2pvm("b", &["vm", "show", "two"]).unwrap();
    tokens_open_what_the_owner_gave(&lab);
    a_token_opens_a_part_of_a_host(&lab);
    a_persons_token_opens_with_its_key(&lab);
    // The owner of one on another host, and the founder's machine.
    a_snapshot_opens_for_its_owner(&lab);
    lab.p2pvm("b", &["vm", "delete", "bs", "--force"]).unwrap();
    lab.p2pvm("a", &["vm", "delete", "two"]).unwrap();
    let kept = lab.dir("b").unwrap().join("images");
    let leaked = fs::read_dir(kept).unwrap().flatten().any(|file| {
        fs::read(file.path()).is_ok_and(|bytes| bytes.windows(32).any(|part| part == secret))
    });
    assert!(!leaked);
    lab.down().unwrap();
}
