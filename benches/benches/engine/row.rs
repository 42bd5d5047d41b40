//! The rows of the table: what is done, and what is measured of it.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::keys::{VALUE_LEN, absent_key, fill_value, key, mix};
use crate::measure::{Meter, allocated, memory, peak_memory};
use crate::store::{Kind, Store};

/// Threads that write at once.
const WRITERS: u64 = 64;
/// A large value.
const LARGE: usize = 16 << 10;
/// How long timed rows run.
const TIMED: Duration = Duration::from_secs(4);
/// What a key and a small value have together.
const ENTRY: u64 = (crate::keys::KEY_LEN + VALUE_LEN) as u64;

/// A row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Row {
    Load,
    DurableMany,
    DurableOne,
    Get,
    GetAbsent,
    Scan,
    LargePuts,
    LargeWritten,
    Space,
    Reopen,
    Memory,
    LoadMany,
    ScanMany,
}

/// A result and, where it means something, the processor time of one operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Measured {
    pub(crate) value: f64,
    pub(crate) cpu_micros: Option<f64>,
}

impl Measured {
    fn rate(operations: u64, meter: &Meter) -> Self {
        let operations = operations as f64;
        let cpu_micros = Some(meter.cpu().as_secs_f64() * 1e6 / operations);
        Self { value: operations / meter.elapsed().as_secs_f64(), cpu_micros }
    }

    fn of(value: f64) -> Self {
        Self { value, cpu_micros: None }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (value, cpu) = text.split_once(' ')?;
        Some(Self { value: value.parse().ok()?, cpu_micros: cpu.parse().ok() })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cpu_micros {
            Some(cpu) => write!(f, "{} {cpu}", self.value),
            None => write!(f, "{} -", self.value),
        }
    }
}

impl Row {
    pub(crate) const ALL: [Self; 11] = [
        Self::Load,
        Self::DurableMany,
        Self::DurableOne,
        Self::Get,
        Self::GetAbsent,
        Self::Scan,
        Self::LargePuts,
        Self::LargeWritten,
        Self::Space,
        Self::Reopen,
        Self::Memory,
    ];

    /// Rows that take long, and are measured only when they are asked for.
    pub(crate) const LONG: [Self; 2] = [Self::LoadMany, Self::ScanMany];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::DurableMany => "durable-64",
            Self::DurableOne => "durable-1",
            Self::Get => "get",
            Self::GetAbsent => "get-absent",
            Self::Scan => "scan",
            Self::LargePuts => "large",
            Self::LargeWritten => "large-written",
            Self::Space => "space",
            Self::Reopen => "reopen",
            Self::Memory => "memory",
            Self::LoadMany => "load-20m",
            Self::ScanMany => "scan-5m",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::LONG).find(|row| row.name() == name)
    }

    /// What it is, and its unit.
    pub(crate) fn describe(self) -> (&'static str, Unit) {
        match self {
            Self::Load => ("1 M puts, no sync, one thread", Unit::Rate),
            Self::DurableMany => ("durable puts, 64 writers, group commit", Unit::Rate),
            Self::DurableOne => ("durable puts, one writer", Unit::Rate),
            Self::Get => ("random warm gets of 1 M keys, one thread", Unit::Rate),
            Self::GetAbsent => ("gets of absent keys", Unit::Rate),
            Self::Scan => ("ordered scan with values, 1 M entries", Unit::Rate),
            Self::LargePuts => ("16 KiB puts, 512 MiB, synced at the end", Unit::Bytes),
            Self::LargeWritten => ("bytes written for each logical byte, 16 KiB values", Unit::Factor),
            Self::Space => ("space for each live byte after 5 overwrites, at rest", Unit::Factor),
            Self::Reopen => ("reopen after kill -9, 5 M keys, until the first get", Unit::Seconds),
            Self::Memory => ("memory with 5 M keys open, after 10,000 gets", Unit::Memory),
            Self::LoadMany => ("most memory ever in use while 20 M keys are loaded", Unit::Memory),
            Self::ScanMany => ("ordered scan with values, 5 M entries", Unit::Rate),
        }
    }

    /// How many processes one measurement takes, one after the other on the same directory.
    pub(crate) fn steps(self) -> usize {
        match self {
            Self::Reopen | Self::Memory => 2,
            _ => 1,
        }
    }

    pub(crate) fn measure(self, kind: Kind, dir: &Path, scale: f64, step: usize) -> Option<Measured> {
        let scaled = |count: u64| ((count as f64 * scale) as u64).max(1000);
        let million = scaled(1_000_000);
        let store = match (self, step) {
            (Self::Reopen | Self::Memory, 1) => return Some(self.open_again(kind, dir, scaled(5_000_000))),
            _ => kind.open(dir),
        };
        let store = &*store;
        Some(match self {
            Self::Load => {
                let meter = Meter::start();
                store.load(&mut (0..million), VALUE_LEN);
                Measured::rate(million, &meter)
            }
            Self::DurableMany => put_durably(store, WRITERS),
            Self::DurableOne => put_durably(store, 1),
            Self::Get => {
                filled(store, million);
                let gets = 2 * million;
                repeat(gets, |n| assert_eq!(store.get(&key(mix(n) % million)), Some(VALUE_LEN), "every key is there"))
            }
            Self::GetAbsent => {
                filled(store, million);
                repeat(2 * million, |n| assert_eq!(store.get(&absent_key(mix(n) % million)), None))
            }
            Self::Scan => {
                filled(store, million);
                scan(store, 3, million)
            }
            Self::ScanMany => {
                filled(store, 5 * million);
                scan(store, 1, 5 * million)
            }
            Self::LoadMany => {
                store.load(&mut (0..20 * million), VALUE_LEN);
                store.sync();
                store.settle();
                assert_eq!(store.get(&key(10 * million)), Some(VALUE_LEN), "what was stored is there");
                Measured::of(peak_memory() as f64)
            }
            Self::LargePuts | Self::LargeWritten => {
                let count = scaled(32 << 10);
                let logical = count * LARGE as u64;
                let meter = Meter::start();
                store.load(&mut (0..count), LARGE);
                store.sync();
                let rate = logical as f64 / meter.elapsed().as_secs_f64();
                if self == Self::LargePuts {
                    return Some(Measured {
                        value: rate,
                        cpu_micros: Some(meter.cpu().as_secs_f64() * 1e6 / count as f64),
                    });
                }
                store.settle();
                Measured::of(meter.written() as f64 / logical as f64)
            }
            Self::Space => {
                for round in 0..6 {
                    // In another order each time.
                    store.load(&mut (0..million).map(|n| (n * 7919 + round * 13) % million), VALUE_LEN);
                    store.sync();
                }
                store.rest();
                Measured::of(allocated(dir) as f64 / (million * ENTRY) as f64)
            }
            Self::Reopen | Self::Memory => {
                store.load(&mut (0..scaled(5_000_000)), VALUE_LEN);
                store.sync();
                // As kill -9 would: nothing is closed.
                std::process::abort();
            }
        })
    }

    fn open_again(self, kind: Kind, dir: &Path, keys: u64) -> Measured {
        let meter = Meter::start();
        let store = kind.open(dir);
        assert_eq!(store.get(&key(keys / 2)), Some(VALUE_LEN), "what was synced is there");
        let opened = meter.elapsed();
        if self == Self::Reopen {
            return Measured::of(opened.as_secs_f64());
        }
        store.settle();
        (0..10_000).for_each(|n| assert!(store.get(&key(mix(n) % keys)).is_some()));
        Measured::of(memory() as f64)
    }
}

/// A store with so many keys, at rest, and warm.
fn filled(store: &dyn Store, keys: u64) {
    store.load(&mut (0..keys), VALUE_LEN);
    store.sync();
    store.settle();
    store.scan();
}

fn scan(store: &dyn Store, rounds: u64, keys: u64) -> Measured {
    let meter = Meter::start();
    for _ in 0..rounds {
        assert_eq!(store.scan(), (keys, keys * ENTRY), "every entry is there");
    }
    Measured::rate(rounds * keys, &meter)
}

fn repeat(count: u64, mut act: impl FnMut(u64)) -> Measured {
    let meter = Meter::start();
    (0..count).for_each(&mut act);
    Measured::rate(count, &meter)
}

fn put_durably(store: &dyn Store, writers: u64) -> Measured {
    let next = AtomicU64::new(0);
    let meter = Meter::start();
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                let mut value = vec![0; VALUE_LEN];
                while meter.elapsed() < TIMED {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    fill_value(n, &mut value);
                    store.put_durable(&key(n), &value);
                }
            });
        }
    });
    Measured::rate(next.into_inner(), &meter)
}

/// How a result is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    Rate,
    Bytes,
    Factor,
    Seconds,
    Memory,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Rate if value >= 1e6 => format!("{:.2} M/s", value / 1e6),
            Self::Rate => format!("{:.1} k/s", value / 1e3),
            Self::Bytes => format!("{:.0} MB/s", value / 1e6),
            Self::Factor => format!("{value:.2}"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Memory => format!("{:.0} MB", value / 1e6),
        }
    }
}
