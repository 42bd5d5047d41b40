//! redb.

use std::path::Path;
use std::sync::{Arc, RwLock};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::committer::Committer;
use crate::keys::{Key, fill_value, key};
use crate::store::Store;

const ITEMS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("items");
/// Puts of a transaction, where nothing is synced.
const BATCH: usize = 1000;

pub(crate) struct Redb {
    committer: Committer,
    db: Arc<RwLock<Database>>,
}

fn write(db: &Database, durability: Durability, pairs: &mut dyn Iterator<Item = (Key, Vec<u8>)>) {
    let mut transaction = db.begin_write().expect("begun");
    transaction.set_durability(durability).expect("set");
    {
        let mut table = transaction.open_table(ITEMS).expect("there");
        for (key, value) in pairs {
            table.insert(key.as_slice(), value.as_slice()).expect("stored");
        }
    }
    transaction.commit().expect("committed");
}

impl Redb {
    pub(crate) fn open(dir: &Path) -> Self {
        let db = Database::create(dir.join("redb")).expect("opened");
        write(&db, Durability::Immediate, &mut std::iter::empty());
        let db = Arc::new(RwLock::new(db));
        let theirs = db.clone();
        let committer = Committer::start(move |batch| {
            write(&theirs.read().expect("sound"), Durability::Immediate, &mut batch.into_iter());
        });
        Self { committer, db }
    }

    fn with<T>(&self, act: impl FnOnce(&redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> T) -> T {
        let transaction = self.db.read().expect("sound").begin_read().expect("begun");
        act(&transaction.open_table(ITEMS).expect("there"))
    }
}

impl Store for Redb {
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize) {
        let db = self.db.read().expect("sound");
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let mut pairs = numbers.by_ref().take(BATCH).map(|n| {
                let mut value = vec![0; value_len];
                fill_value(n, &mut value);
                (key(n), value)
            });
            write(&db, Durability::None, &mut pairs);
        }
    }

    fn put_durable(&self, key: &Key, value: &[u8]) {
        self.committer.put(key, value);
    }

    fn sync(&self) {
        write(&self.db.read().expect("sound"), Durability::Immediate, &mut std::iter::empty());
    }

    fn get(&self, key: &Key) -> Option<usize> {
        self.with(|table| table.get(key.as_slice()).expect("read").map(|value| value.value().len()))
    }

    fn scan(&self) -> (u64, u64) {
        self.with(|table| {
            let (mut entries, mut bytes) = (0, 0);
            for entry in table.iter().expect("read") {
                let (key, value) = entry.expect("read");
                entries += 1;
                bytes += (key.value().len() + value.value().len()) as u64;
            }
            (entries, bytes)
        })
    }

    fn settle(&self) {
        self.db.write().expect("sound").compact().expect("compacted");
    }
}
