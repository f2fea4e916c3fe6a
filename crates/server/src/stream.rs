//! Answers in pieces: a task turns what the engine tells into frames, and the response's body passes them
//! on. When the client is gone the task ends, and with it the generation.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::ApiError;
use crate::reply::{Delta, Replies};

/// Frames that wait for a client that reads slowly.
const WAITING_FRAMES: usize = 32;
/// How long a connection may be silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// The two ways to send pieces of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// A line a piece.
    Lines,
}

/// Pieces that are to be sent.
#[derive(Debug, Default)]
pub(crate) struct Frames(String);

impl Frames {
    /// A server-sent event without a name.
    pub(crate) fn data(&mut self, data: &Value) {
        self.text(&data.to_string());
    }

    /// The same, of what is no JSON.
    pub(crate) fn text(&mut self, data: &str) {
        self.0 += &format!("data: {data}\n\n");
    }

    /// A server-sent event with a name.
    pub(crate) fn event(&mut self, name: &str, data: &Value) {
        self.0 += &format!("event: {name}\ndata: {data}\n\n");
    }

    /// The same, of what is JSON already.
    pub(crate) fn raw_event(&mut self, name: &str, json: &str) {
        self.0 += &format!("event: {name}\ndata: {json}\n\n");
    }

    /// What clients skip, and people read.
    pub(crate) fn comment(&mut self, text: &str) {
        self.0 += &format!(": {text}\n\n");
    }

    /// A line of JSON.
    pub(crate) fn line(&mut self, data: &Value) {
        self.0 += &format!("{data}\n");
    }

    /// What is to be sent now.
    pub(crate) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

/// How an API tells an answer piece by piece.
pub(crate) trait Wire: Send + 'static {
    /// How its pieces are sent.
    const FRAMING: Framing;
    /// What comes before everything.
    fn begin(&mut self, frames: &mut Frames);
    /// A piece of one of the answers.
    fn delta(&mut self, choice: usize, delta: Delta, frames: &mut Frames);
    /// What comes after everything.
    fn end(&mut self, frames: &mut Frames);
    /// What comes instead, when something fails.
    fn error(&mut self, error: &ApiError, frames: &mut Frames);
}

/// A response that tells answers as they come.
pub(crate) fn respond<W: Wire>(replies: Replies, wire: W) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING_FRAMES);
    tokio::spawn(drive(replies, wire, sender));
    response(W::FRAMING, receiver)
}

/// A response whose body is what comes through a channel.
pub(crate) fn response(framing: Framing, receiver: mpsc::Receiver<Bytes>) -> Response {
    let frames = stream::unfold(receiver, |mut receiver| async {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let kind = match framing {
        Framing::Events => "text/event-stream",
        Framing::Lines => "application/x-ndjson",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn drive<W: Wire>(mut replies: Replies, mut wire: W, sender: mpsc::Sender<Bytes>) {
    let mut frames = Frames::default();
    wire.begin(&mut frames);
    loop {
        if !frames.0.is_empty() && sender.send(frames.take()).await.is_err() {
            return;
        }
        let next = tokio::select! {
            next = timeout(SILENCE, replies.next()) => next,
            () = sender.closed() => return,
        };
        match next {
            Ok(Some((_, Ok(Delta::Progress { done, total })))) => {
                if W::FRAMING == Framing::Events {
                    frames.comment(&format!("reading {done} {total}"));
                }
            }
            Ok(Some((choice, Ok(delta)))) => wire.delta(choice, delta, &mut frames),
            Ok(Some((_, Err(error)))) => {
                wire.error(&error, &mut frames);
                break;
            }
            Ok(None) => {
                wire.end(&mut frames);
                break;
            }
            Err(_silence) if W::FRAMING == Framing::Events => frames.comment("still here"),
            Err(_silence) => {}
        }
    }
    drop(sender.send(frames.take()).await);
}
