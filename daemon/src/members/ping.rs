//! `p2pvm ping`: probes of the packet path to a member, or to the member that has a VM.

use super::service::Members;
use crate::{
    http::report::Reporter,
    lookup::{LOOKUP_LIMIT, path_kind},
};
use p2pvm_api::{Failure, Kind, Outcome, PathKind, PingSummary, Pong};
use p2pvm_dhcp::{NameKind, Subject};
use p2pvm_overlay::{MemberId, membership::valid_name};
use std::{net::IpAddr, time::Duration};

/// How long before a probe without an answer counts as lost.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl Members {
    /// Makes a link, trying again for a while: a member that has just joined is known before it can
    /// be reached.
    async fn link(&self, member: MemberId) -> Outcome<()> {
        let mut last = None;
        let tries = async {
            loop {
                match self.parts.connector.ensure(member).await {
                    Ok(_) => return,
                    Err(e) => last = Some(p2pvm_host::chain(&e)),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // One try alone may take longer than a user waits for a ping.
        if tokio::time::timeout(PING_TIMEOUT, tries).await.is_ok() {
            return Ok(());
        }
        let name = self.parts.name_of(member);
        let why =
            last.unwrap_or_else(|| format!("it has not answered for {} s", PING_TIMEOUT.as_secs()));
        Err(Failure::timed_out(format!(
            "no path to {name}: {}",
            why.replace(&member.short(), &name)
        )))
    }

    /// The member that a ping to `text` goes to, and the name of the VM if `text` is one.
    async fn ping_target(&self, text: &str) -> Outcome<(MemberId, Option<String>)> {
        let failure = match self.parts.resolve_member(text).await {
            Err(failure) if failure.kind == Kind::NotFound => failure,
            found => return found.map(|member| (member, None)),
        };
        let name = self.parts.plain_name(text);
        let name = name.strip_suffix(".vm").unwrap_or(&name);
        if !valid_name(name) {
            return Err(failure);
        }
        let addresses = &self.parts.addresses;
        let found =
            tokio::time::timeout(LOOKUP_LIMIT, addresses.resolve_name(name, NameKind::Vm)).await;
        let Ok(Ok(Some(named))) = found else {
            return Err(failure);
        };
        let held =
            tokio::time::timeout(LOOKUP_LIMIT, addresses.resolve(IpAddr::V4(named.v4))).await;
        let Ok(Ok(Some(holder))) = held else {
            return Err(failure);
        };
        if !matches!(named.subject, Subject::Vm(_)) {
            return Err(failure);
        }
        Ok((holder.member, Some(name.to_owned())))
    }

    /// Probes the packet path to a member, or to the member that has a VM.
    pub async fn ping(
        &self,
        text: &str,
        count: u32,
        interval: Duration,
        reporter: &Reporter<Pong>,
    ) -> Outcome<PingSummary> {
        let (member, vm) = self.ping_target(text).await?;
        if member == self.parts.me() {
            return Err(Failure::usage(match vm {
                Some(vm) => format!(
                    "VM {vm} is on this host: ping its address from here, {text} is no other \
                        member's"
                ),
                None => format!("{text} is this member"),
            }));
        }
        let host = vm.map_or_else(String::new, |_| {
            format!("its host {}, ", self.parts.name_of(member))
        });
        self.link(member).await?;
        let mut received = 0u32;
        for seq in 1..=count {
            let pong = self.parts.plane.ping(member, PING_TIMEOUT).await;
            let item = match &pong {
                Ok(pong) => Pong {
                    seq,
                    rtt_ms: Some(pong.rtt.as_secs_f64() * 1e3),
                    path: format!("{host}{}", self.pong_path(pong)),
                    path_kind: Some(
                        pong.hops
                            .map_or_else(|| path_kind(&pong.path), |_| PathKind::Ring),
                    ),
                },
                Err(_) => Pong {
                    seq,
                    rtt_ms: None,
                    path: String::new(),
                    path_kind: None,
                },
            };
            received += u32::from(pong.is_ok());
            reporter.item(&item).await?;
            if seq < count {
                tokio::time::sleep(interval.saturating_sub(pong.map_or(Duration::ZERO, |p| p.rtt)))
                    .await;
            }
        }
        Ok(PingSummary {
            received,
            sent: count,
        })
    }

    /// The path of a probe's answer in words.
    fn pong_path(&self, pong: &p2pvm_overlay::plane::Pong) -> String {
        match pong.hops {
            Some(1) => "over the ring, 1 hop".to_owned(),
            Some(hops) => format!("over the ring, {hops} hops"),
            None => self.parts.path_text(&pong.path),
        }
    }
}
