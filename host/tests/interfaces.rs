//! Interfaces of the kernel as they are where people have changed something, in namespaces of the
//! tests' own. Needs root, ip, tc.

use p2pvm_host::{
    outbound::redirects_on,
    tun::{Step, try_tun},
};
use std::{process::Command, thread};

#[test]
fn a_device_on_a_nodev_mount_is_named_with_a_working_command() {
    let tried = thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let sh = |script: &str| {
            assert!(
                Command::new("sh")
                    .args(["-c", script])
                    .status()
                    .unwrap()
                    .success(),
                "{script}"
            )
        };
        sh("mount --make-rprivate / && mkdir -p /dev/net && mount -t tmpfs -o nodev none /dev/net");
        sh("mknod -m 0666 /dev/net/tun c 10 200");
        let trouble = try_tun().unwrap_err();
        assert_eq!(trouble.step, Step::Open);
        assert!(
            trouble
                .to_string()
                .contains("/dev/net, which is mounted with nodev"),
            "{trouble}"
        );
        let remedy = trouble.remedy();
        assert!(!remedy.contains("run as root"), "{remedy}");
        sh(remedy
            .split('\'')
            .nth(1)
            .expect("the command stands first, in quotes"));
        try_tun().expect("the device works then");
    });
    tried.join().unwrap();
}

#[test]
fn a_filter_diverting_guest_packets_is_named_on_a_real_interface() {
    let tried = thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let sh = |script: &str| {
            assert!(
                Command::new("sh")
                    .args(["-c", script])
                    .status()
                    .unwrap()
                    .success(),
                "{script}"
            )
        };
        sh(
            "ip link add pv1 type veth peer name pv2 && ip link add v0 type veth peer name v1 && \
                tc qdisc add dev pv1 clsact",
        );
        assert_eq!(redirects_on("pv1"), []);
        sh(
            "tc filter add dev pv1 egress protocol all u32 match u32 0 0 action mirred egress \
                redirect dev v0",
        );
        let [(said, shown)] = redirects_on("pv1").try_into().unwrap();
        assert!(said.contains("leave by pv1 go to v0"), "{said}");
        assert_eq!(shown, "tc filter show dev pv1 egress");
    });
    tried.join().unwrap();
}
