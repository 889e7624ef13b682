//! A VM's console over a WebSocket: binary messages carry bytes from and to the guest. A text
//! message from the daemon is JSON and says why there is no console. When the VM leaves this host,
//! its console ends and the page opens another.

use super::{Dashboard, access::PROTOCOL};
use crate::http::forward;
use axum::{
    body::Bytes,
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{IntoResponse, Response},
};
use p2pvm_api::{Failure, Kind, NoConsole};
use p2pvm_overlay::BoxStream;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

/// The longest message from a browser, bytes: a user types, or pastes a page.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// How many bytes are read from the guest at once.
const CHUNK_BYTES: usize = 4 << 10;
/// How often a browser is pinged; after two unanswered pings the console ends.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Opens a VM's console, on whichever host it runs.
pub async fn open(
    State(dashboard): State<Arc<Dashboard>>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Ok(place) = dashboard.consoles.clone().try_acquire_owned() else {
        return Failure::new(
            Kind::Refused,
            "this node serves no more consoles: close one",
        )
        .into_response();
    };
    let switch = dashboard.switch.follow();
    upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(move |mut socket| async move {
            match forward::console(&dashboard.vms, &name).await {
                Ok(guest) => bridge(socket, guest, switch).await,
                Err(failure) => {
                    let why = serde_json::to_string(&NoConsole {
                        error: failure.message,
                    })
                    .unwrap_or_default();
                    // A closed browser needs no reason.
                    let _ = socket.send(Message::Text(why.into())).await;
                    let _ = socket.send(Message::Close(None)).await;
                }
            }
            drop(place);
        })
}

/// Carries bytes both ways until either end closes, or the dashboard is switched or gets a new
/// token; a page with the valid token then reconnects.
async fn bridge(mut socket: WebSocket, guest: BoxStream, mut switch: watch::Receiver<bool>) {
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut pings = tokio::time::interval(PING_EVERY);
    let mut unanswered = 0;
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(n @ 1..) => {
                    if socket.send(
                        Message::Binary(Bytes::copy_from_slice(&buffer[..n]))
                    ).await.is_err() {
                        return;
                    }
                }
                _ => break,
            },
            message = socket.recv() => {
                unanswered = 0;
                match message {
                    Some(Ok(Message::Binary(typed))) => {
                        if to_guest.write_all(&typed).await.is_err() {
                            break;
                        }
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    // Text has no meaning; an error or a close is the end.
                    _ => break,
                }
            }
            _ = switch.changed() => break,
            _ = pings.tick() => {
                unanswered += 1;
                if unanswered > 2 || socket.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
            }
        }
    }
    // Tells the browser at once; it may be closed already.
    let _ = socket.send(Message::Close(None)).await;
}
