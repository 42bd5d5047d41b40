//! Whoever does not belong to the cluster gets nowhere, and harms nobody on the way.

use std::net::UdpSocket;

use bytes::BytesMut;
use dunlin_node::transport::refusal;
use dunlin_node::transport::tls::ClusterCa;
use dunlin_node::{Input, Outbox};
use dunlin_protocol::frame::HEADER_LEN;
use dunlin_protocol::message::{ClientRequest, Hello, PeerReplyBody, PeerRequest, Version};
use dunlin_protocol::{BootNumber, ClusterId, NodeId, Status};

use super::transport::{Asker, CLUSTER, Node, client, dial_raw, not_found, pair, raw_connection, run, say_hello};

#[test]
fn strangers_are_refused_with_a_reason() {
    run(async {
        let (mut a, b, ca) = pair().await;
        let hello = |cluster: ClusterId, node: u64| Hello::new(Some(cluster), Some((NodeId(node), BootNumber(1))));
        let cert = ca.issue_node(NodeId(5), &[]).expect("issued");

        let nobody = raw_connection(&ca, None, b"dunlin-peer/1", a.address()).await;
        let refused = refusal(&nobody.closed().await).expect("a status");
        assert_eq!(refused.0, Status::Unauthenticated);

        let cases = [
            (hello(ClusterId(1), 5), Status::ClusterMismatch),
            (hello(CLUSTER, 6), Status::Unauthenticated),
            (Hello::new(Some(CLUSTER), None), Status::Unauthenticated),
            (Hello { versions: (Version(70), Version(71)), ..hello(CLUSTER, 5) }, Status::VersionMismatch),
        ];
        for (hello, expected) in cases {
            let connection = dial_raw(&ca, &cert, a.address()).await;
            let (status, sentence) = say_hello(&connection, hello, 1).await;
            assert_eq!(status, expected, "{sentence}");
        }
        let own_id = dial_raw(&ca, &ca.issue_node(a.id, &[]).expect("issued"), a.address()).await;
        assert_eq!(say_hello(&own_id, hello(CLUSTER, 1), 1).await.0, Status::IdentityMismatch);

        let client_of_another = client(&ca, a.address()).await;
        let (status, _) = say_hello(&client_of_another, Hello::new(Some(ClusterId(1)), None), 1).await;
        assert_eq!(status, Status::ClusterMismatch);

        assert_eq!(a.ask(b.id, 9, &PeerRequest::Ping).await, PeerReplyBody::Pong);
    });
}

#[test]
fn a_node_of_another_authority_gets_nowhere() {
    run(async {
        let (mut a, b, ca) = pair().await;
        let other = ClusterCa::create().expect("made");
        let stranger = Node::start(&other, CLUSTER, 3, 1);
        stranger.wants(&[&a]);
        a.wants(&[&b, &stranger]);
        // One that trusts our authority but shows another one's certificate is refused during the handshake.
        let cert = other.issue_node(NodeId(4), &[]).expect("issued");
        let connection = dial_raw(&ca, &cert, a.address()).await;
        let closed = connection.closed().await;
        assert!(matches!(closed, quinn::ConnectionError::ConnectionClosed(_)), "{closed}");
        for id in 0..10 {
            assert_eq!(a.ask(b.id, id, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        }
        assert_eq!(a.transport.connected_peers(), [(b.id, BootNumber(1))]);
        assert_eq!(stranger.transport.connected_peers(), []);
    });
}

#[test]
fn garbage_closes_only_the_connection_that_it_came_on() {
    run(async {
        let (mut a, b, ca) = pair().await;
        let checksum = {
            let mut out = BytesMut::new();
            ClientRequest::Status.write(&mut out, 1).expect("small");
            out[0] ^= 1;
            out
        };
        let wrong_kind = {
            let mut out = BytesMut::new();
            PeerRequest::Ping.write(&mut out, 1).expect("small");
            out
        };
        for garbage in [&b"GET / HTTP/1.1\r\nHost: dunlin\r\n\r\n"[..], &[0xff; HEADER_LEN], &checksum, &wrong_kind] {
            // As a hello, and behind a good one.
            let connection = client(&ca, a.address()).await;
            let (mut send, _recv) = connection.open_bi().await.expect("open");
            send.write_all(garbage).await.expect("written");
            assert_eq!(refusal(&connection.closed().await).expect("a status").0, Status::BadFrame);

            let connection = client(&ca, a.address()).await;
            let mut asker = Asker::open(&connection).await;
            asker.send.write_all(garbage).await.expect("written");
            assert_eq!(refusal(&connection.closed().await).expect("a status").0, Status::BadFrame);
        }

        // A member that has lost its mind.
        let cert = ca.issue_node(NodeId(5), &[]).expect("issued");
        let connection = dial_raw(&ca, &cert, a.address()).await;
        let mut out = BytesMut::new();
        Hello::new(Some(CLUSTER), Some((NodeId(5), BootNumber(1)))).write(&mut out, 0).expect("small");
        let (mut small, _r) = connection.open_bi().await.expect("open");
        let (mut bulk, _r) = connection.open_bi().await.expect("open");
        small.write_all(&out).await.expect("written");
        bulk.write_all(&out).await.expect("written");
        a.connected(NodeId(5), 1).await;
        small.write_all(&[0xff; 100]).await.expect("written");
        assert_eq!(refusal(&connection.closed().await).expect("a status").0, Status::BadFrame);
        while !matches!(a.next().await, Input::PeerLost { node: NodeId(5) }) {}

        // Not even QUIC.
        let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("bound");
        for len in 0..1_200usize {
            let packet: Vec<u8> = (0..len).map(|i| (i * 31 + len * 7) as u8).collect();
            socket.send_to(&packet, a.address()).expect("sent");
            if len % 100 == 0 {
                assert_eq!(a.ask(b.id, len as u64, &PeerRequest::Ping).await, PeerReplyBody::Pong);
            }
        }
        a.transport.datagram(b.id, &[0xff; 60_000]);
        assert_eq!(a.ask(b.id, 9, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        let mut asker = Asker::open(&client(&ca, a.address()).await).await;
        assert_eq!(asker.ask(1, &ClientRequest::Status).await, not_found());
    });
}
