//! `dunlin status` and `dunlin ring`.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_client::{Client, ClusterStatus, NodeId};
use dunlin_protocol::{Keyspace, KeyspaceId, Topology};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::client::with_client;
use super::command::Common;
use super::failure::Failure;
use super::output::{Output, done};

/// How long each node is waited for when all are asked.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn status(common: &Common, output: &mut Output) -> Result<(), Failure> {
    let asked = with_client(common, async |client| {
        let seen = look(common, client).await?;
        let own = ask_all(client, &seen, PATIENCE.min(common.timeout)).await?;
        Ok((seen, own, client.topology()))
    });
    let (seen, own, topology) = asked.await?;
    if output.is_json() {
        return output.object(status_object(&seen, &own, &topology));
    }
    let rows: Vec<_> = seen.members.iter().map(|member| row(member, own.get(&member.node))).collect();
    output.line(format!("cluster {}, epoch {}, as node {} sees it", seen.cluster, seen.epoch, seen.node))?;
    let keyspaces = topology.keyspaces.iter().map(|k| {
        format!(
            "{} ({} replicas, reads at {}, writes at {})",
            k.name,
            replicas(&topology, k),
            k.read_level,
            k.write_level
        )
    });
    output.line(format!("keyspaces: {}", keyspaces.collect::<Vec<_>>().join(", ")))?;
    output.table(["NODE", "ADDRESS", "REGION", "ZONE", "STATE", "BOOT", "RTT", "KEYS", "DISK", "SUSPECT"], &rows)
}

/// The cluster as the node that was named sees it, or any.
async fn look(common: &Common, client: &Client) -> Result<ClusterStatus, Failure> {
    let topology = client.topology();
    let named = topology.members.iter().find(|member| common.at.as_ref() == Some(&member.address));
    Ok(match named {
        Some(member) => client.status_of(member.id, common.timeout).await?,
        None => client.status().await?,
    })
}

fn row(member: &dunlin_client::NodeSummary, own: Option<&ClusterStatus>) -> [String; 10] {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let state = match (member.alive, own) {
        (_, Some(own)) if own.ready => "ready",
        (_, Some(_)) => "not ready",
        (true, None) => "silent",
        (false, None) => "down",
    };
    let round_trip = match member.round_trip_micros {
        0 => "-".to_owned(),
        micros => format!("{:.1} ms", f64::from(micros) / 1_000.0),
    };
    [
        member.node.to_string(),
        member.address.clone(),
        or_dash(&member.region),
        or_dash(&member.zone),
        state.to_owned(),
        member.boot.to_string(),
        round_trip,
        known(own.map(|own| own.keys.to_string())),
        known(own.map(|own| human_bytes(own.segment_bytes))),
        known(own.map(|own| own.suspect_partitions.to_string())),
    ]
}

fn replicas(topology: &Topology, keyspace: &Keyspace) -> u8 {
    topology.assignments[usize::from(keyspace.assignment)].replicas
}

fn status_object(
    seen: &ClusterStatus,
    own: &BTreeMap<NodeId, ClusterStatus>,
    topology: &Topology,
) -> Map<String, Value> {
    let members = seen.members.iter().map(|member| {
        let own = own.get(&member.node);
        json!({
            "node": member.node.0,
            "address": member.address,
            "region": member.region,
            "zone": member.zone,
            "alive": member.alive,
            "boot": member.boot.0,
            "round_trip_micros": member.round_trip_micros,
            "answers": own.is_some(),
            "ready": own.is_some_and(|own| own.ready),
            "keys": own.map(|own| own.keys),
            "segment_bytes": own.map(|own| own.segment_bytes),
            "suspect_partitions": own.map(|own| own.suspect_partitions),
        })
    });
    let mut object = done("");
    object.insert("cluster".to_owned(), seen.cluster.to_string().into());
    object.insert("epoch".to_owned(), seen.epoch.0.into());
    object.insert("node".to_owned(), seen.node.0.into());
    object.insert("members".to_owned(), members.collect());
    let keyspaces = topology.keyspaces.iter().map(|k| {
        json!({
            "keyspace": k.name,
            "replicas": replicas(topology, k),
            "read_level": k.read_level.to_string(),
            "write_level": k.write_level.to_string(),
        })
    });
    object.insert("keyspaces".to_owned(), keyspaces.collect());
    object
}

async fn ask_all(
    client: &Client,
    seen: &ClusterStatus,
    patience: Duration,
) -> Result<BTreeMap<NodeId, ClusterStatus>, Failure> {
    let mut asked = JoinSet::new();
    for member in &seen.members {
        let (client, node) = (client.clone(), member.node);
        asked.spawn(async move { client.status_of(node, patience).await });
    }
    let mut own = BTreeMap::new();
    while let Some(joined) = asked.join_next().await {
        // Who does not answer is shown so.
        if let Ok(status) = joined.map_err(|e| Failure::local(e.to_string()))? {
            own.insert(status.node, status);
        }
    }
    Ok(own)
}

pub(crate) async fn ring(common: &Common, output: &mut Output) -> Result<(), Failure> {
    let topology = with_client(common, async |client| Ok(client.refresh_topology().await?)).await?;
    let Some(keyspace) = topology.keyspace_named(&common.keyspace) else {
        let message = format!("no keyspace is named `{}`", common.keyspace);
        return Err(Failure::new(dunlin_protocol::Status::UnknownKeyspace, message));
    };
    let shares = shares(&topology, keyspace.id);
    if output.is_json() {
        return output.object(ring_object(&topology, keyspace.id, &keyspace.name, &shares));
    }
    let count = topology.partitioning.count();
    let rows = topology.members.iter().map(|member| {
        let Share { first, replicas } = shares.get(&member.id).copied().unwrap_or_default();
        [
            member.id.to_string(),
            member.address.clone(),
            or_dash(&member.region),
            or_dash(&member.zone),
            member.weight.to_string(),
            first.to_string(),
            replicas.to_string(),
            format!("{:.1}%", 100.0 * f64::from(replicas) / f64::from(count)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    output.line(format!("keyspace {}, epoch {}, {count} partitions", keyspace.name, topology.epoch))?;
    output.table(["NODE", "ADDRESS", "REGION", "ZONE", "WEIGHT", "FIRST", "REPLICAS", "SHARE"], &rows)
}

/// How many partitions a node is the first replica of, and a replica at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Share {
    first: u32,
    replicas: u32,
}

fn shares(topology: &Topology, keyspace: KeyspaceId) -> BTreeMap<NodeId, Share> {
    let mut shares = BTreeMap::<_, Share>::new();
    for partition in topology.partitioning.all() {
        for (place, member) in topology.replicas(keyspace, partition).into_iter().flatten().enumerate() {
            let share = shares.entry(member.id).or_default();
            share.replicas += 1;
            share.first += u32::from(place == 0);
        }
    }
    shares
}

fn ring_object(
    topology: &Topology,
    id: KeyspaceId,
    name: &str,
    shares: &BTreeMap<NodeId, Share>,
) -> Map<String, Value> {
    let members = topology.members.iter().map(|member| {
        let share = shares.get(&member.id).copied().unwrap_or_default();
        json!({
            "node": member.id.0,
            "address": member.address,
            "region": member.region,
            "zone": member.zone,
            "weight": member.weight,
            "first": share.first,
            "replicas": share.replicas,
        })
    });
    let partitions = topology.partitioning.all().map(|partition| {
        let replicas = topology.replicas(id, partition).into_iter().flatten();
        Value::from_iter(replicas.map(|member| member.id.0))
    });
    let mut object = done("");
    object.insert("keyspace".to_owned(), name.into());
    object.insert("epoch".to_owned(), topology.epoch.0.into());
    object.insert("members".to_owned(), members.collect());
    object.insert("partitions".to_owned(), partitions.collect());
    object
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// A size as people read it.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}
