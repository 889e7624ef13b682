//! Each kind of file that hosts have there is changed and is afterwards what it was.

use super::*;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{net::Ipv4Addr, os::unix::fs::symlink, thread};

const ORIGINAL: &[u8] = b"search a.org\nnameserver 192.0.2.1\n";

fn block(id: &str) -> Block {
    let last = id.len() as u8;
    Block {
        id: id.into(),
        server: Ipv4Addr::new(127, 77, 0, last),
        domain: format!("{id}.p2p"),
        subnets: vec![],
        made: None,
    }
}

fn put_in(path: &Path) -> io::Result<ListEdit> {
    put(path, &block("lab"), false, |_| Ok(()))
}

/// Puts ours in, looks that it is first, takes it out.
fn goes_in_and_out(path: &Path) {
    let edited = put_in(path).unwrap();
    assert!(edited.written);
    assert!(
        String::from_utf8_lossy(&fs::read(path).unwrap()).contains("\nnameserver 127.77.0.3\n")
    );
    assert!(!put_in(path).unwrap().written, "it is there already");
    take_out(path, "lab").unwrap();
}

/// Runs where mounts are this thread's own; false without root.
fn with_own_mounts(test: impl FnOnce() + Send) -> bool {
    let own = || {
        if unshare(CloneFlags::CLONE_NEWNS).is_err() {
            println!("NOT RUN: a mount namespace needs root");
            return false;
        }
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        test();
        true
    };
    thread::scope(|scope| scope.spawn(own).join().unwrap())
}

/// Mounts a file or a directory over another.
fn bind(source: &Path, target: &Path) {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).unwrap();
}

#[test]
fn a_plain_file_keeps_its_text_mode_owner_and_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    fs::write(&path, ORIGINAL).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    }
    let file = File::open(&path).unwrap();
    // SAFETY: both strings end with a zero, and the value is three bytes.
    let set = unsafe {
        nix::libc::fsetxattr(
            file.as_raw_fd(),
            c"user.label".as_ptr(),
            c"net".as_ptr().cast(),
            3,
            0,
        )
    };
    goes_in_and_out(&path);
    let about = fs::metadata(&path).unwrap();
    assert_eq!(
        (fs::read(&path).unwrap().as_slice(), about.mode() & 0o777),
        (ORIGINAL, 0o640)
    );
    assert!(!root || (about.uid(), about.gid()) == (7, 8));
    let mut value = [0u8; 3];
    let file = File::open(&path).unwrap();
    // SAFETY: the buffer is as long as said.
    let got = unsafe {
        nix::libc::fgetxattr(
            file.as_raw_fd(),
            c"user.label".as_ptr(),
            value.as_mut_ptr().cast(),
            3,
        )
    };
    assert!(
        set != 0 || (got, &value) == (3, b"net"),
        "the attribute went"
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );
}

#[test]
fn links_stay_links_and_a_file_that_was_missing_is_missing_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("etc")).unwrap();
    symlink("../run/resolve/stub.conf", at("etc/resolv.conf")).unwrap();
    goes_in_and_out(&at("etc/resolv.conf"));
    assert_eq!(
        fs::read_link(at("etc/resolv.conf")).unwrap(),
        Path::new("../run/resolve/stub.conf")
    );
    assert!(!at("run").exists(), "the directories made for it are gone");
    fs::create_dir_all(at("run/resolve")).unwrap();
    fs::write(at("run/resolve/real.conf"), ORIGINAL).unwrap();
    symlink("real.conf", at("run/resolve/stub.conf")).unwrap();
    goes_in_and_out(&at("etc/resolv.conf"));
    assert_eq!(fs::read(at("run/resolve/real.conf")).unwrap(), ORIGINAL);
    assert!(
        fs::symlink_metadata(at("run/resolve/stub.conf"))
            .unwrap()
            .is_symlink()
    );
    goes_in_and_out(&at("etc/none.conf"));
    assert!(!at("etc/none.conf").exists());
    symlink("loop", at("loop")).unwrap();
    assert!(put_in(&at("loop")).is_err());
}

#[test]
fn a_missing_file_that_somebody_wrote_into_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    put_in(&path).unwrap();
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(ORIGINAL);
    fs::write(&path, text).unwrap();
    take_out(&path, "lab").unwrap();
    assert_eq!(fs::read(&path).unwrap(), ORIGINAL);
}

#[test]
fn what_is_no_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    symlink("/dev/null", &path).unwrap();
    assert!(
        put_in(&path)
            .unwrap_err()
            .to_string()
            .contains("no regular file")
    );
    assert!(
        !fs::metadata("/dev/null").unwrap().is_file(),
        "the device is still there"
    );
    assert!(put_in(dir.path()).is_err());
}

#[test]
fn a_file_with_two_names_is_changed_under_both() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("resolv.conf"), dir.path().join("other"));
    fs::write(&path, ORIGINAL).unwrap();
    fs::hard_link(&path, &other).unwrap();
    goes_in_and_out(&path);
    assert_eq!(
        (
            fs::read(&other).unwrap().as_slice(),
            fs::metadata(&other).unwrap().nlink()
        ),
        (ORIGINAL, 2)
    );
}

#[test]
fn a_file_mounted_by_itself_is_rewritten_on_a_read_only_system() {
    with_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let (etc, real) = (dir.path().join("etc"), dir.path().join("real"));
        fs::create_dir(&etc).unwrap();
        fs::write(&real, ORIGINAL).unwrap();
        let path = etc.join("resolv.conf");
        fs::write(&path, "").unwrap();
        bind(&real, &path);
        goes_in_and_out(&path);
        assert_eq!(fs::read(&real).unwrap(), ORIGINAL);
        bind(&etc, &etc);
        mount(
            None::<&str>,
            &etc,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            None::<&str>,
        )
        .unwrap();
        // The mount of the file lies below the new one of its directory.
        fs::write(&real, ORIGINAL).unwrap();
        bind(&real, &path);
        goes_in_and_out(&path);
        assert_eq!(fs::read(&real).unwrap(), ORIGINAL);
    });
}

#[test]
fn a_full_disk_changes_nothing() {
    with_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        mount(
            Some("none"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=16k"),
        )
        .unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, ORIGINAL).unwrap();
        let mut filler = File::create(dir.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        assert_eq!(
            put_in(&path).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(fs::read(&path).unwrap(), ORIGINAL);
    });
}

#[test]
fn an_immutable_file_is_told_from_others() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("resolv.conf");
    fs::write(&path, ORIGINAL).unwrap();
    assert!(!is_immutable(&path));
    let chattr = |flag: &str| {
        std::process::Command::new("chattr")
            .arg(flag)
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success())
    };
    if !chattr("+i") {
        println!("NOT RUN: chattr +i does not work here");
        return;
    }
    let (told, changed) = (is_immutable(&path), put_in(&path));
    assert!(chattr("-i"));
    assert!(told && changed.is_err());
    assert_eq!(fs::read(&path).unwrap(), ORIGINAL);
}

#[test]
fn networks_of_one_machine_come_and_go_in_any_order() {
    for alone in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, ORIGINAL).unwrap();
        let listed = || super::super::text::name_servers(&fs::read(&path).unwrap()).len();
        for (first, second) in [("lab", "home"), ("home", "lab")] {
            for (id, out) in [("lab", "home"), ("home", "lab")] {
                put(&path, &block(first), alone, |_| Ok(())).unwrap();
                put(&path, &block(second), alone, |_| Ok(())).unwrap();
                assert_eq!(listed(), if alone { 2 } else { 3 });
                take_out(&path, id).unwrap();
                assert_eq!(listed(), if alone { 1 } else { 2 });
                take_out(&path, id).unwrap();
                take_out(&path, out).unwrap();
                assert_eq!(fs::read(&path).unwrap(), ORIGINAL);
            }
        }
    }
}
