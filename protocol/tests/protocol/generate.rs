//! Strategies for everything that travels.

use bytes::Bytes;
use dunlin_protocol::message::{
    ClientReply, ClientRequest, EntryView, Hello, NodeSummary, PageEntry, PeerReply, PeerReplyBody, PeerRequest,
    RegisterCall, ReplicaPage, ReplicaScan, ReplyBody, ScanCursor, ScanPage, ScanRequest, Version, Welcome,
};
use dunlin_protocol::register::{PendingView, RecordView, RegisterReply, RegisterRequest, View, Want};
use dunlin_protocol::{
    Action, Ancestor, Attributes, BootNumber, ClusterId, Condition, Content, Counts, DataId, Epoch, Key, KeyspaceId,
    Level, Millis, Mutation, NodeId, Operation, Outcome, PartitionId, Record, Stamp, Status, Window,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

pub(crate) fn stamp() -> impl Strategy<Value = Stamp> {
    prop_oneof![Just(Stamp::ZERO), any::<u128>().prop_map(Stamp::from_bits)]
}

fn millis() -> impl Strategy<Value = Millis> {
    any::<u64>().prop_map(Millis)
}

fn key() -> impl Strategy<Value = Key> {
    vec(any::<u8>(), 1..40).prop_map(|bytes| Key::new(bytes).expect("neither empty nor too long"))
}

fn keyspace() -> impl Strategy<Value = KeyspaceId> {
    any::<u32>().prop_map(KeyspaceId)
}

fn partition() -> impl Strategy<Value = PartitionId> {
    any::<u16>().prop_map(PartitionId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn status() -> impl Strategy<Value = Status> {
    select(Status::ALL)
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![
        (1u8..).prop_map(|n| Level::Count(n.try_into().expect("above 0"))),
        Just(Level::Quorum),
        Just(Level::All),
        Just(Level::Serial),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    vec((".{0,8}", ".{0,8}"), 0..3).prop_map(Attributes)
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![Just(Content::Tombstone), (bytes(), attributes()).prop_map(|(b, a)| Content::Value(b, a))]
}

fn ancestor() -> impl Strategy<Value = Ancestor> {
    (stamp(), stamp()).prop_map(|(op_id, stamp)| Ancestor { op_id, stamp })
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    (stamp(), stamp(), stamp(), millis(), vec(ancestor(), 0..4), content()).prop_map(
        |(stamp, op_id, reach, expires_at, lineage, content)| Record {
            stamp,
            op_id,
            reach,
            expires_at,
            lineage,
            content,
        },
    )
}

fn record_view() -> impl Strategy<Value = RecordView> {
    (record(), any::<bool>(), any::<bool>()).prop_map(|(record, lineage, content)| {
        let whole = RecordView::from(record);
        RecordView {
            head: whole.head,
            lineage: whole.lineage.filter(|_| lineage),
            content: whole.content.filter(|_| content),
        }
    })
}

fn view() -> impl Strategy<Value = View> {
    let pending = (stamp(), record_view()).prop_map(|(ballot, record)| PendingView { ballot, record });
    (record_view(), stamp(), stamp(), option::of(pending)).prop_map(|(record, ballot, promised, pending)| View {
        record,
        ballot,
        promised,
        pending,
    })
}

fn want() -> impl Strategy<Value = Want> {
    (any::<bool>(), any::<u32>()).prop_map(|(lineage, value_upto)| Want { lineage, value_upto })
}

pub(crate) fn register_request() -> impl Strategy<Value = RegisterRequest> {
    prop_oneof![
        want().prop_map(|want| RegisterRequest::Read { want }),
        record().prop_map(|record| RegisterRequest::Write { record }),
        (stamp(), want()).prop_map(|(ballot, want)| RegisterRequest::Prepare { ballot, want }),
        (stamp(), record(), stamp()).prop_map(|(ballot, record, next)| RegisterRequest::Accept {
            ballot,
            record,
            next
        }),
        (stamp(), stamp(), option::of(record())).prop_map(|(ballot, stamp, record)| RegisterRequest::Commit {
            ballot,
            stamp,
            record
        }),
        (stamp(), record()).prop_map(|(ballot, record)| RegisterRequest::Install { ballot, record }),
        (stamp(), stamp(), millis()).prop_map(|(ballot, stamp, started_at)| RegisterRequest::Drop {
            ballot,
            stamp,
            started_at
        }),
    ]
}

fn register_reply() -> impl Strategy<Value = RegisterReply> {
    prop_oneof![
        view().prop_map(RegisterReply::View),
        view().prop_map(RegisterReply::Promise),
        stamp().prop_map(|max| RegisterReply::Reject { max }),
        stamp().prop_map(|stamp| RegisterReply::Written { stamp }),
        stamp().prop_map(|seen| RegisterReply::Refused { seen }),
        select(vec![
            RegisterReply::Accepted,
            RegisterReply::Committed,
            RegisterReply::NeedRecord,
            RegisterReply::Installed,
            RegisterReply::Unsettled,
            RegisterReply::Dropped,
            RegisterReply::NotDropped,
        ]),
    ]
}

fn register_call() -> impl Strategy<Value = RegisterCall> {
    (keyspace(), partition(), key(), epoch(), millis(), register_request()).prop_map(
        |(keyspace, partition, key, epoch, deadline, request)| RegisterCall {
            keyspace,
            partition,
            key,
            epoch,
            deadline,
            request,
        },
    )
}

fn replica_scan() -> impl Strategy<Value = ReplicaScan> {
    let range = (partition(), partition(), option::of(key()), bytes(), bytes(), bytes());
    (keyspace(), epoch(), millis(), range, any::<u32>(), any::<u32>(), want()).prop_map(
        |(keyspace, epoch, deadline, (first, last, after, prefix, start, end), limit, limit_bytes, want)| ReplicaScan {
            keyspace,
            epoch,
            deadline,
            first,
            last,
            after,
            prefix,
            start,
            end,
            limit,
            limit_bytes,
            want,
        },
    )
}

pub(crate) fn peer_request() -> impl Strategy<Value = PeerRequest> {
    prop_oneof![
        4 => register_call().prop_map(PeerRequest::Register),
        2 => replica_scan().prop_map(PeerRequest::Scan),
        1 => (epoch(), bytes()).prop_map(|(epoch, topology)| PeerRequest::Topology { epoch, topology }),
        1 => (any::<u128>(), any::<[u8; 32]>())
            .prop_map(|(data, pledge)| PeerRequest::Found { data: DataId(data), pledge }),
        1 => Just(PeerRequest::Ping),
    ]
}

fn replica_page() -> impl Strategy<Value = ReplicaPage> {
    let entry = (partition(), key(), view()).prop_map(|(partition, key, view)| PageEntry { partition, key, view });
    (vec(entry, 0..3), any::<bool>()).prop_map(|(entries, done)| ReplicaPage { entries, done })
}

pub(crate) fn peer_reply() -> impl Strategy<Value = PeerReply> {
    let body = prop_oneof![
        4 => register_reply().prop_map(PeerReplyBody::Register),
        2 => replica_page().prop_map(PeerReplyBody::Page),
        1 => bytes().prop_map(PeerReplyBody::Topology),
        1 => Just(PeerReplyBody::Pong),
        1 => (status(), ".{0,20}", stamp())
            .prop_map(|(status, message, seen)| PeerReplyBody::Refused { status, message, seen }),
    ];
    (millis(), epoch(), body).prop_map(|(now, epoch, body)| PeerReply { now, epoch, body })
}

fn action() -> impl Strategy<Value = Action> {
    let condition =
        prop_oneof![stamp().prop_map(Condition::Version), Just(Condition::Absent), bytes().prop_map(Condition::Value),];
    let mutation = prop_oneof![
        (bytes(), attributes(), any::<u64>()).prop_map(|(value, attributes, ttl_millis)| Mutation::Put {
            value,
            attributes,
            ttl_millis
        }),
        Just(Mutation::Delete),
        any::<i64>().prop_map(|by| Mutation::Increment { by }),
    ];
    prop_oneof![
        1 => any::<bool>().prop_map(|value| Action::Read { value }),
        3 => (option::of(condition), mutation).prop_map(|(condition, mutation)| Action::Write { condition, mutation }),
        1 => Just(Action::Outcome),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let window = (any::<u64>(), any::<u64>()).prop_map(|(floor, limit)| Window { floor, limit });
    let place = (keyspace(), key(), option::of(level()), epoch());
    (place, stamp(), any::<bool>(), window, any::<u32>(), stamp(), action()).prop_map(
        |((keyspace, key, level, epoch), op_id, tried, window, timeout_millis, seen, action)| Operation {
            keyspace,
            key,
            level,
            op_id,
            tried,
            window,
            timeout_millis,
            seen,
            epoch,
            action,
        },
    )
}

fn cursor() -> impl Strategy<Value = ScanCursor> {
    (partition(), option::of(key())).prop_map(|(partition, after)| ScanCursor { partition, after })
}

fn scan_request() -> impl Strategy<Value = ScanRequest> {
    let range = (option::of(cursor()), bytes(), bytes(), bytes());
    (keyspace(), option::of(level()), range, any::<u32>(), any::<bool>(), any::<u32>()).prop_map(
        |(keyspace, level, (cursor, prefix, start, end), limit, keys_only, timeout_millis)| ScanRequest {
            keyspace,
            level,
            cursor,
            prefix,
            start,
            end,
            limit,
            keys_only,
            timeout_millis,
        },
    )
}

pub(crate) fn client_request() -> impl Strategy<Value = ClientRequest> {
    prop_oneof![
        4 => operation().prop_map(ClientRequest::Operate),
        2 => scan_request().prop_map(ClientRequest::Scan),
        1 => epoch().prop_map(|epoch| ClientRequest::Topology { epoch }),
        1 => Just(ClientRequest::Status),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let counts = (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(need, got, alive)| Counts { need, got, alive });
    (status(), ".{0,20}", stamp(), millis(), option::of(content()), option::of(any::<i64>()), counts, stamp()).prop_map(
        |(status, message, version, expires_at, content, number, counts, seen)| Outcome {
            status,
            message,
            version,
            expires_at,
            content,
            number,
            counts,
            seen,
        },
    )
}

fn scan_page() -> impl Strategy<Value = ScanPage> {
    let entry = (key(), stamp(), millis(), any::<u32>(), option::of(content())).prop_map(
        |(key, version, expires_at, value_len, content)| EntryView { key, version, expires_at, value_len, content },
    );
    (vec(entry, 0..3), option::of(cursor())).prop_map(|(entries, next)| ScanPage { entries, next })
}

fn node_summary() -> impl Strategy<Value = NodeSummary> {
    (any::<u64>(), ".{0,20}", ".{0,8}", ".{0,8}", any::<bool>(), any::<u64>(), any::<u32>()).prop_map(
        |(node, address, region, zone, alive, boot, round_trip_micros)| NodeSummary {
            node: NodeId(node),
            address,
            region,
            zone,
            alive,
            boot: BootNumber(boot),
            round_trip_micros,
        },
    )
}

pub(crate) fn client_reply() -> impl Strategy<Value = ClientReply> {
    let numbers = (any::<u128>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<bool>());
    let status = (vec(node_summary(), 0..3), numbers).prop_map(
        |(members, (cluster, node, keys, segment_bytes, suspect_partitions, ready))| ReplyBody::Status {
            cluster: ClusterId(cluster),
            node: NodeId(node),
            members,
            keys,
            segment_bytes,
            suspect_partitions,
            ready,
        },
    );
    let body = prop_oneof![
        3 => outcome().prop_map(ReplyBody::Outcome),
        2 => scan_page().prop_map(ReplyBody::Page),
        1 => bytes().prop_map(ReplyBody::Topology),
        1 => status,
    ];
    (millis(), any::<u32>(), epoch(), body).prop_map(|(now, quorum_micros, epoch, body)| ClientReply {
        now,
        quorum_micros,
        epoch,
        body,
    })
}

fn version() -> impl Strategy<Value = Version> {
    any::<u16>().prop_map(Version)
}

pub(crate) fn hello() -> impl Strategy<Value = Hello> {
    let node = option::of(any::<u64>().prop_map(NodeId));
    let cluster = option::of(any::<u128>().prop_map(ClusterId));
    ((version(), version()), cluster, node, any::<u64>(), ".{0,20}").prop_map(
        |(versions, cluster, node, boot, agent)| Hello { versions, cluster, node, boot: BootNumber(boot), agent },
    )
}

pub(crate) fn welcome() -> impl Strategy<Value = Welcome> {
    (version(), any::<u128>(), any::<u64>(), any::<u64>(), epoch(), millis()).prop_map(
        |(version, cluster, node, boot, epoch, now)| Welcome {
            version,
            cluster: ClusterId(cluster),
            node: NodeId(node),
            boot: BootNumber(boot),
            epoch,
            now,
        },
    )
}
