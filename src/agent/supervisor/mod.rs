//! Starts the agent while the configuration needs it, checks everything that it sends, and starts it again when it fails.

mod check;
mod child;
pub(crate) mod requests;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::agent::frame::{FrameError, MessageReader, MessageWriter};
use crate::agent::message::{Confinement, FromAgent, Task, ToAgent, VERSION};
use crate::agent::state::{AgentState, Phase};
use crate::agent::supervisor::check::{KnownSources, MessageRate, is_within_limits};
use crate::agent::supervisor::child::{AgentProcess, Program};
use crate::agent::supervisor::requests::{Requests, StoreDialogue, StoreViolation, fail};
use crate::fleet::settings::StoreSettings;
use crate::fleet::store::{Request, StoreEvent};
use crate::printable;
use crate::resolution::observation::Observation;
use crate::source::cloud::CloudSource;

/// What the agent reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A result for a source of the task.
    Observation(CloudSource, Observation),
    /// News of a store. After a change of the configuration, it may be the former one.
    Store(Arc<StoreSettings>, StoreEvent),
}

/// Supervises the agent until the task channel is closed. `report` receives what the agent reports of the task's sources and of
/// its store. The agent performs the requests; without an agent they fail.
pub(crate) async fn run(
    task: watch::Receiver<Arc<Task>>,
    requests: Requests,
    report: impl Fn(Report),
    state: Arc<AgentState>,
) {
    let mut requests = requests.acquire().await;
    Supervisor { task, requests: &mut requests, report, state, program: Program::itself() }.run().await;
}

struct Supervisor<'r, O> {
    task: watch::Receiver<Arc<Task>>,
    requests: &'r mut mpsc::Receiver<Request>,
    report: O,
    state: Arc<AgentState>,
    program: Program,
}

/// Why an agent ended, or has to.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("cannot start: {0}")]
    Start(#[source] std::io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error(transparent)]
    Frame(FrameError),
    #[error("no message within {HELLO_TIMEOUT:?} of its start")]
    NoHello,
    #[error("its first message is not a greeting")]
    NotHello,
    #[error("it has version {0} of the messages, and not {VERSION}")]
    Version(u32),
    #[error("no answer for {SILENCE_TIMEOUT:?}")]
    Silent,
    #[error("more than {most} messages or {} MiB a second", check::MAX_BYTES >> 20)]
    Flood { most: usize },
    #[error("a second greeting")]
    SecondHello,
    #[error("an answer that was not asked for")]
    WrongPong,
    #[error("a result for {0}, which is not in its task")]
    UnknownSource(CloudSource),
    #[error("an invalid result for {0}")]
    InvalidObservation(CloudSource),
    #[error(transparent)]
    Store(#[from] StoreViolation),
}

/// An agent failed, which is logged.
#[derive(Debug)]
struct Failed;

impl From<FrameError> for AgentError {
    fn from(error: FrameError) -> Self {
        match &error {
            // It ended before it had read everything.
            FrameError::Stream(cause) if matches!(cause.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                Self::Closed
            }
            _ => Self::Frame(error),
        }
    }
}

/// Why the supervisor no longer needs a running agent.
#[derive(Debug, PartialEq, Eq)]
enum Release {
    /// The program ends.
    ProgramEnds,
    /// The task has no sources.
    NotNeeded,
    /// The task needs a variable that the agent's environment lacks, or has another store.
    Replaced,
}

impl<O: Fn(Report)> Supervisor<'_, O> {
    async fn run(mut self) {
        let mut pauses = Pauses::default();
        loop {
            while !self.task.borrow_and_update().is_needed() {
                self.state.enter(Phase::NotNeeded);
                pauses = Pauses::default();
                if !self.task_changes("the configuration has no store").await {
                    return;
                }
            }
            self.state.enter(Phase::Down);
            let started = Instant::now();
            match self.supervise().await {
                Ok(Release::ProgramEnds) => return,
                Ok(Release::NotNeeded | Release::Replaced) => {}
                Err(Failed) => {
                    let pause = pauses.next(started.elapsed());
                    info!(?pause, "agent restart planned");
                    if !self.pause(pause).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits, for as long as the task needs an agent. Returns whether the program continues.
    async fn pause(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return true,
                continues = self.task_changes("the agent that reaches the store has ended") => {
                    if !continues || !self.task.borrow_and_update().is_needed() {
                        return continues;
                    }
                }
            }
        }
    }

    /// Waits for another task while there is no agent. Requests fail with this error. Returns whether the program continues.
    async fn task_changes(&mut self, error: &str) -> bool {
        loop {
            tokio::select! {
                changed = self.task.changed() => return changed.is_ok(),
                Some(request) = self.requests.recv() => fail(request.reply, error),
            }
        }
    }

    /// Runs one agent from its start to its end. A failure is logged.
    async fn supervise(&mut self) -> Result<Release, Failed> {
        let task = Arc::clone(&self.task.borrow_and_update());
        let mut agent = match AgentProcess::start(&self.program, &task) {
            Ok(agent) => agent,
            Err(error) => return Err(self.failed(None, &AgentError::Start(error), None)),
        };
        let process = agent.id();
        let mut dialogue = Dialogue::new(&task);
        let served = self.serve(&mut agent, &mut dialogue, &task).await;
        if let Some(store) = dialogue.store.store().cloned() {
            let error = "the agent that reaches the store has ended";
            dialogue.store.fail(error);
            (self.report)(Report::Store(store, StoreEvent::Down { error: error.to_owned() }));
        }
        match served {
            Ok(release) => {
                let status = agent.stop().await;
                info!(process, status, "agent ended");
                Ok(release)
            }
            Err(error) => {
                let status = agent.kill(matches!(error, AgentError::Closed)).await;
                Err(self.failed(Some(process), &error, Some(&status)))
            }
        }
    }

    fn failed(&self, process: Option<u32>, error: &AgentError, status: Option<&str>) -> Failed {
        let error = printable::field(error);
        warn!(process, status, error, "agent ended");
        self.state.fail(match status {
            Some(status) => printable::field(format_args!("{error} ({status})")),
            None => error,
        });
        Failed
    }

    async fn serve(
        &mut self,
        agent: &mut AgentProcess,
        dialogue: &mut Dialogue,
        task: &Task,
    ) -> Result<Release, AgentError> {
        let confinement =
            timeout(HELLO_TIMEOUT, greeting(&mut agent.reader)).await.unwrap_or(Err(AgentError::NoHello))?;
        let process = agent.id();
        info!(process, confinement = confinement.name(), "agent started");
        self.state.enter(Phase::Up { process, confinement });
        dialogue.start();
        push(&mut agent.writer, &ToAgent::Task(Box::new(task.clone())))?;
        loop {
            let silent_at = dialogue.silent_at();
            let answer_due = dialogue.store.answer_due();
            tokio::select! {
                // Messages first: after a pause of this process, the answers are there already.
                biased;
                message = agent.reader.next() => match message? {
                    Some(message) => {
                        if let Some(report) = dialogue.receive(message, agent.reader.last_length())? {
                            (self.report)(report);
                        }
                    }
                    None => return Err(AgentError::Closed),
                },
                written = agent.writer.flush(), if agent.writer.pending() > 0 => written.map_err(FrameError::from)?,
                () = sleep_until(silent_at.unwrap_or_else(Instant::now)), if silent_at.is_some() => {
                    return Err(AgentError::Silent);
                }
                () = sleep_until(answer_due.unwrap_or_else(Instant::now)), if answer_due.is_some() => {
                    return Err(StoreViolation::NoAnswer.into());
                }
                () = sleep_until(dialogue.next_ping) => {
                    let ping = dialogue.ping();
                    // Otherwise the agent has not read the previous messages, and this one would only wait behind them.
                    if agent.writer.pending() == 0 {
                        push(&mut agent.writer, &ping)?;
                    }
                }
                changed = self.task.changed(), if agent.writer.pending() == 0 => {
                    if changed.is_err() {
                        return Ok(Release::ProgramEnds);
                    }
                    let task = Arc::clone(&self.task.borrow_and_update());
                    if !task.is_needed() {
                        return Ok(Release::NotNeeded);
                    }
                    if !agent.has_environment(&task) || !dialogue.store.can_continue_with(task.store.as_ref()) {
                        return Ok(Release::Replaced);
                    }
                    dialogue.replace(&task);
                    push(&mut agent.writer, &ToAgent::Task(Box::new(Task::clone(&task))))?;
                }
                Some(request) = self.requests.recv(), if agent.writer.pending() == 0 && dialogue.store.has_room() => {
                    if let Some((number, operation)) = dialogue.store.open(request) {
                        push(&mut agent.writer, &ToAgent::Store { number, operation })?;
                    }
                }
            }
        }
    }
}

/// The first message of an agent.
async fn greeting<R: tokio::io::AsyncRead + Unpin>(reader: &mut MessageReader<R>) -> Result<Confinement, AgentError> {
    match reader.next().await? {
        Some(FromAgent::Hello { version: VERSION, confinement }) => Ok(confinement),
        Some(FromAgent::Hello { version, .. }) => Err(AgentError::Version(version)),
        Some(_) => Err(AgentError::NotHello),
        None => Err(AgentError::Closed),
    }
}

fn push<W: tokio::io::AsyncWrite + Unpin>(writer: &mut MessageWriter<W>, message: &ToAgent) -> Result<(), AgentError> {
    Ok(writer.push(message)?)
}

/// What is expected of an agent that has greeted.
struct Dialogue {
    known: KnownSources,
    store: StoreDialogue,
    rate: MessageRate,
    /// The number of the last ping, and of the last one that was answered.
    asked: u64,
    answered: u64,
    /// When the oldest ping without an answer was due.
    waiting_since: Option<Instant>,
    last_answer: Instant,
    next_ping: Instant,
}

impl Dialogue {
    fn new(task: &Task) -> Self {
        let now = Instant::now();
        Self {
            known: KnownSources::new(task),
            store: StoreDialogue::new(task.store.as_ref()),
            rate: MessageRate::new(now),
            asked: 0,
            answered: 0,
            waiting_since: None,
            last_answer: now,
            next_ping: now + PING_INTERVAL,
        }
    }

    /// Notes that the agent has greeted.
    fn start(&mut self) {
        let now = Instant::now();
        (self.last_answer, self.next_ping) = (now, now + PING_INTERVAL);
    }

    /// Checks a message, and returns the report in it.
    fn receive(&mut self, message: FromAgent, length: usize) -> Result<Option<Report>, AgentError> {
        let most = self.known.max_messages() + if self.store.store().is_some() { check::MAX_STORE_MESSAGES } else { 0 };
        if !self.rate.allows(length, most, Instant::now()) {
            return Err(AgentError::Flood { most });
        }
        match message {
            FromAgent::Hello { .. } => Err(AgentError::SecondHello),
            FromAgent::Pong { number } => {
                if number <= self.answered || number > self.asked {
                    return Err(AgentError::WrongPong);
                }
                self.answered = number;
                self.last_answer = Instant::now();
                self.waiting_since = None;
                self.known.answered(number);
                Ok(None)
            }
            FromAgent::StoreNews(event) => {
                let (store, event) = self.store.report(event)?;
                Ok(Some(Report::Store(store, event)))
            }
            FromAgent::StoreReply { number, outcome } => Ok(self.store.answer(number, outcome).map(|()| None)?),
            FromAgent::Observed { source, observation } => {
                if !is_within_limits(&observation) {
                    return Err(AgentError::InvalidObservation(source));
                }
                match self.known.judge(&source) {
                    check::Knowledge::Current => Ok(Some(Report::Observation(source, observation))),
                    check::Knowledge::Former => Ok(None),
                    check::Knowledge::Unknown => Err(AgentError::UnknownSource(source)),
                }
            }
        }
    }

    /// Notes that the next ping is due.
    fn ping(&mut self) -> ToAgent {
        let now = Instant::now();
        self.waiting_since.get_or_insert(now);
        self.next_ping = now + PING_INTERVAL;
        self.asked = self.asked.saturating_add(1);
        ToAgent::Ping { number: self.asked }
    }

    fn replace(&mut self, task: &Task) {
        self.known.replace(task, self.asked);
        self.store.replace(task.store.as_ref());
    }

    /// When an agent that was asked and does not answer counts as hanging. The second condition applies after a pause of this process, in
    /// which it sent no pings.
    fn silent_at(&self) -> Option<Instant> {
        self.waiting_since.map(|since| (self.last_answer + SILENCE_TIMEOUT).max(since + 2 * PING_INTERVAL))
    }
}

/// The pauses before an agent is started again: they double with each failure, until one has served well.
#[derive(Debug, Default)]
struct Pauses {
    last: Option<Duration>,
}

impl Pauses {
    /// The pause after an agent that ran for this time.
    fn next(&mut self, ran: Duration) -> Duration {
        let last = self.last.filter(|_| ran < GOOD_SERVICE);
        let pause = last.map_or(MIN_PAUSE, |last| (last * 2).min(MAX_PAUSE));
        self.last = Some(pause);
        pause
    }
}

/// The name of this part in fault reports.
pub(crate) const PART: &str = "agent supervisor";

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);

const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// After this time, a failure is not a continuation of earlier ones.
const GOOD_SERVICE: Duration = Duration::from_secs(60);
