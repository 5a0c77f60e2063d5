//! Merges the indexes of old packs into runs, beside publishing, so that an entry's lists stay short.
//!
//! Owns: one merge at a time and its upload. Does not own: the lists; a finished run takes its inputs' place when the
//! publisher asks for it. The inputs stay valid whatever happens to the merge.
//! Crash: a run that no entry lists remains.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::{debug, error, warn};

use super::numbers::ObjectNumbers;
use super::status::Report;
use super::upload::{Taken, Uploader, with_causes};
use crate::chain::merge::{self, FANOUT, Levels, Step};
use crate::format::{Keys, ObjectRef};
use crate::remote::Remote;
use crate::task;

/// With this many objects on a level publishing waits for the merge: a scan of a large volume can make packs faster
/// than they are merged, and an entry has to stay small.
const LEVEL_MAX: usize = 16 * FANOUT;

pub struct Merger {
    remote: Remote,
    keys: Keys,
    numbers: Arc<ObjectNumbers>,
    uploader: Uploader,
    report: Arc<Report>,
    running: Option<(Step, Merge)>,
    /// An input is missing or damaged: lists grow longer, and nothing else suffers.
    given_up: bool,
}

/// The run; none if it can never be made; nothing if it could not be made now.
type Merge = JoinHandle<Result<Option<Option<ObjectRef>>, Taken>>;

impl Merger {
    pub fn new(
        remote: Remote,
        keys: Keys,
        numbers: Arc<ObjectNumbers>,
        uploader: Uploader,
        report: Arc<Report>,
    ) -> Self {
        Self { remote, keys, numbers, uploader, report, running: None, given_up: false }
    }

    /// Puts finished runs into the lists, and begins the next merge that is due. Waits only where a list is about to
    /// outgrow an entry.
    pub async fn apply(&mut self, levels: &mut Levels) -> Result<(), Taken> {
        loop {
            let overdue = levels.iter().take(levels.len() - 1).any(|level| level.len() >= LEVEL_MAX);
            match &self.running {
                Some((_, task)) if !task.is_finished() && !overdue => return Ok(()),
                Some(_) => self.finish(levels).await?,
                None if self.given_up => return Ok(()),
                None => {
                    let Some(step) = merge::plan(levels) else { return Ok(()) };
                    self.begin(step);
                }
            }
        }
    }

    fn begin(&mut self, step: Step) {
        let (remote, keys, numbers) = (self.remote.clone(), self.keys.clone(), self.numbers.clone());
        let (uploader, report) = (self.uploader.clone(), self.report.clone());
        let (kind, inputs) = (step.kind(), step.inputs.clone());
        debug!(volume = report.volume(), level = step.level, inputs = inputs.len(), "merging indexes");
        let task = tokio::spawn(async move {
            let (volume, generation, number) = (keys.volume(), numbers.generation(), numbers.next());
            let merging = async move { merge::merge(remote, &keys, kind, &inputs, generation, number).await };
            let merged = match task::unhurried_task(merging).await {
                Ok(merged) => merged,
                Err(error) => {
                    error!(volume = report.volume(), %error, "a merge ended unexpectedly");
                    return Ok(None);
                }
            };
            match merged {
                Ok((body, run)) => uploader.put(volume.run_key(&run), body, run, None).await.map(|run| Some(Some(run))),
                Err(error) if error.is_transient() => {
                    warn!(volume = report.volume(), %error, "indexes cannot be merged yet");
                    Ok(None)
                }
                Err(error) => {
                    let error = with_causes(&error);
                    error!(volume = report.volume(), error, "indexes cannot be merged: verify the newest point");
                    report.failed(error);
                    Ok(Some(None))
                }
            }
        });
        self.running = Some((step, task));
    }

    async fn finish(&mut self, levels: &mut Levels) -> Result<(), Taken> {
        let Some((step, task)) = self.running.take() else { return Ok(()) };
        match task.await {
            Ok(Ok(Some(None))) => {
                self.given_up = true;
                Ok(())
            }
            Ok(Ok(Some(Some(run)))) => {
                if let Err(gone) = merge::replace(levels, &step, run) {
                    warn!(volume = self.report.volume(), %gone, "a merged index is of no use");
                }
                Ok(())
            }
            // It is planned anew with the next entry.
            Ok(Ok(None)) => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                Ok(())
            }
            Ok(Err(taken)) => Err(taken),
            Err(error) => {
                error!(volume = self.report.volume(), %error, "a merge ended unexpectedly");
                Ok(())
            }
        }
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.running {
            task.abort();
        }
    }
}
