//! `Processes`: the nodes of a dev cluster as they run.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use dunlin_protocol::Status;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::layout::{Layout, Node, cannot};
use crate::cli::failure::Failure;
use crate::cli::output::say;

/// How long the nodes may take to end in order.
const GRACE: Duration = Duration::from_secs(10);
/// Of a log, where it tells why a node could not start.
const TAIL_BYTES: u64 = 1_500;

/// A process for each node.
#[derive(Debug)]
pub(super) struct Processes {
    running: JoinSet<Ended>,
    ids: Vec<u32>,
    kills: Vec<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Ended {
    node: u64,
    pid: u32,
    status: std::io::Result<ExitStatus>,
    log: PathBuf,
    /// Where in the log this run began.
    log_start: u64,
    pid_file: PathBuf,
    restart: String,
}

impl Processes {
    pub(super) fn start(layout: &Layout) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| Failure::local(format!("cannot find this program: {e}")))?;
        let mut processes = Self { running: JoinSet::new(), ids: Vec::new(), kills: Vec::new() };
        for node in &layout.nodes {
            let (child, log_start) = spawn(&program, node)?;
            // It cannot be gone before it was waited for.
            let pid = child.id().unwrap_or_default();
            processes.ids.push(pid);
            let (kill, killed) = tokio::sync::oneshot::channel();
            processes.kills.push(kill);
            let restart = format!("dunlin serve --config {} --pid-file {}", node.config.display(), node.pid.display());
            let (node, log, pid_file) = (node.id, node.log.clone(), node.pid.clone());
            processes.running.spawn(async move {
                let status = wait(child, killed).await;
                Ended { node, pid, status, log, log_start, pid_file, restart }
            });
        }
        Ok(processes)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().copied()
    }

    /// Waits for a node that ends before the cluster is ready: why it does.
    pub(super) async fn first_death(&mut self) -> Failure {
        match self.next().await {
            None => Failure::local("no node runs"),
            Some(ended) => {
                let tail = tail(&ended.log, ended.log_start);
                let status = exit_status(&ended.status, &tail);
                // The code stands behind the whole message.
                let tail = tail.strip_suffix(&format!(" ({})", status.code())).unwrap_or(&tail);
                Failure::new(status, format!("node n{} cannot start ({}):\n{tail}", ended.node, told(&ended.status)))
            }
        }
    }

    /// Says of each node that ends that it does; never done.
    pub(super) async fn watch(&mut self) {
        while let Some(ended) = self.next().await {
            let Ended { node, log, restart, .. } = &ended;
            say(&format!("node n{node} has ended ({}); its log is {}", told(&ended.status), log.display()));
            say(&format!("start it again with: {restart}"));
        }
        std::future::pending().await
    }

    /// Ends all nodes: in order, and after a while by force.
    pub(super) async fn stop(&mut self) {
        for pid in self.ids() {
            terminate(pid);
        }
        if tokio::time::timeout(GRACE, async { while self.next().await.is_some() {} }).await.is_err() {
            say(&format!("{} nodes did not stop within {} s and are killed", self.ids.len(), GRACE.as_secs()));
            self.kill().await;
        }
    }

    /// Ends all nodes at once, which loses nothing that was acknowledged.
    pub(super) async fn kill(&mut self) {
        for kill in self.kills.drain(..) {
            // Where nobody listens, the node has ended already.
            let _ = kill.send(());
        }
        while self.next().await.is_some() {}
    }

    async fn next(&mut self) -> Option<Ended> {
        let ended = match self.running.join_next().await? {
            Ok(ended) => ended,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        };
        self.ids.retain(|pid| *pid != ended.pid);
        // A node that was killed could not remove it; one started by hand meanwhile has written its own.
        if std::fs::read_to_string(&ended.pid_file).is_ok_and(|text| text.trim() == ended.pid.to_string())
            && let Err(error) = std::fs::remove_file(&ended.pid_file)
        {
            tracing::debug!(%error, "the pid file stays behind");
        }
        Some(ended)
    }
}

/// Starts a node; also tells where in its log it begins.
fn spawn(program: &std::path::Path, node: &Node) -> Result<(Child, u64), Failure> {
    let log =
        OpenOptions::new().create(true).append(true).open(&node.log).map_err(|e| cannot("open", &node.log, &e))?;
    let cloned = log.try_clone().map_err(|e| cannot("open", &node.log, &e))?;
    let log_start = log.metadata().map_err(|e| cannot("open", &node.log, &e))?.len();
    let child = Command::new(program)
        .args(["serve", "--stop-with-stdin", "--config"])
        .arg(&node.config)
        .arg("--pid-file")
        .arg(&node.pid)
        // Held open by this process: however it ends, the nodes notice.
        .stdin(Stdio::piped())
        .stdout(cloned)
        .stderr(log)
        // Ctrl-C on the terminal reaches this process alone, which ends the nodes in order.
        .process_group(0)
        .env("NO_COLOR", "1")
        .spawn()
        .map_err(|e| Failure::local(format!("cannot start node n{}: {e}", node.id)))?;
    Ok((child, log_start))
}

async fn wait(mut child: Child, killed: tokio::sync::oneshot::Receiver<()>) -> std::io::Result<ExitStatus> {
    // Waiting would close it, and an end of stdin stops the node.
    let _stdin = child.stdin.take();
    tokio::select! {
        biased;
        status = child.wait() => return status,
        Ok(()) = killed => {}
    }
    child.kill().await?;
    child.wait().await
}

fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        tracing::debug!(%error, "a node has ended by itself");
    }
}

fn told(status: &std::io::Result<ExitStatus>) -> String {
    status.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

/// The code that the node's own error names, so that scripts see the cause.
fn exit_status(status: &std::io::Result<ExitStatus>, tail: &str) -> Status {
    let last = tail.lines().rev().find(|line| line.starts_with("error: "));
    let code = last.and_then(|line| line.rsplit_once('(')).map(|(_, code)| code.trim_end_matches(')'));
    let named = Status::ALL.iter().copied().find(|status| Some(status.code()) == code);
    match status {
        Ok(status) if status.success() => Status::Local,
        _ => named.unwrap_or(Status::Local),
    }
}

fn tail(log: &std::path::Path, start: u64) -> String {
    let read = || {
        let mut file = std::fs::File::open(log)?;
        let len = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(start.max(len.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_else(|e| format!("its log cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_nodes_own_error_is_the_clusters() {
        let failed = Ok(ExitStatus::from_raw(1 << 8));
        let tail = "INFO something\nerror: port 7401 (udp) is taken (ADDRESS_IN_USE)";
        assert_eq!(exit_status(&failed, tail), Status::AddressInUse);
        assert_eq!(exit_status(&failed, "thread panicked"), Status::Local);
        assert_eq!(exit_status(&Ok(ExitStatus::from_raw(9)), ""), Status::Local);
    }
}
