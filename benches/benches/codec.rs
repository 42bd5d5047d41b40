//! What a message costs to encode into a queue and to decode from it: 24-byte keys, 100-byte values unless the name says otherwise.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dunlin_protocol::frame::read_frame;
use dunlin_protocol::message::{ClientRequest, PeerReply, PeerReplyBody, PeerRequest, RegisterCall};
use dunlin_protocol::register::{RegisterReply, RegisterRequest, View};
use dunlin_protocol::{
    Action, Attributes, Content, Epoch, Key, KeyspaceId, Level, Millis, Mutation, Operation, PartitionId, Record,
    Stamp, Window,
};

fn key() -> Key {
    Key::new("user:000000000000000042:a").expect("24 bytes")
}

fn stamp(at: u64) -> Stamp {
    Stamp::new(Millis(1_760_000_000_000 + at), 7, 0x1234_5678_9abc_def0)
}

fn record(len: usize) -> Record {
    Record::plain(stamp(1), Content::value(vec![7; len]), Millis::NONE)
}

fn write(len: usize) -> PeerRequest {
    PeerRequest::Register(RegisterCall {
        keyspace: KeyspaceId::DEFAULT,
        partition: PartitionId(77),
        key: key(),
        epoch: Epoch(1),
        deadline: Millis(1_760_000_120_000),
        request: RegisterRequest::Write { record: record(len) },
    })
}

fn put() -> ClientRequest {
    ClientRequest::Operate(Operation {
        keyspace: KeyspaceId::DEFAULT,
        key: key(),
        level: Some(Level::Quorum),
        op_id: stamp(1),
        tried: false,
        window: Window { floor: 0, limit: stamp(250).hlc() },
        timeout_millis: 250,
        seen: stamp(0),
        epoch: Epoch(1),
        action: Action::Write {
            condition: None,
            mutation: Mutation::Put { value: vec![7; 100].into(), attributes: Attributes::default(), ttl_millis: 0 },
        },
    })
}

fn view(len: usize) -> PeerReply {
    let view = View { record: record(len).into(), ..View::absent() };
    PeerReply {
        now: Millis(1_760_000_000_000),
        epoch: Epoch(1),
        body: PeerReplyBody::Register(RegisterReply::View(view)),
    }
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    let mut queue = BytesMut::with_capacity(4 << 20);
    macro_rules! both {
        ($name:literal, $kind:ident, $message:expr) => {{
            let message = $message;
            queue.clear();
            message.write(&mut queue, 1).expect("small");
            group.throughput(Throughput::Bytes(queue.len() as u64));
            let encoded = queue.clone();
            group.bench_function(concat!("encode/", $name), |b| {
                b.iter(|| {
                    queue.clear();
                    black_box(&message).write(&mut queue, 1).expect("small");
                })
            });
            group.bench_function(concat!("decode/", $name), |b| {
                b.iter_batched(
                    || encoded.clone(),
                    |mut input| {
                        let frame = read_frame(&mut input).expect("whole").expect("whole");
                        $kind::read(&frame).expect("valid")
                    },
                    BatchSize::SmallInput,
                )
            });
        }};
    }
    both!("peer write, 100 B", PeerRequest, write(100));
    both!("peer write, 16 KiB", PeerRequest, write(16 << 10));
    both!("peer view, 100 B", PeerReply, view(100));
    both!("client put, 100 B", ClientRequest, put());
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
