//! The engine as a library on a real disk: 24-byte keys, 100-byte values unless the name says otherwise.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Partitioning, Record, Stamp};
use dunlin_storage::{Engine, FileDisk, KeyRef, Options, ScanRange};
use tempfile::TempDir;

const KEYS: u64 = 100_000;

struct Bench {
    engine: Engine,
    next: u64,
    _dir: TempDir,
}

fn key(n: u64) -> String {
    // Spread over the key space, so that neighbours in time are not neighbours in order.
    format!("user:{:018}:a", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000_000)
}

fn partition(key: &str) -> PartitionId {
    Partitioning::DEFAULT.partition(KeyspaceId::DEFAULT, key.as_bytes())
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let disk = FileDisk::open(dir.path()).expect("an empty folder");
        let (engine, _) = Engine::open(Arc::new(disk), Options::default()).expect("a new engine");
        Self { engine, next: 0, _dir: dir }
    }

    fn put(&mut self, n: u64, len: usize) {
        self.next += 1;
        let stamp = Stamp::new(Millis(1_760_000_000_000 + self.next), 0, 1);
        let record = Record::plain(stamp, Content::value(vec![7; len]), Millis::NONE);
        let key = key(n);
        let at = KeyRef { partition: partition(&key), keyspace: KeyspaceId::DEFAULT, key: key.as_bytes() };
        let store = Change::Store { ballot: Ballot::ZERO };
        self.engine.update(at, Some(&record), stamp.wall(), |_| ((), Some(store))).expect("room in the queue");
    }

    fn fill(&mut self, keys: u64) {
        for n in 0..keys {
            self.put(n, 100);
            if n % 1024 == 0 {
                self.engine.write_pending().expect("a healthy disk");
            }
        }
        self.engine.write_pending().expect("a healthy disk");
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.sample_size(20);
    for batch in [1u64, 64, 1024] {
        let mut bench = Bench::new();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("durable puts, batch of", batch), |b| {
            b.iter(|| {
                for _ in 0..batch {
                    let n = bench.next;
                    bench.put(n % KEYS, 100);
                }
                bench.engine.write_pending().expect("a healthy disk");
            });
        });
    }
    {
        let mut bench = Bench::new();
        group.throughput(Throughput::Bytes(64 * (16 << 10)));
        group.bench_function("durable 16 KiB puts, batch of 64", |b| {
            b.iter(|| {
                for _ in 0..64 {
                    let n = bench.next;
                    bench.put(n % 1024, 16 << 10);
                }
                bench.engine.write_pending().expect("a healthy disk");
            });
        });
    }
    let mut bench = Bench::new();
    bench.fill(KEYS);
    let mut n = 0u64;
    let get = |key: &str| {
        let at = KeyRef { partition: partition(key), keyspace: KeyspaceId::DEFAULT, key: key.as_bytes() };
        bench.engine.get(at).expect("a readable record")
    };
    group.throughput(Throughput::Elements(1));
    group.bench_function("warm get", |b| {
        b.iter(|| {
            n += 7919;
            black_box(get(&key(n % KEYS))).1.expect("a key that was put")
        });
    });
    group.bench_function("get of an absent key", |b| {
        b.iter(|| {
            n += 7919;
            black_box(get(&key(KEYS + n)))
        });
    });
    group.throughput(Throughput::Elements(KEYS));
    group.bench_function("ordered scan of all keys, without values", |b| {
        b.iter(|| {
            let range = ScanRange {
                keyspace: KeyspaceId::DEFAULT,
                first: PartitionId(0),
                last: PartitionId(u16::MAX),
                after: None,
                prefix: b"",
                start: b"",
                end: b"",
            };
            let mut seen = 0u64;
            let ended = bench.engine.scan(range, usize::MAX, &mut |_, _, entry| {
                black_box(entry);
                seen += 1;
                true
            });
            assert!(ended.expect("readable keys"));
            assert_eq!(seen, KEYS);
        });
    });
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
