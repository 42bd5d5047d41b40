//! `SimulatedSocket`: quinn's socket over turmoil's.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use dunlin_protocol::Tick;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::Sleep;
use turmoil::net::UdpSocket;

use super::air::{Air, Site, address_of};

/// The time at which the receiver may see a packet stands before it.
const MARK: usize = 8;
const LARGEST: usize = 2048;

/// The time since the simulation began. Only within it.
pub(super) fn now() -> Tick {
    let elapsed = turmoil::sim_elapsed().expect("only what runs inside the simulation asks for its time");
    Tick(0) + elapsed
}

/// The air, for whoever sends.
pub(super) type SharedAir = Arc<Mutex<Air>>;

pub(super) fn lock(air: &SharedAir) -> MutexGuard<'_, Air> {
    air.lock().expect("nobody panics while it holds the air")
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Packets that have come and may not be seen yet.
#[derive(Default)]
struct Inbox {
    /// In progress, it holds the socket's lock: nothing can be received before it is done.
    readable: Option<Readable>,
    waiting: BinaryHeap<Reverse<Packet>>,
    arrived: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Tick,
    number: u64,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// A socket whose packets go through the air.
pub(super) struct SimulatedSocket {
    site: Site,
    udp: Arc<UdpSocket>,
    air: SharedAir,
    inbox: Mutex<Inbox>,
}

impl fmt::Debug for SimulatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedSocket").field("site", &self.site).finish_non_exhaustive()
    }
}

impl SimulatedSocket {
    /// Binds a site's socket. Only on the machine that the site is on.
    pub(super) async fn bind(site: Site, air: SharedAir) -> io::Result<Arc<Self>> {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address_of(site).port())).await?;
        Ok(Arc::new(Self { site, udp: Arc::new(udp), air, inbox: Mutex::default() }))
    }

    /// Takes in what turmoil has for us, until it has nothing more and will wake us.
    fn gather(&self, inbox: &mut Inbox, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let readable = inbox.readable.get_or_insert_with(|| {
                let udp = self.udp.clone();
                Box::pin(async move { udp.readable().await })
            });
            match readable.as_mut().poll(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(ready) => {
                    inbox.readable = None;
                    ready?;
                }
            }
            let mut buffer = [0; LARGEST];
            loop {
                let (len, from) = match self.udp.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let (mark, bytes) = buffer[..len].split_first_chunk::<MARK>().expect("every packet is marked");
                inbox.arrived += 1;
                let packet =
                    Packet { due: Tick(u64::from_le_bytes(*mark)), number: inbox.arrived, from, bytes: bytes.to_vec() };
                inbox.waiting.push(Reverse(packet));
            }
        }
    }
}

impl AsyncUdpSocket for SimulatedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let arrivals = lock(&self.air).carry(now(), self.site, transmit.destination, transmit.contents);
        for arrival in arrivals.into_iter().flatten() {
            let packet = [&arrival.due.0.to_le_bytes()[..], &arrival.bytes].concat();
            self.udp.try_send_to(&packet, transmit.destination)?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let inbox = &mut *self.inbox.lock().expect("nobody panics while it holds the inbox");
        self.gather(inbox, context)?;
        loop {
            let now = now();
            let mut count = 0;
            while count < buffers.len().min(meta.len())
                && let Some(Reverse(first)) = inbox.waiting.peek()
                && first.due <= now
            {
                let Reverse(packet) = inbox.waiting.pop().expect("there is a first one");
                let len = packet.bytes.len();
                buffers[count][..len].copy_from_slice(&packet.bytes);
                meta[count] = RecvMeta { addr: packet.from, len, stride: len, ecn: None, dst_ip: None };
                count += 1;
                lock(&self.air).took(now, self.site, len);
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            let Some(Reverse(first)) = inbox.waiting.peek() else {
                inbox.timer = None;
                return Poll::Pending;
            };
            let due = tokio::time::Instant::now() + first.due.since(now);
            let timer = inbox.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            inbox.timer = None;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address_of(self.site))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
