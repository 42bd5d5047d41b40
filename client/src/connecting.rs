//! The first connection: to whichever contact point answers, and the topology from there.

use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::message::{ClientReply, ClientRequest, ReplyBody};
use dunlin_protocol::{Epoch, Topology};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::core::{Core, decode_topology};
use crate::dial::Dialer;
use crate::error::{ConnectError, ProtocolError};
use crate::options::Options;
use crate::session::Session;
use crate::ticks::Ticks;

/// The next contact point is tried beside the earlier ones after this.
const STAGGER: Duration = Duration::from_millis(150);
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn connect(options: Options, endpoint: Option<quinn::Endpoint>) -> Result<Core, ConnectError> {
    if options.contact_points.is_empty() {
        return Err(ConnectError::NoContactPoints);
    }
    let dialer = Arc::new(Dialer::new(&options.ca_pem, options.max_mtu, endpoint)?);
    let seed = options.seed.unwrap_or_else(|| StdRng::from_os_rng().next_u64());
    let ticks = Ticks::start();
    let mut session = Session::new(seed);
    let deadline = Instant::now() + options.timeout;
    let mut first = None;
    let (connection, topology) = loop {
        let error = match greet_any(&dialer, &options, deadline, ticks, &mut session).await {
            Ok(found) => break found,
            Err(error) => error,
        };
        if error.is_final() {
            return Err(error);
        }
        // The first round had the most time, so its error says the most.
        let error = first.take().unwrap_or(error);
        if Instant::now() + PAUSE >= deadline {
            return Err(error);
        }
        first = Some(error);
        // A cluster that is starting, or healing, answers soon.
        tokio::time::sleep(PAUSE).await;
    };
    Ok(Core::new(options, dialer, session, ticks, seed, connection, topology))
}

/// Tries all contact points, each a little after the one before, until one answers.
async fn greet_any(
    dialer: &Arc<Dialer>,
    options: &Options,
    deadline: Instant,
    ticks: Ticks,
    session: &mut Session,
) -> Result<(Arc<Connection>, Topology), ConnectError> {
    let mut dials = JoinSet::new();
    let left = deadline.saturating_duration_since(Instant::now());
    for (i, address) in options.contact_points.iter().cloned().enumerate() {
        let (dialer, cluster) = (dialer.clone(), options.cluster);
        let within = left.min(options.connect_timeout.max(Duration::from_secs(2)));
        let wait = STAGGER * u32::try_from(i).unwrap_or(u32::MAX);
        dials.spawn(async move {
            tokio::time::sleep(wait.min(left)).await;
            let greeted = async {
                let connection = dialer.dial(&address, None, cluster, within).await?;
                let sent = ticks.now();
                let reply = first_reply(&connection, &address, within).await?;
                let received = ticks.now();
                let topology = first_topology(&reply, &address)?;
                Ok((Arc::new(connection), topology, reply, sent, received))
            };
            (i, greeted.await)
        });
    }
    let mut errors: Vec<(usize, ConnectError)> = Vec::new();
    while let Some(joined) = dials.join_next().await {
        match joined {
            Ok((_, Ok((connection, topology, reply, sent, received)))) => {
                session.replied(connection.node, sent, received, &reply);
                return Ok((connection, topology));
            }
            Ok((i, Err(error))) => errors.push((i, error)),
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        }
    }
    // What no other try will change is worth more to know than a silence.
    errors.sort_by_key(|(i, error)| (!error.is_final(), *i));
    Err(errors.into_iter().map(|(_, error)| error).next().unwrap_or(ConnectError::NoContactPoints))
}

async fn first_reply(connection: &Connection, address: &str, within: Duration) -> Result<ClientReply, ConnectError> {
    let unreachable =
        |reason: &str| ConnectError::Unreachable { address: address.to_owned(), reason: reason.to_owned() };
    let pending = connection
        .ask(&ClientRequest::Topology { epoch: Epoch(0) })
        .map_err(|_| unreachable("the connection was lost"))?;
    let reply = tokio::time::timeout(within, pending).await.map_err(|_| unreachable("no topology in time"))?;
    reply.map_err(|_| unreachable("the connection was lost"))
}

fn first_topology(reply: &ClientReply, address: &str) -> Result<Topology, ConnectError> {
    let protocol = |source| ConnectError::Protocol { address: address.to_owned(), source };
    match &reply.body {
        ReplyBody::Topology(bytes) => decode_topology(bytes).map_err(protocol),
        ReplyBody::Outcome(outcome) => Err(ConnectError::Refused {
            address: address.to_owned(),
            status: outcome.status,
            message: outcome.message.clone(),
        }),
        _ => Err(protocol(ProtocolError::Unexpected)),
    }
}
