//! Frames on a QUIC stream: read one by one, and written from a queue that gathers while a write is under way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use dunlin_protocol::Status;
use dunlin_protocol::codec::DecodeError;
use dunlin_protocol::frame::{Frame, FrameError, read_frame};
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::Notify;

/// At most so much goes into one write, unless a single frame is larger.
const WRITE_BYTES: usize = 32 << 10;

/// Why a stream's frames cannot be read further.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the stream ends within a frame")]
    Truncated,
    #[error(transparent)]
    Lost(#[from] quinn::ReadError),
}

impl ReadError {
    /// Closes the connection with the reason, unless it or the stream is gone already.
    pub(super) fn close(&self, connection: &quinn::Connection) {
        if !matches!(self, Self::Lost(_)) {
            close(connection, Status::BadFrame, &self.to_string());
        }
    }
}

/// Closes a connection; the other end sees the status as application error code.
pub(super) fn close(connection: &quinn::Connection, status: Status, reason: &str) {
    connection.close(VarInt::from_u32(u32::from(u16::from(status))), reason.as_bytes());
}

/// Reads the frames of one stream.
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    chunks: [Bytes; 32],
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), chunks: Default::default() }
    }

    /// The next frame; none: the stream ended between two.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = read_frame(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let Some(count) = self.stream.read_chunks(&mut self.chunks).await? else {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Truncated) };
            };
            for chunk in &mut self.chunks[..count] {
                self.buffer.extend_from_slice(&std::mem::take(chunk));
            }
        }
    }
}

/// The frames that wait to be written to one stream. Pushing never waits; whoever pushes looks at [`len`](Self::len) first.
#[derive(Default)]
pub(super) struct SendQueue {
    buffer: RefCell<BytesMut>,
    /// Something to write, or to finish.
    changed: Notify,
    /// Everything was handed to QUIC.
    drained: Notify,
    finishing: Cell<bool>,
}

impl SendQueue {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.buffer.borrow().len()
    }

    /// Appends what `write` writes and gives back how many bytes that is.
    pub(super) fn push(
        &self,
        write: impl FnOnce(&mut BytesMut) -> Result<(), FrameError>,
    ) -> Result<usize, FrameError> {
        let mut buffer = self.buffer.borrow_mut();
        let before = buffer.len();
        if before == 0 && buffer.capacity() < 4 << 10 {
            buffer.reserve(WRITE_BYTES);
        }
        write(&mut buffer)?;
        self.changed.notify_one();
        Ok(buffer.len() - before)
    }

    /// Takes back the last `len` bytes, which have just been pushed.
    pub(super) fn split_last(&self, len: usize) -> BytesMut {
        let mut buffer = self.buffer.borrow_mut();
        let at = buffer.len() - len;
        buffer.split_off(at)
    }

    /// Appends whole frames.
    pub(super) fn append(&self, frames: BytesMut) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            *buffer = frames;
        } else {
            buffer.extend_from_slice(&frames);
        }
        self.changed.notify_one();
    }

    /// Lets the stream end in order once everything is written.
    pub(super) fn finish(&self) {
        self.finishing.set(true);
        self.changed.notify_one();
    }

    /// Waits until at most `len` bytes wait.
    pub(super) async fn below(&self, len: usize) {
        while self.len() > len {
            self.drained.notified().await;
        }
    }

    /// Writes to the stream whatever is pushed, until [`finish`](Self::finish) and the peer's acknowledgement, or until the stream is lost.
    pub(super) async fn write_to(self: Rc<Self>, mut stream: SendStream) -> Result<(), WriteError> {
        loop {
            let chunk = {
                let mut buffer = self.buffer.borrow_mut();
                let len = buffer.len().min(WRITE_BYTES);
                buffer.split_to(len).freeze()
            };
            if !chunk.is_empty() {
                stream.write_chunk(chunk).await?;
                self.drained.notify_one();
            } else if self.finishing.get() {
                if stream.finish().is_ok() {
                    // An error here is a lost connection: there is nothing left to do on this stream either way.
                    let _ = stream.stopped().await;
                }
                return Ok(());
            } else {
                self.changed.notified().await;
            }
        }
    }
}
