//! `Pool`: one connection per node, made when it is needed and by one dial at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_protocol::{ClusterId, NodeId};
use tokio::sync::watch;

use crate::connection::Connection;
use crate::dial::Dialer;

/// Dials wait this much longer after each that failed, up to [`LONGEST_DIAL`].
const LONGEST_DIAL: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(crate) struct Pool {
    dialer: Arc<Dialer>,
    connect_timeout: Duration,
    slots: Mutex<BTreeMap<NodeId, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    live: Option<Arc<Connection>>,
    dialing: Option<watch::Receiver<Dial>>,
    failed: u32,
}

/// How a dial stands.
#[derive(Clone, Debug)]
pub(crate) enum Dial {
    UnderWay,
    Failed,
    Connected(Arc<Connection>),
}

impl Pool {
    pub(crate) fn new(dialer: Arc<Dialer>, connect_timeout: Duration) -> Self {
        Self { dialer, connect_timeout, slots: Mutex::default() }
    }

    /// A connection made elsewhere.
    pub(crate) fn add(&self, connection: Arc<Connection>) {
        let mut slots = self.slots();
        let slot = slots.entry(connection.node).or_default();
        slot.failed = 0;
        slot.live = Some(connection);
    }

    /// The connection to a node, if there is one.
    pub(crate) fn live(&self, node: NodeId) -> Option<Arc<Connection>> {
        let mut slots = self.slots();
        let slot = slots.get_mut(&node)?;
        slot.live.take_if(|connection| connection.is_closed());
        slot.live.clone()
    }

    /// Begins to dial a node, or joins the dial under way.
    pub(crate) fn dial(self: &Arc<Self>, node: NodeId, address: &str, cluster: ClusterId) -> watch::Receiver<Dial> {
        let mut slots = self.slots();
        let slot = slots.entry(node).or_default();
        if let Some(dialing) = &slot.dialing {
            return dialing.clone();
        }
        let (sender, receiver) = watch::channel(Dial::UnderWay);
        slot.dialing = Some(receiver.clone());
        let within = (self.connect_timeout * (1 << slot.failed.min(2))).min(LONGEST_DIAL.max(self.connect_timeout));
        let (pool, address) = (self.clone(), address.to_owned());
        // On its own, so that the connection is there for the next one when whoever asked for it could not wait.
        tokio::spawn(async move {
            let dialed = pool.dialer.dial(&address, Some(node), Some(cluster), within).await;
            let mut slots = pool.slots();
            let slot = slots.entry(node).or_default();
            slot.dialing = None;
            let dial = match dialed {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    slot.failed = 0;
                    slot.live = Some(connection.clone());
                    Dial::Connected(connection)
                }
                Err(error) => {
                    slot.failed += 1;
                    tracing::debug!(%node, %error, "cannot connect");
                    Dial::Failed
                }
            };
            drop(slots);
            sender.send_replace(dial);
        });
        receiver
    }

    /// Drops the connections to nodes that are no members any more.
    pub(crate) fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        self.slots().retain(|node, _| is_member(*node));
    }

    /// Ends all connections in order.
    pub(crate) async fn close(&self) {
        for slot in std::mem::take(&mut *self.slots()).into_values() {
            if let Some(connection) = slot.live {
                connection.close();
            }
        }
        self.dialer.drain().await;
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<NodeId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of a dial.
pub(crate) async fn dialed(mut dialing: watch::Receiver<Dial>) -> Option<Arc<Connection>> {
    let dial = dialing.wait_for(|dial| !matches!(dial, Dial::UnderWay)).await.ok()?;
    match &*dial {
        Dial::Connected(connection) => Some(connection.clone()),
        Dial::UnderWay | Dial::Failed => None,
    }
}
