//! Builds a planned testbed out of namespaces, cables, addresses and rules, and takes away what one left behind.

use crate::{
    namespace::{self, run},
    nat,
    plan::{HOSTS_DIR, Plan, RUN_DIR, namespace_prefix},
    sites::Nat,
    testbed::Error,
};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// The wide area's packet size.
const MTU: u16 = 1500;
/// Packets that may wait in a router for the forwarder to read them.
const QUEUE_PACKETS: u32 = 2000;

/// Makes every namespace of the plan; answers each site's end of the core, in site order.
pub(crate) fn raise(plan: &Plan) -> Result<Vec<SyncDevice>, Error> {
    for host in &plan.hosts {
        fs::create_dir_all(&host.dir).map_err(|e| Error::Io(format!("make {}", host.dir.display()), e))?;
        namespace::create(&host.namespace)?;
    }
    (0..plan.sites.len()).map(|index| raise_site(plan, index)).collect()
}

fn raise_site(plan: &Plan, index: usize) -> Result<SyncDevice, Error> {
    let site = &plan.sites[index];
    namespace::create(&site.namespace)?;
    let device = namespace::inside(&site.namespace, || {
        for (key, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv4/conf/all/rp_filter", "0")] {
            // A kernel without IPv6 has no such switch.
            let _ = fs::write(Path::new("/proc/sys").join(key), value);
        }
        DeviceBuilder::new().name("wan").layer(Layer::L3).offload(true).mtu(MTU).tx_queue_len(QUEUE_PACKETS).build_sync()
    })?
    .map_err(|e| Error::Io(format!("make the router of {}", site.name), e))?;

    // The router's own link is a bridge with a cable to each host. Batch mode: one process for all of a site.
    let mut router = format!("link add lan type bridge forward_delay 0\naddr add {}/24 dev lan\nlink set lan up\n", site.gateway);
    if site.nat != Nat::None {
        let _ = writeln!(router, "addr add {}/32 dev wan", site.public);
    }
    router.push_str("route add default dev wan\n");
    for (number, host) in plan.hosts.iter().filter(|host| host.site == index).enumerate() {
        let _ = writeln!(router, "link add h{number} type veth peer name eth0 netns {}", host.namespace);
        let _ = writeln!(router, "link set h{number} master lan up");
    }
    run("ip", &["-n", &site.namespace, "-batch", "-"], &router)?;
    if let Some(rules) = nat::rules(site, plan.seed) {
        namespace::inside(&site.namespace, || run("nft", &["-f", "-"], &rules))??;
    }
    for host in plan.hosts.iter().filter(|host| host.site == index) {
        // IPv6 stays possible on the host (the overlay gives it addresses) but is off on the cable, which then is silent when idle.
        namespace::inside(&host.namespace, || fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1"))?.ok();
        run("ip", &["-n", &host.namespace, "-batch", "-"], &format!("addr add {}/24 dev eth0\n{}", host.address, cable(site.gateway)))?;
    }
    Ok(device)
}

/// What brings a host's cable up, at first and after a `kill` (the kernel forgets routes over a cable that went down).
fn cable(gateway: std::net::Ipv4Addr) -> String {
    format!("link set eth0 up\nroute replace default via {gateway}\n")
}

/// Plugs a host's cable in or out.
pub(crate) fn plug(plan: &Plan, host: &str, up: bool) -> Result<(), Error> {
    let host = plan.host(host).ok_or_else(|| Error::NoSuch(host.into()))?;
    let batch = if up { cable(plan.sites[host.site].gateway) } else { "link set eth0 down\n".into() };
    run("ip", &["-n", &host.namespace, "-batch", "-"], &batch)
}

/// The directory of a running testbed's plan and control socket.
pub(crate) fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// Takes away processes, namespaces and files of testbed `name`, whatever of them there is. Goes on after an error and answers the first.
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
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => note(Err(Error::Io(format!("remove {}", dir.display()), e))),
            _ => {}
        }
    }
    result
}
