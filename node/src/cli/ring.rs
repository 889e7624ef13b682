//! `p2pvm trace`, `p2pvm metrics` and `p2pvm peers --all`.

use super::{
    Context,
    print::{self, ms, or_dash},
};
use p2pvm_api::{Cluster, Failure, Kind, Metrics, Outcome, Traced};
use p2pvm_daemon::prometheus_page;

/// A member's name in the path of a request.
fn in_path(member: &str) -> Outcome<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
    if !member.is_empty() && member.chars().all(plain) {
        Ok(member)
    } else {
        Err(Failure::usage(format!(
            "'{member}' is not a member's name, id or address"
        )))
    }
}

pub(crate) async fn trace(context: &Context, member: &str) -> Outcome<()> {
    let traced: Traced = context
        .daemon()
        .await?
        .get(&format!("/trace/{}", in_path(member)?))
        .await?;
    if context.json {
        print::json(&traced)?;
    } else {
        let row = |(n, hop): (usize, &p2pvm_api::TraceHop)| {
            [
                (n + 1).to_string(),
                hop.name.clone(),
                hop.position.clone(),
                hop.rtt_ms.map_or("-".to_owned(), ms),
                if hop.edge.is_empty() {
                    "-".to_owned()
                } else {
                    hop.edge.clone()
                },
            ]
        };
        let rows: Vec<_> = traced.hops.iter().enumerate().map(row).collect();
        print::table(["HOP", "NAME", "PLACE", "RTT", "EDGE"], &rows);
        println!("round trip over the ring {}", ms(traced.round_trip_ms));
    }
    if traced.reached {
        return Ok(());
    }
    Err(Failure::new(
        Kind::NotFound,
        format!(
            "the path ends before {member}: it is not on the ring, or the ring is being repaired"
        ),
    ))
}

/// Prints metrics for Prometheus, of this member or of all.
pub(crate) async fn metrics(context: &Context, all: bool) -> Outcome<()> {
    let scope = if all { "cluster" } else { "node" };
    let metrics: Metrics = context
        .daemon()
        .await?
        .get(&format!("/metrics?json=true&scope={scope}"))
        .await?;
    if context.json {
        return print::json(&metrics);
    }
    print!("{}", prometheus_page(&metrics));
    Ok(())
}

/// Prints every member of the network.
pub(crate) async fn cluster(context: &Context) -> Outcome<()> {
    let cluster: Cluster = context.daemon().await?.get("/cluster").await?;
    if context.json {
        return print::json(&cluster);
    }
    let row = |m: &p2pvm_api::ClusterMember| {
        [
            m.name.clone(),
            or_dash(m.address.as_ref()),
            m.nat.clone(),
            m.position.chars().take(6).collect(),
            m.neighbours.to_string(),
            format!("{:.0} %", m.cpu * 100.0),
            m.running_vms.to_string(),
            m.member.short(10),
        ]
    };
    let rows: Vec<_> = cluster.members.iter().map(row).collect();
    print::table(
        [
            "NAME",
            "ADDRESS",
            "NAT",
            "PLACE",
            "NEIGHBOURS",
            "CPU",
            "VMS",
            "ID",
        ],
        &rows,
    );
    let load = cluster.load;
    let mean = load.cpu_sum / (load.members.max(1) as f64) * 100.0;
    println!(
        "{} members, {mean:.0} % of their processors busy, {} VMs running",
        load.members, load.running_vms
    );
    for silent in &cluster.silent {
        eprintln!("no answer from {silent}");
    }
    Ok(())
}
