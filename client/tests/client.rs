//! The client against nodes made of a certificate, a topology and a closure.

mod cluster;

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, Reaction};
use dunlin_client::{Client, ConnectError, Error, Options, Status};
use dunlin_protocol::message::{ClientRequest, EntryView, ReplyBody, ScanCursor, ScanPage};
use dunlin_protocol::{Action, ClusterId, Content, Key, Millis, NodeId, Operation, Outcome, PartitionId, Stamp};

fn outcome(status: Status) -> Reaction {
    Reaction::Answer(ReplyBody::Outcome(Outcome::of(status)))
}

fn operation(request: &ClientRequest) -> &Operation {
    match request {
        ClientRequest::Operate(operation) => operation,
        other => panic!("{other:?} instead of an operation"),
    }
}

#[tokio::test]
async fn requests_are_answered_by_number_and_routed_by_key() {
    let cluster = Cluster::start(3, |_, _, request| {
        let operation = operation(request);
        let value = Content::value(operation.key.to_bytes());
        let version = Stamp::from_bits(7);
        Reaction::Answer(ReplyBody::Outcome(Outcome { content: Some(value), version, ..Outcome::of(Status::Ok) }))
    });
    let client = Client::connect(cluster.options()).await.expect("connected");
    let gets: Vec<_> = (0..200).map(|i| tokio::spawn(client.get(format!("key {i}")).into_future())).collect();
    for (i, get) in gets.into_iter().enumerate() {
        let found = get.await.expect("no panic").expect("answered").expect("found");
        assert_eq!(found.value, format!("key {i}").as_bytes(), "each gets its own answer");
    }
    for (node, request) in cluster.log() {
        let partition =
            cluster.topology.partitioning.partition(operation(&request).keyspace, operation(&request).key.as_bytes());
        let mut replicas = cluster.topology.replicas(operation(&request).keyspace, partition).expect("placed");
        assert!(replicas.any(|m| m.id == node));
    }
    client.close().await;
}

#[tokio::test]
async fn a_lost_connection_leads_to_another_node_under_the_same_id() {
    let cluster = Cluster::start(3, |attempt, _, _| match attempt {
        0 => Reaction::Drop,
        _ => outcome(Status::Ok),
    });
    let client = Client::connect(cluster.options()).await.expect("connected");
    let written = client.put("k", "v").if_absent().await.expect("the second node answers");
    let log = cluster.log();
    let (first, second) = (operation(&log[0].1), operation(&log[1].1));
    assert_eq!(log.len(), 2);
    assert_ne!(log[0].0, log[1].0);
    assert_eq!((first.op_id, second.op_id), (written.op_id, written.op_id));
    assert!(!first.tried && second.tried && second.window.floor == first.window.limit);
}

#[tokio::test]
async fn a_silent_cluster_ends_indefinitely_and_with_what_a_query_needs() {
    let cluster = Cluster::start(2, |_, _, _| Reaction::Silence);
    let client = Client::connect(cluster.options()).await.expect("connected");
    let error = client.put("k", "v").timeout(Duration::from_millis(300)).await.expect_err("no answer");
    let Error::Indefinite { status, op_id, floor, .. } = error else { panic!("{error:?}") };
    assert_eq!(status, Status::Timeout);
    assert!(cluster.log().iter().all(|(_, request)| operation(request).op_id == op_id));
    assert!(floor >= op_id.hlc() && !op_id.is_zero());
}

#[tokio::test]
async fn answers_become_results() {
    let cluster = Cluster::start(1, |_, _, request| match operation(request).key.as_bytes() {
        b"none" => outcome(Status::NotFound),
        b"taken" => Reaction::Answer(ReplyBody::Outcome(Outcome {
            version: Stamp::from_bits(5),
            ..Outcome::of(Status::PreconditionFailed)
        })),
        b"full" => outcome(Status::DiskFull),
        b"lost" => outcome(Status::OutcomeUnknown),
        b"never" => outcome(Status::NotApplied),
        _ => Reaction::Answer(ReplyBody::Outcome(Outcome { number: Some(3), ..Outcome::of(Status::Ok) })),
    });
    let client = Client::connect(cluster.options()).await.expect("connected");
    assert_eq!(client.get("none").await, Ok(None));
    let taken = client.put("taken", "v").if_absent().await;
    assert_eq!(taken, Err(Error::Precondition { current: Stamp::from_bits(5) }));
    let full = client.put("full", "v").await.expect_err("refused");
    assert!(full.status() == Status::DiskFull && !full.is_indefinite());
    assert!(client.increment("lost", 1).await.expect_err("unknown").is_indefinite());
    assert_eq!(client.increment("n", 1).await.expect("applied").number, Some(3));
    // An operation of long ago can be asked for at once.
    assert_eq!(client.outcome("never", Stamp::new(Millis(1), 0, 1)).await, Ok(None));

    for (request, status) in [
        (client.put("", "v"), Status::InvalidKey),
        (client.put(vec![0; 4097], "v"), Status::InvalidKey),
        (client.put("k", vec![0; 5 << 20]), Status::ValueTooLarge),
        (client.put("k", "v").attribute("a", "b".repeat(4097)), Status::InvalidArgument),
        (client.delete("k").ttl(Duration::from_secs(1)), Status::InvalidArgument),
        (client.in_keyspace("nowhere").delete("k"), Status::UnknownKeyspace),
    ] {
        assert_eq!(request.await.expect_err("refused").status(), status);
    }
}

#[tokio::test]
async fn a_scan_goes_on_by_its_cursor_over_empty_pages() {
    let cluster = Cluster::start(2, |_, _, request| {
        let ClientRequest::Scan(scan) = request else { panic!("{request:?} instead of a scan") };
        let at = scan.cursor.as_ref().map_or(0, |cursor| cursor.partition.0);
        let entry = |name: String| EntryView {
            key: Key::new(name).expect("a key"),
            version: Stamp::from_bits(1),
            expires_at: Millis::NONE,
            value_len: 1,
            content: Some(Content::value("v")),
        };
        let entries = if at % 2 == 0 { vec![entry(format!("{at}a")), entry(format!("{at}b"))] } else { Vec::new() };
        let next = (at < 4).then_some(ScanCursor { partition: PartitionId(at + 1), after: None });
        Reaction::Answer(ReplyBody::Page(ScanPage { entries, next }))
    });
    let client = Client::connect(cluster.options()).await.expect("connected");
    for (limit, expected) in [(None, "0a 0b 2a 2b 4a 4b"), (Some(3), "0a 0b 2a"), (Some(0), "")] {
        let mut scan = client.scan();
        if let Some(limit) = limit {
            scan = scan.limit(limit);
        }
        let (mut pages, mut keys) = (scan.pages(), Vec::new());
        while let Some(entries) = pages.next().await.expect("a page") {
            assert!(!entries.is_empty());
            keys.extend(entries.into_iter().map(|entry| entry.key.to_string()));
        }
        assert_eq!(keys.join(" "), expected);
    }
}

#[tokio::test]
async fn what_is_no_node_of_the_cluster_is_refused_with_a_clear_error() {
    let cluster = Cluster::start(1, |_, _, _| outcome(Status::Ok));
    let other = Cluster::start(1, |_, _, _| outcome(Status::Ok));
    let quick = |options| Options { timeout: Duration::from_millis(300), ..options };
    let wrong_ca = Options { ca_pem: other.options().ca_pem, ..cluster.options() };
    let wrong_cluster = Options { cluster: Some(ClusterId(99)), ..cluster.options() };
    let nobody = Options { contact_points: vec!["127.0.0.1:1".to_owned()], ..cluster.options() };
    let no_name = Options { contact_points: vec!["nonsense".to_owned()], ..cluster.options() };
    let no_ca = Options { ca_pem: "no certificate".to_owned(), ..cluster.options() };
    let no_points = Options { contact_points: Vec::new(), ..cluster.options() };
    for (options, status) in [
        (wrong_ca, Status::Unauthenticated),
        (wrong_cluster, Status::ClusterMismatch),
        (nobody, Status::Connect),
        (no_name, Status::InvalidArgument),
        (no_ca, Status::InvalidConfig),
        (no_points, Status::InvalidArgument),
    ] {
        let error: ConnectError = Client::connect(quick(options)).await.expect_err("refused");
        assert_eq!(error.status(), status, "{error}");
    }
    // One good contact point among bad ones is enough.
    let mut options = cluster.options();
    options.contact_points.insert(0, "127.0.0.1:1".to_owned());
    Client::connect(options).await.expect("connected");
}

#[tokio::test]
async fn garbage_is_a_lost_connection_and_no_panic() {
    let cluster = Cluster::start(2, |attempt, _, _| match attempt {
        0 => Reaction::Bytes(Bytes::from_static(&[0xff; 64])),
        1 => Reaction::Answer(ReplyBody::Page(ScanPage { entries: Vec::new(), next: None })),
        _ => outcome(Status::NotFound),
    });
    let client = Client::connect(cluster.options()).await.expect("connected");
    assert_eq!(client.get("k").await, Ok(None));
    assert_eq!(cluster.log().len(), 3);
}

#[tokio::test]
async fn a_newer_topology_is_followed() {
    let cluster =
        Cluster::start(3, |attempt, _, _| if attempt == 0 { outcome(Status::StaleEpoch) } else { outcome(Status::Ok) });
    let client = Client::connect(cluster.options()).await.expect("connected");
    cluster.next_epoch();
    let before = client.topology().epoch;
    client.put("k", "v").await.expect("written");
    assert_eq!(client.topology().epoch.0, before.0 + 1);
    let log = cluster.log();
    assert_eq!(operation(&log[1].1).epoch, client.topology().epoch);
    assert!(matches!(operation(&log[1].1).action, Action::Write { .. }) && !operation(&log[1].1).tried);
    assert_ne!(log[0].0, NodeId(0));
}
