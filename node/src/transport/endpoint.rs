//! One QUIC endpoint a node: its socket, its settings, and what must stay the same across restarts.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::BootNumber;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, MtuDiscoveryConfig, Runtime,
    TokioRuntime, TransportConfig, VarInt,
};

use super::tls::NodeTls;

/// The largest [`TransportSettings::max_mtu`]: segmentation offload sends ten packets at once, the kernel refuses batches of more than 64 KiB, and
/// quinn-udp does not tell, so that a larger MTU stalls for ever.
pub const LARGEST_MTU: u16 = 6_500;
/// The MTU that fits Ethernet and most tunnels.
pub const ETHERNET_MTU: u16 = 1_452;

/// How connections behave. The defaults suit a LAN and most WANs.
#[derive(Clone, Debug)]
pub struct TransportSettings {
    /// A connection on which nothing is heard for so long is lost.
    pub idle_timeout: Duration,
    /// A packet at least this often to peers; below half of `idle_timeout`.
    pub keep_alive: Duration,
    /// The largest UDP payload tried, 1,200 to [`LARGEST_MTU`]; more than [`ETHERNET_MTU`] pays on loopback only.
    pub max_mtu: u16,
    /// How long the first attempts to connect to a peer wait for it; later ones wait twice as long.
    pub connect_attempt: Duration,
    /// Client connections at a time; more are refused.
    pub max_clients: usize,
    /// Seeds quinn's generator: for simulations only.
    pub rng_seed: Option<[u8; 32]>,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(1),
            max_mtu: ETHERNET_MTU,
            connect_attempt: Duration::from_millis(500),
            max_clients: 4_096,
            rng_seed: None,
        }
    }
}

/// Where packets come from and go to.
#[derive(Debug)]
pub enum Socket {
    /// The operating system's, driven by tokio.
    Std(UdpSocket),
    /// Anything else: the simulator's.
    Abstract(Arc<dyn AsyncUdpSocket>, Arc<dyn Runtime>),
}

impl Socket {
    /// Binds a UDP socket with large buffers, as far as the kernel grants them.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where the port is taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        const BUFFER_BYTES: usize = 4 << 20;
        let socket = UdpSocket::bind(address)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES)?;
        Ok(Self::Std(socket))
    }
}

/// Bytes of a peer's frames that may be on their way to us on one stream.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same on all streams of a connection: of clients, of which there may be many, and of peers.
const CLIENT_WINDOW: u32 = 4 << 20;
pub(super) const PEER_WINDOW: u32 = 16 << 20;
const SEND_WINDOW: u64 = 8 << 20;
/// Streams that a connection may have open at a time.
const MAX_STREAMS: u32 = 64;

pub(super) fn open(
    socket: Socket,
    tls: &NodeTls,
    boot: BootNumber,
    settings: &TransportSettings,
) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(blake3::derive_key("dunlin reset key", &tls.secret))));
    let ids = ConnectionIds { key: blake3::derive_key("dunlin connection ids", &tls.secret), boot, drawn: 0 };
    config.cid_generator(move || Box::new(ids.clone()));
    config.rng_seed(settings.rng_seed);
    let mtu = settings.max_mtu.clamp(1_200, LARGEST_MTU);
    config.max_udp_payload_size(mtu.max(1_472)).map_err(io::Error::other)?;

    let mut server = quinn::ServerConfig::with_crypto(tls.server.clone());
    server.transport_config(Arc::new(transport(settings)?)).max_incoming(1_024);
    match socket {
        Socket::Std(socket) => Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime)),
        Socket::Abstract(socket, runtime) => Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime),
    }
}

pub(super) fn dial_config(tls: &NodeTls, settings: &TransportSettings) -> io::Result<quinn::ClientConfig> {
    let mut config = quinn::ClientConfig::new(tls.peer.clone());
    let mut transport = transport(settings)?;
    // Whoever dials keeps alive; the answers keep the other side's timer running. Idle clients are not kept awake.
    transport.receive_window(VarInt::from_u32(PEER_WINDOW)).keep_alive_interval(Some(settings.keep_alive));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport(settings: &TransportSettings) -> io::Result<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(settings.max_mtu.clamp(1_200, LARGEST_MTU));
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(settings.idle_timeout.try_into().map_err(io::Error::other)?))
        .initial_rtt(Duration::from_millis(100))
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CLIENT_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(256 << 10))
        .datagram_send_buffer_size(256 << 10);
    Ok(config)
}

/// Signs stateless resets: with a key that outlives the process, peers notice a restart at their next packet instead of at the idle timeout.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let given: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        // blake3::Hash compares in constant time.
        if expected == given { Ok(()) } else { Err(CryptoError) }
    }
}

/// Draws connection ids that no life of the node repeats, without a random generator, so that a simulated run repeats itself to the byte.
/// Packets with ids of an earlier life are answered with a reset.
#[derive(Clone)]
struct ConnectionIds {
    key: [u8; 32],
    boot: BootNumber,
    drawn: u64,
}

impl ConnectionIds {
    const LEN: usize = 8;
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.boot.0.to_le_bytes());
        seed[8..].copy_from_slice(&self.drawn.to_le_bytes());
        self.drawn += 1;
        ConnectionId::new(&blake3::keyed_hash(&self.key, &seed).as_bytes()[..Self::LEN])
    }

    fn cid_len(&self) -> usize {
        Self::LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
