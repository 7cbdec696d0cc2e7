//! Which tensors share a buffer: a slot is used again once its tensor is dead.

use std::collections::BTreeMap;

/// When a tensor is alive: from the step that writes it to the last that reads it, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Size.
    pub bytes: u64,
    /// Step that writes it.
    pub first: usize,
    /// Last step that reads it.
    pub last: usize,
}

/// A slot for each tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Slot of each tensor, in the order of the lifetimes.
    pub slot_of: Vec<usize>,
}

/// Gives tensors that are never alive together one slot: the largest tensors first, or those that are written first, whichever
/// needs less (greedy by size and in order of execution, Pisarchyk and Lee, arXiv:2001.03288). A slot is a buffer of its own, so
/// that what counts is their sum.
pub fn assign(lifetimes: &[Lifetime]) -> Assignment {
    let mut by_size: Vec<usize> = (0..lifetimes.len()).collect();
    let mut by_time = by_size.clone();
    by_size.sort_by_key(|&tensor| std::cmp::Reverse(lifetimes[tensor].bytes));
    by_time.sort_by_key(|&tensor| lifetimes[tensor].first);
    let both = [by_size, by_time].map(|order| greedy(lifetimes, &order));
    let [by_size, by_time] = both;
    if by_time.bytes() < by_size.bytes() { by_time } else { by_size }
}

/// Bytes of the tensors that are alive together when most are: no assignment needs less.
pub fn largest_live_set(lifetimes: &[Lifetime]) -> u64 {
    let born = lifetimes.iter().map(|lifetime| (lifetime.first, true, lifetime.bytes));
    let dead = lifetimes.iter().map(|lifetime| (lifetime.last + 1, false, lifetime.bytes));
    let mut events: Vec<(usize, bool, u64)> = born.chain(dead).collect();
    // Of those at one step, deaths come first.
    events.sort_unstable();
    let (mut live, mut most) = (0_u64, 0_u64);
    for (_, is_born, bytes) in events {
        live = if is_born { live.saturating_add(bytes) } else { live.saturating_sub(bytes) };
        most = most.max(live);
    }
    most
}

impl Assignment {
    /// Bytes of all slots.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }
}

/// Tensors in this order, each into the free slot that it fits best: the smallest that is large enough, else the largest, which
/// grows; a slot of its own where none is free.
fn greedy(lifetimes: &[Lifetime], order: &[usize]) -> Assignment {
    // When each slot is taken: the steps from a key to its value. These never overlap, so one look is enough.
    let mut taken: Vec<BTreeMap<usize, usize>> = Vec::new();
    let mut assignment = Assignment { slots: Vec::new(), slot_of: vec![0; lifetimes.len()] };
    for &tensor in order {
        let Lifetime { bytes, first, last } = lifetimes[tensor];
        let is_free = |slot: &usize| taken[*slot].range(..=last).next_back().is_none_or(|(_, &until)| until < first);
        let fit = |&slot: &usize| {
            let size = assignment.slots[slot];
            (size < bytes, size.abs_diff(bytes))
        };
        let slot = (0..taken.len()).filter(is_free).min_by_key(fit).unwrap_or_else(|| {
            taken.push(BTreeMap::new());
            assignment.slots.push(0);
            taken.len() - 1
        });
        taken[slot].insert(first, last);
        assignment.slots[slot] = assignment.slots[slot].max(bytes);
        assignment.slot_of[tensor] = slot;
    }
    assignment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_needs_two_slots() {
        let chain: Vec<Lifetime> =
            (0..6).map(|step| Lifetime { bytes: 100 - step as u64, first: step, last: step + 1 }).collect();
        assert_eq!(assign(&chain).slots, [100, 99]);
        assert_eq!(largest_live_set(&chain), 199);
    }

    #[test]
    fn a_small_tensor_takes_the_small_slot() {
        let tensor = |bytes, first, last| Lifetime { bytes, first, last };
        // The large slot is free again when the last two are written, one of which needs it.
        let lifetimes = [tensor(100, 0, 0), tensor(10, 0, 0), tensor(10, 1, 2), tensor(100, 2, 3)];
        let assignment = assign(&lifetimes);
        assert_eq!((assignment.bytes(), largest_live_set(&lifetimes)), (110, 110));
    }
}
