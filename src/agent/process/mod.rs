//! `portcullis agent`: resolves the sources of the task that arrives on its standard input.
//!
//! One thread does everything, and answers the pings as well. So an agent that hangs anywhere does not answer.

pub(crate) mod confinement;
mod pace;
pub(crate) mod resolvers;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tracing_subscriber::EnvFilter;

use crate::agent::frame::{FrameError, MessageReader, MessageWriter};
use crate::agent::message::{Confinement, FromAgent, MAX_MESSAGE, ToAgent, VERSION};
use crate::agent::process::confinement::confine;
use crate::agent::process::pace::Pace;
use crate::agent::process::resolvers::Resolvers;
use crate::agent::store::Store;
use crate::fault;
use crate::fleet::store::Outcome;
use crate::resolution::observation::Observation;
use crate::source::cloud::CloudSource;

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// Standard input is not a Unix socket.
    #[error("portcullis run starts this command; it is not for use by hand")]
    NotStarted,
    #[error("agent: {0}")]
    Runtime(#[from] io::Error),
    #[error("agent: messages of portcullis run: {0}")]
    Frame(#[from] FrameError),
}

/// Serves until the program closes the connection.
///
/// # Errors
/// If the agent was not started by the program, or the program sends something that is not a message.
pub(crate) fn run() -> Result<(), ProcessError> {
    let stream = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // An error means that it is not a socket of this family.
    stream.local_addr().map_err(|_| ProcessError::NotStarted)?;
    stream.set_nonblocking(true)?;
    log_faults();
    let confinement = confine();
    fault::install_hook();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (read, write) = UnixStream::from_std(stream)?.into_split();
        serve(MessageReader::new(read), MessageWriter::new(write), confinement).await
    });
    // Do not wait for threads that resolve names.
    runtime.shutdown_background();
    result
}

/// Writes faults of this program to standard error. Libraries are silent, because what fails is reported to the program.
fn log_faults() {
    let own = EnvFilter::new(concat!("off,", env!("CARGO_CRATE_NAME"), "=warn"));
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_env_filter(own);
    // An error means that a subscriber is set already.
    let _ = log.try_init();
}

async fn serve(
    mut reader: MessageReader<OwnedReadHalf>,
    mut writer: MessageWriter<OwnedWriteHalf>,
    confinement: Confinement,
) -> Result<(), ProcessError> {
    writer.push(&FromAgent::Hello { version: VERSION, confinement })?;
    let (mut resolvers, mut store, mut pace) = (Resolvers::default(), Store::default(), Pace::default());
    loop {
        tokio::select! {
            biased;
            // A program that sends without reading is not read either.
            message = reader.next(), if writer.pending() <= MAX_MESSAGE => match message? {
                Some(ToAgent::Ping { number }) => writer.push(&FromAgent::Pong { number })?,
                Some(ToAgent::Task(task)) => {
                    store.apply(task.store.as_ref());
                    resolvers.apply(*task);
                }
                Some(ToAgent::Store { number, operation }) => {
                    if let Some(reply) = store.perform(number, operation) {
                        writer.push(&reply)?;
                    }
                }
                None => return Ok(()),
            },
            written = writer.flush(), if writer.pending() > 0 => {
                // The program has ended. Its last message, if there is one, does not matter.
                if written.is_err() {
                    return Ok(());
                }
            }
            (source, observation) = resolvers.next(), if writer.pending() == 0 => {
                report(&mut writer, source, observation)?;
            }
            // Behind the observations, which are few.
            message = async { pace.ready().await; store.next().await }, if writer.pending() == 0 => {
                push_store(&mut writer, &message)?;
                pace.count(writer.pending());
            }
        }
    }
}

/// Sends a message about the store. An answer that is too long for a message is none.
fn push_store(writer: &mut MessageWriter<OwnedWriteHalf>, message: &FromAgent) -> Result<(), FrameError> {
    match (writer.push(message), message) {
        (Err(FrameError::TooLong(_)), FromAgent::StoreReply { number, .. }) => {
            let error = format!("the entries do not fit into {} MiB", MAX_MESSAGE >> 20);
            writer.push(&FromAgent::StoreReply { number: *number, outcome: Outcome::Failed { error } })
        }
        (result, _) => result,
    }
}

/// Sends an observation. One that is too long for a message is no answer.
fn report(
    writer: &mut MessageWriter<OwnedWriteHalf>,
    source: CloudSource,
    observation: Observation,
) -> Result<(), FrameError> {
    match writer.push(&FromAgent::Observed { source: source.clone(), observation }) {
        Err(FrameError::TooLong(_)) => {
            let error = format!("its addresses do not fit into {} MiB", MAX_MESSAGE >> 20);
            writer.push(&FromAgent::Observed { source, observation: Observation::Failed { error } })
        }
        result => result,
    }
}
