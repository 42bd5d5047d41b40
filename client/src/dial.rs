//! `Dialer`: makes connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dunlin_protocol::{ClusterId, NodeId, Status};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt,
};

use crate::connection::{Connection, GreetError};
use crate::error::ConnectError;
use crate::tls::{ANY_NODE, CaError, client_crypto};

/// A connection on which nothing is heard for so long is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Bytes of replies that may be on their way.
const RECEIVE_WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 8 << 20;
const SEND_WINDOW: u64 = 8 << 20;
const SOCKET_BUFFER: usize = 4 << 20;
/// How long goodbyes may take to leave this machine.
const GOODBYE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Dialer {
    config: ClientConfig,
    /// An endpoint made elsewhere serves all addresses.
    given: Option<Endpoint>,
    v4: OnceLock<Endpoint>,
    v6: OnceLock<Endpoint>,
}

impl Dialer {
    pub(crate) fn new(ca_pem: &str, max_mtu: u16, given: Option<Endpoint>) -> Result<Self, CaError> {
        let mut config = ClientConfig::new(Arc::new(client_crypto(ca_pem)?));
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(max_mtu);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("a few seconds")))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(Duration::from_millis(100))
            .mtu_discovery_config(Some(mtu))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
            .send_window(SEND_WINDOW)
            .datagram_receive_buffer_size(None);
        config.transport_config(Arc::new(transport));
        Ok(Self { config, given, v4: OnceLock::new(), v6: OnceLock::new() })
    }

    /// A connection to whoever listens at `address`, which must be `node` where that is given.
    pub(crate) async fn dial(
        &self,
        address: &str,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
        within: Duration,
    ) -> Result<Connection, ConnectError> {
        let dialing = async {
            let target = resolve(address).await?;
            let endpoint = self.endpoint(target).map_err(ConnectError::Socket)?;
            let untrusted = |reason: String| ConnectError::Untrusted { address: address.to_owned(), reason };
            let connecting =
                endpoint.connect_with(self.config.clone(), target, ANY_NODE).map_err(|e| untrusted(e.to_string()))?;
            let quic = connecting.await.map_err(|e| lost(address, &e))?;
            let connection = Connection::greet(quic, cluster).await.map_err(|error| match error {
                GreetError::Lost(error) => lost(address, &error),
                GreetError::Protocol(source) => ConnectError::Protocol { address: address.to_owned(), source },
            })?;
            match node {
                Some(node) if connection.node != node => Err(ConnectError::OtherNode { address: address.to_owned() }),
                _ => Ok(connection),
            }
        };
        match tokio::time::timeout(within, dialing).await {
            Ok(dialed) => dialed,
            Err(_) => {
                let reason = format!("nothing heard for {} ms", within.as_millis());
                Err(ConnectError::Unreachable { address: address.to_owned(), reason })
            }
        }
    }

    /// Lets what was said last, such as goodbyes, leave. Whether it arrives makes no difference to anybody, so it is not waited for.
    pub(crate) async fn drain(&self) {
        for endpoint in [self.v4.get(), self.v6.get()].into_iter().flatten() {
            // An error says that the time is over.
            let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
        }
    }

    fn endpoint(&self, target: SocketAddr) -> io::Result<Endpoint> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let (slot, local): (_, SocketAddr) = match target {
            SocketAddr::V4(_) => (&self.v4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (&self.v6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        if let Some(endpoint) = slot.get() {
            return Ok(endpoint.clone());
        }
        let socket = UdpSocket::bind(local)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(6_500).map_err(io::Error::other)?;
        let endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?;
        // Two that dial at once may both make one: the first one stays.
        Ok(slot.get_or_init(|| endpoint).clone())
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, ConnectError> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let wrong = |source| ConnectError::Address { address: address.to_owned(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(wrong)?;
    found.next().ok_or_else(|| wrong(io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

fn lost(address: &str, error: &ConnectionError) -> ConnectError {
    let address = address.to_owned();
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            let number = u16::try_from(closed.error_code.into_inner()).ok();
            let message = String::from_utf8_lossy(&closed.reason).into_owned();
            match number.and_then(|number| Status::try_from(number).ok()) {
                Some(status) => ConnectError::Refused { address, status, message },
                None => ConnectError::Unreachable { address, reason: message },
            }
        }
        // TLS alerts: ours about the node's certificate, or the node's about us.
        ConnectionError::TransportError(error) if is_crypto(error.code) => {
            ConnectError::Untrusted { address, reason: error.reason.clone() }
        }
        ConnectionError::ConnectionClosed(closed) if is_crypto(closed.error_code) => {
            ConnectError::Untrusted { address, reason: closed.to_string() }
        }
        ConnectionError::VersionMismatch => {
            let message = "no QUIC version in common".to_owned();
            ConnectError::Refused { address, status: Status::VersionMismatch, message }
        }
        other => ConnectError::Unreachable { address, reason: other.to_string() },
    }
}

fn is_crypto(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
