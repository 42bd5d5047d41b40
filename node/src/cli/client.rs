//! The connected client of a command.

use dunlin_client::{Client, Options};
use dunlin_protocol::Status;

use super::command::Common;
use super::context::{Context, find};
use super::failure::Failure;

/// Connects as the common options say.
pub(crate) async fn connect(common: &Common) -> Result<Client, Failure> {
    let file = find(common.context.as_deref())?;
    let context = match Context::load(&file) {
        // A pointer outlives the temporary folder of a dev cluster that was killed.
        Err(_) if common.context.is_none() && !file.exists() => {
            let message = format!(
                "no cluster runs: {} is gone; start one with `dunlin dev`, or name a context with --context",
                file.display()
            );
            return Err(Failure::new(Status::Connect, message));
        }
        loaded => loaded?,
    };
    let options = options(common, context)?;
    Ok(Client::connect(options).await?)
}

/// Connects, does something, and says goodbye however that ended: otherwise the node would keep the connection until its idle timeout.
pub(crate) async fn with_client<T>(
    common: &Common,
    work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let client = connect(common).await?;
    let done = work(&client).await;
    client.close().await;
    done
}

/// The client's options.
pub(crate) fn options(common: &Common, context: Context) -> Result<Options, Failure> {
    let cluster = context.cluster().map_err(|what| Failure::new(Status::InvalidConfig, what))?;
    let contact_points = common.at.clone().map_or(context.nodes, |at| vec![at]);
    let defaults = Options::new(contact_points, context.ca);
    Ok(Options {
        cluster,
        keyspace: common.keyspace.clone(),
        timeout: common.timeout,
        max_mtu: context.max_mtu.unwrap_or(defaults.max_mtu),
        ..defaults
    })
}
