//! The sockets that wake the keeper.

use crate::netlink::Netlink;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

/// From linux/rtnetlink.h: links, IPv4 addresses, routes and rules, settings of interfaces
/// (forwarding among them).
const GROUPS: [u32; 5] = [1, 5, 7, 8, 24];
/// From linux/netfilter/nfnetlink.h: any change of nftables.
const NFNLGRP_NFTABLES: u32 = 7;

/// Why the keeper woke.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WakeCause {
    /// Whether nftables changed.
    pub rules: bool,
    /// Whether the kernel reported any change.
    pub any: bool,
}

pub(super) struct Watch {
    routes: Netlink,
    rules: Option<Socket>,
    woken: UnixStream,
}

impl Watch {
    /// Opens them in the network namespace of the calling thread.
    pub fn open(woken: UnixStream) -> io::Result<Self> {
        woken.set_nonblocking(true)?;
        // A kernel without nftables has no rules to report.
        let rules = Self::rules().ok();
        Ok(Self {
            routes: Netlink::listen(&GROUPS)?,
            rules,
            woken,
        })
    }

    fn rules() -> io::Result<Socket> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    }

    /// Waits for a change or an order, at most `limit`; a change is not returned before `rest` is
    /// over. `tell` is called at the first change, and once more at the end if others came.
    pub fn wait(&mut self, rest: Duration, limit: Duration, tell: impl Fn()) -> WakeCause {
        let (mut told, mut more) = (false, false);
        let heard = self.hear(rest, limit, || {
            if told {
                more = true;
            } else {
                tell();
            }
            told = true;
        });
        if more {
            tell();
        }
        heard
    }

    fn hear(&mut self, rest: Duration, limit: Duration, mut each: impl FnMut()) -> WakeCause {
        let (began, mut heard) = (Instant::now(), WakeCause::default());
        loop {
            let elapsed = began.elapsed();
            let until = if heard.any {
                rest.max(super::SETTLE).min(limit)
            } else {
                limit
            };
            if elapsed >= until {
                return heard;
            }
            let [ordered, routes, rules] = self.poll(until - elapsed);
            if routes {
                // The look finds what it was; messages lost for lack of room do not matter then.
                let _ = self.routes.hear();
                heard.any = true;
            }
            if rules {
                self.drain_rules();
                (heard.any, heard.rules) = (true, true);
            }
            if routes || rules {
                each();
            }
            if ordered {
                let _ = self.woken.read(&mut [0; 64]);
                return heard;
            }
        }
    }

    fn poll(&self, limit: Duration) -> [bool; 3] {
        let timeout = PollTimeout::try_from(limit.as_millis().min(60_000) as u64 + 1)
            .unwrap_or(PollTimeout::ZERO);
        // SAFETY: the descriptor is the socket's, which lives as long as `self`.
        let rules = self
            .rules
            .as_ref()
            .map(|socket| unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) });
        let mut fds = vec![
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.routes.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(rules.map(|rules| PollFd::new(rules, PollFlags::POLLIN)));
        if poll(&mut fds, timeout).is_err() {
            return [false; 3];
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
        [ready(0), ready(1), ready(2)]
    }

    fn drain_rules(&self) {
        let Some(socket) = &self.rules else { return };
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                // Lost messages do not matter: the rules are listed again.
                Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {}
                Err(_) => return,
            }
        }
    }
}
