//! Two-phase verbs: snapshot, resize, migrate, clone, delete. `Prepare` goes down the chain while
//! the guest runs; if one refuses, those that prepared hear `Abort` in reverse order. `Commit`
//! happens with the disk quiesced.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;

use super::{Control, Disk, DiskInner};
use crate::{
    ErrorKind, Instant, Phase, Result, Verb,
    chain::Layer,
    event::{EventKind, Notice, Severity},
    sync::lock,
};

/// A verb that every filter has prepared for. Dropping it aborts.
#[derive(Debug)]
#[must_use = "dropping it aborts the verb"]
pub struct Prepared {
    disk: Disk,
    verb: Option<Verb>,
    /// Top to bottom.
    layers: Vec<Arc<Layer>>,
}

impl Disk {
    /// Announces a verb to every filter, top down. They may be slow and may refuse; the guest
    /// runs on. [`Prepared::commit`] makes it happen.
    ///
    /// # Errors
    /// The first refusal, with the filter's name; those that had prepared have been told to
    /// abort, in reverse order. [`ErrorKind::Invalid`] for a verb that is not for a whole disk
    /// (attach, detach, open, close have calls of their own).
    pub async fn prepare(&self, verb: Verb) -> Result<Prepared> {
        if matches!(verb, Verb::Attach | Verb::Detach | Verb::Open | Verb::Close) {
            return Err(crate::Error::invalid(format!(
                "this verb has a call of its own, verb={}",
                verb.name()
            )));
        }
        let disk = self.clone();
        self.verb("prepare", move |inner| async move {
            let control = inner.control.lock().await;
            *lock(&inner.running) = Some(verb.name());
            let layers: Vec<_> = control
                .attached
                .iter()
                .map(|one| Arc::clone(&one.layer))
                .collect();
            for (index, layer) in layers.iter().enumerate() {
                if let Err(error) = inner.tell(layer, &verb, Phase::Prepare).await {
                    // The one that refused too, if it only timed out: it may prepare yet.
                    let told = if error.kind() == ErrorKind::TimedOut {
                        index + 1
                    } else {
                        index
                    };
                    inner.abort(&layers[..told], &verb, &error.to_line()).await;
                    return Err(error);
                }
            }
            Ok(Prepared {
                disk,
                verb: Some(verb),
                layers,
            })
        })
        .await
    }
}

impl DiskInner {
    /// Tells a filter that a verb has happened. What it says against that is reported.
    pub(super) async fn commit_or_report(&self, layer: &Arc<Layer>, verb: &Verb) {
        if let Err(error) = self.tell(layer, verb, Phase::Commit).await {
            let text = format!(
                "the filter failed to commit, and the verb stands: {}",
                error.to_line()
            );
            self.core.events.send(
                Notice::of(Severity::Error, EventKind::Filter, text).with_filter(&layer.name),
            );
        }
    }

    async fn abort(&self, layers: &[Arc<Layer>], verb: &Verb, why: &str) {
        for layer in layers.iter().rev() {
            let _ = self.tell(layer, verb, Phase::Abort).await;
        }
        self.core.events.send(Notice::of(
            Severity::Warning,
            EventKind::VerbAborted,
            format!("the verb was aborted: {why}, verb={}", verb.name()),
        ));
    }
}

/// A filter that has left since it prepared is not called any more.
fn still_there(control: &Control, mut layers: Vec<Arc<Layer>>) -> Vec<Arc<Layer>> {
    layers.retain(|layer| {
        let mut attached = control.attached.iter();
        attached.any(|one| Arc::ptr_eq(&one.layer, layer))
    });
    layers
}

impl Prepared {
    /// Quiesces the disk, runs `action` (the array's snapshot, the growing of the file), tells
    /// every filter to commit, and resumes. If `action` fails, everything is aborted.
    ///
    /// After a resize the chain is shaped anew; a filter that refuses the new shape is an error,
    /// and the disk serves with the old one.
    ///
    /// # Errors
    /// What `action` says, or [`ErrorKind::TimedOut`] where the disk does not drain: aborted.
    /// An error of a filter's commit is reported, and the verb stands.
    ///
    /// # Panics
    /// Never: the verb is taken once, here or by an abort, and both consume the guard.
    pub async fn commit(
        mut self,
        deadline: Instant,
        action: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let disk = self.disk.clone();
        let layers = std::mem::take(&mut self.layers);
        let verb = self.verb.take().expect("taken once, here or in abort");
        disk.verb("commit", move |inner| async move {
            let control = inner.control.lock().await;
            *lock(&inner.running) = Some(verb.name());
            let layers = still_there(&control, layers);
            let closed = inner.close_gate();
            let mut done = inner.drain_until(0, deadline).await;
            if done.is_ok() {
                done = AssertUnwindSafe(action)
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| {
                        Err(inner.error(ErrorKind::Internal, "the action panicked"))
                    });
            }
            if let Err(error) = done {
                drop(closed);
                inner.abort(&layers, &verb, &error.to_line()).await;
                return Err(error);
            }
            for layer in &layers {
                inner.commit_or_report(layer, &verb).await;
            }
            let shaped = if matches!(verb, Verb::Resize { .. }) {
                inner.install(&control)
            } else {
                Ok(())
            };
            drop(closed);
            inner.core.events.send(Notice::of(
                Severity::Info,
                EventKind::VerbDone,
                format!("the verb was done, verb={}", verb.name()),
            ));
            if shaped.is_ok() && matches!(verb, Verb::Resize { .. }) {
                let info = *inner.chain().0.info(0);
                inner.core.events.send(Notice::of(
                    Severity::Info,
                    EventKind::Reshaped,
                    format!("the disk has a new size, capacity={}", info.capacity),
                ));
            }
            shaped
        })
        .await
    }

    /// Tells every filter, in reverse order, that the verb does not happen.
    pub async fn abort(mut self) {
        self.abort_now().await;
    }

    fn abort_now(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let disk = self.disk.clone();
        let layers = std::mem::take(&mut self.layers);
        let verb = self.verb.take();
        async move {
            let Some(verb) = verb else { return };
            let _ = disk
                .verb("abort", move |inner| async move {
                    let control = inner.control.lock().await;
                    let layers = still_there(&control, layers);
                    inner.abort(&layers, &verb, "the caller gave up").await;
                    Ok(())
                })
                .await;
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.verb.is_some() {
            let abort = self.abort_now();
            self.disk.inner.rt().spawn("vaio-abort", Box::pin(abort));
        }
    }
}
