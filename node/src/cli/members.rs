//! The commands that show this member and the others: `status`, `peers`, `ping`.

use super::{
    Context,
    args::Ping,
    print::{self, ms, or_dash},
};
use p2pvm_api::{
    Failure, Outcome, Peer, PingRequest, PingSummary, Pong, RingNeighbour, RingView, Sorted,
    Status, client::Event,
};
use p2pvm_daemon::membership;
use std::time::Duration;

pub(crate) async fn status(context: &Context) -> Outcome<()> {
    membership::require_member(&context.layout)?;
    let s: Status = context.daemon().await?.get("/status").await?;
    if context.json {
        return print::json(&s);
    }
    let address = match &s.address_wanting {
        Some(why) => format!("none yet: {why}"),
        None => "none yet".to_owned(),
    };
    for (label, value) in [
        ("health", s.health.to_string()),
        ("member", format!("{} ({})", s.name, s.member)),
        ("network", format!("{} ({})", s.network, s.network_id)),
        (
            "address",
            format!(
                "{} in {}",
                s.address.as_deref().unwrap_or(&address),
                s.subnet
            ),
        ),
        ("ipv6", s.address_v6),
        (
            "seen as",
            format!(
                "{}, NAT: {}",
                s.reflexive.as_deref().unwrap_or("not known yet"),
                s.nat
            ),
        ),
        ("members", format!("{} connected", s.connected)),
        ("ring", ring_line(&s.ring)),
        ("vms", format!("{} running here", s.running_vms)),
        ("cpu", format!("{:.0} %", s.cpu * 100.0)),
        ("listens on", s.listen.join("\n            ")),
        (
            "daemon",
            format!(
                "{}, up {}, {}",
                s.version,
                humantime::format_duration(Duration::from_secs(s.up_seconds)),
                indicatif::HumanBytes(s.resident_bytes)
            ),
        ),
    ] {
        println!("{label:12}{value}");
    }
    for finding in &s.findings {
        let (area, level) = (&finding.area, finding.level.word());
        println!("{:12}{area}: {}", level, finding.found);
        if !finding.advice.is_empty() {
            println!("{:12}{}", "", finding.advice);
        }
    }
    Ok(())
}

fn ring_line(ring: &RingView) -> String {
    if !ring.joined {
        return format!("not joined; place {}", ring.position);
    }
    format!(
        "place {}, about {:.0} members; neighbours: {} near, {} far, {} shortcuts; {} packets \
            forwarded for others",
        ring.position, ring.size_estimate, ring.near, ring.far, ring.shortcuts, ring.carried
    )
}

/// "12.3 ms (10 %)": the round trip that a coordinate predicts, and its possible error.
fn distance(ring: &RingNeighbour) -> Option<String> {
    Some(format!(
        "{} ({:.0} %)",
        ms(ring.distance_ms?),
        ring.error? * 100.0
    ))
}

pub(crate) async fn peers(context: &Context) -> Outcome<()> {
    let peers: Vec<Peer> = context.daemon().await?.get("/peers").await?;
    if context.json {
        return print::json(&peers);
    }
    let rows: Vec<_> = peers
        .iter()
        .map(|p| {
            [
                p.name.clone(),
                or_dash(p.address.as_ref()),
                if p.connected { "yes" } else { "no" }.to_owned(),
                or_dash(p.path.as_ref()),
                p.rtt_ms.map_or("-".to_owned(), ms),
                or_dash(p.ring.as_ref().map(|r| r.role.as_str())),
                or_dash(p.ring.as_ref().and_then(distance)),
                indicatif::HumanBytes(p.sent_bytes).to_string(),
                indicatif::HumanBytes(p.received_bytes).to_string(),
                p.member.short(10),
            ]
        })
        .collect();
    print::table(
        [
            "NAME",
            "ADDRESS",
            "CONNECTED",
            "PATH",
            "RTT",
            "RING",
            "DISTANCE",
            "SENT",
            "RECEIVED",
            "ID",
        ],
        &rows,
    );
    Ok(())
}

pub(crate) async fn ping(context: &Context, a: Ping) -> Outcome<()> {
    let request = PingRequest {
        count: a.count,
        interval_ms: a.interval.as_millis() as u64,
        member: a.member,
    };
    let member = &request.member;
    let show = |event: Event<Pong>| {
        let Event::Item(pong) = event else { return };
        match pong.rtt_ms {
            _ if context.json => print::json_line(&Sorted(&pong)),
            Some(rtt) => println!("{member}: seq {} {} {}", pong.seq, pong.path, ms(rtt)),
            None => println!("{member}: seq {} lost", pong.seq),
        }
    };
    let done = context
        .daemon()
        .await?
        .follow::<Pong, PingSummary>("/ping", &request, show)
        .await?;
    if context.json {
        print::json_line(&done);
    }
    if done.received == 0 {
        return Err(Failure::timed_out(format!(
            "no answer from {member}: see 'p2pvm peers'"
        )));
    }
    Ok(())
}
