//! `dunlin serve`: one node.

use std::fs;
use std::io;
use std::path::PathBuf;

use dunlin_node::config::{Config, ConfigError};
use dunlin_node::{Environment, ServeError, Server};
use dunlin_protocol::Status;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::command::Serve;
use super::failure::{Failure, with_causes};

pub(crate) fn run(serve: &Serve) -> Result<(), Failure> {
    log_to_stderr()?;
    let mut config = Config::load(&serve.config)?;
    if let Some(data) = &serve.data {
        config.data.clone_from(data);
    }
    if let Some(listen) = serve.listen {
        config.listen = listen;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::local(format!("cannot start: {e}")))?;
    let served = tokio::task::LocalSet::new().block_on(&runtime, async {
        // First, so that a signal during a long recovery is not lost.
        let stop = stop(serve.stop_with_stdin)?;
        // The socket is entered into the runtime, so this happens within it.
        let server = Server::open(&config, Environment::of_machine(&config)?)?;
        let _pid = serve.pid_file.clone().map(PidFile::write).transpose()?;
        let address = server.local_addr().map_err(|e| Failure::local(e.to_string()))?;
        tracing::info!(node = %config.id, cluster = %server.cluster(), %address, "serving");
        server.run(stop).await?;
        tracing::info!(node = %config.id, "stopped");
        Ok(())
    });
    // Not dropped: that would wait for the thread that waits for the end of stdin.
    runtime.shutdown_background();
    served
}

/// Done at SIGTERM or SIGINT; or when stdin ends, where that is asked for.
fn stop(with_stdin: bool) -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::local(format!("cannot listen for signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            () = stdin_ends(), if with_stdin => tracing::info!("whoever started this node is gone: stopping"),
        }
    })
}

async fn stdin_ends() {
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0; 64];
    while stdin.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

fn log_to_stderr() -> Result<(), Failure> {
    let filter = match std::env::var("DUNLIN_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).map_err(|e| Failure::usage(format!("DUNLIN_LOG: {e}")))?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}

/// A file with this process's id, for as long as this lives.
struct PidFile(PathBuf);

impl PidFile {
    fn write(file: PathBuf) -> Result<Self, Failure> {
        match fs::write(&file, format!("{}\n", std::process::id())) {
            // On a full disk the node can still give out and delete what it has.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(file = %file.display(), %error, "the pid file cannot be written");
            }
            written => written.map_err(|e| Failure::local(format!("cannot write {}: {e}", file.display())))?,
        }
        Ok(Self(file))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(file = %self.0.display(), %error, "the pid file stays behind");
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let status: Status = error.status();
        let message = match status {
            Status::Local | Status::InvalidConfig => with_causes(&error),
            _ => format!("{}. {}", with_causes(&error), status.sentence()),
        };
        Self::new(status, message)
    }
}
