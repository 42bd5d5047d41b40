//! The engine's settings.

use std::time::Duration;

use dunlin_storage::{Options, Sync};
use serde::{Deserialize, Serialize};

use super::{ConfigProblem, in_range};
use crate::scrubber::ScrubSettings;

/// How the engine behaves. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// A segment is sealed before it grows beyond this: 4,096 to 1 GiB. Larger ones are fewer files, smaller ones are collected sooner.
    /// Default: 64 MiB.
    pub segment_bytes: u64,
    /// What changed since the last flush takes up to this much memory, and as much again while it is flushed: 1 KiB to 1 GiB. A larger one is flushed
    /// less often, and a restart after a crash reads up to twice this much log. Default: 32 MiB.
    pub memtable_bytes: u64,
    /// Blocks of tables that were read are kept in memory up to this: 64 KiB to 1 TiB. Default: 96 MiB.
    pub cache_bytes: u64,
    /// Values and attributes up to this lie in the index, where one read finds them and merges copy them; larger ones stay where they were written: 0
    /// to 1,024. Default: 512.
    pub inline_bytes: u64,
    /// Values of at least this go to segments of their own, and others do not wait behind them: from 1. Two syncs one after the other are the price.
    /// Default: 64 KiB.
    pub stage_bytes: u64,
    /// A segment is collected when more than this share of it, in hundredths, is dead: 1 to 100. Less takes less room on the disk and more writing.
    /// Default: 20.
    pub garbage_percent: u8,
    /// Whether every write is on the disk before it is acknowledged, or may be lost when the machine loses power. Default: `"always"`.
    pub sync: SyncSection,
    /// With `sync = "interval"`, how long a write may wait for its sync: 1 to 60,000. Default: 100.
    pub sync_interval_millis: u64,
    /// Bytes that may wait for the disk before writes are refused as overload, at most a segment's: 64 KiB to 1 GiB. So much room, and the reserve, is
    /// kept allocated ahead. Default: 16 MiB.
    pub pending_limit_bytes: u64,
    /// Room that a full disk leaves for deletes and for what the cluster itself must go on with, at most a segment's: 64 KiB to 1 GiB. Default: 4 MiB.
    pub disk_reserve_bytes: u64,
    /// Everything on the disk is read and checked once in this time: `"1m"` to `"365d"`, or `"off"`. Rot that nobody looks for is found when the other
    /// replicas have rotted, too. Default: `"7d"`.
    pub scrub_period: ScrubPeriod,
    /// It is read at no fewer bytes a second than this, and then the scrubber rests: from 1. Default: 1 MiB.
    pub scrub_least_rate: u64,
    /// And at no more than this, from `scrub_least_rate`; what does not get done in its time takes longer. Default: 64 MiB.
    pub scrub_most_rate: u64,
}

impl Default for StorageSection {
    fn default() -> Self {
        let (options, scrub) = (Options::default(), ScrubSettings::default());
        Self {
            segment_bytes: options.segment_bytes,
            memtable_bytes: options.memtable_bytes,
            cache_bytes: options.cache_bytes,
            inline_bytes: options.inline_bytes as u64,
            stage_bytes: options.stage_bytes as u64,
            garbage_percent: options.garbage_percent,
            sync: SyncSection::Always,
            sync_interval_millis: 100,
            pending_limit_bytes: options.pending_limit_bytes,
            disk_reserve_bytes: options.disk_reserve_bytes,
            scrub_period: ScrubPeriod(scrub.period),
            scrub_least_rate: scrub.least_rate,
            scrub_most_rate: scrub.most_rate,
        }
    }
}

impl StorageSection {
    pub(super) fn check(&self) -> Result<(Options, ScrubSettings), ConfigProblem> {
        let (least, most) = (Options::MIN_SEGMENT_BYTES, Options::MAX_SEGMENT_BYTES);
        in_range("storage.segment_bytes", self.segment_bytes, least, most)?;
        let (least, most) = (Options::MIN_MEMTABLE_BYTES, Options::MAX_MEMTABLE_BYTES);
        in_range("storage.memtable_bytes", self.memtable_bytes, least, most)?;
        in_range("storage.cache_bytes", self.cache_bytes, 64 << 10, 1 << 40)?;
        in_range("storage.inline_bytes", self.inline_bytes, 0, Options::MAX_INLINE_BYTES as u64)?;
        in_range("storage.stage_bytes", self.stage_bytes, 1, 1 << 40)?;
        in_range("storage.garbage_percent", self.garbage_percent.into(), 1, 100)?;
        in_range("storage.pending_limit_bytes", self.pending_limit_bytes, 64 << 10, 1 << 30)?;
        in_range("storage.disk_reserve_bytes", self.disk_reserve_bytes, 64 << 10, 1 << 30)?;
        in_range("storage.sync_interval_millis", self.sync_interval_millis, 1, 60_000)?;
        if let Some(period) = self.scrub_period.0 {
            in_range("storage.scrub_period, in seconds,", period.as_secs(), 60, 365 * 86_400)?;
        }
        in_range("storage.scrub_least_rate", self.scrub_least_rate, 1, 1 << 40)?;
        in_range("storage.scrub_most_rate", self.scrub_most_rate, self.scrub_least_rate, 1 << 40)?;
        let sync = match self.sync {
            SyncSection::Always => Sync::Always,
            SyncSection::Interval => Sync::Interval(Duration::from_millis(self.sync_interval_millis)),
            SyncSection::Never => Sync::Never,
        };
        let options = Options {
            segment_bytes: self.segment_bytes,
            memtable_bytes: self.memtable_bytes,
            cache_bytes: self.cache_bytes,
            inline_bytes: self.inline_bytes as usize,
            stage_bytes: usize::try_from(self.stage_bytes).unwrap_or(usize::MAX),
            garbage_percent: self.garbage_percent,
            sync,
            pending_limit_bytes: self.pending_limit_bytes,
            disk_reserve_bytes: self.disk_reserve_bytes,
            ..Options::default()
        };
        let (least_rate, most_rate) = (self.scrub_least_rate, self.scrub_most_rate);
        Ok((options, ScrubSettings { period: self.scrub_period.0, least_rate, most_rate }))
    }
}

/// A time in words such as `"7d"`, or `"off"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScrubPeriod(pub Option<Duration>);

impl TryFrom<String> for ScrubPeriod {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" || text == "0" {
            return Ok(Self(None));
        }
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => 0,
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds > 0) {
            Some(seconds) => Ok(Self(Some(Duration::from_secs(seconds)))),
            None => Err(format!("`{text}` is neither a time such as 90m, 12h or 7d, nor off")),
        }
    }
}

impl From<ScrubPeriod> for String {
    fn from(ScrubPeriod(period): ScrubPeriod) -> Self {
        let Some(period) = period else { return "off".to_owned() };
        let seconds = period.as_secs();
        let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
        let unit = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or((1, "s"));
        format!("{}{name}", seconds / unit)
    }
}

/// When a write counts as durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncSection {
    /// On the disk.
    Always,
    /// With the operating system, and on the disk within `sync_interval_millis`; promises and accepts of the serial path are on the disk.
    Interval,
    /// With the operating system; promises and accepts of the serial path are on the disk all the same.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_set() {
        let section = r#"
segment_bytes = 1048576
memtable_bytes = 2097152
cache_bytes = 3145728
inline_bytes = 0
garbage_percent = 50
sync = "never"
pending_limit_bytes = 65536
disk_reserve_bytes = 131072
scrub_period = "36h"
scrub_least_rate = 5
scrub_most_rate = 5
"#;
        let section: StorageSection = toml::from_str(section).expect("valid");
        let (options, scrub) = section.check().expect("in range");
        let expected = Options {
            segment_bytes: 1 << 20,
            memtable_bytes: 2 << 20,
            cache_bytes: 3 << 20,
            inline_bytes: 0,
            garbage_percent: 50,
            sync: Sync::Never,
            pending_limit_bytes: 64 << 10,
            disk_reserve_bytes: 128 << 10,
            ..Options::default()
        };
        assert_eq!(options, expected);
        let period = Some(Duration::from_secs(36 * 3_600));
        assert_eq!(scrub, ScrubSettings { period, least_rate: 5, most_rate: 5 });
        for off in ["off", "0"] {
            let section: StorageSection = toml::from_str(&format!("scrub_period = \"{off}\"")).expect("valid");
            assert_eq!(section.check().expect("in range").1.period, None);
        }
        for text in ["off", "7d", "36h", "90m", "61s"] {
            let period = ScrubPeriod::try_from(text.to_owned()).expect("a time");
            assert_eq!(String::from(period), text);
        }
    }
}
