//! Passes a request about a VM on to the member that can answer it: its holder, or for a new VM and
//! a restore the member the user chose. A request travels one hop only: what another member asks is
//! answered from this host's own state, and never asked of a third in this host's name.

use super::traced;
use crate::{
    failure::fabric,
    tokens::service::HEADER,
    vms::{releases::PASSED, rights::Asker, service::Vms},
};
use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{Method, client::conn::http1};
use hyper_util::rt::TokioIo;
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_api::{client::Client, vm_path};
use p2pvm_authority::Token;
use p2pvm_host::chain;
use p2pvm_overlay::{BoxStream, FabricError, MemberId};
use serde::Deserialize;
use std::sync::Arc;

/// The stream service that carries the VM part of the control API between members.
pub const SERVICE: &str = "api";

/// Marks a request that has had its hop, for members of former versions, which look for it.
const FORWARDED: &str = "p2pvm-forwarded";

/// How long a restore request may be.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The VM in a request's path, which may name more, such as a snapshot.
#[derive(Deserialize)]
pub(crate) struct OfVm {
    pub name: String,
}

/// The same where the path may name no VM: a VM that is to be made has no path yet.
#[derive(Deserialize)]
pub(crate) struct PerhapsOfVm {
    #[serde(default)]
    pub name: Option<String>,
}

/// Sends the request to the VM's holder where that is another member.
pub async fn to_holder(
    State(vms): State<Arc<Vms>>,
    Extension(asker): Extension<Asker>,
    Path(OfVm { name }): Path<OfVm>,
    mut request: Request,
    next: Next,
) -> Response {
    if asker != Asker::Root || vms.has(&name) {
        return next.run(request).await;
    }
    match vms.holder_of(&name).await {
        Ok(holder) if holder == vms.parts.me() => next.run(request).await,
        Ok(holder) => {
            let looks = request.method() == Method::GET
                && request.uri().path().ends_with(&format!("/vms/{name}"));
            if looks && vms.is_gone(holder) {
                return absent(&vms, &name).await;
            }
            let asking = traced::begin(&vms.traces, &name, &mut request);
            show_tokens(&vms, &name, &mut request).await;
            match (pass_on(&vms, holder, request).await, asking) {
                (Ok(answer), Some(asking)) => traced::follow(asking, answer),
                (Ok(answer), None) => answer,
                (Err(failure), _) if looks && failure.kind == Kind::TimedOut => {
                    absent(&vms, &name).await
                }
                (Err(failure), asking) => {
                    if let Some(asking) = asking {
                        asking.failed(&failure);
                    }
                    failure.into_response()
                }
            }
        }
        Err(failure) => failure.into_response(),
    }
}

/// A VM whose host does not answer, as the network's records have it.
async fn absent(vms: &Vms, name: &str) -> Response {
    vms.show_gone(name).await.map(Json).into_response()
}

/// What of a request says where it goes: a name, id or address, or none for the member that was
/// asked.
#[derive(Deserialize)]
struct HostChoice {
    #[serde(default)]
    on: Option<String>,
}

/// Sends a request for a new VM or a restore to the member named in it.
pub async fn to_chosen(
    State(vms): State<Arc<Vms>>,
    Extension(asker): Extension<Asker>,
    vm: Option<Path<String>>,
    request: Request,
    next: Next,
) -> Response {
    // Another member's request goes no further, and is judged for rights before it is read.
    if asker != Asker::Root {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let chosen = async {
        let bytes = axum::body::to_bytes(body, MAX_BODY_BYTES)
            .await
            .doing("reading the request")?;
        let wanted: HostChoice = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::usage(format!("the request cannot be read: {}", chain(&e))))?;
        let on = match wanted.on {
            Some(text) => vms.parts.resolve_member(&text).await?,
            None => vms.parts.me(),
        };
        Ok::<_, Failure>((on, bytes))
    };
    match chosen.await {
        Ok((on, bytes)) => {
            let mut request = Request::from_parts(parts, Body::from(bytes));
            if on == vms.parts.me() {
                next.run(request).await
            } else {
                match vm {
                    Some(Path(name)) => {
                        show_tokens(&vms, &name, &mut request).await;
                        pass_tokens(&vms, &name, on, &mut request).await;
                    }
                    None => show(vms.tokens.for_host(on), &mut request),
                }
                pass_on(&vms, on, request)
                    .await
                    .unwrap_or_else(IntoResponse::into_response)
            }
        }
        Err(failure) => failure.into_response(),
    }
}

/// Shows the tokens that this member was given for the VM; those of the caller, if it gave any, are
/// no member's business.
async fn show_tokens(vms: &Vms, name: &str, request: &mut Request) {
    show(vms.tokens.for_vm(name).await, request);
}

fn show(tokens: Vec<Token>, request: &mut Request) {
    request.headers_mut().remove(HEADER);
    for token in tokens {
        if let Ok(value) = HeaderValue::from_str(&token.to_string()) {
            request.headers_mut().append(HEADER, value);
        }
    }
}

/// Gives the host that is to restore the VM what it has to show to the VM's voters in a closed
/// network. In an open one every member may restore.
async fn pass_tokens(vms: &Vms, name: &str, host: MemberId, request: &mut Request) {
    request.headers_mut().remove(PASSED);
    if !vms.policies.is_closed() {
        return;
    }
    for token in vms.tokens.to_restore(name, host).await {
        if let Ok(value) = HeaderValue::from_str(&token.to_string()) {
            request.headers_mut().append(PASSED, value);
        }
    }
}

/// The console of a VM, wherever it runs.
pub async fn console(vms: &Vms, name: &str) -> Outcome<BoxStream> {
    if vms.has(name) {
        return vms.console(name).await;
    }
    let holder = vms.holder_of(name).await?;
    if holder == vms.parts.me() {
        return vms.console(name).await;
    }
    let mut client = Client::over(reach(vms, holder).await?).await?;
    for token in vms.tokens.for_vm(name).await {
        client = client.with_header(HEADER, token.to_string());
    }
    Ok(Box::new(client.upgrade(&vm_path(name, "console")?).await?))
}

/// Opens a stream to another member's API.
async fn reach(vms: &Vms, to: MemberId) -> Outcome<BoxStream> {
    vms.parts.fabric().open_stream(to, SERVICE).await.map_err(|e| match e {
        FabricError::Unreachable(_) | FabricError::TimedOut(..) => Failure::timed_out(format!(
            "its host {} cannot be reached; if that host is dead, 'p2pvm vm restore NAME --force' \
                brings the VM back from its newest snapshot",
            vms.parts.name_of(to)
        )),
        other => fabric(other),
    })
}

async fn pass_on(vms: &Vms, to: MemberId, mut request: Request) -> Outcome<Response> {
    let stream = reach(vms, to).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .doing("speaking to the VM's host")?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = %chain(&error), "forwarded request ended");
        }
    });
    request
        .headers_mut()
        .insert(FORWARDED, HeaderValue::from_static("1"));
    let ours = request
        .extensions_mut()
        .remove::<hyper::upgrade::OnUpgrade>();
    let mut response = sender
        .send_request(request)
        .await
        .doing("the VM's host ended the conversation")?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let theirs = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let Some(ours) = ours else { return };
            if let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) {
                // Either end hanging up ends both.
                let _ = tokio::io::copy_bidirectional(
                    &mut TokioIo::new(ours),
                    &mut TokioIo::new(theirs),
                )
                .await;
            }
        });
    }
    Ok(response.map(Body::new))
}

#[cfg(test)]
#[path = "forward_golden_tests.rs"]
mod golden_tests;
