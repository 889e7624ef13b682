//! What keeps programs of the C library glibc from finding the network's names, as far as
//! `/etc/nsswitch.conf` tells.

use super::scene::{Resolved, Scene};
use crate::Finding;
use std::path::Path;

/// Why programs of glibc do not find the network's names, if the file at `path` is the cause.
pub(super) fn trouble(scene: &Scene, path: &Path) -> Option<Finding> {
    if !scene.reads_nsswitch() {
        return None;
    }
    let path = path.display();
    // If all programs are glibc's, that need not be said.
    let whose = if scene.musl {
        " of the C library glibc (those of musl do not read it)"
    } else {
        ""
    };
    let found = |why: String| format!("programs{whose} do not find the network's names: {why}");
    let ways = &scene.ways;
    match (&ways.ended_by, ways.dns, ways.resolve) {
        (Some(service), false, false) => Some(Finding::failed(
            found(format!(
                "{path} ends each search at '{service}', by the action behind it"
            )),
            format!(
                "remove the '[NOTFOUND=return]' behind '{service}' in the line 'hosts:' of {path}"
            ),
        )),
        (None, false, false) => Some(Finding::failed(
            found(format!("{path} names neither dns nor resolve")),
            format!("add 'dns' to the line 'hosts:' of {path}"),
        )),
        (_, false, true) if matches!(scene.resolved, Resolved::Absent | Resolved::Dead) => {
            Some(Finding::failed(
                found(format!(
                    "{path} names resolve and not dns, and systemd-resolved does not run"
                )),
                format!(
                    "'systemctl start systemd-resolved', or add 'dns' behind 'resolve' in the \
                        line 'hosts:' of {path}"
                ),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::nsswitch::ways;

    #[test]
    fn each_kind_of_host_hears_what_keeps_its_programs_from_the_names() {
        let scene = |line: &str, musl, glibc, resolved| Scene {
            resolved,
            ways: ways(line),
            musl,
            glibc,
            copied: false,
        };
        let said = |scene: &Scene| {
            let found = trouble(scene, Path::new("/etc/nsswitch.conf"));
            found
                .map(|finding| (finding.found, finding.advice))
                .unwrap_or_default()
        };
        let alone = |line: &str| said(&scene(line, false, true, Resolved::Absent));
        let (found, advice) = alone("hosts: files");
        assert!(
            found.starts_with("programs do not find") && found.contains("neither dns nor resolve"),
            "{found}"
        );
        assert!(advice.contains("add 'dns'"), "{advice}");
        let (found, advice) = alone("hosts: files [NOTFOUND=return] dns");
        assert!(
            found.contains("at 'files'") && advice.contains("remove the '[NOTFOUND=return]'"),
            "{found}: {advice}"
        );
        let (found, advice) = alone("hosts: files resolve");
        assert!(
            found.contains("systemd-resolved does not run") && advice.contains("add 'dns'"),
            "{found}"
        );
        for good in [
            "",
            "passwd: files",
            "hosts: files resolve [!UNAVAIL=return] dns",
            "hosts: files mdns4_minimal [NOTFOUND=return] dns",
        ] {
            assert_eq!(alone(good), Default::default(), "{good}");
        }
        assert_eq!(
            said(&scene("hosts: resolve", false, true, Resolved::Alive)),
            Default::default()
        );

        // Beside programs of musl the others are named; where all are musl's nobody reads the file.
        let (found, _) = said(&scene("hosts: files", true, true, Resolved::Absent));
        assert!(
            found.starts_with("programs of the C library glibc (those of musl"),
            "{found}"
        );
        assert_eq!(
            said(&scene("hosts: files", true, false, Resolved::Absent)),
            Default::default()
        );
        let (found, _) = said(&scene("hosts: files", false, false, Resolved::Absent));
        assert!(
            found.starts_with("programs do not"),
            "of a loader at an unknown place: {found}"
        );
    }
}
