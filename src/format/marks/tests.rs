use proptest::prelude::*;

use super::*;

const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");
const LIFE: LifeId = LifeId([8; 16]);
const REGIONS: u64 = 1 << 20;

fn a_facts() -> impl Strategy<Value = Facts> {
    (any::<u64>(), any::<Option<[u8; 16]>>(), any::<u64>(), any::<bool>()).prop_map(
        |(heartbeat, log, relied_on, doubted)| Facts {
            heartbeat,
            log: log.map(LogId),
            relied_on: LogIndex(relied_on),
            doubted,
        },
    )
}

fn header() -> impl Strategy<Value = Header> {
    (a_facts(), 0..=VOLUME_MAX, 0..=NUMBER_MAX, 1..=Stamp::ORDINAL_MAX, any::<u32>()).prop_map(
        |(facts, size, through, ordinal, stamp)| {
            let stamps = (0..groups(size) as u32).map(|group| Stamp(stamp.wrapping_mul(group))).collect();
            Header { life: LIFE, facts, volume: VOLUME, size, through, ordinal, opening: ordinal / 2 + 1, stamps }
        },
    )
}

/// Runs that are in order, as gaps and lengths.
fn marks() -> impl Strategy<Value = Vec<(Mark, Range<u64>)>> {
    prop::collection::vec((0usize..4, 0u64..2000, 1u64..2000), 0..150).prop_map(|mut steps| {
        steps.sort_by_key(|step| step.0);
        let mut ends = [0; 4];
        let run = |(mark, gap, length): (usize, u64, u64)| {
            let start = ends[mark] + gap;
            ends[mark] = start + length;
            (Mark::ALL[mark], start..ends[mark])
        };
        steps.into_iter().map(run).collect()
    })
}

proptest! {
    #[test]
    fn a_header_reads_back_and_a_flipped_bit_is_refused(header in header(), bit in 0..UNIT * 8) {
        let mut unit = header.encode();
        prop_assert_eq!(Header::decode(&unit), Ok(header));
        unit[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Header::decode(&unit).is_err());
    }

    #[test]
    fn a_transaction_reads_back_in_its_life_and_volume_only(
        marks in marks(), facts in a_facts(), number in 1..1u64 << 40, bit in 0..UNIT * 8,
    ) {
        let mut runs = Runs::default();
        let fit = marks.iter().take_while(|(mark, run)| runs.push(*mark, run)).count();
        let place = Place { life: LIFE, volume: VOLUME, number, after: number - 1, last: number + 3, opening: 5 };
        let mut unit = Transaction::encode(&place, &facts, &runs);
        let expected = Transaction { place, facts, runs: marks[..fit].to_vec() };
        prop_assert_eq!(Transaction::decode(&unit, LIFE, VOLUME, REGIONS), Ok(expected));
        prop_assert!(Transaction::decode(&unit, LifeId([0; 16]), VOLUME, REGIONS).is_err());
        prop_assert!(Transaction::decode(&unit, LIFE, VolumeId([0; 16]), REGIONS).is_err());
        let highest = marks[..fit].iter().map(|(_, run)| run.end).max().unwrap_or(0);
        prop_assert!(Transaction::decode(&unit, LIFE, VOLUME, highest).is_ok());
        prop_assert!(highest == 0 || Transaction::decode(&unit, LIFE, VOLUME, highest - 1).is_err());
        unit[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Transaction::decode(&unit, LIFE, VOLUME, REGIONS).is_err());
    }

    #[test]
    fn a_page_reads_back_at_its_place_only(words: [u64; PAGE_WORDS], number: u32, stamp: u32, bit in 0..PAGE * 8) {
        let page = Page { hot: words, diverged: words.map(u64::swap_bytes) };
        let place = PagePlace { life: LIFE, volume: VOLUME, number };
        let mut bytes = [0xaa; PAGE];
        page.encode_into(&place, Stamp(stamp), &mut bytes);
        prop_assert_eq!(Page::decode(&bytes, &place), Ok((page, Stamp(stamp))));
        let others = [
            PagePlace { number: number ^ 1, ..place },
            PagePlace { life: LifeId([0; 16]), ..place },
            PagePlace { volume: VolumeId([0; 16]), ..place },
        ];
        prop_assert_eq!(others.map(|other| Page::decode(&bytes, &other).is_ok()), [false, false, false]);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Page::decode(&bytes, &place).is_err());
    }

    /// With a right CRC, so that what is behind it is reached too.
    #[test]
    fn no_bytes_make_a_decoder_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in 0usize..3, crc: bool, length in 0..=UNIT,
    ) {
        let start: &[u8] = [&HEADER_MAGIC[..], &TRANSACTION_MAGIC[..], &PAGE_MAGIC[..]][magic];
        let end = if magic == 2 { PAGE } else { UNIT };
        bytes.resize(UNIT, 0);
        bytes[..start.len()].copy_from_slice(start);
        if magic < 2 {
            bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes[16..32].copy_from_slice(&LIFE.0);
            bytes[64..80].copy_from_slice(&VOLUME.0);
        }
        if crc {
            let sum = crc32c(&bytes[..end - 4]).to_le_bytes();
            bytes[end - 4..end].copy_from_slice(&sum);
        }
        let place = PagePlace { life: LIFE, volume: VOLUME, number: 0 };
        for bytes in [&bytes[..], &bytes[..length]] {
            let _ = (Header::decode(bytes), Page::decode(bytes, &place));
            let _ = Transaction::decode(bytes, LIFE, VOLUME, REGIONS);
        }
        if let Ok(runs) = Runs::decode(&bytes[100..], REGIONS) {
            prop_assert!(runs.iter().all(|(_, run)| run.start < run.end && run.end <= REGIONS));
        }
    }
}

#[test]
fn a_run_beyond_the_room_is_not_taken_and_what_was_taken_reads_back() {
    let mut runs = Runs::default();
    let fit = (0..).take_while(|n| runs.push(Mark::Cool, &(n * 3..n * 3 + 1))).count() as u64;
    assert_eq!(fit, RUNS_MAX as u64 / 2);
    let place = Place { life: LIFE, volume: VOLUME, number: 1, after: 0, last: 1, opening: 1 };
    let unit = Transaction::encode(&place, &Facts::default(), &runs);
    assert_eq!(Transaction::decode(&unit, LIFE, VOLUME, REGIONS).unwrap().runs.len() as u64, fit);
}
