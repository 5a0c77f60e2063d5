//! Restores points as users do, with the code that they use, and holds the outcome against what the oracle read.

use std::sync::Arc;

use bytes::Bytes;

use super::boot::Devices;
use super::ground::{below, broken, note, once_in};
use super::pages::Pages;
use crate::chain::ChainReader;
use crate::chain::resolve::Resolver;
use crate::disk::Disk;
use crate::disk::memory::MemoryDisk;
use crate::format::entry::Entry;
use crate::restore::progress::Progress;
use crate::restore::target::Target;
use crate::restore::{compare, verify, whole};
use crate::units::MIB;

/// The point's content is `bytes`: so it is restored, verified, and compared with what was restored (T5, T9).
pub async fn check(devices: &Devices, chain: &ChainReader, entry: &Entry, bytes: &Pages) {
    let (ground, number) = (&devices.ground, entry.number);
    let verified = verify::verify_objects(chain, entry, &Progress::new(0)).await;
    if !verified.bad.is_empty() {
        broken!(ground, "T5", "entry {number} does not verify: {:?}", verified.bad);
    }
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(entry.size + below(5000)));
    let blank = once_in(2);
    if !blank {
        disk.write(0, Bytes::from(vec![0xdb; entry.size as usize]), false).await.expect("memory is written");
    }
    let progress = Arc::new(Progress::new(entry.size));
    let restored = async {
        let resolver = Resolver::new(devices.plain_remote(), chain.volume(), entry, None).map_err(|e| e.to_string())?;
        let target = Target::new(disk.clone(), entry.size, blank, progress.clone()).map_err(|e| e.to_string())?;
        whole::restore(&resolver, number, target, &progress).await.map_err(|e| e.to_string())?;
        compare::compare(&resolver, disk.clone(), &Progress::new(entry.size)).await.map_err(|e| e.to_string())
    };
    match restored.await {
        Ok(different) if different.is_empty() => {}
        Ok(different) => broken!(ground, "T5", "entry {number} is restored and compares as different: {different:?}"),
        Err(error) => return broken!(ground, "T5", "entry {number} cannot be restored: {error}"),
    }
    if let Some(span) = content(&*disk, entry.size).await.differences(bytes).next() {
        broken!(ground, "T5", "entry {number} is restored with other bytes in {span}");
    }
    note!(ground, "oracle: entry {number} restored, {} bytes moved", progress.moved());
}

async fn content(disk: &dyn Disk, size: u64) -> Pages {
    let mut content = Pages::zero(size);
    let mut at = 0;
    while at < size {
        let part = disk.read(at, (size - at).min(MIB) as u32).await.expect("memory is read");
        content.write(at, &part);
        at += part.len() as u64;
    }
    content
}
