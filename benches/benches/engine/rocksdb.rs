//! RocksDB as Debian packages it (librocksdb-dev), through the few functions of its C interface that are needed.
#![expect(unsafe_code, reason = "a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::path::Path;
use std::ptr;

use crate::keys::{Key, fill_value, key};
use crate::store::Store;

#[link(name = "rocksdb")]
unsafe extern "C" {
    fn rocksdb_options_create() -> *mut c_void;
    fn rocksdb_options_set_create_if_missing(options: *mut c_void, on: c_uchar);
    fn rocksdb_options_increase_parallelism(options: *mut c_void, threads: c_int);
    fn rocksdb_options_set_compression(options: *mut c_void, kind: c_int);
    fn rocksdb_options_set_block_based_table_factory(options: *mut c_void, table: *mut c_void);
    fn rocksdb_block_based_options_create() -> *mut c_void;
    fn rocksdb_block_based_options_set_filter_policy(options: *mut c_void, policy: *mut c_void);
    fn rocksdb_filterpolicy_create_bloom_full(bits: f64) -> *mut c_void;
    fn rocksdb_open(options: *const c_void, name: *const c_char, error: *mut *mut c_char) -> *mut c_void;
    fn rocksdb_close(db: *mut c_void);
    fn rocksdb_writeoptions_create() -> *mut c_void;
    fn rocksdb_writeoptions_set_sync(options: *mut c_void, on: c_uchar);
    fn rocksdb_readoptions_create() -> *mut c_void;
    fn rocksdb_put(
        db: *mut c_void,
        options: *const c_void,
        key: *const c_char,
        key_len: usize,
        value: *const c_char,
        value_len: usize,
        error: *mut *mut c_char,
    );
    fn rocksdb_get(
        db: *mut c_void,
        options: *const c_void,
        key: *const c_char,
        key_len: usize,
        value_len: *mut usize,
        error: *mut *mut c_char,
    ) -> *mut c_char;
    fn rocksdb_free(memory: *mut c_void);
    fn rocksdb_flush_wal(db: *mut c_void, sync: c_uchar, error: *mut *mut c_char);
    fn rocksdb_compact_range(db: *mut c_void, from: *const c_char, from_len: usize, to: *const c_char, to_len: usize);
    fn rocksdb_create_iterator(db: *mut c_void, options: *const c_void) -> *mut c_void;
    fn rocksdb_iter_seek_to_first(iterator: *mut c_void);
    fn rocksdb_iter_valid(iterator: *const c_void) -> c_uchar;
    fn rocksdb_iter_next(iterator: *mut c_void);
    fn rocksdb_iter_key(iterator: *const c_void, len: *mut usize) -> *const c_char;
    fn rocksdb_iter_value(iterator: *const c_void, len: *mut usize) -> *const c_char;
    fn rocksdb_iter_destroy(iterator: *mut c_void);
}

pub(crate) struct Rocksdb {
    db: *mut c_void,
    write: *mut c_void,
    write_synced: *mut c_void,
    read: *mut c_void,
}

// SAFETY: RocksDB's handles may be used by many threads at once (its documentation: "thread-safe without external synchronization").
unsafe impl Send for Rocksdb {}
// SAFETY: as above.
unsafe impl Sync for Rocksdb {}

fn check(error: *mut c_char) {
    if !error.is_null() {
        // SAFETY: an error is a string that ends with a zero, until it is freed.
        let message = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        panic!("{message}");
    }
}

impl Rocksdb {
    pub(crate) fn open(dir: &Path) -> Self {
        let name = CString::new(dir.join("rocksdb").to_str().expect("text")).expect("without zeros");
        let mut error = ptr::null_mut();
        // SAFETY: every handle comes from the library and lives as long as the process; the name is a string that ends with a zero.
        let opened = unsafe {
            let options = rocksdb_options_create();
            rocksdb_options_set_create_if_missing(options, 1);
            rocksdb_options_increase_parallelism(options, 2);
            rocksdb_options_set_compression(options, 0);
            let table = rocksdb_block_based_options_create();
            rocksdb_block_based_options_set_filter_policy(table, rocksdb_filterpolicy_create_bloom_full(10.0));
            rocksdb_options_set_block_based_table_factory(options, table);
            let write_synced = rocksdb_writeoptions_create();
            rocksdb_writeoptions_set_sync(write_synced, 1);
            Self {
                db: rocksdb_open(options, name.as_ptr(), &raw mut error),
                write: rocksdb_writeoptions_create(),
                write_synced,
                read: rocksdb_readoptions_create(),
            }
        };
        check(error);
        opened
    }

    fn put(&self, options: *const c_void, key: &Key, value: &[u8]) {
        let mut error = ptr::null_mut();
        // SAFETY: key and value are read only during the call.
        unsafe {
            rocksdb_put(
                self.db,
                options,
                key.as_ptr().cast(),
                key.len(),
                value.as_ptr().cast(),
                value.len(),
                &raw mut error,
            );
        }
        check(error);
    }
}

impl Store for Rocksdb {
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize) {
        let mut value = vec![0; value_len];
        for n in numbers {
            fill_value(n, &mut value);
            self.put(self.write, &key(n), &value);
        }
    }

    fn put_durable(&self, key: &Key, value: &[u8]) {
        self.put(self.write_synced, key, value);
    }

    fn sync(&self) {
        let mut error = ptr::null_mut();
        // SAFETY: the handle is open.
        unsafe { rocksdb_flush_wal(self.db, 1, &raw mut error) };
        check(error);
    }

    fn get(&self, key: &Key) -> Option<usize> {
        let (mut len, mut error) = (0, ptr::null_mut());
        // SAFETY: the key is read only during the call; the value is ours and freed at once.
        let found = unsafe {
            let value = rocksdb_get(self.db, self.read, key.as_ptr().cast(), key.len(), &raw mut len, &raw mut error);
            let found = !value.is_null();
            if found {
                rocksdb_free(value.cast());
            }
            found
        };
        check(error);
        found.then_some(len)
    }

    fn scan(&self) -> (u64, u64) {
        let (mut entries, mut bytes) = (0, 0);
        // SAFETY: the iterator is used by this thread alone and destroyed at the end.
        unsafe {
            let iterator = rocksdb_create_iterator(self.db, self.read);
            rocksdb_iter_seek_to_first(iterator);
            while rocksdb_iter_valid(iterator) != 0 {
                let (mut key_len, mut value_len) = (0, 0);
                std::hint::black_box(rocksdb_iter_key(iterator, &raw mut key_len));
                std::hint::black_box(rocksdb_iter_value(iterator, &raw mut value_len));
                entries += 1;
                bytes += (key_len + value_len) as u64;
                rocksdb_iter_next(iterator);
            }
            rocksdb_iter_destroy(iterator);
        }
        (entries, bytes)
    }

    fn settle(&self) {
        // SAFETY: no bounds: everything.
        unsafe { rocksdb_compact_range(self.db, ptr::null(), 0, ptr::null(), 0) };
    }
}

impl Drop for Rocksdb {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { rocksdb_close(self.db) };
    }
}
