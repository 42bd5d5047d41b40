//! LMDB, through heed.
#![expect(
    unsafe_code,
    reason = "a memory map cannot be opened safely where other processes may write to the file; here there are none"
)]

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use crate::committer::Committer;
use crate::keys::{Key, fill_value, key};
use crate::store::Store;

type Items = Database<Bytes, Bytes>;
/// Puts of a transaction, where nothing is synced.
const BATCH: usize = 1000;

pub(crate) struct Lmdb {
    committer: Committer,
    env: Env,
    items: Items,
}

impl Lmdb {
    pub(crate) fn open(dir: &Path) -> Self {
        let mut options = EnvOpenOptions::new();
        options.map_size(64 << 30).max_readers(256);
        // SAFETY: no other process has the file open, and with NO_SYNC a crash of the machine, which would be needed for damage, ends the bench.
        let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(dir).expect("opened") };
        let mut transaction = env.write_txn().expect("begun");
        let items: Items = env.create_database(&mut transaction, None).expect("made");
        transaction.commit().expect("committed");
        let theirs = env.clone();
        let committer = Committer::start(move |batch| {
            let mut transaction = theirs.write_txn().expect("begun");
            for (key, value) in batch {
                items.put(&mut transaction, &key, &value).expect("stored");
            }
            transaction.commit().expect("committed");
            theirs.force_sync().expect("synced");
        });
        Self { committer, env, items }
    }
}

impl Store for Lmdb {
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize) {
        let mut value = vec![0; value_len];
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let mut transaction = self.env.write_txn().expect("begun");
            for n in numbers.by_ref().take(BATCH) {
                fill_value(n, &mut value);
                self.items.put(&mut transaction, &key(n), &value).expect("stored");
            }
            transaction.commit().expect("committed");
        }
    }

    fn put_durable(&self, key: &Key, value: &[u8]) {
        self.committer.put(key, value);
    }

    fn sync(&self) {
        self.env.force_sync().expect("synced");
    }

    fn get(&self, key: &Key) -> Option<usize> {
        let transaction = self.env.read_txn().expect("begun");
        self.items.get(&transaction, key).expect("read").map(<[u8]>::len)
    }

    fn scan(&self) -> (u64, u64) {
        let transaction = self.env.read_txn().expect("begun");
        let (mut entries, mut bytes) = (0, 0);
        for entry in self.items.iter(&transaction).expect("read") {
            let (key, value) = entry.expect("read");
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        (entries, bytes)
    }

    fn settle(&self) {
        self.sync();
    }
}
