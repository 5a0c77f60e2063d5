//! What holds of the marks' file as long as the disk does what it is told, and when it fails openly.

use super::simulated::SimulatedFile;
use super::*;
use crate::format::VolumeId;
use crate::format::codec::FormatError;
use crate::format::marks::{GROUP_REGIONS, PAGE_REGIONS, file_length, group_offset};
use crate::units::{LogIndex, REGION, TIB, VOLUME_MAX};

pub(super) const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");
/// Three groups, the last of them partial, with a partial region at its end.
pub(super) const SIZE: u64 = (2 * GROUP_REGIONS + PAGE_REGIONS + 77) * REGION - 512;

/// What must be in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub hot: RegionSet,
    pub diverged: RegionSet,
    pub facts: Facts,
}

impl Model {
    pub fn begun(size: u64, facts: Facts) -> Self {
        let mut hot = RegionSet::new(size);
        hot.insert_regions(0..hot.regions());
        Self { hot, diverged: RegionSet::new(size), facts }
    }

    pub fn apply(&mut self, change: &Change) {
        change.cool.iter().for_each(|run| self.hot.remove_regions(run.clone()));
        change.heat.iter().for_each(|run| self.hot.insert_regions(run.clone()));
        change.converge.iter().for_each(|run| self.diverged.remove_regions(run.clone()));
        change.diverge.iter().for_each(|run| self.diverged.insert_regions(run.clone()));
        self.facts = change.facts;
    }

    pub fn of(contents: &Contents) -> Self {
        Self { hot: contents.hot.clone(), diverged: contents.diverged.clone(), facts: contents.facts }
    }
}

pub(super) fn facts(heartbeat: u64) -> Facts {
    Facts { heartbeat, log: None, relied_on: LogIndex(heartbeat * 2) }
}

pub(super) fn open(image: Vec<u8>, size: u64) -> Result<(MarksFile, Contents), Unusable> {
    MarksFile::open(SimulatedFile::new(image).io(), VOLUME, size).map_err(|refused| refused.why)
}

fn begun(size: u64) -> (SimulatedFile, MarksFile, Model) {
    let file = SimulatedFile::default();
    let marks = MarksFile::begin(file.io(), VOLUME, size, facts(1)).unwrap();
    (file, marks, Model::begun(size, facts(1)))
}

#[test]
fn what_was_committed_is_found_again() {
    let (file, mut marks, mut model) = begun(SIZE);
    let change =
        Change { cool: vec![0..5000, 6000..u64::MAX], diverge: vec![7..9], facts: facts(2), ..Change::default() };
    marks.commit(&change).unwrap();
    model.apply(&change);
    let (_, contents) = open(file.image(), SIZE).unwrap();
    assert_eq!(Model::of(&contents), model);
    assert_eq!(contents.damaged, 0);
}
