//! `Connection`: one QUIC connection to a node, with two long-lived streams on which requests and replies are matched by number.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use dunlin_protocol::frame::{Frame, FrameError, read_frame};
use dunlin_protocol::message::{ClientReply, ClientRequest, Hello, Opcode, Welcome};
use dunlin_protocol::{ClusterId, NodeId, Operation, Status};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, oneshot};

use crate::error::ProtocolError;

/// Requests up to this size go on the first stream, where no large one is before them.
const SMALL_BYTES: usize = 64 << 10;
/// At most so much goes into one write, unless a single frame is larger.
const WRITE_BYTES: usize = 32 << 10;

/// A connection that has greeted. Closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) node: NodeId,
    quic: quinn::Connection,
    next_id: AtomicU64,
    small: Arc<Lane>,
    large: Arc<Lane>,
}

/// The connection is gone: nothing was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed;

/// Why greeting failed.
#[derive(Debug)]
pub(crate) enum GreetError {
    Lost(quinn::ConnectionError),
    Protocol(ProtocolError),
}

impl Connection {
    /// Opens the streams of a fresh connection and greets.
    pub(crate) async fn greet(quic: quinn::Connection, cluster: Option<ClusterId>) -> Result<Self, GreetError> {
        let lost = |_| GreetError::Lost(quic.close_reason().unwrap_or(quinn::ConnectionError::LocallyClosed));
        let hello = Hello::new(cluster, None);
        let mut streams = Vec::with_capacity(2);
        for _ in 0..2 {
            let (mut send, recv) = quic.open_bi().await.map_err(GreetError::Lost)?;
            let mut out = BytesMut::new();
            hello.write(&mut out, 0).map_err(|e| GreetError::Protocol(e.into()))?;
            send.write_all(&out).await.map_err(|_| ()).map_err(lost)?;
            streams.push((send, FrameReader::new(recv)));
        }
        let mut welcome = None;
        for (_, reader) in &mut streams {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(ReadError::Lost) => return Err(lost(())),
                Err(ReadError::Frame(error)) => return Err(GreetError::Protocol(error.into())),
            };
            welcome = Some(Welcome::read(&frame).map_err(|e| GreetError::Protocol(e.into()))?);
        }
        let welcome = welcome.expect("two streams were greeted");
        let mut lanes = streams.into_iter().map(|(send, reader)| Lane::start(quic.clone(), send, reader));
        let (small, large) = (lanes.next().expect("the first of two"), lanes.next().expect("the second of two"));
        Ok(Self { node: welcome.node, quic, next_id: AtomicU64::new(1), small, large })
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// Queues an operation.
    pub(crate) fn operate(&self, operation: &Operation) -> Result<PendingReply, Closed> {
        let size = match &operation.action {
            dunlin_protocol::Action::Write { mutation: dunlin_protocol::Mutation::Put { value, .. }, .. } => {
                value.len()
            }
            _ => 0,
        };
        self.queue(if size > SMALL_BYTES { &self.large } else { &self.small }, |out, id| {
            dunlin_protocol::frame::write_frame(out, Opcode::ClientOperate, id, |out| {
                dunlin_protocol::codec::encode_body(out, operation);
            })
        })
    }

    /// Queues another request.
    pub(crate) fn ask(&self, request: &ClientRequest) -> Result<PendingReply, Closed> {
        self.queue(&self.small, |out, id| request.write(out, id))
    }

    /// Ends the connection in order.
    pub(crate) fn close(&self) {
        self.quic.close(VarInt::from_u32(0), b"done");
    }

    fn queue(
        &self,
        lane: &Arc<Lane>,
        write: impl FnOnce(&mut BytesMut, u64) -> Result<(), FrameError>,
    ) -> Result<PendingReply, Closed> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let mut state = lane.state();
        if state.ended {
            return Err(Closed);
        }
        // What a caller asks was checked to fit a frame, so this is our own fault, and nothing was sent.
        write(&mut state.out, id).map_err(|_| Closed)?;
        state.pending.insert(id, sender);
        drop(state);
        lane.changed.notify_one();
        Ok(PendingReply { id, lane: lane.clone(), receiver })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// The answer that is to come. An error says that the connection was lost.
#[derive(Debug)]
pub(crate) struct PendingReply {
    id: u64,
    lane: Arc<Lane>,
    receiver: oneshot::Receiver<ClientReply>,
}

impl Future for PendingReply {
    type Output = Result<ClientReply, Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.receiver).poll(context));
        Poll::Ready(reply.map_err(|_| Closed))
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if !self.receiver.is_terminated() {
            self.lane.state().pending.remove(&self.id);
        }
    }
}

/// One stream: requests that wait to be written, and those that wait for their answers.
#[derive(Debug)]
struct Lane {
    state: Mutex<LaneState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct LaneState {
    out: BytesMut,
    pending: BTreeMap<u64, oneshot::Sender<ClientReply>>,
    ended: bool,
}

impl Lane {
    fn start(quic: quinn::Connection, send: SendStream, reader: FrameReader) -> Arc<Self> {
        let lane = Arc::new(Self { state: Mutex::default(), changed: Notify::new() });
        let (writing, reading) = (lane.clone(), lane.clone());
        tokio::spawn(async move { writing.write(send).await });
        tokio::spawn(async move {
            let reason = reading.read(reader).await;
            if let Some(reason) = reason {
                tracing::debug!(remote = %quic.remote_address(), reason, "a connection ends");
                quic.close(VarInt::from_u32(u32::from(u16::from(Status::BadFrame))), reason.as_bytes());
            } else {
                quic.close(VarInt::from_u32(0), b"");
            }
            reading.end();
        });
        lane
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that still waits for an answer learns that none will come.
    fn end(&self) {
        let pending = {
            let mut state = self.state();
            state.ended = true;
            state.out = BytesMut::new();
            std::mem::take(&mut state.pending)
        };
        drop(pending);
        self.changed.notify_one();
    }

    /// Writes what has gathered, as one piece, until the stream is gone.
    async fn write(&self, mut send: SendStream) {
        loop {
            let chunk = {
                let mut state = self.state();
                if state.ended {
                    return;
                }
                let len = state.out.len().min(WRITE_BYTES);
                state.out.split_to(len).freeze()
            };
            if chunk.is_empty() {
                self.changed.notified().await;
            } else if send.write_chunk(chunk).await.is_err() {
                // The reader sees the same, and ends the lane.
                return;
            }
        }
    }

    /// Hands replies to those who wait for them. Gives back why the node cannot be understood; none: the stream is gone.
    async fn read(&self, mut reader: FrameReader) -> Option<String> {
        loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(ReadError::Lost) => return None,
                Err(ReadError::Frame(error)) => return Some(error.to_string()),
            };
            let reply = match ClientReply::read(&frame) {
                Ok(reply) => reply,
                Err(error) => return Some(error.to_string()),
            };
            let asker = self.state().pending.remove(&frame.request_id);
            if let Some(asker) = asker {
                // Whoever asked may have gone meanwhile.
                let _ = asker.send(reply);
            }
        }
    }
}

enum ReadError {
    Lost,
    Frame(FrameError),
}

/// Reads the frames of one stream.
struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    chunks: [Bytes; 16],
}

impl FrameReader {
    fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), chunks: Default::default() }
    }

    /// The next frame; none: the stream ended.
    async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = read_frame(&mut self.buffer).map_err(ReadError::Frame)? {
                return Ok(Some(frame));
            }
            let Some(count) = self.stream.read_chunks(&mut self.chunks).await.map_err(|_| ReadError::Lost)? else {
                return Ok(None);
            };
            for chunk in &mut self.chunks[..count] {
                self.buffer.extend_from_slice(&std::mem::take(chunk));
            }
        }
    }
}
