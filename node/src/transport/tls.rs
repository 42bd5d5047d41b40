//! The cluster's certificates, and what nodes and clients demand of each other.
//!
//! Trust is one CA per cluster. A node's certificate carries its id as the DNS name [`node_name`], by which peers check both ends of a
//! connection, and [`ANY_NODE`], by which clients check that they speak with some node of the cluster, whatever its address.

use std::sync::Arc;

use dunlin_protocol::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, version};

/// The protocol that clients ask for.
pub const ALPN_CLIENT: &[u8] = b"dunlin/1";
/// The protocol that nodes ask of each other: only with a certificate of the cluster's CA.
pub const ALPN_PEER: &[u8] = b"dunlin-peer/1";
/// A name that every node's certificate carries.
pub const ANY_NODE: &str = "node.dunlin";

/// The name by which a certificate carries a node's id.
pub fn node_name(node: NodeId) -> String {
    format!("{:016x}.{ANY_NODE}", node.0)
}

/// Why certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text does not hold what it should.
    #[error("no usable {what} in the PEM text: {source}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Why it was not found.
        source: rustls::pki_types::pem::Error,
    },
    /// A CA text without a certificate.
    #[error("the CA's PEM text holds no certificate")]
    NoCa,
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// The certificate is not one of the CA, is outdated, or names another node.
    #[error("the certificate cannot serve node {node} ({}) under this CA: {source}", node_name(*node))]
    NotOurs {
        /// Whom it should name.
        node: NodeId,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A certificate or key that cannot be used.
    #[error("cannot use the certificate or key: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The certificate authority of a cluster, with its private key.
#[derive(Debug)]
pub struct ClusterCa {
    cert_pem: String,
    key: KeyPair,
}

/// A node's certificate and private key as PEM texts.
#[derive(Clone)]
pub struct NodeCert {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key: a secret.
    pub key_pem: String,
}

impl std::fmt::Debug for NodeCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCert").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new authority. It signs only nodes' certificates, never another authority.
    pub fn create() -> Result<Self, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Dunlin cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self { cert_pem, key })
    }

    /// An authority made before, from its certificate and its key.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(key_pem)?;
        Issuer::from_ca_cert_pem(cert_pem, &key)?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key })
    }

    /// The certificate, which nodes and clients trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The private key: a secret.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate for a node that is reached by these host names or IP addresses, besides `localhost` and `127.0.0.1`.
    pub fn issue_node(&self, node: NodeId, hosts: &[String]) -> Result<NodeCert, TlsError> {
        let mut names = vec![node_name(node), ANY_NODE.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        names.extend(hosts.iter().cloned());
        names.sort_unstable();
        names.dedup();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, node_name(node));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, &self.key)?;
        let cert = params.signed_by(&key, &issuer)?;
        Ok(NodeCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// What a node shows and demands on its connections. Cheap to clone.
#[derive(Clone)]
pub struct NodeTls {
    pub(super) server: Arc<QuicServerConfig>,
    pub(super) peer: Arc<QuicClientConfig>,
    /// Secret and stable as long as the node's key is: what identifies this node's packets across restarts is derived from it.
    pub(super) secret: [u8; 32],
}

impl std::fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeTls").finish_non_exhaustive()
    }
}

impl NodeTls {
    /// Reads a node's PEM texts and checks that they fit together and name `node`.
    pub fn new(node: NodeId, ca_pem: &str, cert: &NodeCert) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(ca_pem)?);
        let chain = certificates(&cert.cert_pem, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(cert.key_pem.as_bytes())
            .map_err(|source| TlsError::Pem { what: "private key", source })?;
        let secret = blake3::derive_key("dunlin 2026 packet secrets of a node", key.secret_der());
        let not_ours = |source| TlsError::NotOurs { node, source };

        if let Some((own, intermediates)) = chain.split_first() {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
                .build()
                .map_err(|e| not_ours(rustls::Error::General(e.to_string())))?;
            let name = ServerName::try_from(node_name(node)).expect("a node's name is a DNS name");
            verifier.verify_server_cert(own, intermediates, &name, &[], UnixTime::now()).map_err(not_ours)?;
        }

        // A connection of the client's protocol shows no certificate; one of the peers' protocol that shows none is closed after the
        // handshake, where the reason can be told. A wrong one never completes the handshake.
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| not_ours(rustls::Error::General(e.to_string())))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_CLIENT.to_vec()];
        // Connections live long: resumption would save nothing and keep secrets around.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut peer = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        peer.alpn_protocols = vec![ALPN_PEER.to_vec()];
        peer.resumption = Resumption::disabled();
        let unsuited = |_| rustls::Error::General("the provider lacks QUIC's initial cipher suite".to_owned());
        Ok(Self {
            server: Arc::new(QuicServerConfig::try_from(server).map_err(unsuited)?),
            peer: Arc::new(QuicClientConfig::try_from(peer).map_err(unsuited)?),
            secret,
        })
    }
}

/// What a client that trusts `ca_pem` demands: any node of the cluster, when it connects by the name [`ANY_NODE`].
pub fn client_crypto(ca_pem: &str) -> Result<QuicClientConfig, TlsError> {
    let mut client = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    client.resumption = Resumption::disabled();
    let unsuited = |_| rustls::Error::General("the provider lacks QUIC's initial cipher suite".to_owned());
    Ok(QuicClientConfig::try_from(client).map_err(unsuited)?)
}

/// Whether the connection's other end showed a certificate of our CA that names `node`.
pub(super) fn proves(connection: &quinn::Connection, node: NodeId) -> bool {
    let Some(identity) = connection.peer_identity() else { return false };
    let Ok(chain) = identity.downcast::<Vec<CertificateDer<'static>>>() else { return false };
    let Some(own) = chain.first() else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(own) else { return false };
    ServerName::try_from(node_name(node)).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca_pem, "CA certificate")? {
        roots.add(cert)?;
    }
    if roots.is_empty() { Err(TlsError::NoCa) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_stored_and_loaded_and_its_nodes_fit() {
        let made = ClusterCa::create().expect("made");
        let loaded = ClusterCa::load(made.cert_pem(), &made.key_pem()).expect("loaded");
        let cert = loaded.issue_node(NodeId(7), &["db1.example".to_owned(), "10.0.0.1".to_owned()]).expect("issued");
        NodeTls::new(NodeId(7), made.cert_pem(), &cert).expect("fits");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ca = ClusterCa::create().expect("made");
        let other = ClusterCa::create().expect("made");
        let cert = ca.issue_node(NodeId(7), &[]).expect("issued");
        let stolen = NodeCert { key_pem: other.issue_node(NodeId(7), &[]).expect("issued").key_pem, ..cert.clone() };
        let new = |node, ca: &ClusterCa, cert: &NodeCert| NodeTls::new(NodeId(node), ca.cert_pem(), cert);
        assert!(matches!(new(8, &ca, &cert), Err(TlsError::NotOurs { .. })));
        assert!(matches!(new(7, &other, &cert), Err(TlsError::NotOurs { .. })));
        assert!(matches!(new(7, &ca, &stolen), Err(TlsError::Unusable(_))));
        let empty = NodeCert { cert_pem: String::new(), ..cert.clone() };
        assert!(new(7, &ca, &empty).is_err());
        assert!(matches!(NodeTls::new(NodeId(7), "", &cert), Err(TlsError::NoCa)));
        let garbage = NodeCert { key_pem: "no key".to_owned(), ..cert };
        assert!(matches!(new(7, &ca, &garbage), Err(TlsError::Pem { what: "private key", .. })));
        assert!(matches!(ClusterCa::load("garbage", &ca.key_pem()), Err(TlsError::Issue(_))));
    }
}
