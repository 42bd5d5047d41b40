//! fjall; large values in its separate value log, as it advises.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use crate::committer::Committer;
use crate::keys::{Key, fill_value, key};
use crate::store::Store;

pub(crate) struct Fjall {
    committer: Committer,
    db: Database,
    items: Keyspace,
}

impl Fjall {
    pub(crate) fn open(dir: &Path) -> Self {
        let db = Database::builder(dir.join("fjall")).open().expect("opened");
        let options = || KeyspaceCreateOptions::default().with_kv_separation(Some(KvSeparationOptions::default()));
        let items = db.keyspace("items", options).expect("made");
        let (theirs, into) = (db.clone(), items.clone());
        let committer = Committer::start(move |batch| {
            let mut writes = theirs.batch();
            for (key, value) in batch {
                writes.insert(&into, key, value);
            }
            writes.commit().expect("committed");
            theirs.persist(PersistMode::SyncData).expect("synced");
        });
        Self { committer, db, items }
    }
}

impl Store for Fjall {
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize) {
        let mut value = vec![0; value_len];
        for n in numbers {
            fill_value(n, &mut value);
            self.items.insert(key(n), value.as_slice()).expect("stored");
        }
    }

    fn put_durable(&self, key: &Key, value: &[u8]) {
        self.committer.put(key, value);
    }

    fn sync(&self) {
        self.db.persist(PersistMode::SyncAll).expect("synced");
    }

    fn get(&self, key: &Key) -> Option<usize> {
        self.items.get(key).expect("read").map(|value| value.len())
    }

    fn scan(&self) -> (u64, u64) {
        let (mut entries, mut bytes) = (0, 0);
        for guard in self.items.iter() {
            let (key, value) = guard.into_inner().expect("read");
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        (entries, bytes)
    }

    fn settle(&self) {
        self.items.rotate_memtable_and_wait().expect("flushed");
        self.items.major_compact().expect("compacted");
    }
}
