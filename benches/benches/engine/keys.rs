//! Keys and values: 24 bytes and, unless a row says otherwise, 100.

/// The length of a key.
pub(crate) const KEY_LEN: usize = 24;
/// The usual length of a value.
pub(crate) const VALUE_LEN: usize = 100;

pub(crate) type Key = [u8; KEY_LEN];

/// The key of a number, spread over the key space, so that neighbours in time are no neighbours in order.
pub(crate) fn key(n: u64) -> Key {
    let mut key = *b"user:0000000000000000:aa";
    let mut spread = mix(n);
    for digit in key[5..21].iter_mut().rev() {
        *digit = b"0123456789abcdef"[(spread & 15) as usize];
        spread >>= 4;
    }
    key
}

/// A key that nobody wrote.
pub(crate) fn absent_key(n: u64) -> Key {
    let mut key = key(n);
    key[23] = b'z';
    key
}

/// A value that differs from key to key, so that nothing compresses to nothing.
pub(crate) fn fill_value(n: u64, value: &mut [u8]) {
    let mut state = n;
    for chunk in value.chunks_mut(8) {
        state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// SplitMix64's finalizer: a permutation of the numbers.
pub(crate) fn mix(n: u64) -> u64 {
    let z = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
