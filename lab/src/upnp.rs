//! The port-mapping service of a site's router: Debian's `miniupnpd`, as many home routers run it,
//! for UPnP (Internet Gateway Device), NAT-PMP (RFC 6886) and PCP (RFC 6887). It puts its mappings
//! into the chains that [`crate::nat`] leaves for it.

use crate::{
    namespace::{self, run},
    nat,
    plan::SitePlan,
    testbed::Error,
};
use std::{fs, path::Path};

/// Restarts the service of a site's router; its mappings are removed with the rules that hold them.
/// It ends with the router's namespace.
pub(crate) fn start(run_dir: &Path, site: &SitePlan) -> Result<(), Error> {
    let file = |kind: &str| run_dir.join(format!("upnp.{}.{kind}", site.name));
    let (settings, pid_file, leases) = (file("conf"), file("pid"), file("leases"));
    // The service is the only process in a router's namespace.
    namespace::kill_processes(&site.namespace, run_dir)?;
    for old in [&pid_file, &leases] {
        let _ = fs::remove_file(old);
    }
    let text = format!(
        "ext_ifname=wan\nlistening_ip=lan\nport=5000\nenable_upnp=yes\nenable_natpmp=yes\n\
            secure_mode=yes\nsystem_uptime=yes\n\
         ipv6_disable=yes\nnotify_interval=900\nclean_ruleset_interval=600\n\
         uuid=6b4f2a10-0000-4000-8000-{:012x}\nserial={}\nmodel_number=1\n\
         lease_file={}\nallow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n{}",
        site.number,
        site.number,
        leases.display(),
        nat::UPNP_SETTINGS
    );
    fs::write(&settings, text)
        .map_err(|e| Error::Io(format!("write {}", settings.display()), e))?;
    let (settings, pid_file) = (
        settings.display().to_string(),
        pid_file.display().to_string(),
    );
    namespace::inside(&site.namespace, || {
        run(
            "/usr/sbin/miniupnpd",
            &["-f", &settings, "-P", &pid_file],
            "",
        )
    })?
}
