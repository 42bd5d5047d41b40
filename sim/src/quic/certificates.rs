//! Certificates that are the same in every run.
//!
//! Ed25519, because its signatures all have one size: with ECDSA, whose DER encoding is a byte or two longer now and then, sizes of packets would
//! differ from run to run.

use std::net::IpAddr;

use dunlin_node::transport::tls::{ANY_NODE, NodeCert, NodeTls, TlsError, node_name};
use dunlin_protocol::NodeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

/// What stands before the 32 secret bytes in the PKCS #8 form of an Ed25519 key (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A cluster's certificates.
pub(super) struct Certificates {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn key(number: u8) -> Result<KeyPair, rcgen::Error> {
    let der = [&PKCS8_PREFIX[..], &[number; 32]].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &rcgen::PKCS_ED25519)
}

impl Certificates {
    pub(super) fn new() -> Result<Self, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "simulated CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = key(0xca)?;
        let ca_pem = params.self_signed(&key)?.pem();
        Ok(Self { ca_pem, issuer: Issuer::new(params, key) })
    }

    /// What clients trust.
    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// What a node shows.
    pub(super) fn of_node(&self, node: NodeId, address: IpAddr) -> Result<NodeTls, TlsError> {
        let names = vec![node_name(node), ANY_NODE.to_owned(), address.to_string()];
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, node_name(node));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = key(node.0 as u8)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        NodeTls::new(node, &self.ca_pem, &NodeCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}
