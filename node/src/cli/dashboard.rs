//! `p2pvm dashboard`: prints its link, switches it on or off, or serves it on a local port.

use super::{Context, dashboard_args::Dashboard, print};
use p2pvm_api::{DashboardChange, DashboardServed, DashboardView, Doing, Failure, Outcome, Role};
use p2pvm_host::SocketPath;
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// How long to wait after a failed accept before the next one.
const RETRY: Duration = Duration::from_millis(200);

pub(crate) async fn run(context: &Context, a: &Dashboard) -> Outcome<()> {
    let mut daemon = context.daemon().await?;
    let role = Role::from(a.role.clone());
    let change = DashboardChange {
        on: (a.enable || a.disable).then_some(a.enable),
        new_token: a.new_token,
        role: Some(role.clone()),
    };
    let view: DashboardView = if change.on.is_some() || change.new_token {
        daemon.post("/dashboard", &change).await?
    } else {
        daemon.get("/dashboard").await?
    };
    drop(daemon);
    if !view.has_page {
        eprintln!(
            "this p2pvm was built without the page: 'make web' and build again, or install the \
                Debian package"
        );
    }
    match a.listen {
        Some(here) => listen(context, &view, &role, here).await,
        None if context.json => print::json(&view),
        None => {
            show(&view, &role);
            show_lan(&view, &role);
            Ok(())
        }
    }
}

fn show(view: &DashboardView, role: &Role) {
    let (url, may) = match role {
        Role::Reader => (&view.reader_url, "see everything and change nothing"),
        _ => (&view.url, "start, stop and move VMs and use their consoles"),
    };
    match (url, &view.trouble) {
        (Some(_), Some(trouble)) => eprintln!("it is on, but is not served: {trouble}"),
        (Some(url), None) => {
            println!("{url}");
            eprintln!("open it in a browser on any member; anyone with this link can {may}");
        }
        (None, _) if view.on => eprintln!("it is on; this node has no address yet"),
        (None, _) => {
            println!("off");
            eprintln!(
                "'p2pvm dashboard --enable' serves it to members on port {} of this host's \
                    address;",
                view.port
            );
            eprintln!(
                "'p2pvm dashboard --listen 127.0.0.1:{}' to this machine alone",
                view.port
            );
        }
    }
}

/// The token of a role.
fn token_of<'a>(view: &'a DashboardView, role: &Role) -> &'a str {
    match role {
        Role::Reader => &view.reader_token,
        _ => &view.token,
    }
}

/// The links outside the network, if the settings name any.
fn show_lan(view: &DashboardView, role: &Role) {
    if !view.on {
        return;
    }
    for page in &view.lan {
        println!("{page}#token={}", token_of(view, role));
    }
    if let Some(fingerprint) = &view.fingerprint {
        eprintln!(
            "on the LAN a browser asks whether to trust this node's own certificate: only if its \
                SHA-256 fingerprint is {fingerprint}"
        );
    }
    if let Some(trouble) = &view.lan_trouble {
        eprintln!("on the LAN it is not served everywhere: {trouble}");
    }
}

/// Forwards connections to a local port to the daemon's socket until the command is interrupted.
async fn listen(
    context: &Context,
    view: &DashboardView,
    role: &Role,
    here: SocketAddr,
) -> Outcome<()> {
    if !here.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "{here} is not a loopback address: use 127.0.0.1:{}, or --enable for the network; on a \
                LAN it is served with TLS, at the addresses of dashboard_lan in node.toml",
            here.port()
        )));
    }
    let listener = TcpListener::bind(here)
        .await
        .doing(format_args!("cannot listen on {here}"))?;
    let here = listener.local_addr().doing("asking for the port")?;
    let url = format!("http://{here}/#token={}", token_of(view, role));
    if context.json {
        print::json_line(&DashboardServed { url });
    } else {
        println!("{url}");
        eprintln!("for this machine alone; Ctrl-C ends it");
    }
    let socket = PathBuf::from(&view.socket);
    loop {
        match listener.accept().await {
            Ok((browser, _)) => drop(tokio::spawn(carry(browser, socket.clone()))),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn carry(mut browser: TcpStream, socket: PathBuf) {
    match async { UnixStream::connect(SocketPath::to(&socket)?.path()).await }.await {
        // Either end hanging up ends both.
        Ok(mut daemon) => drop(tokio::io::copy_bidirectional(&mut browser, &mut daemon).await),
        Err(error) => eprintln!(
            "the daemon's dashboard cannot be reached at {}: {error}",
            socket.display()
        ),
    }
}
