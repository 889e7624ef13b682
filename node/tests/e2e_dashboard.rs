//! The web dashboard of real daemons: asked as a browser would ask, byte for byte, and opened in a
//! real browser.

mod common;

use common::{SETTINGS, image, lab, network, overload, public_sites};
use p2pvm_api::{DashboardView, Health, View, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tungstenite::{Message, client::IntoClientRequest, http::HeaderValue};

/// Generous: most of it takes milliseconds.
const LIMIT: Duration = Duration::from_secs(30);
const PORT: u16 = 4080;

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Where a host's dashboard is, once it is switched on, and the token.
struct Door {
    at: SocketAddr,
    token: String,
}

impl Door {
    fn open(lab: &Lab, host: &str) -> Self {
        let on: DashboardView = lab.json(host, &["dashboard", "--enable"]).unwrap();
        assert!(on.on, "{on:?}");
        let url = on.url.unwrap();
        let (at, token) = url
            .strip_prefix("http://")
            .unwrap()
            .split_once("/#token=")
            .unwrap();
        assert_eq!(token, on.token);
        let door = Self {
            at: at.parse().unwrap(),
            token: token.to_owned(),
        };
        lab.wait(
            "the dashboard to listen",
            LIMIT,
            Duration::from_millis(100),
            || Ok(door.knock(lab, host).then_some(())),
        )
        .unwrap();
        door
    }

    /// Whether somebody listens.
    fn knock(&self, lab: &Lab, from: &str) -> bool {
        lab.testbed()
            .inside(from, || {
                TcpStream::connect_timeout(&self.at, Duration::from_secs(5)).is_ok()
            })
            .unwrap()
    }

    /// A request with this dashboard's own `Host`; `more` are header lines.
    fn ask(&self, lab: &Lab, from: &str, what: &str, more: &str, body: &str) -> Answer {
        request(
            lab,
            from,
            self.at,
            &format!("{what} HTTP/1.1\r\nHost: {}\r\n{more}", self.at),
            body,
        )
        .expect("an answer")
    }

    /// The same with the token.
    fn ask_with_token(&self, lab: &Lab, from: &str, what: &str, body: &str) -> Answer {
        self.ask(
            lab,
            from,
            what,
            &format!("Authorization: Bearer {}\r\n", self.token),
            body,
        )
    }

    fn view(&self, lab: &Lab, from: &str) -> View {
        let answer = self.ask_with_token(lab, from, "GET /api/view", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }
}

/// Sends one request; none where the other side hangs up without a word. A streamed answer's chunk
/// sizes stay in the body.
fn request(lab: &Lab, from: &str, to: SocketAddr, head: &str, body: &str) -> Option<Answer> {
    let text = format!(
        "{head}Connection: close\r\nContent-Type: application/json\r\nContent-Length: \
            {}\r\n\r\n{body}",
        body.len()
    );
    let said = lab.testbed().inside(from, || {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .ok()?;
        // What is refused early is answered before all of it is read.
        let _ = stream.write_all(text.as_bytes());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        Some(String::from_utf8_lossy(&said).into_owned())
    });
    let said = said.unwrap()?;
    let (head, body) = said.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

#[test]
fn only_a_dashboard_switched_on_answers_and_only_to_its_token() {
    let lab = lab("dashboard", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let address: IpAddr = common::address(&lab, "a").parse().unwrap();
    let off: DashboardView = lab.json("a", &["dashboard"]).unwrap();
    assert!(!off.on && off.url.is_none(), "{off:?}");
    let closed = Door {
        at: (address, PORT).into(),
        token: String::new(),
    };
    assert!(
        !closed.knock(&lab, "a") && !closed.knock(&lab, "b"),
        "nobody listens while it is off"
    );

    let door = Door::open(&lab, "a");
    let token = lab.dir("a").unwrap().join("dashboard.token");
    assert_eq!(
        fs::metadata(token).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let page = door.ask(&lab, "b", "GET /", "", "");
    assert_eq!(page.status, 200);
    assert!(
        page.head
            .contains("content-security-policy: default-src 'none'; script-src 'self';"),
        "{}",
        page.head
    );
    assert!(page.body.contains("<!doctype html>") && !page.body.contains(&door.token));

    // The token, and nothing like it.
    for more in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Bearer \r\n",
        &format!("Cookie: token={}\r\n", door.token),
    ] {
        let refused = door.ask(&lab, "b", "GET /api/view", more, "");
        assert_eq!(refused.status, 401, "{more} {refused:?}");
        assert!(
            refused.body.contains("p2pvm dashboard") && !refused.body.contains("lab"),
            "{refused:?}"
        );
    }
    let view = door.view(&lab, "b");
    assert_eq!(
        (view.status.name.as_str(), view.status.network.as_str()),
        ("a", "lab")
    );
    assert!(!matches!(view.health.word, Health::Other(_)), "{view:?}");
    // Members tell of themselves once the ring stands.
    lab.wait(
        "both members on the map",
        LIMIT,
        Duration::from_millis(500),
        || {
            let view = door.view(&lab, "b");
            let is_seen = view.peers.iter().any(|peer| peer.name == "b");
            Ok((is_seen && view.members.len() == 2).then_some(()))
        },
    )
    .unwrap();

    // Another name (DNS rebinding), another page (forgery), another network.
    let bearer = format!("Authorization: Bearer {}\r\n", door.token);
    let rebound = request(
        &lab,
        "b",
        door.at,
        &format!("GET /api/view HTTP/1.1\r\nHost: evil.example:{PORT}\r\n{bearer}"),
        "",
    )
    .unwrap();
    assert_eq!(rebound.status, 421, "{rebound:?}");
    let by_name = request(
        &lab,
        "b",
        door.at,
        &format!("GET /api/view HTTP/1.1\r\nHost: a.lab.p2p:{PORT}\r\n{bearer}"),
        "",
    )
    .unwrap();
    assert_eq!(by_name.status, 200, "{by_name:?}");
    let forged = door.ask(
        &lab,
        "b",
        "GET /api/view",
        &format!("{bearer}Origin: http://evil.example\r\n"),
        "",
    );
    assert_eq!(forged.status, 403, "{forged:?}");
    let ours = door.ask(
        &lab,
        "b",
        "GET /api/view",
        &format!("{bearer}Origin: http://{}\r\n", door.at),
        "",
    );
    assert_eq!(ours.status, 200, "{ours:?}");
    let v6: IpAddr = lab.status("a").unwrap().address_v6.parse().unwrap();
    let by_v6 = Door {
        at: (v6, PORT).into(),
        token: door.token.clone(),
    };
    lab.wait(
        "the dashboard on IPv6",
        LIMIT,
        Duration::from_millis(100),
        || Ok(by_v6.knock(&lab, "b").then_some(())),
    )
    .unwrap();
    assert_eq!(by_v6.view(&lab, "b").status.name, "a");
    let ours = by_v6.ask(
        &lab,
        "b",
        "GET /api/view",
        &format!("{bearer}Origin: http://{}\r\n", by_v6.at),
        "",
    );
    assert_eq!(ours.status, 200, "{ours:?}");
    let crossed = by_v6.ask(
        &lab,
        "b",
        "GET /api/view",
        &format!("{bearer}Origin: http://{}\r\n", door.at),
        "",
    );
    assert_eq!(crossed.status, 403, "{crossed:?}");
    for door in [&door, &by_v6] {
        assert!(
            !answers_outsiders(&lab, door),
            "{}: a connection from an address outside the network is not taken",
            door.at
        );
    }

    // What is not on the list is not there for any caller.
    for what in [
        "POST /api/shutdown",
        "POST /shutdown",
        "POST /api/leave",
        "POST /api/invite",
        "POST /api/revoke",
        "POST /api/acl",
        "POST /api/drain",
        "POST /api/routes/offer",
        "GET /api/dashboard",
        "POST /api/dashboard",
        "POST /api/vms",
        "DELETE /api/vms/web",
        "GET /api/status",
        "POST /api/../shutdown",
        "GET /node.toml",
        "GET /../dashboard.token",
    ] {
        let answer = door.ask_with_token(&lab, "b", what, "{}");
        assert!([404, 405].contains(&answer.status), "{what}: {answer:?}");
        assert!(!answer.body.contains(&door.token), "{what}");
    }
    let long = format!("{{\"snapshot\": \"{}\"}}", "x".repeat(20_000));
    let refused = door.ask_with_token(&lab, "b", "POST /api/vms/web/restore", &long);
    assert!(
        refused.status >= 400 && refused.body.contains("length limit"),
        "{refused:?}"
    );
    lab.status("a").expect("the daemon goes on");

    // This machine alone, by its own port.
    let mut local = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    local
        .args(["dashboard", "--listen", "127.0.0.1:4999"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut local = lab.testbed().spawn("a", &mut local).unwrap();
    let here: SocketAddr = "127.0.0.1:4999".parse().unwrap();
    let by_host = |host: &str| {
        request(
            &lab,
            "a",
            here,
            &format!("GET /api/view HTTP/1.1\r\nHost: {host}\r\n{bearer}"),
            "",
        )
    };
    let answer = lab
        .wait("the local port", LIMIT, Duration::from_millis(100), || {
            Ok(by_host("127.0.0.1:4999"))
        })
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(by_host("evil.example:4999").unwrap().status, 421);
    local.kill().unwrap();
    local.wait().unwrap();
    let (code, _, said) = lab
        .try_p2pvm("a", &["dashboard", "--listen", "0.0.0.0:4999"])
        .unwrap();
    assert!(code == 2 && said.contains("127.0.0.1"), "{said}");

    // It is on after a restart, with the same token; a new one ends the old; off is off.
    lab.p2pvm("a", &["down"]).unwrap();
    lab.start("a").unwrap();
    lab.wait(
        "the dashboard after a restart",
        LIMIT,
        Duration::from_millis(100),
        || Ok(door.knock(&lab, "b").then_some(())),
    )
    .unwrap();
    assert_eq!(
        door.ask_with_token(&lab, "b", "GET /api/view", "").status,
        200
    );
    lab.p2pvm("a", &["dashboard", "--new-token"]).unwrap();
    lab.wait(
        "the old token to be worth nothing",
        LIMIT,
        Duration::from_millis(100),
        || {
            Ok((door.knock(&lab, "b")
                && door.ask_with_token(&lab, "b", "GET /api/view", "").status == 401)
                .then_some(()))
        },
    )
    .unwrap();
    lab.p2pvm("a", &["dashboard", "--disable"]).unwrap();
    for door in [&door, &by_v6] {
        lab.wait(
            "the door to close",
            LIMIT,
            Duration::from_millis(100),
            || Ok((!door.knock(&lab, "b")).then_some(())),
        )
        .unwrap();
    }
    lab.down().unwrap();
}

/// Whether the dashboard answers a connection that comes from an address of the host beside the
/// network's.
fn answers_outsiders(lab: &Lab, door: &Door) -> bool {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        door.at
    );
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (socket, beside) = match door.at {
                SocketAddr::V4(_) => (tokio::net::TcpSocket::new_v4(), "127.0.0.1:0"),
                SocketAddr::V6(_) => (tokio::net::TcpSocket::new_v6(), "[::1]:0"),
            };
            let socket = socket.unwrap();
            socket.bind(beside.parse().unwrap()).unwrap();
            let mut stream = socket.connect(door.at).await.expect("the kernel takes it");
            // It may be gone before anything is said.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            !said.is_empty()
        })
    };
    lab.testbed().inside("a", work).unwrap()
}

fn create(lab: &Lab, host: &str, from: &str) -> String {
    let made: VmView = lab
        .json(
            host,
            &[
                "vm",
                "create",
                "web",
                "--image",
                image(),
                "--memory",
                "128M",
                "--start",
            ],
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    let address = made.address;
    lab.wait_for_guest(from, &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    address
}

/// A WebSocket to the guest's console; the status where it was refused.
fn console(
    door: &Door,
    name: &str,
    protocols: &str,
    origin: &str,
) -> Result<tungstenite::WebSocket<TcpStream>, u16> {
    let stream = TcpStream::connect_timeout(&door.at, LIMIT).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    let mut request = format!("ws://{}/api/vms/{name}/console", door.at)
        .into_client_request()
        .unwrap();
    request.headers_mut().insert(
        "sec-websocket-protocol",
        HeaderValue::from_str(protocols).unwrap(),
    );
    request
        .headers_mut()
        .insert("origin", HeaderValue::from_str(origin).unwrap());
    match tungstenite::client(request, stream) {
        Ok((socket, answer)) => {
            // The token is not among what comes back.
            assert_eq!(answer.headers()["sec-websocket-protocol"], "p2pvm-console");
            Ok(socket)
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            Err(answer.status().as_u16())
        }
        Err(other) => panic!("{other}"),
    }
}

/// Types until the guest answers; gives what it wrote.
fn echo(
    socket: &mut tungstenite::WebSocket<TcpStream>,
    line: &'static [u8],
    wanted: &str,
) -> String {
    let (mut seen, began) = (String::new(), std::time::Instant::now());
    while !seen.contains(wanted) && began.elapsed() < LIMIT {
        socket.send(Message::binary(line)).unwrap();
        while let Ok(message) = socket.read() {
            match message {
                Message::Binary(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Message::Text(why) => seen.push_str(why.as_str()),
                _ => {}
            }
        }
    }
    seen
}

#[test]
fn a_guests_console_echoes_and_the_page_moves_its_vm_from_anywhere() {
    let lab = lab("dashvm", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    create(&lab, "b", "a");
    let door = Door::open(&lab, "a");
    let ours = format!("http://{}", door.at);
    // From a third member, through the dashboard of one, to a guest on another.
    lab.testbed()
        .inside("c", || {
            let good = format!("p2pvm-console, bearer.{}", door.token);
            assert_eq!(
                console(&door, "web", "p2pvm-console", &ours).err(),
                Some(401)
            );
            assert_eq!(
                console(&door, "web", "p2pvm-console, bearer.wrong", &ours).err(),
                Some(401)
            );
            assert_eq!(
                console(&door, "web", &good, "http://evil.example").err(),
                Some(403)
            );
            let mut socket = console(&door, "web", &good, &ours).expect("the token is right");
            let seen = echo(&mut socket, b"\necho answer-$((40+2))\n", "answer-42");
            assert!(seen.contains("answer-42"), "{seen}");
            let mut nobody =
                console(&door, "nosuch", &good, &ours).expect("the reason comes as a message");
            let said = echo(&mut nobody, b"", "nosuch");
            assert!(said.contains("there is no VM 'nosuch'"), "{said}");
        })
        .unwrap();

    let moved = door.ask_with_token(&lab, "c", "POST /api/vms/web/migrate", "{\"to\": \"c\"}");
    assert!(
        moved.status == 200
            && moved.body.contains("{\"progress\":{")
            && moved.body.contains("{\"done\":{"),
        "{moved:?}"
    );
    lab.wait(
        "the view to show it",
        LIMIT,
        Duration::from_millis(500),
        || {
            let is_there = |vm: &VmView| vm.name == "web" && vm.host == "c";
            Ok(door.view(&lab, "b").vms.iter().any(is_there).then_some(()))
        },
    )
    .unwrap();
    lab.testbed()
        .inside("b", || {
            let mut socket = console(
                &door,
                "web",
                &format!("p2pvm-console, bearer.{}", door.token),
                &ours,
            )
            .expect("the token is right");
            let seen = echo(&mut socket, b"\necho still-$((40+2))\n", "still-42");
            assert!(seen.contains("still-42"), "{seen}");
        })
        .unwrap();
    let refused = door.ask_with_token(
        &lab,
        "c",
        "POST /api/vms/web/migrate",
        "{\"to\": \"nosuch\"}",
    );
    assert!(
        refused.body.contains("{\"error\":{") && refused.body.contains("no member 'nosuch'"),
        "{refused:?}"
    );
    let nothing_to_cancel = door.ask_with_token(&lab, "c", "DELETE /api/vms/web/migrate", "");
    assert!(nothing_to_cancel.status >= 400, "{nothing_to_cancel:?}");
    let snapshot = door.ask_with_token(
        &lab,
        "c",
        "POST /api/vms/web/snapshot",
        "{\"name\": \"safe\"}",
    );
    assert!(
        snapshot.body.contains("{\"done\":{") && snapshot.body.contains("safe"),
        "{snapshot:?}"
    );
    let why = door.ask_with_token(&lab, "c", "GET /api/vms/web/explain", "");
    assert!(why.status == 200 && why.body.contains("web"), "{why:?}");
    let stopped = door.ask_with_token(&lab, "b", "POST /api/vms/web/stop", "");
    assert!(
        stopped.body.contains("\"state\":\"stopped\""),
        "{stopped:?}"
    );
    lab.down().unwrap();
}

/// What the browser's test needs and this machine lacks, if anything.
fn lacking(page: &str) -> Option<String> {
    let web = web_dir();
    if page.contains("built without its dashboard") {
        return Some("p2pvm was built without the page ('make web' first)".to_owned());
    }
    if Command::new("node").arg("--version").output().is_err() {
        return Some("Node is not installed".to_owned());
    }
    if !web.join("node_modules/playwright-core").exists() {
        return Some("web/node_modules is not there ('make web' first)".to_owned());
    }
    [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
    ]
    .iter()
    .all(|path| !Path::new(path).exists())
    .then(|| "Chromium is not installed".to_owned())
}

fn web_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../web")
}

/// Two that anybody can reach and two behind NATs that let nothing through to each other.
const SITES: &str = r#"
seed = 3
[default]
rtt_ms = 20
mbit = 200
[[site]]
name = "paris"
[[site]]
name = "london"
[[site]]
name = "lyon"
nat = "port-restricted"
[[site]]
name = "madrid"
nat = "symmetric"
[[link]]
a = "paris"
b = "london"
rtt_ms = 9
[[link]]
a = "paris"
b = "lyon"
rtt_ms = 14
[[link]]
a = "london"
b = "madrid"
rtt_ms = 46
[[link]]
a = "paris"
b = "madrid"
rtt_ms = 38
"#;

#[test]
fn a_browser_shows_the_network_drags_a_vm_and_types_into_it() {
    let lab = lab("browser", SITES);
    let hosts = ["paris", "london", "lyon", "madrid"];
    for host in hosts {
        // A decision is to be seen too, also where this machine is busy with other things; one is
        // enough.
        let placement = "[placement]\nhigh_watermark = 0.4\nlow_watermark = 0.35\nsustained_ms = \
            2000\nmin_gain = 0.1\nvm_cooldown_ms = 900000\n";
        lab.configure(
            host,
            &(SETTINGS.replace("autonomic = false", "autonomic = true") + placement),
        )
        .unwrap();
    }
    network(&lab, &hosts);
    let door = Door::open(&lab, "paris");
    if let Some(why) = lacking(&door.ask(&lab, "paris", "GET /", "", "").body) {
        println!("NOT RUN: {why}");
        return;
    }
    create(&lab, "lyon", "paris");
    lab.p2pvm(
        "london",
        &["vm", "create", "db", "--image", image(), "--memory", "128M"],
    )
    .unwrap();
    // A link between any two is made by its first packet.
    for (from, to) in [
        ("paris", "london"),
        ("paris", "lyon"),
        ("paris", "madrid"),
        ("london", "lyon"),
        ("london", "madrid"),
        ("lyon", "madrid"),
    ] {
        lab.ping(from, to, 3, "200ms").unwrap();
    }
    // A busy host sheds its VM by itself, and there is a decision to show.
    overload(&lab, "lyon", "paris");

    let pictures = browse(&lab, &door, "madrid", "browser.mjs");
    assert!(pictures >= 6, "{pictures}");
    lab.down().unwrap();
}

/// Runs one of the scripts in `web/tests` in a browser on `from`; gives how many pictures there
/// are.
fn browse(lab: &Lab, door: &Door, from: &str, script: &str) -> usize {
    let profile = tempfile::tempdir().unwrap();
    let pictures = std::env::var_os("P2PVM_SCREENSHOTS")
        .map_or_else(|| profile.path().join("pictures"), PathBuf::from);
    let mut browser = Command::new("node");
    browser
        .arg(web_dir().join("tests").join(script))
        .arg(format!("http://{}/", door.at))
        .arg(&door.token)
        .arg(&pictures);
    browser
        .arg(profile.path().join("profile"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ended = lab
        .testbed()
        .spawn(from, &mut browser)
        .unwrap()
        .wait_with_output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    println!("{said}");
    assert!(ended.status.success(), "{said}\n{}", lab.log_tail(from, 60));
    fs::read_dir(&pictures).unwrap().count()
}

#[test]
fn a_browser_cancels_a_move_and_restores_a_vm_elsewhere() {
    // A move takes so long on these links that it can be given up.
    let lab = lab(
        "rescue",
        &public_sites(&["paris", "london", "lyon"], 12.0).replace("mbit = 1000", "mbit = 25"),
    );
    network(&lab, &["paris", "london", "lyon"]);
    let door = Door::open(&lab, "paris");
    if let Some(why) = lacking(&door.ask(&lab, "paris", "GET /", "", "").body) {
        println!("NOT RUN: {why}");
        return;
    }
    create(&lab, "paris", "paris");
    browse(&lab, &door, "paris", "rescue.mjs");
    let restored = lab.vm("london", "web").unwrap();
    assert_eq!(
        (restored.host.as_str(), &restored.state),
        ("london", &VmStateView::Running),
        "{restored:?}"
    );
    lab.down().unwrap();
}
