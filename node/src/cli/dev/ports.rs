//! Which ports a dev cluster takes.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use dunlin_protocol::Status;

use crate::cli::failure::Failure;

/// The first node's port, where nothing else is asked for.
pub(super) const DEFAULT: u16 = 7400;
/// Beside its QUIC port (UDP), each node has one for HTTP and one for Redis' protocol (TCP), so far above it.
const TCP_OFFSETS: [u16; 2] = [80, 200];
/// `auto` tries bases in steps of this, so that two clusters' ports do not interleave.
const STEP: u16 = 300;

/// Whether all ports of so many nodes from a base are free; the first that is not, and why.
pub(super) type Probe = fn(u16, u8) -> Result<(), (u16, io::Error)>;

/// A base from which all ports of `nodes` nodes are free.
pub(super) fn find(probe: Probe, nodes: u8) -> Result<u16, Failure> {
    let bases = (DEFAULT..u16::MAX - STEP).step_by(STEP.into());
    bases
        .into_iter()
        .find(|base| probe(*base, nodes).is_ok())
        .ok_or_else(|| Failure::new(Status::AddressInUse, format!("no ports are free for {nodes} nodes")))
}

/// Checks that all ports from `base` are free.
pub(super) fn check(probe: Probe, base: u16, nodes: u8) -> Result<(), Failure> {
    probe(base, nodes).map_err(|(port, error)| {
        let message = format!("port {port} of 127.0.0.1 cannot be used: {error}. {}", Status::AddressInUse.sentence());
        Failure::new(Status::AddressInUse, message)
    })
}

/// Asks this machine.
pub(super) fn probe(base: u16, nodes: u8) -> Result<(), (u16, io::Error)> {
    for i in 0..u16::from(nodes) {
        let port = base.saturating_add(i);
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).map_err(|e| (port, e))?;
        for offset in TCP_OFFSETS {
            let port = port.saturating_add(offset);
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|e| (port, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(base: u16, nodes: u8) -> Result<(), (u16, io::Error)> {
        let port = DEFAULT + 1;
        if (base..base + u16::from(nodes)).contains(&port) {
            Err((port, io::ErrorKind::AddrInUse.into()))
        } else {
            Ok(())
        }
    }

    #[test]
    fn a_taken_port_is_named_and_auto_goes_around_it() {
        let failure = check(taken, DEFAULT, 3).expect_err("taken");
        assert_eq!(failure.status, Status::AddressInUse);
        assert!(failure.message.contains("port 7401 "), "{failure}");
        assert_eq!(find(taken, 3).ok(), Some(DEFAULT + STEP));
        assert_eq!(find(taken, 1).ok(), Some(DEFAULT));
        assert!(find(|base, _| Err((base, io::ErrorKind::AddrInUse.into())), 1).is_err());
    }

    #[test]
    fn a_port_in_use_is_found_out() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("any port");
        let port = socket.local_addr().expect("bound").port();
        let (found, error) = probe(port, 1).expect_err("taken");
        assert_eq!((found, error.kind()), (port, io::ErrorKind::AddrInUse));
    }
}
