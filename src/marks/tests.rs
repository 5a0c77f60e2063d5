//! What holds of the marks' file as long as the disk does what it is told, and when it fails openly.

use proptest::prelude::*;

use super::simulated::SimulatedFile;
use super::*;
use crate::format::VolumeId;
use crate::format::codec::{FormatError, Part};
use crate::format::log::{LogId, crc32c};
use crate::format::marks::{
    BATCH_MAX, GROUP_REGIONS, NUMBER_MAX, PAGE_REGIONS, RINGS_AT, UNIT, file_length, group_offset,
};
use crate::random::SplitMix64;
use crate::units::{LogIndex, MIB, REGION, TIB, VOLUME_MAX};

pub(super) const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");
/// Three groups, the last of them partial, with a partial region at its end.
pub(super) const SIZE: u64 = (2 * GROUP_REGIONS + PAGE_REGIONS + 77) * REGION - 512;
const REGIONS: u64 = SIZE.div_ceil(REGION);

/// Runs of regions, mostly few; sometimes as many as fill several transactions.
fn runs(random: &mut SplitMix64) -> Vec<Range<u64>> {
    match random.below(10) {
        0..3 => vec![],
        3..8 => (0..=random.below(4)).map(|_| random.below(REGIONS)).map(|at| at..at + 1 + at % 40).collect(),
        8 => vec![random.below(REGIONS)..u64::MAX],
        _ => {
            let (first, step) = (random.below(REGIONS), 2 + random.below(9));
            (0..random.below(9000)).map(|n| first + n * step).map(|at| at..at + 1).collect()
        }
    }
}

pub(super) fn change(random: &mut SplitMix64) -> Change {
    let log = (random.below(2) == 0).then_some(LogId([random.below(256) as u8; 16]));
    let facts = Facts {
        heartbeat: random.below(1000),
        log,
        relied_on: LogIndex(random.below(1 << 40)),
        doubted: random.below(2) == 1,
    };
    Change { heat: runs(random), cool: runs(random), diverge: runs(random), converge: runs(random), facts }
}

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

    pub fn after(&self, change: &Change) -> Self {
        let mut after = self.clone();
        after.apply(change);
        after
    }

    pub fn of(contents: &Contents) -> Self {
        Self { hot: contents.hot.clone(), diverged: contents.diverged.clone(), facts: contents.facts }
    }
}

pub(super) fn facts(heartbeat: u64) -> Facts {
    Facts { heartbeat, log: Some(LogId([9; 16])), relied_on: LogIndex(heartbeat * 2), doubted: false }
}

pub(super) fn open(image: Vec<u8>) -> Result<(MarksFile, Contents), Unusable> {
    open_sized(image, SIZE)
}

fn open_sized(image: Vec<u8>, size: u64) -> Result<(MarksFile, Contents), Unusable> {
    MarksFile::open(SimulatedFile::new(image).io(), VOLUME, size).map_err(|refused| refused.why)
}

pub(super) fn begun() -> (SimulatedFile, MarksFile, Model) {
    let file = SimulatedFile::default();
    let marks = MarksFile::begin(file.io(), VOLUME, SIZE, facts(1)).unwrap();
    (file, marks, Model::begun(SIZE, facts(1)))
}

fn assert_holds(image: Vec<u8>, model: &Model) {
    let (_, contents) = open_sized(image, SIZE).unwrap();
    assert!(Model::of(&contents) == *model, "found {:?}, not {:?}", contents.facts, model.facts);
    assert_eq!(contents.damaged, 0);
}

fn cool_all(heartbeat: u64) -> Change {
    Change { cool: vec![0..u64::MAX], facts: facts(heartbeat), ..Change::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_committed_is_found_again(seed: u64, commits in 1u64..250, reopen_every in 1u64..300) {
        let mut random = SplitMix64(seed);
        let (mut file, mut marks, mut model) = begun();
        for number in 1..=commits {
            let change = change(&mut random);
            marks.commit(&change).unwrap();
            model.apply(&change);
            if number % reopen_every == 0 {
                file = SimulatedFile::new(file.image());
                marks = MarksFile::open(file.io(), VOLUME, SIZE).unwrap().0;
            }
        }
        assert_holds(file.image(), &model);
    }
}

#[test]
fn a_commit_is_one_write_of_each_copy_and_one_sync() {
    let (file, mut marks, _) = begun();
    let counts = |state: &super::simulated::State| (state.writes, state.syncs);
    let before = counts(&file.state());
    let change = Change { heat: vec![5..6, 900..2000], facts: facts(2), ..Change::default() };
    (0..BATCH_MAX).for_each(|_| marks.commit(&change).unwrap());
    assert_eq!(counts(&file.state()), (before.0 + 2 * BATCH_MAX, before.1 + BATCH_MAX));
}

#[test]
fn the_whole_of_the_largest_volume_is_one_short_run_and_its_file_is_small() {
    let file = SimulatedFile::default();
    let mut marks = MarksFile::begin(file.io(), VOLUME, VOLUME_MAX, facts(1)).unwrap();
    assert!(file_length(VOLUME_MAX) < 12 * MIB && file.image().len() as u64 == file_length(VOLUME_MAX));
    let writes = file.state().writes;
    let change = Change { diverge: vec![0..u64::MAX], ..cool_all(2) };
    marks.commit(&change).unwrap();
    assert_eq!(file.state().writes, writes + 2);
    let (_, contents) = open_sized(file.image(), VOLUME_MAX).unwrap();
    assert!(contents.hot.is_empty());
    assert_eq!(contents.diverged.len(), 64 * TIB / REGION);
}

#[test]
fn a_change_larger_than_half_of_the_ring_is_durable_as_a_whole() {
    let size = 4 * TIB;
    let file = SimulatedFile::default();
    let mut marks = MarksFile::begin(file.io(), VOLUME, size, facts(1)).unwrap();
    let mut model = Model::begun(size, facts(1));
    for start in 0..3 {
        let cool = (0..340_000).map(|n| start + n * 3..start + n * 3 + 1).collect();
        let change = Change { cool, facts: facts(start), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
        assert_eq!(Model::of(&open_sized(file.image(), size).unwrap().1), model);
        assert_eq!(file.power_cut(|_, _| false).len(), file.image().len());
        assert_eq!(Model::of(&open_sized(file.power_cut(|_, _| false), size).unwrap().1), model);
    }
    marks.commit(&cool_all(9)).unwrap();
    model.apply(&cool_all(9));
    assert_eq!(Model::of(&open_sized(file.image(), size).unwrap().1), model);
}

#[test]
fn a_volume_without_bytes_has_marks_too() {
    let file = SimulatedFile::default();
    let mut marks = MarksFile::begin(file.io(), VOLUME, 0, facts(1)).unwrap();
    marks.commit(&cool_all(5)).unwrap();
    let (_, contents) = open_sized(file.image(), 0).unwrap();
    assert_eq!((contents.hot.regions(), contents.facts), (0, facts(5)));
}

/// Counterexample 12, for a volume that has grown.
#[test]
fn what_a_volume_has_grown_by_is_hot_and_so_is_the_region_that_was_partial() {
    let (file, mut marks, mut model) = begun();
    marks.commit(&Change { diverge: vec![0..3], ..cool_all(2) }).unwrap();
    model.apply(&Change { diverge: vec![0..3], ..cool_all(2) });
    let grown = SIZE + 3 * GROUP_REGIONS * REGION;
    let file = SimulatedFile::new(file.image());
    file.state().history = Some(vec![]);
    let (mut marks, contents) = MarksFile::open(file.io(), VOLUME, grown).unwrap();
    model.hot.grow(grown);
    model.diverged.grow(grown);
    model.hot.insert_regions(REGIONS - 1..u64::MAX);
    assert_eq!(Model::of(&contents), model);
    assert_eq!(contents.damaged, 0);
    assert!(file.state().history.as_ref().unwrap().is_empty(), "opening writes");
    let change = Change { cool: vec![REGIONS + 40_000..REGIONS + 50_000], facts: facts(3), ..Change::default() };
    marks.commit(&change).unwrap();
    model.apply(&change);
    assert_eq!(file.image().len() as u64, file_length(grown));
    assert_eq!(Model::of(&open_sized(file.image(), grown).unwrap().1), model);
    let shrunk = open_sized(file.image(), grown - 512).err().unwrap();
    assert!(matches!(shrunk, Unusable::Shrunk { recorded, found } if recorded == grown && found == grown - 512));
}

#[test]
fn a_region_that_was_whole_is_not_hot_because_the_volume_has_grown() {
    let file = SimulatedFile::default();
    let mut marks = MarksFile::begin(file.io(), VOLUME, 10 * REGION, facts(1)).unwrap();
    marks.commit(&cool_all(2)).unwrap();
    let (_, contents) = open_sized(file.image(), 10 * REGION + 512).unwrap();
    assert_eq!(contents.hot.runs().collect::<Vec<_>>(), [10..11]);
}

#[test]
fn whoever_cannot_use_the_file_is_told_why_and_can_begin_in_it() {
    let (file, ..) = begun();
    let good = file.image();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut image = good.clone();
        edit(&mut image);
        image
    };
    type Expected = fn(&Unusable) -> bool;
    let newer = |image: &mut Vec<u8>| {
        image[8] = 2;
        let crc = crc32c(&image[..UNIT - 4]).to_le_bytes();
        image[UNIT - 4..UNIT].copy_from_slice(&crc);
    };
    let cases: [(Vec<u8>, Expected); 8] = [
        (vec![], |why| matches!(why, Unusable::Absent)),
        (vec![0; good.len()], |why| matches!(why, Unusable::Absent)),
        (good[..5000].to_vec(), |why| matches!(why, Unusable::Damaged(FormatError::Truncated { .. }))),
        (good[..good.len() - 1].to_vec(), |why| {
            matches!(why, Unusable::Damaged(FormatError::Truncated { part: Part::Marks, .. }))
        }),
        (edited(&|image| image[..2 * UNIT].fill(7)), |why| {
            matches!(why, Unusable::Damaged(FormatError::WrongMagic { .. }))
        }),
        (edited(&|image| (20..2 * UNIT).step_by(UNIT).for_each(|at| image[at] ^= 1)), |why| {
            matches!(why, Unusable::Damaged(FormatError::Damaged { part: Part::MarksHeader, .. }))
        }),
        (edited(&|image| newer(image)), |why| {
            matches!(why, Unusable::Damaged(FormatError::UnknownVersion { found: 2, .. }))
        }),
        (
            {
                let other = SimulatedFile::default();
                MarksFile::begin(other.io(), VolumeId([1; 16]), SIZE, facts(1)).unwrap();
                other.image()
            },
            |why| matches!(why, Unusable::Foreign),
        ),
    ];
    for (number, (image, expected)) in cases.into_iter().enumerate() {
        let file = SimulatedFile::new(image);
        let refused = MarksFile::open(file.io(), VOLUME, SIZE).expect_err("it cannot be used");
        assert!(expected(&refused.why), "case {number}: {refused}");
        MarksFile::begin(refused.io, VOLUME, SIZE, facts(7)).unwrap();
        assert_holds(file.power_cut(|_, _| false), &Model::begun(SIZE, facts(7)));
    }
}

#[test]
fn a_volume_beyond_the_limit_is_refused() {
    let file = SimulatedFile::default();
    assert!(matches!(open_sized(vec![], VOLUME_MAX + 1), Err(Unusable::TooLarge { .. })));
    let error = MarksFile::begin(file.io(), VOLUME, VOLUME_MAX + 1, facts(1)).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(file.image().is_empty());
}

#[test]
fn after_a_failed_commit_nothing_is_accepted_until_a_new_beginning() {
    for (writes, syncs) in [(Some(0), None), (Some(1), None), (None, Some(0))] {
        let (file, mut marks, _) = begun();
        marks.commit(&cool_all(2)).unwrap();
        file.state().writes_left = writes;
        file.state().syncs_left = syncs;
        assert_eq!(marks.commit(&cool_all(3)).unwrap_err().raw_os_error(), Some(libc::EIO));
        file.state().writes_left = None;
        file.state().syncs_left = None;
        assert!(marks.commit(&cool_all(4)).is_err(), "a failed file takes a change");
        marks.begin_anew(facts(5)).unwrap();
        assert_holds(file.power_cut(|_, _| false), &Model::begun(SIZE, facts(5)));
        marks.commit(&cool_all(6)).unwrap();
        assert_holds(file.power_cut(|_, _| false), &Model::begun(SIZE, facts(5)).after(&cool_all(6)));
    }
}

#[test]
fn a_change_whose_number_no_reader_would_believe_is_refused_and_not_lost() {
    let (file, ..) = begun();
    let mut image = file.image();
    for slot in [0, UNIT] {
        let header = &mut image[slot..slot + UNIT];
        header[88..96].copy_from_slice(&NUMBER_MAX.to_le_bytes());
        let crc = crc32c(&header[..UNIT - 4]).to_le_bytes();
        header[UNIT - 4..].copy_from_slice(&crc);
    }
    let (mut marks, contents) = open(image).unwrap();
    assert_eq!(contents.damaged, 0);
    let error = marks.commit(&cool_all(2)).expect_err("it would not be found again");
    assert!(error.to_string().contains("must begin anew"), "{error}");
}

#[test]
fn a_beginning_without_space_fails_and_leaves_nothing_that_is_believed() {
    for writes in 0..8 {
        let file = SimulatedFile::default();
        file.state().writes_left = Some(writes);
        file.state().error = Some(libc::ENOSPC);
        match MarksFile::begin(file.io(), VOLUME, SIZE, facts(1)) {
            Ok(_) => assert_eq!(writes, 7, "a beginning has seven writes"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                assert!(matches!(open(file.power_cut(|_, _| false)), Err(Unusable::Absent)));
            }
        }
    }
}

#[test]
fn after_a_beginning_no_write_is_beyond_the_end_nor_to_what_was_never_written() {
    let (file, mut marks, _) = begun();
    let length = file.image().len();
    let mut random = SplitMix64(3);
    (0..200).for_each(|_| marks.commit(&change(&mut random)).unwrap());
    assert_eq!(file.image().len(), length);
    assert_eq!(length as u64, file_length(SIZE));
}

#[test]
fn spots_that_the_disk_cannot_read_cost_their_regions_only() {
    let (file, mut marks, mut model) = begun();
    marks.commit(&cool_all(2)).unwrap();
    model.apply(&cool_all(2));
    let file = SimulatedFile::new(file.image());
    let page = group_offset(1, 0) + 512;
    file.state().unreadable = vec![page..page + 512, RINGS_AT[1] + 4096..RINGS_AT[1] + 9000, 0..1];
    let (_, contents) = MarksFile::open(file.io(), VOLUME, SIZE).unwrap();
    assert_eq!(contents.hot, model.hot, "what the ring says of a page holds, whatever the page was");
    assert_eq!(contents.damaged, 0);
    // All of what shares its unit: eight pages.
    assert_eq!(contents.diverged.runs().collect::<Vec<_>>(), [GROUP_REGIONS..GROUP_REGIONS + 8 * PAGE_REGIONS]);
    file.state().unreadable = vec![0..file_length(SIZE)];
    assert!(matches!(MarksFile::open(file.io(), VOLUME, SIZE).unwrap_err().why, Unusable::Io(_)));
    file.state().unreadable = vec![2 * UNIT as u64..file_length(SIZE)];
    assert!(matches!(MarksFile::open(file.io(), VOLUME, SIZE).unwrap_err().why, Unusable::Io(_)));
}

#[test]
fn a_real_file_holds_what_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("marks");
    let refused = MarksFile::open(open_io(&path).unwrap(), VOLUME, SIZE).unwrap_err();
    assert!(matches!(refused.why, Unusable::Absent));
    let mut marks = MarksFile::begin(refused.io, VOLUME, SIZE, facts(1)).unwrap();
    marks.commit(&cool_all(2)).unwrap();
    let (_, contents) = MarksFile::open(open_io(&path).unwrap(), VOLUME, SIZE).unwrap();
    assert_eq!(Model::of(&contents), Model::begun(SIZE, facts(1)).after(&cool_all(2)));
}
