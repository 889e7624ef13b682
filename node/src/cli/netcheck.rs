//! `p2pvm netcheck`: one page on how this machine reaches the others. With a daemon it says what
//! members have seen of this machine; without one, what the machine and its router show alone.

use super::{
    Context,
    print::{self, ms, or_dash},
};
use p2pvm_api::{NetCheckView, Outcome};
use p2pvm_daemon::sight::{local_addresses, of_machine};
use p2pvm_overlay::portmap;

pub(crate) async fn run(context: &Context) -> Outcome<()> {
    let page: NetCheckView = match context.daemon_if_any().await {
        Ok(Some(mut client)) => client.get("/netcheck").await?,
        without => {
            if let Err(failure) = without {
                eprintln!("note: {failure}; the following is without the daemon");
            }
            let local = local_addresses();
            let router = portmap::offers(&local).await;
            of_machine(&local, &router)
        }
    };
    if context.json {
        return print::json(&page);
    }
    show(&page);
    Ok(())
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn line(label: &str, value: String) {
    println!("{label:12}{value}");
}

fn show(page: &NetCheckView) {
    line(
        "addresses",
        if page.addresses.is_empty() {
            "none: this machine is not connected".to_owned()
        } else {
            page.addresses.join(", ")
        },
    );
    if page.daemon {
        show_nat(page);
    }
    show_router(page);
    if !page.daemon {
        println!(
            "\nNo daemon runs here, so no member can report how it sees this machine: start the \
                daemon with 'p2pvm up --detach'."
        );
        return;
    }
    show_paths(page);
    if page.members.is_empty() {
        println!(
            "\nNo other member is connected, so none can report how it sees this machine: invite \
                one with 'p2pvm invite'."
        );
        return;
    }
    show_members(page);
}

/// How members see this machine.
fn show_nat(page: &NetCheckView) {
    line("NAT", or_dash(page.nat.as_ref()));
    line("mapping", or_dash(page.mapping.as_ref()));
    line("filtering", or_dash(page.filtering.as_ref()));
    line(
        "seen as",
        page.reflexive
            .clone()
            .unwrap_or_else(|| "its own address, or not known yet".to_owned()),
    );
    if let Some(port) = page.second_port {
        line(
            "2nd port",
            format!("{port}, for members whose packets do not reach the first"),
        );
    }
    line(
        "port map",
        page.mapped.clone().unwrap_or_else(|| "none".to_owned()),
    );
}

/// What the machine and its router show alone.
fn show_router(page: &NetCheckView) {
    let v6 = match (&page.ipv6_nat, page.ipv6) {
        (Some(nat), _) => format!("public address, before it: {nat}"),
        (None, true) => "public address".to_owned(),
        (None, false) => "no public address".to_owned(),
    };
    line("IPv6", v6);
    let outside = page
        .router_outside
        .as_ref()
        .map_or(String::new(), |ip| format!(", says it is {ip}"));
    line(
        "router",
        format!(
            "{}{outside}; UPnP {}, PCP {}, NAT-PMP {}",
            or_dash(page.router.as_ref()),
            yes(page.upnp),
            yes(page.pcp),
            yes(page.nat_pmp)
        ),
    );
}

fn show_paths(page: &NetCheckView) {
    let p = &page.punches;
    let time = p
        .median_ms
        .map_or(String::new(), |median| format!(", median {}", ms(median)));
    line(
        "punches",
        format!(
            "{} tried, {} direct, {} at the first try{time}",
            p.tried, p.direct, p.first_try
        ),
    );
    line(
        "relays",
        if page.relays.is_empty() {
            "none in use".to_owned()
        } else {
            page.relays.join(", ")
        },
    );
}

fn show_members(page: &NetCheckView) {
    let rows: Vec<_> = page
        .members
        .iter()
        .map(|m| {
            let may = m.may_be_direct.map(yes);
            [
                m.name.clone(),
                or_dash(m.nat.as_ref()),
                or_dash(may),
                or_dash(m.path.as_ref()),
                m.rtt_ms.map_or("-".to_owned(), ms),
            ]
        })
        .collect();
    println!();
    print::table(
        ["MEMBER", "ITS NAT", "DIRECT POSSIBLE", "PATH", "RTT"],
        &rows,
    );
}
