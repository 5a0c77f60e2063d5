//! Which operation shows in which sectors, after all of them: an array of descriptors is sorted and swept.
//!
//! Memory: 4 bytes an operation for the order, 24 bytes a piece for the result.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Sectors [start, end), where operation `source` (its place in the batch) is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: u64,
    pub end: u64,
    pub source: u32,
}

/// Of `operations` (first sector and number of sectors, oldest first), what shows of each: disjoint pieces in order.
pub fn visible(operations: &[(u64, u64)]) -> Vec<Piece> {
    let mut order: Vec<u32> = (0..operations.len() as u32).filter(|&at| operations[at as usize].1 > 0).collect();
    order.sort_unstable_by_key(|&at| (operations[at as usize].0, Reverse(at)));
    let end_of = |at: u32| operations[at as usize].0 + operations[at as usize].1;

    let mut pieces: Vec<Piece> = Vec::with_capacity(order.len());
    // Operations that have begun at `position`, the newest on top; those that have ended are removed when they
    // come up.
    let mut begun: BinaryHeap<u32> = BinaryHeap::new();
    let mut position = 0;
    let mut next = order.iter().copied().peekable();
    loop {
        while begun.peek().is_some_and(|&at| end_of(at) <= position) {
            begun.pop();
        }
        let Some(&newest) = begun.peek() else {
            let Some(&first) = next.peek() else { break };
            position = operations[first as usize].0;
            while let Some(at) = next.next_if(|&at| operations[at as usize].0 == position) {
                begun.push(at);
            }
            continue;
        };
        // The newest shows until it ends or a newer one begins; older ones that begin meanwhile only queue up.
        let mut end = end_of(newest);
        while let Some(&at) = next.peek().filter(|&&at| operations[at as usize].0 < end) {
            if at > newest {
                end = operations[at as usize].0;
                break;
            }
            if end_of(at) > end {
                begun.push(at);
            }
            next.next();
        }
        if end > position {
            match pieces.last_mut() {
                Some(last) if last.source == newest && last.end == position => last.end = end,
                _ => pieces.push(Piece { start: position, end, source: newest }),
            }
        }
        position = end;
        while let Some(at) = next.next_if(|&at| operations[at as usize].0 == position) {
            begun.push(at);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(start: u64, end: u64, source: u32) -> Piece {
        Piece { start, end, source }
    }

    #[test]
    fn the_newest_operation_shows() {
        assert_eq!(
            visible(&[(0, 10), (3, 4), (5, 1)]),
            [piece(0, 3, 0), piece(3, 5, 1), piece(5, 6, 2), piece(6, 7, 1), piece(7, 10, 0)]
        );
        assert_eq!(visible(&[(3, 4), (0, 10)]), [piece(0, 10, 1)]);
        assert_eq!(visible(&[(0, 0), (5, 1)]), [piece(5, 6, 1)]);
        assert_eq!(visible(&[]), []);
    }

    proptest! {
        #[test]
        fn it_shows_what_writing_one_after_the_other_leaves(operations in prop::collection::vec((0u64..64, 0u64..24), 0..40)) {
            let mut model = [None; 96];
            for (at, &(start, count)) in operations.iter().enumerate() {
                model[start as usize..(start + count) as usize].fill(Some(at as u32));
            }
            let mut shown = [None; 96];
            let mut end = 0;
            for piece in visible(&operations) {
                prop_assert!(piece.start >= end && piece.start < piece.end, "pieces are disjoint and in order");
                end = piece.end;
                shown[piece.start as usize..piece.end as usize].fill(Some(piece.source));
            }
            prop_assert_eq!(shown, model);
        }
    }
}
