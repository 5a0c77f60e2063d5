//! The trait [`Disk`] in commands: what becomes of a request, and in how many parts.

use std::future::Future;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use super::cdb::{self, Form};
use super::command::{Effect, execute, execute_exactly};
use super::link::Transfer;
use super::unit::{ANCHORED, DEALLOCATED, Facts, LbaStatus, STATUS_LENGTH, Synchronizes, Unmaps};
use super::{IscsiDisk, Shared};
use crate::disk::{self, Disk, DiskError, Errno, Extent, Geometry, Identity, Pending, ZeroMode};
use crate::scsi::Key;
use crate::units::GIB;

/// Parts of one request that are under way at a time: enough to keep an array busy, and the others' requests come between.
const PARTS_MAX: usize = 16;
/// Bytes of one UNMAP, which some arrays take their time for.
const UNMAP_MAX: u64 = GIB;

/// Blocks that one command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    lba: u64,
    count: u32,
}

/// Runs of at most `most` blocks; all but the last end at a border of `granularity` from `alignment` on, if they can.
fn runs(lba: u64, count: u64, most: u32, granularity: u32, alignment: u32) -> impl Iterator<Item = Run> + Send {
    let (mut next, end) = (lba, lba + count);
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let mut until = end.min(next.saturating_add(most.into()));
        if until < end {
            let beyond = until.saturating_sub(alignment.into()) % u64::from(granularity);
            until = Some(until - beyond).filter(|aligned| *aligned > next).unwrap_or(until);
        }
        let lba = std::mem::replace(&mut next, until);
        Some(Run { lba, count: (until - lba) as u32 })
    })
}

/// Has all parts done, some at a time. After an error no further one is begun, and those under way are waited for: none
/// must meet what its caller does next. What is lost is unknown whatever the other parts say; any other error leaves a
/// change made in part, unless nothing was ever issued.
async fn all<T, F: Future<Output = disk::Result<T>>>(mut parts: impl Iterator<Item = F>) -> disk::Result<Vec<T>> {
    let mut running = FuturesOrdered::new();
    let mut done = Vec::new();
    let mut failed = None;
    loop {
        while failed.is_none()
            && running.len() < PARTS_MAX
            && let Some(part) = parts.next()
        {
            running.push_back(part);
        }
        match running.next().await {
            Some(Ok(part)) => done.push(part),
            Some(Err(error)) => failed = Some(worse(failed, error)),
            None => break,
        }
    }
    match failed {
        None => Ok(done),
        Some(DiskError::Refused(errno)) if !done.is_empty() => Err(DiskError::Io(errno)),
        Some(error) => Err(error),
    }
}

fn worse(before: Option<DiskError>, error: DiskError) -> DiskError {
    match (before, error) {
        (None, error) | (Some(DiskError::Refused(_)), error @ DiskError::Io(_)) => error,
        (Some(DiskError::Lost), _) | (_, DiskError::Lost) => DiskError::Lost,
        (Some(before), _) => before,
    }
}

impl Shared {
    async fn read_run(&self, facts: &Facts, run: Run) -> disk::Result<Bytes> {
        let length = run.count * facts.block_length;
        let cdb = cdb::read(facts.form, run.lba, run.count);
        let read = execute_exactly(self, cdb, || Transfer::In(length), Effect::Repeatable, length).await;
        read.map(|completion| completion.data).map_err(|failure| failure.to_disk())
    }

    async fn write_run(&self, facts: &Facts, run: Run, data: Bytes, fua: bool) -> disk::Result<()> {
        let cdb = cdb::write(facts.form, run.lba, run.count, fua);
        self.send(cdb, data).await
    }

    async fn unmap_run(&self, run: Run) -> disk::Result<()> {
        let (cdb, list) = cdb::unmap(run.lba, run.count);
        let list = Bytes::copy_from_slice(&list);
        // Some targets (tgt) count the list as not transferred, and unmap what it says nevertheless: the status counts.
        let done = execute(self, cdb, || Transfer::Out(list.clone()), Effect::Changes).await;
        done.map(drop).map_err(|failure| failure.to_disk())
    }

    async fn send(&self, cdb: cdb::Cdb, data: Bytes) -> disk::Result<()> {
        let length = data.len() as u32;
        let sent = execute_exactly(self, cdb, || Transfer::Out(data.clone()), Effect::Changes, length).await;
        sent.map(drop).map_err(|failure| failure.to_disk())
    }

    async fn synchronize(&self, facts: &Facts) -> disk::Result<()> {
        let forms = match &facts.synchronize {
            Synchronizes::No => &[][..],
            Synchronizes::By(form) => std::slice::from_ref(form),
            Synchronizes::Perhaps => &[Form::Ten, Form::Sixteen],
        };
        for form in forms {
            let cdb = cdb::synchronize_cache(*form);
            let failure = match execute(self, cdb, || Transfer::None, Effect::Repeatable).await {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            match failure {
                _ if failure.is_unknown() && facts.synchronize == Synchronizes::Perhaps => {}
                // Nothing was ever written.
                _ if failure.is(Key::DataProtect) && self.geometry.abilities.read_only => return Ok(()),
                // It was not done, which is not to say that something could not be written.
                _ if failure.is(Key::NotReady) => return Err(DiskError::Refused(Errno::EIO)),
                _ => return Err(failure.to_disk()),
            }
        }
        // Without the command there is no cache that could forget.
        Ok(())
    }

    /// The last part of a change by a command that has no FUA.
    async fn synchronize_after(&self, facts: &Facts, fua: bool) -> disk::Result<()> {
        if !fua {
            return Ok(());
        }
        // The change was made, whatever becomes of the flush.
        self.synchronize(facts).await.map_err(|error| match error {
            DiskError::Refused(errno) => DiskError::Io(errno),
            error => error,
        })
    }
}

impl IscsiDisk {
    fn admit(&self, able: bool, offset: u64, length: u64, fua: bool) -> disk::Result<()> {
        let geometry = &self.shared.geometry;
        if !able || length == 0 || fua && !geometry.abilities.fua {
            return Err(DiskError::Refused(Errno::EINVAL));
        }
        geometry.admit(offset, length)
    }

    /// As [`Self::admit`]; a read-only disk refuses every change as such, whatever else it cannot do.
    fn admit_change(&self, able: bool, offset: u64, length: u64, fua: bool) -> disk::Result<()> {
        if self.shared.geometry.abilities.read_only {
            return Err(DiskError::Refused(Errno::EPERM));
        }
        self.admit(able, offset, length, fua)
    }
}

impl Disk for IscsiDisk {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        if let Err(error) = self.admit(true, offset, length.into(), false) {
            return Pending::ready(Err(error));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        let (lba, count) = blocks(&facts, offset, length.into());
        let Some(run) = one(lba, count, facts.transfer_max) else {
            return Pending::later(async move {
                let runs = runs(lba, count, facts.transfer_max, 1, 0);
                let parts = all(runs.map(|run| shared.read_run(&facts, run))).await?;
                let mut whole = BytesMut::with_capacity(length as usize);
                parts.iter().for_each(|part| whole.extend_from_slice(part));
                Ok(whole.freeze())
            });
        };
        Pending::later(async move { shared.read_run(&facts, run).await })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        let length = data.len() as u64;
        if let Err(error) = self.admit_change(true, offset, length, fua) {
            return Pending::ready(Err(error));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        let (lba, count) = blocks(&facts, offset, length);
        let Some(run) = one(lba, count, facts.transfer_max) else {
            return Pending::later(async move {
                let mut rest = data;
                let parts = runs(lba, count, facts.transfer_max, 1, 0).map(|run| {
                    let data = rest.split_to((run.count * facts.block_length) as usize);
                    shared.write_run(&facts, run, data, fua)
                });
                all(parts).await.map(drop)
            });
        };
        Pending::later(async move { shared.write_run(&facts, run, data, fua).await })
    }

    fn flush(&self) -> Pending<()> {
        if !self.shared.geometry.abilities.flush {
            return Pending::ready(Err(DiskError::Refused(Errno::EINVAL)));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        Pending::later(async move {
            shared.synchronize(&facts).await?;
            // Here alone, for it is about any change.
            if shared.watch.deferred_error.swap(false, Ordering::SeqCst) {
                return Err(DiskError::Io(Errno::EIO));
            }
            Ok(())
        })
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        if let Err(error) = self.admit_change(self.shared.geometry.abilities.trim, offset, length, fua) {
            return Pending::ready(Err(error));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        let Some(Unmaps { count_max, granularity, alignment }) = facts.unmap else {
            return Pending::ready(Err(DiskError::Refused(Errno::ENOTSUP)));
        };
        Pending::later(async move {
            let (lba, count) = blocks(&facts, offset, length);
            let most = count_max.min((UNMAP_MAX / u64::from(facts.block_length)) as u32);
            let runs = runs(lba, count, most, granularity, alignment);
            all(runs.map(|run| shared.unmap_run(run))).await?;
            shared.synchronize_after(&facts, fua).await
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        if let Err(error) = self.admit_change(self.shared.geometry.abilities.write_zeroes, offset, length, fua) {
            return Pending::ready(Err(error));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        // How fast it is nobody says.
        let Some(same) = facts.write_same.filter(|_| !mode.fast_only) else {
            return Pending::ready(Err(DiskError::Refused(Errno::ENOTSUP)));
        };
        Pending::later(async move {
            let (lba, count) = blocks(&facts, offset, length);
            let granularity = facts.unmap.map_or(1, |unmaps| unmaps.granularity);
            let alignment = facts.unmap.map_or(0, |unmaps| unmaps.alignment);
            let block = Bytes::from(vec![0; facts.block_length as usize]);
            let unmap = same.unmaps && !mode.no_hole;
            let runs = runs(lba, count, same.count_max, granularity, alignment);
            all(runs.map(|run| shared.send(cdb::write_same(run.lba, run.count, unmap), block.clone()))).await?;
            shared.synchronize_after(&facts, fua).await
        })
    }

    fn cache(&self, _offset: u64, _length: u64) -> Pending<()> {
        Pending::ready(Err(DiskError::Refused(Errno::EINVAL)))
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        if let Err(error) = self.admit(true, offset, length, false) {
            return Pending::ready(Err(error));
        }
        let (shared, facts) = (self.shared.clone(), self.shared.facts());
        let unknown = Extent { length, hole: false, zero: false };
        if !shared.geometry.abilities.extents {
            return Pending::ready(Ok(vec![unknown]));
        }
        Pending::later(async move {
            let (lba, _) = blocks(&facts, offset, length);
            let cdb = cdb::get_lba_status(lba, STATUS_LENGTH);
            let answer = execute(&*shared, cdb, || Transfer::In(STATUS_LENGTH), Effect::Repeatable).await;
            let extents = extents(&answer.map_err(|failure| failure.to_disk())?.data, &facts, lba, length, limit);
            Ok(if extents.is_empty() { vec![unknown] } else { extents })
        })
    }

    fn identity(&self) -> Identity {
        let Shared { name, geometry, .. } = &*self.shared;
        Identity { name: name.clone(), size: geometry.size, modified: None }
    }

    fn incarnation(&self) -> u64 {
        self.shared.watch.incarnation.load(Ordering::SeqCst)
    }
}

/// A range that was admitted, in blocks.
fn blocks(facts: &Facts, offset: u64, length: u64) -> (u64, u64) {
    let block_length = u64::from(facts.block_length);
    (offset / block_length, length / block_length)
}

/// What one command can do at once.
fn one(lba: u64, count: u64, most: u32) -> Option<Run> {
    u32::try_from(count).ok().filter(|count| *count <= most).map(|count| Run { lba, count })
}

fn extents(data: &[u8], facts: &Facts, lba: u64, length: u64, limit: usize) -> Vec<Extent> {
    let mut rest = length;
    let mut extents: Vec<Extent> = Vec::new();
    for LbaStatus { count, status } in LbaStatus::runs(data, lba) {
        let (hole, unmapped) = (status == DEALLOCATED, matches!(status, DEALLOCATED | ANCHORED));
        let zero = unmapped && facts.unmapped_is_zero;
        // The last one may reach beyond what was asked.
        let length = rest.min(u64::from(count) * u64::from(facts.block_length));
        rest -= length;
        let full = extents.len() == limit.max(1);
        match extents.last_mut() {
            Some(last) if (last.hole, last.zero) == (hole, zero) => last.length += length,
            _ if full => break,
            _ => extents.push(Extent { length, hole, zero }),
        }
        if rest == 0 {
            break;
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_the_borders_that_the_unit_unmaps_by() {
        let of = |lba, count, most, granularity, alignment| {
            runs(lba, count, most, granularity, alignment).map(|run| (run.lba, run.count)).collect::<Vec<_>>()
        };
        assert_eq!(of(5, 10, 100, 8, 0), [(5, 10)]);
        assert_eq!(of(5, 40, 20, 8, 0), [(5, 19), (24, 16), (40, 5)]);
        assert_eq!(of(5, 40, 20, 8, 3), [(5, 14), (19, 16), (35, 10)]);
        assert_eq!(of(1, 10, 4, 8, 0), [(1, 4), (5, 3), (8, 3)]);
        assert_eq!(of(0, 0, 4, 1, 0), []);
        assert_eq!(of(u64::MAX - 3, 3, 2, 1, 0), [(u64::MAX - 3, 2), (u64::MAX - 1, 1)]);
    }

    #[tokio::test]
    async fn a_request_in_parts_is_as_lost_as_its_worst_part() {
        use DiskError::{Io, Lost, Refused};
        let outcome = |answers: Vec<disk::Result<()>>| all(answers.into_iter().map(std::future::ready));
        let (io, refused) = (Err(Io(Errno::ENOSPC)), Err(Refused(Errno::ESHUTDOWN)));
        assert_eq!(outcome(vec![Ok(()), Ok(())]).await, Ok(vec![(), ()]));
        assert_eq!(outcome(vec![Ok(()), io, Err(Lost)]).await, Err(Lost));
        assert_eq!(outcome(vec![Err(Lost), io]).await, Err(Lost));
        assert_eq!(outcome(vec![refused, io]).await, Err(Io(Errno::ENOSPC)));
        assert_eq!(outcome(vec![refused, refused]).await, refused.map(|()| vec![]));
        assert_eq!(outcome(vec![Ok(()), refused]).await, Err(Io(Errno::ESHUTDOWN)));
    }
}
