//! Builds a planned testbed from namespaces, cables, addresses and rules, changes it as its plan
//! changes, and removes all of it.

use crate::{
    conntrack,
    namespace::{self, run},
    nat,
    plan::{HOSTS_DIR, HostPlan, Plan, RUN_DIR, SitePlan, namespace_prefix},
    sites::{Ipv6, Nat},
    testbed::Error,
    upnp,
};
use std::{
    fmt::Write,
    fs, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// The largest packet of the wide area, in bytes.
const MTU: u16 = 1500;
/// How many packets may wait in a router for the forwarder before it drops more.
const QUEUE_PACKETS: u32 = 2000;

/// Makes all namespaces of the plan; returns each site's end of the core, in site order.
pub(crate) fn raise(plan: &Plan) -> Result<Vec<SyncDevice>, Error> {
    for host in &plan.hosts {
        fs::create_dir_all(&host.dir)
            .map_err(|e| Error::Io(format!("make {}", host.dir.display()), e))?;
        namespace::create(&host.namespace)?;
    }
    (0..plan.sites.len())
        .map(|index| raise_site(plan, index))
        .collect()
}

fn raise_site(plan: &Plan, index: usize) -> Result<SyncDevice, Error> {
    let site = &plan.sites[index];
    make_router(&site.namespace, site.ipv6 != Ipv6::None)?;
    let outermost = match &site.carrier_namespace {
        Some(carrier) => {
            make_router(carrier, site.ipv6 != Ipv6::None)?;
            carrier
        }
        None => &site.namespace,
    };
    let device = namespace::inside(outermost, || {
        DeviceBuilder::new()
            .name("wan")
            .layer(Layer::L3)
            .offload(true)
            .mtu(MTU)
            .tx_queue_len(QUEUE_PACKETS)
            .build_sync()
    })?
    .map_err(|e| Error::Io(format!("make the router of {}", site.name), e))?;

    // The router's own link is a bridge with a cable to each host. Batch mode: one process for all
    // of a site.
    let mut router = String::from("link add lan type bridge forward_delay 0\nlink set lan up\n");
    if let Some(carrier) = &site.carrier_namespace {
        let _ = writeln!(
            router,
            "link add wan type veth peer name lan netns {carrier}\nlink set wan up"
        );
        let _ = writeln!(
            router,
            "addr add {}/30 dev wan\nroute add default via {}",
            site.wan(),
            site.carrier_gateway()
        );
        run("ip", &["-n", &site.namespace, "-batch", "-"], &router)?;
        let outer = format!(
            "addr add {}/30 dev lan\nlink set lan up\n",
            site.carrier_gateway()
        );
        run("ip", &["-n", carrier, "-batch", "-"], &outer)?;
    } else {
        run("ip", &["-n", &site.namespace, "-batch", "-"], &router)?;
    }
    match (&site.carrier_namespace, site.ipv6) {
        (_, Ipv6::None) => {}
        (None, _) => run(
            "ip",
            &["-n", &site.namespace, "route", "add", "::/0", "dev", "wan"],
            "",
        )?,
        (Some(carrier), _) => {
            // A carrier that shares IPv4 addresses routes IPv6 untranslated.
            let [inner, outer] = site.carrier_line6();
            let router =
                format!("addr add {inner}/64 dev wan nodad\nroute add default via {outer}\n");
            run("ip", &["-n", &site.namespace, "-batch", "-"], &router)?;
            let router = format!("addr add {outer}/64 dev lan nodad\nroute add ::/0 dev wan\n");
            run("ip", &["-n", carrier, "-batch", "-"], &router)?;
        }
    }
    address_router(plan, index)?;
    for host in plan.hosts.iter().filter(|host| host.site == index) {
        cable_host(plan, host)?;
    }
    Ok(device)
}

fn make_router(namespace: &str, ipv6: bool) -> Result<(), Error> {
    namespace::create(namespace)?;
    let v6_off = if ipv6 { "0" } else { "1" };
    namespace::inside(namespace, || {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv6/conf/all/disable_ipv6", v6_off),
            ("net/ipv6/conf/default/disable_ipv6", v6_off),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // A router's LAN is a switch: frames between its ports must not pass the router's
            // rules, as they do where Docker has loaded br_netfilter.
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ] {
            // A kernel without IPv6 or br_netfilter has no such sysctl.
            let _ = fs::write(Path::new("/proc/sys").join(key), value);
        }
    })
}

/// Replaces the addresses and rules of a site's routers by those of the plan and removes all
/// mappings.
pub(crate) fn address_router(plan: &Plan, index: usize) -> Result<(), Error> {
    let site = &plan.sites[index];
    let mut router = String::from("addr flush dev lan scope global\n");
    if site.has_v4() {
        let _ = writeln!(router, "addr add {}/24 dev lan", site.gateway);
    }
    if let Some(gateway) = site.gateway6 {
        let _ = writeln!(router, "addr add {gateway}/64 dev lan nodad");
    }
    // An interface that loses its last address loses its routes too.
    let outward = "route replace default dev wan\n";
    let public = format!(
        "addr flush dev wan scope global\naddr add {}/32 dev wan\n{outward}",
        site.public
    );
    if site.carrier_namespace.is_none() {
        router.push_str(if site.nat == Nat::None {
            outward
        } else {
            &public
        });
    }
    run("ip", &["-n", &site.namespace, "-batch", "-"], &router)?;
    if let Some(carrier) = &site.carrier_namespace {
        let mut outer = public;
        if let Some(gateway) = site.gateway6 {
            let _ = writeln!(
                outer,
                "route replace {}/64 via {}",
                prefix_of(gateway),
                site.carrier_line6()[0]
            );
        }
        run("ip", &["-n", carrier, "-batch", "-"], &outer)?;
        filter(carrier, nat::carrier_rules(site, plan.seed))?;
    }
    filter(&site.namespace, nat::rules(site, plan.seed))?;
    if site.upnp {
        upnp::start(&run_dir(&plan.name), site)?;
    }
    Ok(())
}

fn prefix_of(gateway: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(gateway) & !u128::from(u64::MAX))
}

/// Replaces the rules and ends the connections that the previous ones let through.
fn filter(namespace: &str, rules: Option<String>) -> Result<(), Error> {
    let Some(rules) = rules else { return Ok(()) };
    namespace::inside(namespace, || {
        run("nft", &["-f", "-"], &format!("flush ruleset\n{rules}"))?;
        conntrack::flush()
            .map_err(|e| Error::Io(format!("flush the connections of {namespace}"), e))
    })?
}

/// Lays a host's cable to its site and gives it its addresses.
fn cable_host(plan: &Plan, host: &HostPlan) -> Result<(), Error> {
    let site = &plan.sites[host.site];
    let cable = format!(
        "link add {0} type veth peer name eth0 netns {1}\nlink set {0} master lan up\n",
        host.cable, host.namespace
    );
    run("ip", &["-n", &site.namespace, "-batch", "-"], &cable)?;
    // IPv6 stays enabled on the host, as the overlay assigns addresses of it. On the cable of a
    // site without IPv6 it is disabled, so that an idle cable is silent; elsewhere addresses are
    // static, without router advertisements, and usable at once.
    let settings: &[(&str, &str)] = match site.ipv6 {
        Ipv6::None => &[("disable_ipv6", "1")],
        _ => &[
            ("disable_ipv6", "0"),
            ("accept_ra", "0"),
            ("accept_dad", "0"),
            ("router_solicitations", "0"),
        ],
    };
    namespace::inside(&host.namespace, || {
        for (key, value) in settings {
            // A kernel without IPv6 has no such sysctl.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/eth0/{key}"), value);
        }
    })?;
    connect(site, host)
}

/// Brings a host's cable up and replaces its addresses and routes: the kernel removes some when a
/// cable goes down.
fn connect(site: &SitePlan, host: &HostPlan) -> Result<(), Error> {
    let (v4, v6) = site.host_addresses(host.number);
    let mut batch = String::from("addr flush dev eth0 scope global\n");
    if let Some(v4) = v4 {
        let _ = writeln!(batch, "addr add {v4}/24 dev eth0");
    }
    if let Some(v6) = v6 {
        let _ = writeln!(batch, "addr add {v6}/64 dev eth0 nodad");
    }
    batch.push_str("link set eth0 up\n");
    if v4.is_some() {
        let _ = writeln!(batch, "route replace default via {}", site.gateway);
    }
    if let Some(gateway) = site.gateway6 {
        let _ = writeln!(batch, "route replace default via {gateway}");
    }
    run("ip", &["-n", &host.namespace, "-batch", "-"], &batch)
}

/// Sets a host's cable up or down.
pub(crate) fn plug(plan: &Plan, host: &str, up: bool) -> Result<(), Error> {
    let host = plan.host(host).ok_or_else(|| Error::NoSuch(host.into()))?;
    if up {
        connect(&plan.sites[host.site], host)
    } else {
        run(
            "ip",
            &["-n", &host.namespace, "link", "set", "eth0", "down"],
            "",
        )
    }
}

/// Applies the changed addresses of a site to its routers and hosts.
pub(crate) fn renumber(plan: &Plan, index: usize) -> Result<(), Error> {
    address_router(plan, index)?;
    plan.hosts
        .iter()
        .filter(|host| host.site == index)
        .try_for_each(|host| connect(&plan.sites[index], host))
}

/// Applies the changed plan of a host, which was `before`. At another site it gets a new cable and
/// a new `eth0`.
pub(crate) fn rehost(plan: &Plan, host: &HostPlan, before: &HostPlan) -> Result<(), Error> {
    if host.site == before.site {
        return connect(&plan.sites[host.site], host);
    }
    run(
        "ip",
        &[
            "-n",
            &plan.sites[before.site].namespace,
            "link",
            "del",
            &before.cable,
        ],
        "",
    )?;
    cable_host(plan, host)
}

/// The directory of a running testbed's plan and control socket.
pub(crate) fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// Writes the plan where later commands read it, atomically.
pub(crate) fn save_plan(plan: &Plan) -> Result<(), Error> {
    let directory = run_dir(&plan.name);
    let write = || -> io::Result<()> {
        let draft = directory.join("plan.json.new");
        fs::write(&draft, serde_json::to_vec_pretty(plan)?)?;
        fs::rename(&draft, directory.join("plan.json"))
    };
    write().map_err(|e| {
        Error::Io(
            format!("write {}", directory.join("plan.json").display()),
            e,
        )
    })
}

/// Removes all processes, namespaces and files of testbed `name`. Continues after an error and
/// returns the first one.
pub(crate) fn raze(name: &str) -> Result<(), Error> {
    let mut result = Ok(());
    let mut note = |outcome: Result<(), Error>| {
        if result.is_ok() {
            result = outcome;
        }
    };
    let hosts = Path::new(HOSTS_DIR).join(name);
    note(namespace::kill_processes("", &hosts).map(drop));
    for namespace in namespace::list(&namespace_prefix(name)) {
        note(namespace::kill_processes(&namespace, &hosts).map(drop));
        note(namespace::delete(&namespace));
    }
    for dir in [hosts, run_dir(name)] {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                note(Err(Error::Io(format!("remove {}", dir.display()), e)))
            }
            _ => {}
        }
    }
    result
}
