//! `dunlin dev`: a cluster of processes on this machine.

mod layout;
mod ports;
mod processes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_client::{Client, ClusterStatus, Options};
use dunlin_protocol::Status;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::client::options;
use super::command::{Common, Dev};
use super::context::{Context, Pointer};
use super::failure::Failure;
use super::output::{Output, done, say};
use layout::{Layout, Lock};
use processes::Processes;

/// How long the nodes may take until a quorum write works.
const READY_TIME: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// What is written to see whether writing works. It expires at once.
const PROBE: &str = "\0dunlin dev";

pub(crate) async fn run(dev: &Dev, output: &mut Output) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let folder = Folder::open(dev.data.as_deref())?;
    let _lock = Lock::take(folder.path())?;
    let layout = Layout::prepare(dev, folder.path(), ports::probe)?;
    let mut processes = Processes::start(&layout)?;
    let served = tokio::select! {
        biased;
        () = signals.stop() => Ok(()),
        served = serve(&layout, &mut processes, output) => served,
    };
    // A second signal does not wait for an orderly end.
    tokio::select! {
        biased;
        () = processes.stop() => {}
        () = signals.stop() => processes.kill().await,
    }
    served
}

/// Until a signal comes; ends earlier only when the cluster cannot begin.
async fn serve(layout: &Layout, processes: &mut Processes, output: &mut Output) -> Result<(), Failure> {
    if !output.is_json() {
        let rows = layout.nodes.iter().zip(processes.ids()).map(|(node, pid)| {
            let (folder, zone) = (node.folder.display().to_string(), node.zone.clone());
            let region = if node.region.is_empty() { "-".to_owned() } else { node.region.clone() };
            [format!("n{}", node.id), node.address.clone(), region, zone, pid.to_string(), folder]
        });
        let rows: Vec<_> = rows.collect();
        output.table(["NODE", "ADDRESS", "REGION", "ZONE", "PID", "FOLDER"], &rows)?;
    }
    let client = tokio::select! {
        biased;
        failure = processes.first_death() => return Err(failure),
        ready = ready(layout) => ready?,
    };
    client.close().await;
    // Only now: a cluster that is not ready is nobody's default.
    let pointer = Pointer::set(&layout.context);
    if let Err(failure) = &pointer {
        say(&format!("note: {failure}; use --context {}", layout.context.display()));
    }
    if output.is_json() {
        let mut object = done("ready");
        object.insert("context".to_owned(), layout.context.display().to_string().into());
        let nodes = layout.nodes.iter().zip(processes.ids()).map(|(node, pid)| {
            json!({"node": node.id, "address": node.address, "region": node.region, "zone": node.zone, "pid": pid,
                   "folder": node.folder.display().to_string()})
        });
        object.insert("nodes".to_owned(), Value::from_iter(nodes));
        output.object(object)?;
    } else {
        output.line("ready")?;
    }
    processes.watch().await;
    Ok(())
}

/// Waits until every node takes requests and knows of all others, and a quorum write works.
async fn ready(layout: &Layout) -> Result<Client, Failure> {
    let deadline = Instant::now() + READY_TIME;
    let context = Context::load(&layout.context)?;
    let common = Common {
        keyspace: "default".to_owned(),
        context: None,
        at: None,
        timeout: Duration::from_secs(2),
        own_timeout: false,
        json: false,
    };
    let options: Options = options(&common, context)?;
    let client = loop {
        match Client::connect(options.clone()).await {
            Ok(client) => break client,
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => sleep(PAUSE).await,
        }
    };
    for node in &layout.nodes {
        let id = dunlin_protocol::NodeId(node.id);
        let is_ready = |status: ClusterStatus| status.ready && status.members.iter().all(|member| member.alive);
        while !client.status_of(id, PAUSE * 10).await.is_ok_and(is_ready) {
            if Instant::now() >= deadline {
                let message = format!(
                    "node n{} is not ready after {} s: see {}",
                    node.id,
                    READY_TIME.as_secs(),
                    node.log.display()
                );
                return Err(Failure::new(Status::NotReady, message));
            }
            sleep(PAUSE).await;
        }
    }
    loop {
        match client.put(PROBE, "").ttl(Duration::from_millis(1)).await {
            Ok(_) => return Ok(client),
            // What is there can be read and deleted all the same.
            Err(error) if error.status() == Status::DiskFull => {
                say(&format!("note: writes are refused: {}", Status::DiskFull.sentence()));
                return Ok(client);
            }
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Where the cluster lies: a folder of the user's, or a temporary one that goes with this.
enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn open(data: Option<&Path>) -> Result<Self, Failure> {
        let Some(data) = data else {
            let folder = tempfile::Builder::new().prefix("dunlin-dev-").tempdir();
            return folder
                .map(Self::Temporary)
                .map_err(|e| Failure::local(format!("cannot make a temporary folder: {e}")));
        };
        let cannot = |e: std::io::Error| Failure::local(format!("cannot use {}: {e}", data.display()));
        std::fs::create_dir_all(data).map_err(cannot)?;
        // The context's pointer is followed from anywhere.
        Ok(Self::Kept(data.canonicalize().map_err(cannot)?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::local(format!("cannot listen for signals: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
