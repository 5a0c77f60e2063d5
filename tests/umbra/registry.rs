//! The fault tests and the counterexamples that the design is held to: each has a test that says so in its
//! documentation, as `Fault test 4` or `Counterexamples 1 and 9 to 11`, or a reason why it has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Of a kind: what marks it, the numbers that there are, and those without a test.
struct Kind {
    marker: &'static str,
    numbers: std::ops::RangeInclusive<u32>,
    absent: &'static [(&'static [u32], &'static str)],
}

const KINDS: [Kind; 2] = [
    Kind {
        marker: "Fault test",
        numbers: 1..=46,
        absent: &[
            (&[32], "credentials do not expire in any test's server"),
            (&[35], "nothing is reclaimed yet"),
            (&[42], "there is no TLS yet"),
            (&[44, 46], "there is no remote control and no update yet"),
            (&[45], "a policy is the bucket's; that none but creating puts is needed has a test of its own"),
        ],
    },
    Kind {
        marker: "Counterexample",
        numbers: 1..=33,
        absent: &[
            (&[9], "nothing is restored on demand yet"),
            (&[16], "nothing is encrypted yet"),
            (&[31], "object lock is not looked after; packs are as large as that asks for"),
            (&[33], "nothing is reclaimed yet, with fencing or without"),
        ],
    },
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The numbers that a sentence names: `4`, `5 and 7`, `9 to 11`; `1c` is part of 1.
fn numbers(sentence: &str) -> BTreeSet<u32> {
    let words = sentence.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()));
    let (mut found, mut last, mut through) = (BTreeSet::new(), None::<u32>, false);
    for word in words {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_lowercase());
        match digits.parse() {
            Ok(number) if word.len() <= digits.len() + 1 => {
                found.extend(last.filter(|_| through).unwrap_or(number)..=number);
                last = Some(number);
            }
            _ => {}
        }
        through = word == "to";
    }
    found
}

/// Whether the documentation that ends before line `at`, or begins there, is a test's.
fn is_a_tests(lines: &[&str], at: usize) -> bool {
    let is_attribute = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with('#'));
    let below = lines[at..].iter().take_while(|line| line.starts_with("///") || line.starts_with('#'));
    above.chain(below).any(is_attribute)
}

/// Which tests say which numbers.
fn found(marker: &str) -> BTreeMap<u32, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    rust_files(&root.join("tests"), &mut files);
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.ends_with("tests/umbra/registry.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(said) = line.strip_prefix("///").and_then(|doc| doc.split_once(marker)) else { continue };
            let place = format!("{}:{}", file.strip_prefix(root).unwrap().display(), at + 1);
            assert!(is_a_tests(&lines, at), "{place}: {marker} on something that is no test");
            let named = numbers(said.1.trim_start_matches('s').split(". ").next().unwrap());
            assert!(!named.is_empty(), "{place}: {line} has no number");
            named.into_iter().for_each(|number| found.entry(number).or_default().push(place.clone()));
        }
    }
    found
}

#[test]
fn every_fault_test_and_counterexample_has_a_test_or_a_reason() {
    for Kind { marker, numbers, absent } in KINDS {
        let found = found(marker);
        let absent: BTreeSet<u32> = absent.iter().flat_map(|(numbers, _)| *numbers).copied().collect();
        let missing: Vec<u32> =
            numbers.clone().filter(|number| !found.contains_key(number) && !absent.contains(number)).collect();
        assert!(missing.is_empty(), "{marker}s without a test: {missing:?}");
        let both: Vec<_> = absent.iter().filter_map(|number| Some((number, found.get(number)?))).collect();
        assert!(both.is_empty(), "{marker}s that have a test and a reason for none: {both:?}");
        let unknown: Vec<_> = found.iter().filter(|(number, _)| !numbers.contains(number)).collect();
        assert!(unknown.is_empty(), "{marker}s that do not exist: {unknown:?}");
    }
}

#[test]
fn numbers_are_read_as_they_are_written() {
    let of = |sentence| numbers(sentence).into_iter().collect::<Vec<_>>();
    assert_eq!(of(" 4."), [4]);
    assert_eq!(of("s 2, 3, 4, 10 and 38."), [2, 3, 4, 10, 38]);
    assert_eq!(of("s 26 to 28."), [26, 27, 28]);
    assert_eq!(of("s 1c and 18, and 30 where it fits: 20kB"), [1, 18, 30]);
}
