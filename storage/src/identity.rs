//! `Identity`: whose data directory this is.

use dunlin_protocol::{ClusterId, DataId, NodeId};

use crate::blob::{damage, load_blob, store_blob};
use crate::disk::Disk;
use crate::error::{DamageKind, FileError};

const NAME: &str = "IDENTITY";
/// node 8, founders 32, format 4, data directory 16, whether there is a cluster 1, cluster 16; little-endian.
const LEN: usize = 77;

/// Whose data directory this is (PROTOCOL.md 2.4). Written before the node's first vote; the cluster is added when its first epoch is decided.
/// Kept as the [blob](store_blob) IDENTITY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The hash of the founders' list that it was started with.
    pub founders: [u8; 32],
    /// The directory itself, drawn at random when it was made.
    pub data: DataId,
    /// The cluster, once it is decided.
    pub cluster: Option<ClusterId>,
    /// The format of the directory: [`Identity::FORMAT`] for a new one.
    pub format: u32,
}

impl Identity {
    /// The directory format that this version writes, and the highest that it reads.
    pub const FORMAT: u32 = 1;

    /// The directory's identity; none in a new directory.
    ///
    /// # Errors
    /// [`FileError::Version`] when the directory is of a newer format.
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, FileError> {
        let Some(bytes) = load_blob(disk, NAME)? else { return Ok(None) };
        let malformed = || FileError::Damaged(damage(NAME, DamageKind::Malformed, LEN as u64, bytes.len() as u64));
        let bytes: &[u8; LEN] = bytes.as_slice().try_into().map_err(|_| malformed())?;
        let identity = Self::decode(bytes).ok_or_else(malformed)?;
        match identity.format {
            1..=Self::FORMAT => Ok(Some(identity)),
            found => Err(FileError::Version { file: NAME.to_owned(), found, known: Self::FORMAT }),
        }
    }

    /// Stores it durably, in place of the one before.
    pub fn store(&self, disk: &dyn Disk) -> Result<(), FileError> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(&self.node.0.to_le_bytes());
        bytes.extend_from_slice(&self.founders);
        bytes.extend_from_slice(&self.format.to_le_bytes());
        bytes.extend_from_slice(&self.data.0.to_le_bytes());
        bytes.push(self.cluster.is_some().into());
        bytes.extend_from_slice(&self.cluster.unwrap_or_default().0.to_le_bytes());
        store_blob(disk, NAME, &bytes)
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let (node, rest) = bytes.split_first_chunk::<8>()?;
        let (founders, rest) = rest.split_first_chunk::<32>()?;
        let (format, rest) = rest.split_first_chunk::<4>()?;
        let (data, rest) = rest.split_first_chunk::<16>()?;
        let (has_cluster, rest) = rest.split_first()?;
        let cluster = ClusterId(u128::from_le_bytes(rest.try_into().ok()?));
        let cluster = match has_cluster {
            0 => None,
            1 => Some(cluster),
            _ => return None,
        };
        let (node, format) = (NodeId(u64::from_le_bytes(*node)), u32::from_le_bytes(*format));
        let data = DataId(u128::from_le_bytes(*data));
        Some(Self { node, founders: *founders, data, cluster, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    const IDENTITY: Identity = Identity {
        node: NodeId(7),
        founders: [9; 32],
        data: DataId(u128::MAX / 3),
        cluster: None,
        format: Identity::FORMAT,
    };

    #[test]
    fn it_survives() {
        let disk = MemoryDisk::new();
        assert_eq!(Identity::load(&disk).expect("loads"), None);
        let mut identity = IDENTITY;
        identity.store(&disk).expect("stores");
        assert_eq!(Identity::load(&disk).expect("loads"), Some(identity));
        identity.cluster = Some(ClusterId(u128::MAX - 3));
        identity.store(&disk).expect("stores");
        assert_eq!(Identity::load(&disk).expect("loads"), Some(identity));
    }

    #[test]
    fn what_is_no_identity() {
        let disk = MemoryDisk::new();
        for bytes in [&[0; LEN - 1][..], &[0; LEN + 1], &[2; LEN]] {
            store_blob(&disk, NAME, bytes).expect("stores");
            assert!(matches!(Identity::load(&disk), Err(FileError::Damaged(_))));
        }
        let newer = Identity { format: 2, ..IDENTITY };
        newer.store(&disk).expect("stores");
        assert!(matches!(Identity::load(&disk), Err(FileError::Version { found: 2, .. })));
    }
}
