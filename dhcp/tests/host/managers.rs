//! Hosts on which other programs write the list of name servers, or nobody can.

use crate::{
    machine::{OTHER, glibc, on, run, until},
    not_run,
};
use nix::mount::{MsFlags, mount};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const NSSWITCH: (&str, &str) = ("nsswitch.conf", "hosts: files dns\n");
const LIST: &str = "nameserver 192.0.2.53\n";

#[test]
fn names_resolve_nearly_always_while_somebody_rewrites_the_list_every_few_seconds() {
    on(&[NSSWITCH, ("resolv.conf", LIST)], false, |machine| {
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        let (mut right, mut other, mut all, began) = (0, 0, 0, Instant::now());
        let (done, rewritten) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // In place, as some DHCP clients do; the next time as a new file.
                    match rewritten.fetch_add(1, Ordering::Relaxed) % 2 {
                        0 => fs::write("/etc/resolv.conf", LIST).unwrap(),
                        _ => machine.rewrite(LIST),
                    }
                    thread::sleep(Duration::from_secs(2));
                }
            });
            while began.elapsed() < Duration::from_secs(15) {
                all += 1;
                right += usize::from(network.is_found());
                // In the moment in which a program writes the file in place it is empty, with or
                // without p2pvm.
                other += usize::from(glibc(OTHER.0).0 == [OTHER.1]);
                thread::sleep(Duration::from_millis(50));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(
            right * 100 >= all * 80,
            "{right} of {all} look-ups, rewritten {rewritten:?} times"
        );
        assert!(
            other * 100 >= all * 95,
            "other names: {other} of {all} look-ups, rewritten {rewritten:?} times"
        );
        network.says(&["rewritten by another program again and again"]);
        network.end();
        assert_eq!(machine.resolv_conf(), LIST);
    });
}

#[test]
fn a_program_that_insists_on_its_list_is_not_fought_with() {
    on(&[NSSWITCH, ("resolv.conf", LIST)], false, |machine| {
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        let (mut taken_out, began) = (0, Instant::now());
        while began.elapsed() < Duration::from_secs(8) {
            if machine.resolv_conf() != LIST {
                machine.rewrite(LIST);
                taken_out += 1;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(taken_out < 30, "it was put back {taken_out} times");
        network.end();
        assert_eq!(machine.resolv_conf(), LIST);
    });
}

#[test]
fn a_mounted_list_is_changed_or_told_to_be_unchangeable() {
    on(&[NSSWITCH, ("resolv.conf", "")], false, |machine| {
        let real = Path::new("/run/real.conf");
        fs::write(real, LIST).unwrap();
        mount(
            Some(real),
            "/etc/resolv.conf",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        // Written through the other name, as a container's engine does.
        fs::write(real, format!("search a.org\n{LIST}")).unwrap();
        until("the VM again", || network.is_found());
        network.end();
        assert_eq!(
            fs::read_to_string(real).unwrap(),
            format!("search a.org\n{LIST}")
        );
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(
            None::<&str>,
            "/etc/resolv.conf",
            None::<&str>,
            read_only,
            None::<&str>,
        )
        .unwrap();
        let network = machine.network("lab", 9);
        network.says(&[
            "cannot add its name server to /etc/resolv.conf",
            "Read-only",
            "by hand",
        ]);
        // By hand, as the advice says.
        let ours = network.findings()[0]
            .advice
            .split('\'')
            .nth(1)
            .unwrap()
            .to_owned();
        fs::write(real, format!("{ours}\n{LIST}")).unwrap();
        until("no finding any more", || network.findings().is_empty());
        assert!(network.is_found());
        network.end();
        assert_eq!(
            fs::read_to_string(real).unwrap(),
            format!("{ours}\n{LIST}"),
            "what a person wrote stays"
        );
    });
}

#[test]
fn an_immutable_list_is_said_with_the_command_that_helps() {
    on(&[NSSWITCH, ("resolv.conf", LIST)], false, |machine| {
        if let Err(why) = run("chattr", &["+i", "/etc/resolv.conf"]) {
            return not_run(&why);
        }
        let network = machine.network("lab", 9);
        network.says(&[
            "/etc/resolv.conf is immutable",
            "chattr -i /etc/resolv.conf",
        ]);
        assert_eq!(
            (machine.resolv_conf().as_str(), glibc(OTHER.0).0),
            (LIST, vec![OTHER.1.to_owned()])
        );
        run("chattr", &["-i", "/etc/resolv.conf"]).unwrap();
        until("the VM", || network.is_found());
        until("nothing to say", || network.findings().is_empty());
        network.end();
        assert_eq!(machine.resolv_conf(), LIST);
    });
}

/// openresolv's programs (they are scripts), unpacked into a directory and led to each other there.
fn openresolv(dir: &Path) -> Result<(), String> {
    let script = "cd \"$0\" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=0 -o \
        Acquire::http::Timeout=20 \
                  download openresolv && dpkg-deb -x openresolv*.deb . && \
                  sed -i -e \"s#/sbin/resolvconf#$0/sbin/resolvconf#g\" \
                  -e \"s#/lib/resolvconf#$0/lib/resolvconf#g\" \
                  sbin/resolvconf $(find lib/resolvconf -type f)";
    run("sh", &["-c", script, &dir.to_string_lossy()]).map(drop)
}

#[test]
fn openresolv_writes_its_list_and_ours_comes_back_into_it() {
    let unpacked = tempfile::tempdir().unwrap();
    if let Err(why) = openresolv(unpacked.path()) {
        return not_run(&why);
    }
    on(&[NSSWITCH], false, |machine| {
        let program = unpacked.path().join("sbin/resolvconf");
        let say = |words: &str, text: &str| {
            let script = format!("printf '{text}' | {} {words}", program.display());
            let done = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stderr)
            );
        };
        fs::write("/etc/resolvconf.conf", "resolv_conf=/etc/resolv.conf\n").unwrap();
        say("-a eth0.dhcp", "nameserver 192.0.2.53\\n");
        let generated = machine.resolv_conf();
        assert!(
            generated.starts_with("# Generated by resolvconf\n"),
            "{generated}"
        );
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        say(
            "-a wlan0.dhcp",
            "nameserver 192.0.2.54\\nsearch example.net\\n",
        );
        until("the VM again", || network.is_found());
        // A look-up may fall into the moment in which a program writes the file.
        until("other names", || glibc(OTHER.0).0 == [OTHER.1]);
        until("what openresolv wrote meanwhile to count", || {
            glibc("elsewhere").0 == [OTHER.1]
        });
        say("-d wlan0.dhcp", "");
        until("the VM again", || network.is_found());
        network.end();
        assert_eq!(machine.resolv_conf(), generated);
        assert!(
            !fs::exists("/etc/resolv.conf.bak").unwrap(),
            "openresolv took the file for its own all the time"
        );
    });
}
