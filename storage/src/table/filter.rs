//! Bloom filters: a key that is in the table is always found, one that is not about once in a hundred times.
//!
//! Split into blocks of 32 bytes (Putze, Sanders, Singler 2007; the layout of Parquet), so that a look costs one cache line: the high 32 bits of the
//! key's hash, times the number of blocks, shifted right by 32, choose a block; in each of its eight words of 32 bits, the low 32 bits of the hash, times the word's odd
//! number, shifted right by 27, choose a bit. A filter without blocks holds everything.

const SALTS: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];
const BITS_PER_KEY: usize = 10;
const BLOCK_BITS: usize = 256;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Filter {
    blocks: Vec<[u32; 8]>,
}

impl Filter {
    pub(crate) fn of(hashes: &[u64]) -> Self {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK_BITS);
        let mut filter = Self { blocks: vec![[0; 8]; blocks] };
        for &hash in hashes {
            let block = filter.block(hash);
            for (word, salt) in filter.blocks[block].iter_mut().zip(SALTS) {
                *word |= bit(hash, salt);
            }
        }
        filter
    }

    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        if self.blocks.is_empty() {
            return true;
        }
        let block = &self.blocks[self.block(hash)];
        block.iter().zip(SALTS).all(|(word, salt)| word & bit(hash, salt) != 0)
    }

    /// Reads what [`may_contain`](Self::may_contain) will look at, so that it lies in the processor's cache then.
    #[inline]
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        self.blocks.get(self.block(hash)).map_or(0, |block| block[0])
    }

    fn block(&self, hash: u64) -> usize {
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// None where the bytes are no whole number of blocks.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, odd) = bytes.as_chunks::<4>();
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let (blocks, odd_words) = words.as_chunks::<8>();
        (odd.is_empty() && odd_words.is_empty()).then(|| Self { blocks: blocks.to_vec() })
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.blocks.len() * 32
    }
}

#[inline]
fn bit(hash: u64, salt: u32) -> u32 {
    1 << ((hash as u32).wrapping_mul(salt) >> 27)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::hash;

    #[test]
    fn what_is_in_is_found_and_little_else() {
        let hash_of = |n: u64| hash(&n.to_be_bytes());
        let hashes: Vec<u64> = (0..20_000).map(hash_of).collect();
        let filter = Filter::of(&hashes);
        assert!(hashes.iter().all(|hash| filter.may_contain(*hash)));
        let wrong = (20_000..120_000).filter(|n| filter.may_contain(hash_of(*n))).count();
        assert!((200..2_000).contains(&wrong), "{wrong} of 100,000");
        assert_eq!(Filter::decode(&filter.encode()), Some(filter.clone()));
        assert_eq!(filter.encode().len(), filter.len_bytes());
        assert_eq!(Filter::decode(&filter.encode()[1..]), None);
        assert!(Filter::of(&[]).may_contain(7));
    }

    /// Filters are stored: what a bit means is for ever.
    #[test]
    fn the_stored_form_does_not_change() {
        let filter = Filter::of(&[hash(b"a"), hash(b"dunlin")]);
        assert_eq!(hash(b"dunlin"), 13_412_099_920_676_731_665);
        assert_eq!(crc32fast::hash(&filter.encode()), 4_058_035_761);
    }
}
