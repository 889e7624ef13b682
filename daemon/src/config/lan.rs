//! `dashboard_lan`: the addresses on which the dashboard is served outside the network.

use std::net::SocketAddr;

/// How many addresses there may be. Reason: each is a listener.
const MOST: usize = 8;

/// Says which address cannot be used, in a sentence without the file's name.
pub(super) fn check(all: &[SocketAddr]) -> Result<(), String> {
    if all.len() > MOST {
        return Err(format!(
            "dashboard_lan holds {} addresses: at most {MOST} are served",
            all.len()
        ));
    }
    match all.iter().find_map(|at| Some((at, not_own(at)?))) {
        Some((at, why)) => Err(format!(
            "dashboard_lan holds '{at}', {why}: write an address of this host on the LAN and a \
                port, such as 192.168.1.10:8443"
        )),
        None => Ok(()),
    }
}

/// Why an address cannot be one that this host alone has.
fn not_own(at: &SocketAddr) -> Option<&'static str> {
    if at.port() == 0 {
        return Some("which has no port");
    }
    let is_shared = at.ip().is_unspecified() || at.ip().is_multicast();
    is_shared.then_some("which is not the address of one host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, layout::Layout};

    #[test]
    fn the_dashboard_is_served_on_addresses_of_one_host_only() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let load = |at: &str| {
            let text = format!("dashboard_lan = [\"{at}\"]\n");
            std::fs::write(layout.config(), text).unwrap();
            Config::load(&layout)
        };
        for good in ["192.168.1.10:8443", "[fd00::10]:443"] {
            let read = load(good).unwrap().dashboard_lan;
            assert_eq!(read, [good.parse::<SocketAddr>().unwrap()]);
        }
        for bad in [
            "0.0.0.0:8443",
            "[::]:8443",
            "224.0.0.1:8443",
            "192.168.1.10:0",
        ] {
            let said = load(bad).unwrap_err().to_string();
            assert!(said.contains("dashboard_lan holds"), "{bad}: {said}");
        }
        assert!(load("192.168.1.10").is_err(), "an address without a port");
    }
}
