//! Which tensors share a buffer: a slot is used again once its tensor is dead.

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

impl Lifetime {
    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A slot for each tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Slot of each tensor, in the order of the lifetimes.
    pub slot_of: Vec<usize>,
}

/// Gives tensors that are never alive together one slot, the largest first
/// (greedy by size, Pisarchyk and Lee, arXiv:2001.03288).
pub fn assign(lifetimes: &[Lifetime]) -> Assignment {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&tensor| std::cmp::Reverse(lifetimes[tensor].bytes));
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut assignment = Assignment { slots: Vec::new(), slot_of: vec![0; lifetimes.len()] };
    for tensor in order {
        let free = |members: &Vec<usize>| members.iter().all(|&other| !lifetimes[tensor].overlaps(&lifetimes[other]));
        let slot = members.iter().position(free).unwrap_or_else(|| {
            members.push(Vec::new());
            assignment.slots.push(lifetimes[tensor].bytes);
            members.len() - 1
        });
        members[slot].push(tensor);
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
    }
}
