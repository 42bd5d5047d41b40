//! What every store can do.

use std::path::Path;

use crate::keys::Key;

/// A store that is open.
pub(crate) trait Store: Send + Sync {
    /// Stores the values of these numbers without waiting for the disk, in whatever batches suit the store.
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize);

    /// Stores one value; it is durable when this returns. Called by many threads at once.
    fn put_durable(&self, key: &Key, value: &[u8]);

    /// Everything stored so far is durable when this returns.
    fn sync(&self);

    /// The length of a key's value.
    fn get(&self, key: &Key) -> Option<usize>;

    /// Reads everything in order: entries and bytes of keys and values.
    fn scan(&self) -> (u64, u64);

    /// Lets all work in the background come to rest.
    fn settle(&self);

    /// Like [`settle`](Self::settle), and what a store does once nothing was written for some seconds is done, too.
    fn rest(&self) {
        self.settle();
    }
}

/// Which store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    #[cfg(feature = "peers")]
    Fjall,
    #[cfg(feature = "peers")]
    Redb,
    #[cfg(feature = "peers")]
    Lmdb,
    #[cfg(feature = "rocksdb")]
    Rocksdb,
}

impl Kind {
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self::Ours,
            #[cfg(feature = "peers")]
            Self::Fjall,
            #[cfg(feature = "peers")]
            Self::Redb,
            #[cfg(feature = "peers")]
            Self::Lmdb,
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb,
        ]
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            #[cfg(feature = "peers")]
            Self::Fjall => "fjall",
            #[cfg(feature = "peers")]
            Self::Redb => "redb",
            #[cfg(feature = "peers")]
            Self::Lmdb => "lmdb",
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => "rocksdb",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn open(self, dir: &Path) -> Box<dyn Store> {
        match self {
            Self::Ours => Box::new(crate::ours::Ours::open(dir)),
            #[cfg(feature = "peers")]
            Self::Fjall => Box::new(crate::fjall::Fjall::open(dir)),
            #[cfg(feature = "peers")]
            Self::Redb => Box::new(crate::redb::Redb::open(dir)),
            #[cfg(feature = "peers")]
            Self::Lmdb => Box::new(crate::lmdb::Lmdb::open(dir)),
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => Box::new(crate::rocksdb::Rocksdb::open(dir)),
        }
    }
}
