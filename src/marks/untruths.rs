//! A disk that does not keep what it was given: never is a region less marked than it must be.

use proptest::prelude::*;

use super::simulated::{Fate, SimulatedFile};
use super::tests::{Model, SIZE, VOLUME, begun, change, facts, open};
use super::*;
use crate::format::marks::{PAGE, PAGE_REGIONS, RING, RINGS_AT, UNIT, file_length, group_offset};
use crate::random::SplitMix64;

/// Nothing is missing, and what may be hot for nothing is counted.
fn assert_enough(contents: &Contents, model: &Model) {
    let missing = |found: &RegionSet, needed: &RegionSet| {
        needed.runs().any(|run| found.next_absent(run.start, run.end) < run.end)
    };
    assert!(!missing(&contents.hot, &model.hot), "a region is not hot");
    assert!(!missing(&contents.diverged, &model.diverged), "a region is not diverged");
    assert!(contents.hot.len() - model.hot.len() <= contents.damaged);
}

/// A file with something everywhere: checkpoints, an opening, a ring that has come round and is in use.
fn worked() -> (SimulatedFile, MarksFile, Model) {
    let (file, mut marks, mut model) = begun();
    let mut random = SplitMix64(5);
    for number in 0..300 {
        let change = change(&mut random);
        marks.commit(&change).unwrap();
        model.apply(&change);
        if number == 150 {
            marks = MarksFile::open(file.io(), VOLUME, SIZE).unwrap().0;
        }
    }
    let change = Change { cool: vec![0..u64::MAX], heat: vec![70..90], facts: facts(8), ..Change::default() };
    marks.commit(&change).unwrap();
    model.apply(&change);
    (file, marks, model)
}

/// Brings what is in the ring into the pages.
fn checkpointed(marks: &mut MarksFile, model: &mut Model) {
    for heartbeat in 0..RING {
        let change = Change { facts: facts(heartbeat), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
    }
}

/// A file whose pages hold most, and whose ring holds the rest.
fn settled() -> (SimulatedFile, Model) {
    let (file, mut marks, mut model) = worked();
    checkpointed(&mut marks, &mut model);
    for region in 0..9 {
        let diverge = vec![region * 5000..region * 5000 + 1];
        let change = Change { heat: diverge.clone(), diverge, facts: facts(9), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
    }
    (file, model)
}

/// Fault test 23.
#[test]
fn a_flipped_bit_makes_no_region_less_marked() {
    let (file, model) = settled();
    let good = file.image();
    let mut random = SplitMix64(21);
    let areas = [
        (0, 128),
        (UNIT, UNIT + 128),
        (0, 2 * UNIT),
        (2 * UNIT, good.len()),
        (group_offset(0, 0) as usize, good.len()),
    ];
    let mut damaged = 0;
    for (start, end) in areas {
        for _ in 0..100 {
            let mut image = good.clone();
            image[start + random.below((end - start) as u64) as usize] ^= 1 << random.below(8);
            if let Ok((_, contents)) = open(image) {
                assert_enough(&contents, &model);
                damaged += u64::from(contents.damaged > 0);
            }
        }
    }
    assert!(damaged > 0, "no flip has hit what counts");
}

#[test]
fn a_sector_of_rubbish_makes_no_region_less_marked() {
    let (file, model) = settled();
    let good = file.image();
    let mut random = SplitMix64(22);
    for _ in 0..200 {
        let mut image = good.clone();
        let at = random.below(good.len() as u64 / 512) as usize * 512;
        image[at..at + 512].fill(random.below(256) as u8);
        if let Ok((_, contents)) = open(image) {
            assert_enough(&contents, &model);
        }
    }
}

/// Counterexample 17.
#[test]
fn a_page_that_is_damaged_is_hot_and_its_older_slot_is_not_believed() {
    let (file, mut marks, mut model) = worked();
    checkpointed(&mut marks, &mut model);
    let good = file.image();
    let mut hit = 0;
    for slot in 0..2 {
        let mut image = good.clone();
        image[group_offset(1, slot) as usize + 3 * PAGE + 99] ^= 4;
        let (mut marks, contents) = open(image).unwrap();
        assert_enough(&contents, &model);
        if contents.damaged == 0 {
            continue;
        }
        hit += 1;
        let page = (16 + 3) * PAGE_REGIONS..(16 + 4) * PAGE_REGIONS;
        assert_eq!(contents.hot.next_absent(page.start, page.end), page.end);
        assert_eq!(contents.damaged + model.hot.len(), contents.hot.len());
        marks.commit(&Change { facts: facts(9), ..Change::default() }).unwrap();
    }
    assert_eq!(hit, 1, "one of the two slots is the one that holds");
}

#[test]
fn regions_of_a_damaged_page_stay_diverged_when_the_ring_says_that_they_cooled() {
    let (file, mut marks, mut model) = begun();
    let change = Change { diverge: vec![0..10], facts: facts(2), ..Change::default() };
    marks.commit(&change).unwrap();
    model.apply(&change);
    checkpointed(&mut marks, &mut model);
    let change = Change { cool: vec![0..10], facts: facts(3), ..Change::default() };
    marks.commit(&change).unwrap();
    model.apply(&change);
    let mut image = file.image();
    (0..2).for_each(|slot| image[group_offset(0, slot) as usize + 99] ^= 1);
    let (_, contents) = open(image).unwrap();
    assert!(!contents.hot.contains(5) && contents.diverged.contains(5));
    assert_enough(&contents, &model);
}

#[test]
fn what_was_hot_for_damage_is_durably_hot_with_the_next_commit() {
    let (file, mut marks, mut model) = worked();
    checkpointed(&mut marks, &mut model);
    let mut image = file.image();
    (0..2).for_each(|slot| image[group_offset(1, slot) as usize + 99] ^= 1);
    let file = SimulatedFile::new(image);
    let (mut marks, contents) = MarksFile::open(file.io(), VOLUME, SIZE).unwrap();
    assert!(contents.damaged > 0);
    let change = Change { heat: vec![3..4], facts: facts(4), ..Change::default() };
    marks.commit(&change).unwrap();
    let (_, mended) = open(file.power_cut(|_, _| false)).unwrap();
    assert_eq!(Model::of(&mended), Model::of(&contents).after(&change));
    assert_eq!(mended.damaged, 0);
}

/// Overwrites both copies of a transaction.
fn wipe(image: &mut [u8], number: u64) {
    for ring in RINGS_AT {
        let at = ring as usize + (number % RING) as usize * UNIT;
        image[at..at + UNIT].fill(0);
    }
}

#[test]
fn a_transaction_missing_before_others_makes_everything_hot_and_one_missing_at_the_end_is_not_there() {
    let (file, mut marks, mut model) = begun();
    let mut before = model.clone();
    for number in 1..20u64 {
        before = model.clone();
        let change = Change { cool: vec![number..number + 1], facts: facts(number), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
    }
    let mut image = file.image();
    wipe(&mut image, 19);
    let (_, contents) = open(image).unwrap();
    assert_eq!((Model::of(&contents), contents.damaged), (before, 0));
    for number in 1..19 {
        let mut image = file.image();
        wipe(&mut image, number);
        let (_, contents) = open(image).unwrap();
        assert_eq!(contents.hot.len(), contents.hot.regions());
        assert_enough(&contents, &model);
    }
}

#[test]
fn one_copy_of_the_ring_is_enough() {
    let (file, _, model) = worked();
    for ring in RINGS_AT {
        let mut image = file.image();
        image[ring as usize..][..RING as usize * UNIT].fill(0xee);
        let (_, contents) = open(image).unwrap();
        assert_eq!((Model::of(&contents), contents.damaged), (model.clone(), 0));
    }
}

#[test]
fn one_header_is_enough() {
    let (file, mut marks, mut model) = worked();
    for _ in 0..RING / 2 + 3 {
        let change = Change { heat: vec![1..2], facts: facts(12), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
        for slot in [0, UNIT] {
            let mut image = file.image();
            image[slot..slot + 512].fill(0xee);
            let (_, contents) = open(image).unwrap();
            assert_eq!((Model::of(&contents), contents.damaged), (model.clone(), 0));
        }
    }
}

#[test]
fn transactions_of_an_earlier_lap_or_life_are_never_believed() {
    let (file, mut marks, mut model) = begun();
    let ring = RINGS_AT[0] as usize..group_offset(0, 0) as usize;
    let mut laps = vec![];
    for number in 0..3 * RING {
        if number % 50 == 0 {
            laps.push(file.image()[ring.clone()].to_vec());
        }
        let cool = vec![number * 3..number * 3 + 2];
        let change = Change { cool, heat: vec![number..number + 1], facts: facts(number), ..Change::default() };
        marks.commit(&change).unwrap();
        model.apply(&change);
    }
    checkpointed(&mut marks, &mut model);
    marks.commit(&Change::default()).unwrap();
    model.apply(&Change::default());
    let last = file.image();
    for lap in &laps {
        let mut image = last.clone();
        image[ring.clone()].copy_from_slice(lap);
        let (_, contents) = open(image).unwrap();
        assert_eq!((contents.hot, contents.diverged), (model.hot.clone(), model.diverged.clone()));
    }
    marks.begin_anew(facts(1)).unwrap();
    for lap in &laps {
        let mut image = file.image();
        image[ring.clone()].copy_from_slice(lap);
        let (_, contents) = open(image).unwrap();
        assert_eq!(Model::of(&contents), Model::begun(SIZE, facts(1)));
    }
}

/// Commits until well after a checkpoint, while one write has this fate; then opens the file.
fn with_fate(seed: u64, after: usize, fate: Fate) {
    let mut random = SplitMix64(seed);
    let (file, mut marks, mut model) = begun();
    file.state().fates = vec![Fate::Obeyed; after];
    file.state().fates.push(fate);
    let mut rest = 1 + random.below(140);
    while rest > 0 {
        let change = change(&mut random);
        marks.commit(&change).unwrap();
        model.apply(&change);
        if file.state().fates.is_empty() {
            rest -= 1;
        }
        if random.below(40) == 0 {
            match MarksFile::open(file.io(), VOLUME, SIZE) {
                Ok((opened, contents)) => {
                    assert_enough(&contents, &model);
                    (marks, model) = (opened, Model::of(&contents));
                }
                Err(_) => return,
            }
        }
    }
    if let Ok((_, contents)) = open(file.image()) {
        assert_enough(&contents, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_write_that_the_disk_lost_makes_no_region_less_marked(seed: u64, after in 0usize..300) {
        with_fate(seed, after, Fate::Lost);
    }

    /// Not where it hits the second copy of what it is itself the first of: no disk's error has such an aim.
    #[test]
    fn a_unit_that_the_disk_put_elsewhere_makes_no_region_less_marked(
        seed: u64,
        after in 0usize..300,
        sector in prop::bool::ANY,
        unit in 0usize..4,
        to in any::<prop::sample::Index>(),
        among in prop_oneof![Just((0, 2 * UNIT as u64)), Just((0, file_length(SIZE))), Just((group_offset(0, 0), file_length(SIZE)))],
    ) {
        let length = if sector { 512 } else { UNIT };
        let to = among.0 + to.index((among.1 - among.0) as usize / length) as u64 * length as u64;
        with_fate(seed, after, Fate::Misdirected { from: unit * length, length, to });
    }
}
