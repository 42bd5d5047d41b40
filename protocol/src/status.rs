//! The one list of status codes, shared by every interface.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! statuses {
    ($($number:literal $variant:ident $code:literal http $http:literal exit $exit:literal $indefinite:ident $sentence:literal)*) => {
        /// How a request ended. Numbers, codes, HTTP statuses and exit codes are stable.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "u16", into = "u16")]
        #[repr(u16)]
        pub enum Status {
            $(#[doc = $sentence] $variant = $number,)*
        }

        impl Status {
            /// Every status.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable code, in capitals.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            /// The HTTP status.
            pub fn http(self) -> u16 {
                match self { $(Self::$variant => $http),* }
            }

            /// The exit code of the command line.
            pub fn exit_code(self) -> u8 {
                match self { $(Self::$variant => $exit),* }
            }

            /// What happened and what to do, in a sentence.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence),* }
            }

            /// Whether the request may still take effect.
            pub fn is_indefinite(self) -> bool {
                match self { $(Self::$variant => statuses!(@ $indefinite)),* }
            }
        }

        impl TryFrom<u16> for Status {
            type Error = UnknownStatus;
            fn try_from(number: u16) -> Result<Self, UnknownStatus> {
                match number { $($number => Ok(Self::$variant),)* _ => Err(UnknownStatus(number)) }
            }
        }
    };
    (@ definite) => { false };
    (@ indefinite) => { true };
}

statuses! {
    0 Ok "OK" http 200 exit 0 definite "Done."
    1 NotFound "NOT_FOUND" http 404 exit 3 definite "The key has no value."
    2 PreconditionFailed "PRECONDITION_FAILED" http 412 exit 4 definite "The condition does not hold: read the current version and decide again."
    3 NotApplied "NOT_APPLIED" http 409 exit 4 definite "The operation was not applied and never will be: send it again under a new operation id."
    4 NotANumber "NOT_A_NUMBER" http 409 exit 1 definite "The value is no 64-bit decimal number, or the sum would not be one: nothing was changed."
    5 UnknownKeyspace "UNKNOWN_KEYSPACE" http 404 exit 7 definite "There is no such keyspace: list them with `dunlin status`."
    6 InvalidKey "INVALID_KEY" http 400 exit 2 definite "A key has 1 to 4,096 bytes."
    7 InvalidArgument "INVALID_ARGUMENT" http 400 exit 2 definite "The request cannot be carried out as it was asked: the message names what is wrong."
    8 InvalidLevel "INVALID_LEVEL" http 400 exit 2 definite "This consistency level cannot be met or does not fit the request: the message says why."
    9 ValueTooLarge "VALUE_TOO_LARGE" http 413 exit 7 definite "The value is larger than this version stores (1 MiB): split it."
    10 Unavailable "UNAVAILABLE" http 503 exit 5 definite "Too few replicas are alive for this level: nothing was sent. Try again, or ask for a lower level."
    11 Timeout "TIMEOUT" http 504 exit 6 indefinite "Too few replicas confirmed in time: a write may still take effect. Ask for its outcome or send it again under the same operation id."
    12 OutcomeUnknown "OUTCOME_UNKNOWN" http 504 exit 6 indefinite "Whether the operation was applied cannot be told any more: read the key."
    13 Redraw "REDRAW" http 409 exit 7 definite "The operation id is not near the cluster's time: nothing happened. Draw a new one."
    14 OpExpired "OP_EXPIRED" http 410 exit 7 definite "The operation id is older than an operation may live (2 minutes): draw a new one if you still want it."
    15 OpIdReused "OP_ID_REUSED" http 409 exit 7 definite "This operation id was used for another payload: draw a new one."
    16 ClockSkew "CLOCK_SKEW" http 503 exit 7 definite "A clock is too far off: bring the nodes' clocks together (NTP) and try again."
    17 StaleEpoch "STALE_EPOCH" http 409 exit 5 definite "The request was made for an older topology: fetch the newer one and try again."
    18 NotReplica "NOT_REPLICA" http 421 exit 5 definite "This node holds no replica of the key's partition: fetch the topology and ask one that does."
    19 Suspect "SUSPECT" http 503 exit 5 definite "This node does not answer for the partition until it is rebuilt from the others: ask another replica."
    20 Overloaded "OVERLOADED" http 503 exit 7 definite "The node has more work than it can queue: nothing was done. Try again more slowly."
    21 DiskFull "DISK_FULL" http 507 exit 7 definite "The node's disk is full: free space or add nodes. Reads and deletes go on."
    22 StorageFailed "STORAGE_FAILED" http 500 exit 1 definite "The node's storage failed and takes no writes until it is restarted: see its log."
    23 Corruption "CORRUPTION" http 500 exit 8 definite "Stored data is damaged: run `dunlin verify` on the node named in the message."
    24 MissingChunks "MISSING_CHUNKS" http 409 exit 1 definite "The replica lacks chunks of the value: send them first."
    25 VersionMismatch "VERSION_MISMATCH" http 505 exit 1 definite "The two programs share no protocol version: update the older one."
    26 ClusterMismatch "CLUSTER_MISMATCH" http 421 exit 1 definite "The peer belongs to another cluster: check the address and the context."
    27 BadFrame "BAD_FRAME" http 400 exit 1 definite "The bytes received are no frame of this protocol: the connection is closed."
    28 Unauthenticated "UNAUTHENTICATED" http 401 exit 7 definite "The peer has no certificate of this cluster's CA: check the certificates in its configuration."
    29 Connect "CONNECT" http 502 exit 5 definite "No node could be reached: nothing was sent. Check that the cluster runs and the addresses are right."
    30 NotReady "NOT_READY" http 503 exit 5 definite "The node is not ready yet (starting, or its clock is not confirmed): try again shortly or ask another node."
    31 ShuttingDown "SHUTTING_DOWN" http 503 exit 5 definite "The node is shutting down: nothing was done. Ask another node."
    32 Local "LOCAL" http 500 exit 1 definite "Something on this machine went wrong: the message says what."
    33 DataDirInUse "DATA_DIR_IN_USE" http 500 exit 1 definite "Another process uses this data directory: stop it first."
    34 AddressInUse "ADDRESS_IN_USE" http 500 exit 1 definite "The address or port is taken: choose another one, or `--port auto`."
    35 InvalidConfig "INVALID_CONFIG" http 500 exit 2 definite "The configuration cannot be used: the message names the file and what is wrong."
    36 IdentityMismatch "IDENTITY_MISMATCH" http 500 exit 1 definite "The data directory is not the one of this node in this cluster: use the right one."
}

/// A status number that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown status {0}: the peer is of a newer version")]
pub struct UnknownStatus(pub u16);

impl From<Status> for u16 {
    fn from(status: Status) -> u16 {
        status as u16
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_list_is_consistent() {
        let codes: BTreeSet<_> = Status::ALL.iter().map(|s| s.code()).collect();
        assert_eq!(codes.len(), Status::ALL.len());
        for status in Status::ALL {
            assert_eq!(Status::try_from(u16::from(*status)), Ok(*status));
            assert!(status.exit_code() <= 8 && (200..600).contains(&status.http()));
            assert_eq!(
                status.is_indefinite(),
                status.exit_code() == 6,
                "{status}: exit 6 and only 6 is an unknown outcome"
            );
            assert!(status.sentence().ends_with('.'));
        }
        assert_eq!(Status::try_from(999), Err(UnknownStatus(999)));
    }
}
