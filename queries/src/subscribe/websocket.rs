//! A stream as a WebSocket: each message is a text `{"event":…,"id":…,"data":{…}}`. What the reader
//! sends is ignored, but for its going away. A sign of life is a ping.

use super::{ALIVE, Message};
use axum::{
    body::Bytes,
    extract::{
        WebSocketUpgrade,
        ws::{self, WebSocket},
    },
    response::Response,
};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};

/// The most that a reader may send at once: it has nothing to say.
const INCOMING_BYTES_MAX: usize = 4 << 10;
/// How long one message may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes a message as a text.
pub(super) fn frame(message: &Message) -> String {
    let Message { event, id, data } = message;
    match id {
        Some(id) => format!("{{\"event\":\"{event}\",\"id\":{id},\"data\":{data}}}"),
        None => format!("{{\"event\":\"{event}\",\"data\":{data}}}"),
    }
}

/// The answer: switches protocols and sends what the stream brings.
pub(super) fn respond(upgrade: WebSocketUpgrade, receive: mpsc::Receiver<Message>) -> Response {
    upgrade
        .max_message_size(INCOMING_BYTES_MAX)
        .max_frame_size(INCOMING_BYTES_MAX)
        .on_upgrade(move |socket| send_all(socket, receive))
}

async fn send_all(mut socket: WebSocket, mut receive: mpsc::Receiver<Message>) {
    loop {
        tokio::select! {
            message = receive.recv() => {
                let Some(message) = message else { break };
                let out = match message.event {
                    ALIVE => ws::Message::Ping(Bytes::new()),
                    _ => ws::Message::Text(frame(&message).into()),
                };
                if !matches!(timeout(SEND_TIMEOUT, socket.send(out)).await, Ok(Ok(()))) {
                    return;
                }
            }
            incoming = socket.recv() => match incoming {
                None | Some(Err(_) | Ok(ws::Message::Close(_))) => return,
                Some(Ok(_)) => {}
            },
        }
    }
    // The stream has ended and said why; if the goodbye does not arrive, the reader sees it anyway.
    drop(timeout(SEND_TIMEOUT, socket.send(ws::Message::Close(None))).await);
}
