//! Clients' connections: any number of streams, each with requests in and replies out.

use std::cell::Cell;
use std::rc::Rc;

use dunlin_protocol::frame::FrameError;
use dunlin_protocol::message::{ClientReply, ClientRequest, Hello, ReplyBody};
use dunlin_protocol::{Outcome, Status};
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::carrier::{HANDSHAKE_TIME, Shared};
use super::frames::{FrameReader, ReadError, SendQueue, close};
use super::table::Stream;
use crate::{Input, ReplyTo};

/// Requests of one stream that may be unanswered at a time, while replies are small.
const MAX_IN_FLIGHT: usize = 1_024;
/// How many bytes of replies the requests in flight on one stream may be expected to make.
const EXPECTED_BYTES: usize = 16 << 20;
/// No request is read while more bytes of replies than this wait for the client.
const WAITING_BYTES: usize = 1 << 20;
/// A client that lets more bytes of replies than this wait on a stream is closed: its requests in flight made more than was expected of them.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// What a stream's first replies are expected to take.
const FIRST_EXPECTED_BYTES: usize = 1 << 20;

/// A client's stream.
pub(super) struct ClientStream {
    pub(super) queue: Rc<SendQueue>,
    /// The writer is done or the stream lost.
    pub(super) ended: Notify,
    connection: quinn::Connection,
    in_flight: Cell<usize>,
    /// The size of the largest recent reply, decaying.
    reply_bytes: Cell<usize>,
    answered: Notify,
}

impl ClientStream {
    /// Queues a reply; false: it answers nothing that is in flight.
    pub(super) fn reply(&self, request_id: u64, reply: &ClientReply) -> bool {
        let Some(left) = self.in_flight.get().checked_sub(1) else { return false };
        let pushed = self.queue.push(|out| match reply.write(out, request_id) {
            Err(FrameError::TooLarge { len }) => {
                let message = format!("the answer would take {len} bytes: ask for less at a time");
                let body = ReplyBody::Outcome(Outcome::because(Status::InvalidArgument, message));
                ClientReply { body, ..*reply }.write(out, request_id)
            }
            written => written,
        });
        let size = pushed.expect("a reply without content fits a frame");
        let decayed = self.reply_bytes.get() - self.reply_bytes.get() / 8;
        self.reply_bytes.set(decayed.max(size));
        self.in_flight.set(left);
        self.answered.notify_one();
        if self.queue.len() > MAX_WAITING_BYTES {
            close(&self.connection, Status::Overloaded, "the client does not read its replies");
        }
        true
    }

    /// Waits until another request may be taken.
    async fn admit(&self) {
        loop {
            self.queue.below(WAITING_BYTES).await;
            let limit = (EXPECTED_BYTES / self.reply_bytes.get().max(1)).clamp(1, MAX_IN_FLIGHT);
            if self.in_flight.get() < limit && self.queue.len() <= WAITING_BYTES {
                return;
            }
            self.answered.notified().await;
        }
    }

    /// Waits until everything is answered.
    async fn quiet(&self) {
        while self.in_flight.get() > 0 {
            self.answered.notified().await;
        }
    }
}

pub(super) async fn serve(shared: Rc<Shared>, connection: quinn::Connection) {
    if shared.clients.get() >= shared.settings.max_clients {
        return close(&connection, Status::Overloaded, "the node has as many clients as it takes");
    }
    shared.clients.set(shared.clients.get() + 1);
    while let Ok((send, recv)) = connection.accept_bi().await {
        spawn_local(serve_stream(shared.clone(), connection.clone(), send, recv));
    }
    shared.clients.set(shared.clients.get() - 1);
}

async fn serve_stream(shared: Rc<Shared>, connection: quinn::Connection, send: SendStream, recv: RecvStream) {
    let mut frames = FrameReader::new(recv);
    let stream = Rc::new(ClientStream {
        queue: Rc::default(),
        ended: Notify::new(),
        connection: connection.clone(),
        in_flight: Cell::new(0),
        reply_bytes: Cell::new(FIRST_EXPECTED_BYTES),
        answered: Notify::new(),
    });
    match timeout(HANDSHAKE_TIME, greet(&shared, &connection, &stream, &mut frames)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return,
        Ok(Err(error)) => return error.close(&connection),
        Err(_) => return close(&connection, Status::Timeout, "no hello in time"),
    }

    let number = {
        let mut table = shared.table.borrow_mut();
        let number = table.draw_number();
        table.streams.insert(number, Stream::Client(stream.clone()));
        number
    };
    let mut writer = spawn_local(stream.queue.clone().write_to(send));
    let reading = async {
        let read = read_requests(&shared, &stream, number, &mut frames).await;
        if read.is_ok() {
            stream.quiet().await;
        }
        // Ends the writer.
        stream.queue.finish();
        read
    };
    let writer_ended = tokio::select! {
        biased;
        // The client no longer reads, or the stream was finished: nothing could be answered.
        _ = &mut writer => true,
        read = reading => {
            if let Err(error) = read {
                tracing::debug!(remote = %connection.remote_address(), %error, "client's stream lost");
                error.close(&connection);
            }
            false
        }
    };
    if !writer_ended && let Err(error) = writer.await {
        tracing::error!(%error, "a client's writer failed");
    }
    shared.table.borrow_mut().streams.remove(&number);
    shared.answered(stream.in_flight.get());
    stream.ended.notify_one();
}

/// False: refused, and the connection closed.
async fn greet(
    shared: &Shared,
    connection: &quinn::Connection,
    stream: &ClientStream,
    frames: &mut FrameReader,
) -> Result<bool, ReadError> {
    let Some(frame) = frames.next().await? else { return Ok(false) };
    match shared.welcome(&Hello::read(&frame)?) {
        Ok(welcome) => {
            stream.queue.push(|out| welcome.write(out, frame.request_id))?;
            Ok(true)
        }
        Err((status, sentence)) => {
            tracing::info!(remote = %connection.remote_address(), %status, sentence, "client refused");
            close(connection, status, &sentence);
            Ok(false)
        }
    }
}

async fn read_requests(
    shared: &Shared,
    stream: &ClientStream,
    number: u64,
    frames: &mut FrameReader,
) -> Result<(), ReadError> {
    loop {
        stream.admit().await;
        let Some(frame) = frames.next().await? else { return Ok(()) };
        let request = ClientRequest::read(&frame)?;
        stream.in_flight.set(stream.in_flight.get() + 1);
        shared.asked();
        let reply_to = ReplyTo { stream: number, request_id: frame.request_id };
        shared.deliver(Input::ClientRequest { reply_to, request });
        tokio::task::coop::consume_budget().await;
    }
}
