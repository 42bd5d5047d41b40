//! `Scrubber`: the pace at which a node reads all its data again and again, so that bit rot is found before the other replicas have rotted, too.

use std::time::Duration;

use dunlin_protocol::Millis;
use dunlin_storage::{Disk, Engine, FileError, ScrubPlace, load_blob, store_blob};

/// The blob that keeps how far the round has come, so that a node that is restarted every day still gets through it: when the round began, the bytes that
/// were read and the damaged places that were found (8 each), whether it has ended (1), the [place](ScrubPlace); little-endian.
pub(crate) const SCRUB: &str = "SCRUB";
const KEPT_LEN: usize = 25 + ScrubPlace::LEN;
/// So much is read at a time.
const SLICE_BYTES: u64 = 4 << 20;
/// A step after which nothing was read, or between two looks at the clock, is this far away at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// After a file that could not be read.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(10);
/// A round that is late is not hurried more than if so much of its period were left: 1 / 10.
const LEAST_SHARE_LEFT: u64 = 10;

/// How fast everything on the disk is read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubSettings {
    /// Everything is read once in this time, and no round begins before it is over; none: the scrubber is off.
    pub period: Option<Duration>,
    /// It is read at no less than this many bytes a second; then it rests.
    pub least_rate: u64,
    /// And at no more than this many, though the round takes longer than it should.
    pub most_rate: u64,
}

impl Default for ScrubSettings {
    /// Once a week, at 1 to 64 MiB a second.
    fn default() -> Self {
        Self { period: Some(Duration::from_secs(7 * 86_400)), least_rate: 1 << 20, most_rate: 64 << 20 }
    }
}

/// A round through everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Round {
    began: Millis,
    bytes: u64,
    damaged: u64,
    has_ended: bool,
}

/// Reads a slice whenever its owner calls [`step`](Self::step), and says when to call it next. Owns no clock.
pub(crate) struct Scrubber {
    settings: ScrubSettings,
    period: Duration,
    slice: u64,
    round: Round,
}

/// What a step did.
pub(crate) struct Step {
    /// When the next one is due.
    pub(crate) pause: Duration,
    /// Something is suspect that was not before: it is to be made durable.
    pub(crate) found_damage: bool,
}

impl Scrubber {
    /// Goes on with the round that an earlier life of the node has kept, if any. None: the scrubber is off.
    pub(crate) fn open(settings: ScrubSettings, engine: &Engine, disk: &dyn Disk, now: Millis) -> Option<Self> {
        let period = settings.period?;
        let round = match load_blob(disk, SCRUB) {
            Ok(kept) => kept.and_then(|kept| Round::decode(&kept)),
            Err(error) => {
                tracing::warn!(%error, "how far the scrubber was is lost: it begins anew");
                None
            }
        };
        if let Some((_, place)) = round {
            engine.set_scrub_place(place);
        }
        let round = round.map_or(Round { began: now, ..Round::default() }, |(round, _)| round);
        Some(Self { settings, period, slice: SLICE_BYTES, round })
    }

    /// Keeps how far it is.
    pub(crate) fn store(&self, engine: &Engine, disk: &dyn Disk) -> Result<(), FileError> {
        store_blob(disk, SCRUB, &self.round.encode(engine.scrub_place()))
    }

    pub(crate) fn step(&mut self, engine: &Engine, now: Millis) -> Step {
        // Set back, the clock would have it wait for what never comes.
        self.round.began = self.round.began.min(now);
        if self.round.has_ended {
            let left = self.left(now);
            if !left.is_zero() {
                return Step { pause: left.min(LONGEST_PAUSE), found_damage: false };
            }
            self.round = Round { began: now, ..Round::default() };
        }
        let scrubbed = match engine.scrub(self.slice) {
            Ok(scrubbed) => scrubbed,
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::error!(error, "the scrubber cannot read a file, and goes on with the next one");
                return Step { pause: PAUSE_AFTER_ERROR, found_damage: true };
            }
        };
        for damage in &scrubbed.damaged {
            let dunlin_storage::Damage { file, offset, expected, found, .. } = damage;
            tracing::error!(file, offset, expected, found, "damaged data: {damage}");
        }
        self.round.bytes += scrubbed.bytes;
        self.round.damaged += scrubbed.damaged.len() as u64;
        let rate = self.rate(engine, now);
        if scrubbed.ended {
            let Round { bytes, damaged, .. } = self.round;
            let seconds = now.0.saturating_sub(self.round.began.0) / 1_000;
            // A new node has nothing yet.
            if bytes > 0 {
                tracing::info!(bytes, damaged, seconds, "everything was read once and checked");
            }
            self.round.has_ended = true;
        }
        let pause = Duration::from_micros(scrubbed.bytes.saturating_mul(1_000_000) / rate);
        Step { pause: pause.min(LONGEST_PAUSE), found_damage: !scrubbed.damaged.is_empty() }
    }

    /// What is left of the round's period.
    fn left(&self, now: Millis) -> Duration {
        self.period.saturating_sub(Duration::from_millis(now.0.saturating_sub(self.round.began.0)))
    }

    /// Bytes a second, so that the round ends when its period does.
    fn rate(&self, engine: &Engine, now: Millis) -> u64 {
        let stats = engine.stats();
        let bytes = (stats.segment_bytes + stats.table_bytes).saturating_sub(self.round.bytes);
        let left = self.left(now).max(self.period / LEAST_SHARE_LEFT as u32).as_millis().max(1);
        let rate = u64::try_from(u128::from(bytes) * 1_000 / left).unwrap_or(u64::MAX);
        rate.clamp(self.settings.least_rate, self.settings.most_rate).max(1)
    }
}

impl Round {
    fn encode(&self, place: ScrubPlace) -> Vec<u8> {
        let mut kept = Vec::with_capacity(KEPT_LEN);
        for number in [self.began.0, self.bytes, self.damaged] {
            kept.extend_from_slice(&number.to_le_bytes());
        }
        kept.push(self.has_ended.into());
        kept.extend_from_slice(&place.to_bytes());
        kept
    }

    /// None: another version's.
    fn decode(kept: &[u8]) -> Option<(Self, ScrubPlace)> {
        let (began, rest) = kept.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (damaged, rest) = rest.split_first_chunk()?;
        let (has_ended, place) = rest.split_first()?;
        let place = ScrubPlace::from_bytes(place.try_into().ok()?);
        let long = u64::from_le_bytes;
        let round = Self {
            began: Millis(long(*began)),
            bytes: long(*bytes),
            damaged: long(*damaged),
            has_ended: *has_ended > 0,
        };
        Some((round, place))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_protocol::register::Change;
    use dunlin_protocol::{Ballot, Content, KeyspaceId, PartitionId, Record, Stamp};
    use dunlin_storage::{ClockFile, KeyRef, MemoryDisk, Options};

    use super::*;
    use crate::log_writer::{LogWriter, WriterPlace};

    const HOUR: Duration = Duration::from_secs(3_600);
    const SETTINGS: ScrubSettings = ScrubSettings { period: Some(HOUR), least_rate: 1, most_rate: 1 << 30 };

    fn engine(disk: &MemoryDisk) -> Engine {
        let options =
            Options { segment_bytes: 8 << 10, memtable_bytes: 4 << 10, table_bytes: 8 << 10, ..Options::default() };
        Engine::open(Arc::new(disk.clone()), options).expect("opens").0
    }

    /// About 100 KiB in tables and segments that are not written to any more.
    fn fill(engine: &Engine) {
        for n in 0..300u64 {
            let name = n.to_be_bytes();
            let key = KeyRef { partition: PartitionId(3), keyspace: KeyspaceId::DEFAULT, key: &name };
            let value = vec![n as u8; if n % 2 == 0 { 90 } else { 600 }];
            let record = Record::plain(Stamp::new(Millis(n + 1), 0, 1), Content::value(value), Millis::NONE);
            let store =
                || engine.update(key, Some(&record), Millis(1), |_| ((), Some(Change::Store { ballot: Ballot::ZERO })));
            while store().is_err() {
                settle(engine);
            }
        }
        settle(engine);
    }

    fn settle(engine: &Engine) {
        while engine.write_pending().expect("writes") {}
        while engine.maintain(1 << 20).expect("maintains") {}
    }

    fn scrubber(engine: &Engine, disk: &MemoryDisk, settings: ScrubSettings, now: Millis) -> Scrubber {
        Scrubber { slice: 2 << 10, ..Scrubber::open(settings, engine, disk, now).expect("on") }
    }

    /// Steps until the round has ended; how long that took, and what was found.
    fn round(scrubber: &mut Scrubber, engine: &Engine, now: &mut Millis) -> (Duration, u64) {
        let began = *now;
        loop {
            let step = scrubber.step(engine, *now);
            *now = Millis(now.0 + u64::try_from(step.pause.as_millis()).expect("short"));
            if scrubber.round.has_ended {
                return (Duration::from_millis(now.0 - began.0), scrubber.round.damaged);
            }
        }
    }

    #[test]
    fn a_round_takes_its_period_within_the_rates() {
        let disk = MemoryDisk::new();
        let engine = engine(&disk);
        fill(&engine);
        let bytes = engine.stats().segment_bytes + engine.stats().table_bytes;
        assert!(bytes > 64 << 10, "{bytes}");
        for (settings, least, most) in [
            // What comes late is hurried to a tenth of the period, and not more.
            (SETTINGS, HOUR / 4, HOUR + HOUR / 10),
            (ScrubSettings { least_rate: 1 << 20, ..SETTINGS }, Duration::ZERO, Duration::from_secs(1)),
            (ScrubSettings { most_rate: 5, ..SETTINGS }, HOUR * 2, HOUR * 24),
        ] {
            let mut now = Millis(1 << 40);
            let mut scrubber = scrubber(&engine, &disk, settings, now);
            let (took, damaged) = round(&mut scrubber, &engine, &mut now);
            assert!(took >= least && took <= most && damaged == 0, "{settings:?}: {took:?}");
            assert!(scrubber.round.bytes > bytes / 4, "{:?} of {bytes}", scrubber.round);
            // The next one begins when the period is over, also where the clock was set back meanwhile.
            let mut waited = took;
            while scrubber.round.has_ended {
                assert!(waited < HOUR * 25);
                let step = scrubber.step(&engine, now);
                now = Millis(now.0 + u64::try_from(step.pause.as_millis()).expect("short").max(1));
                waited += step.pause;
            }
            assert!(waited >= HOUR || took > HOUR, "{waited:?}");
            scrubber.round.has_ended = true;
            assert!(scrubber.step(&engine, Millis(5)).pause > Duration::ZERO && scrubber.round.began == Millis(5));
        }
    }

    #[test]
    fn a_node_that_is_restarted_goes_on_where_it_was() {
        let disk = MemoryDisk::new();
        let mut now = Millis(1 << 40);
        fill(&engine(&disk));
        let whole = {
            let engine = engine(&disk);
            let mut scrubber = scrubber(&engine, &disk, SETTINGS, now);
            round(&mut scrubber, &engine, &mut now);
            scrubber.round.bytes
        };
        let (began, mut lives) = (now, 0);
        loop {
            let engine = engine(&disk);
            let mut scrubber = scrubber(&engine, &disk, SETTINGS, now);
            assert_eq!(scrubber.round.began, began);
            for _ in 0..5 {
                let step = scrubber.step(&engine, now);
                now = Millis(now.0 + u64::try_from(step.pause.as_millis()).expect("short"));
                if scrubber.round.has_ended {
                    break;
                }
            }
            if scrubber.round.has_ended {
                // Where each life went on a frame may be read twice.
                assert!(lives > 3 && scrubber.round.bytes.abs_diff(whole) < whole / 3, "{:?} {whole}", scrubber.round);
                break;
            }
            scrubber.store(&engine, &disk).expect("stores");
            lives += 1;
            assert!(lives < 100);
        }
        // What is kept may be anything.
        for kept in [&b""[..], &[7; KEPT_LEN - 1], &[255; KEPT_LEN], &[7; KEPT_LEN + 1]] {
            store_blob(&disk, SCRUB, kept).expect("stores");
            let engine = engine(&disk);
            let mut scrubber = scrubber(&engine, &disk, SETTINGS, now);
            for _ in 0..300 {
                now = Millis(now.0 + 1 + u64::try_from(scrubber.step(&engine, now).pause.as_millis()).expect("short"));
            }
            assert!(scrubber.round.bytes > 0 || scrubber.round.has_ended);
        }
        disk.flip_bit(SCRUB, 100);
        let engine = engine(&disk);
        assert_eq!(scrubber(&engine, &disk, SETTINGS, now).round, Round { began: now, ..Round::default() });
        assert!(Scrubber::open(ScrubSettings { period: None, ..SETTINGS }, &engine, &disk, now).is_none());
    }

    #[test]
    fn damage_is_counted_and_wants_to_be_marked() {
        let disk = MemoryDisk::new();
        let engine = engine(&disk);
        fill(&engine);
        let mut now = Millis(1 << 40);
        let mut scrubber = scrubber(&engine, &disk, SETTINGS, now);
        let segment = disk.names().into_iter().find(|name| name.ends_with(".seg")).expect("a segment");
        let table = disk.names().into_iter().find(|name| name.ends_with(".tbl")).expect("a table");
        disk.flip_bit(&table, 800);
        disk.flip_bit(&segment, 3_000 * 8);
        assert_eq!(round(&mut scrubber, &engine, &mut now).1, 2);
        assert!(engine.suspect_partitions().contains(PartitionId(3)) && engine.wants_upkeep());
        engine.maintain(1 << 20).expect("maintains");
        assert!(!engine.wants_upkeep());
        drop(engine);
        disk.crash(1);
        let reopened = Engine::open(Arc::new(disk), Options::default()).expect("opens").1;
        assert!(reopened.suspects.contains(PartitionId(3)));
    }

    /// On a node to which nothing is written: by the scrubber, and by a read.
    #[test]
    fn what_is_met_is_marked_though_nothing_else_is_due() {
        for settings in [SETTINGS, ScrubSettings { period: None, ..SETTINGS }] {
            let disk = MemoryDisk::new();
            let engine = Arc::new(engine(&disk));
            fill(&engine);
            let clock = ClockFile::open(&disk).expect("opens");
            let writer = LogWriter::start(WriterPlace::Thread, engine.clone(), clock, Arc::new(disk.clone()), settings);
            let writer = writer.expect("starts");
            disk.names().iter().filter(|name| name.ends_with(".tbl")).for_each(|table| disk.flip_bit(table, 800));
            if settings.period.is_none() {
                for n in 0..300u64 {
                    let name = n.to_be_bytes();
                    let key = KeyRef { partition: PartitionId(3), keyspace: KeyspaceId::DEFAULT, key: &name };
                    assert!(engine.get(key).is_ok() || engine.suspect_partitions().contains(PartitionId(3)));
                }
            }
            // The threads take turns as the scheduler likes.
            while !engine.suspect_partitions().contains(PartitionId(3)) || engine.wants_upkeep() {
                std::thread::yield_now();
            }
            writer.stop();
            assert_eq!(load_blob(&disk, SCRUB).expect("loads").is_some(), settings.period.is_some());
            drop((writer, engine));
            disk.crash(1);
            let reopened = Engine::open(Arc::new(disk), Options::default()).expect("opens").1;
            assert!(reopened.suspects.contains(PartitionId(3)));
        }
    }
}
