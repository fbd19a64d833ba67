//! [`Stuck`]: why a run could not end, and who waits.

use std::{fmt, sync::Arc, time::Duration};

use vaio_core::Instant;

/// A run that did not come to its end. Prints over several lines: the cause, then every task that
/// waits, then the events that no one let happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Stuck {
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: Instant,
    /// Every task that has not ended, in the order of their spawning places.
    pub waiting: Vec<Waiting>,
    /// Names of the events that were pending, oldest first.
    pub pending: Vec<Arc<str>>,
}

/// Why a run could not end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Nothing can run, no event is pending, no timer is set.
    Deadlock,
    /// Tasks ran without end while no time passed; the task that ran most often, and how often.
    Spin {
        /// The task.
        task: TaskName,
        /// Its polls at this moment.
        polls: u64,
    },
    /// The virtual clock would pass [`Limits::time`](super::Limits::time).
    TimeLimit,
    /// More polls and events than [`Limits::steps`](super::Limits::steps).
    StepLimit,
    /// A task was woken from another thread: it uses threads or a runtime behind the simulator's
    /// back, and its runs cannot be repeated.
    ForeignThread {
        /// The task.
        task: TaskName,
    },
    /// A task panicked, while it ran or while it was dropped.
    Panic {
        /// The task.
        task: TaskName,
        /// The panic's text.
        message: String,
    },
}

/// A task, as reports call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    /// Its process; `None` for `main` and the environment.
    pub host: Option<Arc<str>>,
    /// Its name at spawn.
    pub task: &'static str,
}

/// A task that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The task.
    pub name: TaskName,
    /// When it last ran.
    pub since: Instant,
    /// It could run, but its host is paused.
    pub is_paused: bool,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "host={host} ")?;
        }
        write!(f, "task={}", self.task)
    }
}

fn shown(at: Instant) -> Duration {
    Duration::from_nanos(at.as_nanos())
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Deadlock => f.write_str(
                "deadlock: no task can run, no event is pending and no timer is set (or a task \
                 waits for a thread of its own)",
            )?,
            Cause::Spin { task, polls } => write!(
                f,
                "a task runs without end while no time passes, {task} polls={polls}"
            )?,
            Cause::TimeLimit => {
                f.write_str("the run passes its limit of virtual time; see Limits::time")?;
            }
            Cause::StepLimit => {
                f.write_str("the run passes its limit of steps; see Limits::steps")?;
            }
            Cause::ForeignThread { task } => write!(
                f,
                "a task was woken from a thread outside the simulator; use Rt for tasks, time and \
                 blocking work, {task}"
            )?,
            Cause::Panic { task, message } => write!(f, "a task panicked: {message}, {task}")?,
        }
        write!(f, ", at={:?}", shown(self.at))?;
        for waiting in &self.waiting {
            let paused = if waiting.is_paused {
                " (host paused)"
            } else {
                ""
            };
            write!(
                f,
                "\n  waits: {} since={:?}{paused}",
                waiting.name,
                shown(waiting.since)
            )?;
        }
        for name in &self.pending {
            write!(f, "\n  pending event: {name}")?;
        }
        Ok(())
    }
}
