//! What a client demands of a node: a certificate of the cluster's CA.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The name that every node's certificate carries, whatever its address.
pub(crate) const ANY_NODE: &str = "node.dunlin";
const ALPN: &[u8] = b"dunlin/1";

/// A CA's PEM text that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The text is no PEM.
    #[error("the CA's PEM text cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The text holds no certificate.
    #[error("the CA's PEM text holds no certificate")]
    Empty,
    /// The certificate cannot be used.
    #[error("the CA's certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

pub(crate) fn client_crypto(ca_pem: &str) -> Result<QuicClientConfig, CaError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        return Err(CaError::Empty);
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long: resumption would save nothing and keep secrets around.
    config.resumption = Resumption::disabled();
    let unsuited = |_| rustls::Error::General("the provider lacks QUIC's initial cipher suite".to_owned());
    Ok(QuicClientConfig::try_from(config).map_err(unsuited)?)
}
